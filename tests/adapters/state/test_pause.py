"""A pause of the upload holds until its time, or while the machine is in the same network; damage ends it."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.state import pause as pauses
from adapters.state.pause import Pause, end_pause, network_mark, paused, set_pause

NOW_MS = 1_790_000_000_000


def test_a_pause_holds_until_its_time(tmp_path: Path) -> None:
    assert paused(tmp_path, NOW_MS) is None
    set_pause(tmp_path, Pause(until_ms=NOW_MS + 1000))
    sentence = paused(tmp_path, NOW_MS + 999)
    assert sentence is not None
    assert "--resume" in sentence
    assert paused(tmp_path, NOW_MS + 1000) is None
    assert paused(tmp_path, NOW_MS) is not None


def test_a_pause_ends_when_it_is_ended_and_again(tmp_path: Path) -> None:
    set_pause(tmp_path, Pause(until_ms=NOW_MS + 1000))
    for _ in range(2):
        end_pause(tmp_path)
        assert paused(tmp_path, NOW_MS) is None


def test_a_pause_holds_while_the_network_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert network_mark() == network_mark()
    set_pause(tmp_path, Pause(network=network_mark()))
    assert "network" in (paused(tmp_path, NOW_MS) or "")
    monkeypatch.setattr(pauses, "network_mark", lambda: "another")
    assert paused(tmp_path, NOW_MS) is None


@pytest.mark.parametrize("content", [b"", b"FBPAUS\x00\x01", b"\xff" * 100])
def test_a_damaged_pause_is_none_and_a_new_one_takes_its_place(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "upload-pause").write_bytes(content)
    assert paused(tmp_path, NOW_MS) is None
    set_pause(tmp_path, Pause(until_ms=NOW_MS + 1000))
    assert paused(tmp_path, NOW_MS) is not None
