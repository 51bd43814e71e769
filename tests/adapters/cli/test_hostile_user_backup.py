from __future__ import annotations

import json

import pytest

from adapters import main
from adapters.cli import backup, frame, restore
from tests.adapters.cli import hostile


@pytest.mark.parametrize("more", [["--json"], ["--progress", "lines"], ["--progress", "none"]])
def test_why_a_session_failed_is_told_once_on_stderr(
    place: hostile.Place, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    place.volume.unlink()
    assert main.run(["--config", str(place.config), "backup", *more]) == 1
    out, err = capsys.readouterr()
    assert err.count("data.img does not exist") == 1
    if "--json" in more:
        assert "does not exist" in json.loads(out)["error"]
    else:
        assert out == "There is no new restore point.\n"


def test_one_block_is_no_blocks(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.volume.write_bytes(b"x")
    assert main.run(["--config", str(place.config), "backup", "--progress", "none"]) == 0
    out = capsys.readouterr().out
    assert "1 block changed" in out
    assert "to the cache: 1 block, " in out


def test_what_a_stopped_command_leaves_is_told_by_the_command() -> None:
    assert len({frame.STOPPED, backup.STOPPED, restore.STOPPED}) == 3
    assert "a device may hold a part of the volume" in restore.STOPPED
