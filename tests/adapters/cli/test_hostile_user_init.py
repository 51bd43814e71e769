from __future__ import annotations

from pathlib import Path

import pytest

from adapters import main
from tests.adapters.cli import hostile
from tests.adapters.disks import mounted


@pytest.fixture(autouse=True)
def _nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOREBAY_CONFIG", "FOREBAY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


def init(place: hostile.Place, *more: str) -> int:
    return main.run(["--config", str(place.config), "init", "--passphrase-file", str(place.passphrase), *more])


def test_a_place_that_cannot_be_written_to_leaves_nothing_made_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = hostile.new(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    place.configure("state_dir = 'state'", "identity_file = 'file/identity'\nstate_dir = 'state'")
    before = place.tree()
    assert init(place) == 2
    assert "identity_file: " in capsys.readouterr().err
    assert place.tree() == before


@pytest.mark.root
@pytest.mark.parametrize("which", ["vault", "cache", "state"])
def test_a_read_only_place_leaves_nothing_made_elsewhere(
    tmp_path: Path, which: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = hostile.new(tmp_path)
    with mounted("tmpfs", tmp_path / which, "-t", "tmpfs", "-o", "ro,size=1m"):
        before = place.tree()
        assert init(place) == 2
        err = capsys.readouterr().err
        assert place.tree() == before
    assert (err.count("\n"), "cannot be written to (Read-only file system); nothing was changed" in err) == (1, True)


def test_a_new_vault_without_a_terminal_is_told_all_ways_to_a_passphrase(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = hostile.new(tmp_path)
    assert main.run(["--config", str(place.config), "init"]) == 2
    err = capsys.readouterr().err
    for way in ("--passphrase-file FILE", "--generate", "FOREBAY_PASSPHRASE"):
        assert way in err


def test_an_enrolled_machine_is_told_what_its_lost_vault_means_and_says_what_its_cache_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = hostile.enrol(tmp_path)
    capsys.readouterr()
    assert init(place, "--cache") == 0
    assert "is the one it has adopted" in capsys.readouterr().out
    (tmp_path / "vault").rename(tmp_path / "elsewhere")
    (tmp_path / "vault").mkdir()
    before = place.tree()
    assert init(place) == 1
    err = capsys.readouterr().err
    assert "mount its disk" in err
    assert f"move {tmp_path / 'state' / 'identity'} away first" in err
    assert place.tree() == before
