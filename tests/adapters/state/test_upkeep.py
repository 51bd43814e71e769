"""What is noted of a cache: kept as it was written, and believed by nobody once it is damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapters.state import turns
from adapters.state.directory import StateDirectory
from adapters.state.files import Disk
from adapters.state.fragments import MirrorFolder
from adapters.state.upkeep import UpkeepFiles
from engine.cache.attempt import Attempt
from engine.errors import SessionRunning, StateCorrupt
from engine.state import Checkpoint, Compared
from engine.upkeep import CheckedPacks, LostPacks

STORE = b"s" * 16
NONE = np.empty(0, np.uint64)


def upkeep(path: Path) -> UpkeepFiles:
    return UpkeepFiles(path / "index", STORE, Disk())


def test_what_is_written_is_read_and_another_cache_has_its_own(tmp_path: Path) -> None:
    one, other = upkeep(tmp_path), UpkeepFiles(tmp_path / "index", b"o" * 16, Disk())
    assert len(one.lost_packs().gone) == len(one.checked_packs().keys) == 0
    assert one.checkpoint() is None
    gone, damaged = np.array([1, 1 << 63], np.uint64), np.array([7], np.uint64)
    one.set_lost_packs(LostPacks(gone, damaged))
    one.set_checked_packs(CheckedPacks(gone, np.array([2500, 1], np.uint16)))
    point = Checkpoint(
        attempt=Attempt(attempt="aa", store=STORE.hex(), started_ms=5, blocks=9), volumes={"data": Compared(3, 2, 1)},
        seen=True,
    )  # fmt: skip
    one.set_seen("aa", iter([b"bits", b"more bits"]))
    one.set_checkpoint(point)
    again = upkeep(tmp_path)
    assert [each.tolist() for each in again.lost_packs()] == [gone.tolist(), [7]]
    assert [each.tolist() for each in again.checked_packs()] == [gone.tolist(), [2500, 1]]
    assert again.checkpoint() == point
    assert [*again.seen("aa")] == [b"bits", b"more bits"]
    with pytest.raises(StateCorrupt, match="another"):
        next(again.seen("bb"))
    assert len(other.lost_packs().gone) == 0
    assert other.checkpoint() is None
    again.set_checkpoint(None)
    assert one.checkpoint() is None
    with pytest.raises(StateCorrupt):
        next(one.seen("aa"))
    again.set_lost_packs(LostPacks(NONE, NONE))
    assert len(one.lost_packs().damaged) == 0


@pytest.mark.parametrize("pieces", [[], [b""], [b"one", b"", b"three" * 100]])
def test_what_was_seen_is_all_there_or_refused(tmp_path: Path, pieces: list[bytes]) -> None:
    one = upkeep(tmp_path)
    one.set_seen("aa", pieces)
    assert [*one.seen("aa")] == pieces
    path = tmp_path / "index" / f"{STORE.hex()}.seen"
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole[:at]):
            path.write_bytes(damaged)
            with pytest.raises(StateCorrupt):
                list(one.seen("aa"))
    path.write_bytes(whole)
    one.set_checkpoint(Checkpoint(attempt=Attempt(attempt="aa", store=STORE.hex(), started_ms=5)))
    assert not path.exists()


def test_a_scratch_file_has_no_name_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = upkeep(tmp_path)
    file, other = one.scratch(), one.scratch()
    file.write_at(1 << 20, b"there")
    view = bytearray(9)
    file.read_into((1 << 20) - 2, memoryview(view))
    assert view == b"\0\0there\0\0"
    other.read_into(0, memoryview(view))
    assert view == bytes(9)
    assert [*(tmp_path / "index").iterdir()] == []
    for each in (file, file, other):
        each.close()


@pytest.mark.parametrize("kind", ["lost", "checked", "verify"])
def test_a_damaged_file_says_nothing(tmp_path: Path, kind: str) -> None:
    one = upkeep(tmp_path)
    one.set_lost_packs(LostPacks(np.array([1], np.uint64), NONE))
    one.set_checked_packs(CheckedPacks(np.array([1], np.uint64), np.array([1], np.uint16)))
    one.set_checkpoint(Checkpoint(attempt=Attempt(attempt="aa", store=STORE.hex(), started_ms=5)))
    path = tmp_path / "index" / f"{STORE.hex()}.{kind}"
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert {
            "lost": lambda: len(one.lost_packs().gone),
            "checked": lambda: len(one.checked_packs().keys),
            "verify": lambda: int(one.checkpoint() is not None),
        }[kind]() == 0


def test_who_yields_waits_for_nobody_and_is_seen_to_give_way(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path, yields=True):
        assert (tmp_path / turns.OFFERED).exists()
        # It is no session, and says so to nobody who asks whether one runs.
        assert not (tmp_path / "lock.pid").exists()
        # One that yields, too, asks for nothing.
        with pytest.raises(SessionRunning):
            StateDirectory.open(tmp_path, yields=True)
        assert not turns.wanted(tmp_path)
    with StateDirectory.open(tmp_path):
        assert not (tmp_path / turns.OFFERED).exists()
        with pytest.raises(SessionRunning):
            StateDirectory.open(tmp_path, yields=True)


def test_what_was_let_go_of_is_read_again(tmp_path: Path) -> None:
    mirror = MirrorFolder(tmp_path / "mirror", Disk(), writable=True)
    mirror.publish("index/a", b"x" * 100_000)
    opened = mirror.open("index/a")
    assert bytes(opened[:3]) == b"xxx"
    mirror.relax()
    assert bytes(opened) == b"x" * 100_000
    del opened
    mirror.relax()
