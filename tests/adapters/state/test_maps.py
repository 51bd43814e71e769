"""A volume's local map: what is staged, sealed and applied, and what a damaged or lost one shows."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from adapters.state.files import Disk
from adapters.state.maps import VolumeMap
from engine.errors import SessionAborted, StateCorrupt
from engine.state import PAGE_ENTRIES, VolumeState
from tests.adapters.state.fakes_disk import (
    WHOLE,
    Model,
    PlannedDisk,
    SeekingDisk,
    entries_of,
    fill_up,
    head_of,
    numbers,
)


def opened(folder: Path, disk: Disk | None = None, keep_sealed: bool = True) -> VolumeMap:
    return VolumeMap(folder, disk or Disk(), writable=True, keep_sealed=keep_sealed)


def committed(folder: Path, pages: dict[int, int], blocks: int, disk: Disk | None = None) -> VolumeMap:
    """Return a map of `pages` (number: seed of its entries)."""
    volume = opened(folder, disk)
    for page, seed in pages.items():
        volume.stage(page, WHOLE, entries_of(seed))
    volume.sync_staged()
    volume.apply(head_of(1, blocks))
    return volume


@pytest.mark.parametrize("disk", [Disk(), SeekingDisk()], ids=["positioned", "seeking"])
def test_what_was_staged_is_read_after_it_was_applied_and_after_opening_again(tmp_path: Path, disk: Disk) -> None:
    model, volume, chance = Model(), opened(tmp_path / "a", disk), random.Random(1)
    for order in range(1, 6):
        for _ in range(30):
            page, mask, seed = chance.randrange(1100), chance.getrandbits(64), chance.randrange(9)
            volume.stage(page, mask, entries_of(seed))
            model.stage(page, mask, entries_of(seed))
        model.check(volume, 1100)
        volume.sync_staged()
        model.check(volume, 1100)
        volume.apply(head_of(order, 1100 * 64 - 5))
        model = model.applied(head_of(order, 1100 * 64 - 5), 1100 * 64 - 5)
        model.check(volume, 1100)
        volume.close()
        volume = opened(tmp_path / "a", disk)
        model.check(volume, 1100)
    volume.close()


def test_it_is_the_port_the_engine_asks_for(tmp_path: Path) -> None:
    state: VolumeState = opened(tmp_path)
    assert state.head is None
    assert state.used_pages(0, 1 << 40).size == 0
    assert not state.read(numbers(0, 7, 1 << 30)).view(np.uint8).any()


def test_threads_stage_different_pages_at_the_same_time(tmp_path: Path) -> None:
    volume = opened(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda page: volume.stage(page, WHOLE, entries_of(page + 1)), range(400)))
        list(pool.map(lambda page: volume.stage(page, 3, entries_of(5)), range(400)))
    volume.sync_staged()
    volume.apply(head_of(1, 400 * 64))
    found = volume.read(np.arange(400, dtype=np.int64))
    for page in range(400):
        assert (found[page, :2] == entries_of(5)[:2]).all()
        assert (found[page, 2:] == entries_of(page + 1)[2:]).all()


def test_staged_changes_are_forgotten_when_discarded(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1, 5: 2}, 640)
    volume.stage(0, 1, entries_of(9))
    volume.stage(7, WHOLE, entries_of(9))
    volume.sync_staged()
    volume.discard_staged()
    assert volume.staged_pages().size == 0
    assert (volume.current(numbers(0))[0] == entries_of(1)).all()
    assert volume.used_pages(0, 10).tolist() == [0, 5]


def test_staging_after_the_seal_breaks_it(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1}, 640)
    volume.stage(1, 1, entries_of(2))
    volume.sync_staged()
    volume.stage(1, 2, entries_of(3))
    volume.close()
    again = opened(tmp_path)
    assert again.staged_pages().size == 0
    with pytest.raises(StateCorrupt, match="no finished set"):
        again.apply(head_of(2, 640))


def test_a_set_sealed_twice_holds_both_changes(tmp_path: Path) -> None:
    volume = committed(tmp_path, {1: 1}, 640)
    volume.stage(1, 1, entries_of(2))
    volume.sync_staged()
    volume.stage(1, 2, entries_of(3))
    volume.sync_staged()
    volume.close()
    again = opened(tmp_path)
    again.apply(head_of(2, 640))
    found = again.read(numbers(1))[0]
    assert found[0] == entries_of(2)[0]
    assert found[1] == entries_of(3)[1]
    assert (found[2:] == entries_of(1)[2:]).all()


def test_a_commit_without_changes_needs_its_seal_as_well(tmp_path: Path) -> None:
    volume = committed(tmp_path, {1: 1}, 640)
    with pytest.raises(StateCorrupt, match="no finished set"):
        volume.apply(head_of(2, 640))
    volume.sync_staged()
    volume.apply(head_of(2, 640))
    volume.apply(head_of(2, 640))
    assert volume.head == head_of(2, 640)
    assert (volume.read(numbers(1))[0] == entries_of(1)).all()


def test_what_comes_back_with_the_power_is_no_part_of_an_empty_set(tmp_path: Path) -> None:
    volume = committed(tmp_path, {1: 1}, 640)
    volume.stage(2, WHOLE, entries_of(2))
    volume.sync_staged()
    older = {path: path.read_bytes() for path in tmp_path.glob("staged*") if path.name != "staged.seal"}
    volume.discard_staged()
    volume.sync_staged()
    volume.close()
    for path, raw in older.items():
        path.write_bytes(raw)
    again = opened(tmp_path)
    assert again.staged_pages().size == 0
    again.apply(head_of(2, 640))
    assert again.head == head_of(2, 640)
    assert again.used_pages(0, 10).tolist() == [1]


def test_a_sealed_set_no_intent_asks_for_is_dropped(tmp_path: Path) -> None:
    volume = committed(tmp_path, {1: 1}, 640)
    volume.stage(2, WHOLE, entries_of(2))
    volume.sync_staged()
    volume.close()
    assert opened(tmp_path, keep_sealed=False).staged_pages().size == 0


def test_a_set_is_not_applied_to_another_map_than_it_was_made_for(tmp_path: Path) -> None:
    volume = committed(tmp_path, {1: 1}, 640)
    volume.stage(2, WHOLE, entries_of(2))
    volume.sync_staged()
    volume.close()
    (tmp_path / "head").unlink()
    again = opened(tmp_path)
    with pytest.raises(StateCorrupt, match="lost the map"):
        again.apply(head_of(2, 640))


def test_pages_and_entries_beyond_a_smaller_volume_are_dropped(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1, 3: 2, 9: 3}, 640)
    volume.stage(8, WHOLE, entries_of(4))
    volume.sync_staged()
    volume.apply(head_of(2, 3 * 64 + 7))
    assert volume.used_pages(0, 100).tolist() == [0, 3]
    found = volume.read(numbers(3, 8, 9))
    assert (found[0, :7] == entries_of(2)[:7]).all()
    assert not found[0, 7:].view(np.uint8).any()
    assert not found[1:].view(np.uint8).any()
    volume.sync_staged()
    volume.apply(head_of(3, 640))
    assert volume.used_pages(0, 100).tolist() == [0, 3]
    volume.sync_staged()
    volume.apply(head_of(4, 0))
    assert volume.used_pages(0, 100).size == 0
    assert (tmp_path / "map").stat().st_size == 0


def test_a_page_that_became_all_zero_is_not_used_any_more(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1, 3: 2}, 640)
    volume.stage(3, WHOLE, entries_of(0))
    volume.stage(4, WHOLE, entries_of(0))
    volume.sync_staged()
    volume.apply(head_of(2, 640))
    assert volume.used_pages(0, 100).tolist() == [0]
    assert not volume.read(numbers(3, 4)).view(np.uint8).any()


def test_forgetting_leaves_nothing(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1, 3: 2}, 640)
    volume.set_missing(numbers(3), np.array([5], dtype=np.uint64))
    volume.stage(4, WHOLE, entries_of(1))
    volume.sync_staged()
    volume.forget()
    for state in (volume, opened(tmp_path)):
        assert state.head is None
        assert state.problem is None
        assert state.used_pages(0, 100).size == state.staged_pages().size == state.missing_pages(0, 100).size == 0
    assert not [path.name for path in tmp_path.iterdir() if path.stat().st_size]


def test_a_map_without_a_head_is_begun_anew(tmp_path: Path) -> None:
    committed(tmp_path, {0: 1, 3: 2}, 640).close()
    (tmp_path / "head").write_bytes(b"FBHEAD\x00\x01 but not for long")
    volume = opened(tmp_path)
    with pytest.raises(StateCorrupt, match="head is damaged") as raised:
        print(volume.head)
    assert str(tmp_path / "head") in str(raised.value)
    assert not volume.read(numbers(0, 3)).view(np.uint8).any()
    volume.stage(5, WHOLE, entries_of(7))
    volume.sync_staged()
    volume.apply(head_of(2, 640))
    assert not volume.problem
    assert volume.used_pages(0, 10).tolist() == [5]
    assert opened(tmp_path).head == head_of(2, 640)


@pytest.mark.parametrize("offset", [5 * 4096, 5 * 4096 + 4095, 4 * 4096 + 7])
def test_a_damaged_page_is_named(tmp_path: Path, offset: int) -> None:
    volume = committed(tmp_path, {0: 1, 5: 2}, 640)
    raw = bytearray((tmp_path / "map").read_bytes())
    raw[offset] ^= 4
    (tmp_path / "map").write_bytes(raw)
    page = offset // 4096
    with pytest.raises(StateCorrupt, match=f"map is damaged: the checksum of page {page}"):
        volume.read(numbers(0, 4, 5))
    assert (volume.read(numbers(0))[0] == entries_of(1)).all()


def test_pages_swapped_with_their_checksums_are_noticed(tmp_path: Path) -> None:
    committed(tmp_path, {0: 1, 1: 2}, 640).close()
    for name, width in (("map", 4096), ("map.sums", 8)):
        raw = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(raw[width : 2 * width] + raw[:width] + raw[2 * width :])
    with pytest.raises(StateCorrupt, match="page 0"):
        opened(tmp_path).read(numbers(0))


@pytest.mark.parametrize("name", ["map", "map.sums"])
def test_a_cut_off_file_is_noticed(tmp_path: Path, name: str) -> None:
    committed(tmp_path, {0: 1, 9: 2}, 640).close()
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StateCorrupt, match=r"map(\.sums)? is damaged"):
        opened(tmp_path).read(numbers(9))


def test_lost_checksums_do_not_make_used_pages_look_unused(tmp_path: Path) -> None:
    committed(tmp_path, {0: 1, 9: 2}, 640).close()
    (tmp_path / "map.sums").write_bytes(b"")
    with pytest.raises(StateCorrupt, match=r"map\.sums is damaged"):
        opened(tmp_path).used_pages(0, 10)


def test_without_the_right_to_write_nothing_is_made_or_changed(tmp_path: Path) -> None:
    missing = VolumeMap(tmp_path / "none", Disk(), writable=False)
    assert missing.head is None
    assert not (tmp_path / "none").exists()
    volume = committed(tmp_path / "a", {0: 1}, 640)
    volume.stage(2, WHOLE, entries_of(4))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "a").iterdir()}
    looking = VolumeMap(tmp_path / "a", Disk(), writable=False)
    assert looking.head == head_of(1, 640)
    assert (looking.read(numbers(0))[0] == entries_of(1)).all()
    looking.close()
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "a").iterdir()}


def meets_a_full_disk(volume: VolumeMap) -> bool:
    try:
        volume.apply(head_of(2, 640))
    except SessionAborted:
        return True
    return False


def test_a_full_disk_ends_an_apply_with_the_old_map_or_a_certain_new_one(tmp_path: Path) -> None:
    at = 0
    while True:
        at += 1
        folder = tmp_path / str(at)
        disk = PlannedDisk(folder)
        volume = committed(folder, {0: 1, 3: 2}, 640, disk)
        model = Model().applied(head_of(1, 640), 640)
        model.map = {0: entries_of(1), 3: entries_of(2)}
        for page in (3, 5, 6):
            volume.stage(page, 0xFFF0, entries_of(7))
            model.stage(page, 0xFFF0, entries_of(7))
        volume.sync_staged()
        disk.at, disk.plan = disk.count + at, fill_up
        if not meets_a_full_disk(volume):
            break
        disk.at = -1
        if not (folder / "head.next").exists():
            found = VolumeMap(folder, Disk(), writable=False)
            (model if found.head == head_of(1, 640) else model.applied(head_of(2, 640), 640)).check_map(found, 10)
        volume.apply(head_of(2, 640))
        model.applied(head_of(2, 640), 640).check(volume, 10)
    assert at > 8


def test_the_bitmap_of_missing_blocks_is_kept(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1}, 5000 * 64)
    pages = numbers(0, 510, 511, 1022, 4000)
    masks = np.array([1, 1 << 63, 5, 0, WHOLE], dtype=np.uint64)
    volume.set_missing(pages, masks)
    volume.sync_missing()
    volume.close()
    again = opened(tmp_path)
    assert again.missing(pages).tolist() == masks.tolist()
    assert again.missing_pages(0, 5000).tolist() == [0, 510, 511, 4000]
    assert again.missing_pages(1, 4000).tolist() == [510, 511]
    again.set_missing(numbers(511), np.array([0], dtype=np.uint64))
    assert again.missing_pages(0, 1 << 30).tolist() == [0, 510, 4000]


def test_a_damaged_piece_of_the_bitmap_counts_as_all_missing(tmp_path: Path) -> None:
    blocks = 600 * 64 + 3
    volume = committed(tmp_path, {0: 1}, blocks)
    volume.set_missing(numbers(0, 512), np.array([1, 2], dtype=np.uint64))
    volume.sync_missing()
    raw = bytearray((tmp_path / "missing").read_bytes())
    raw[4096 + 77] ^= 1
    (tmp_path / "missing").write_bytes(raw)
    assert volume.missing(numbers(0, 510, 511, 600, 601)).tolist() == [1, 0, WHOLE, 7, 0]
    assert volume.missing_pages(0, 5000).tolist() == [0, *range(511, 601)]
    volume.set_missing(numbers(512), np.array([0], dtype=np.uint64))
    assert volume.missing_pages(0, 5000).tolist() == [0, 511, *range(513, 601)]


def test_bits_of_a_process_that_died_are_made_durable_by_the_next(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1}, 5000 * 64)
    volume.set_missing(numbers(3), np.array([WHOLE], dtype=np.uint64))
    volume.close()
    disk = PlannedDisk(tmp_path)
    again = opened(tmp_path, disk)
    before = disk.count
    again.sync_missing()
    again.sync_missing()
    assert disk.count == before + 1
    again.set_missing(numbers(3), np.array([0], dtype=np.uint64))
    again.sync_missing()
    assert disk.count == before + 3


def test_the_bitmap_ends_with_the_volume(tmp_path: Path) -> None:
    volume = committed(tmp_path, {0: 1}, 5000 * 64)
    volume.set_missing(numbers(3, 4, 900, 4000), np.array([WHOLE] * 4, dtype=np.uint64))
    volume.sync_staged()
    volume.apply(head_of(2, 4 * 64 + 2))
    assert volume.missing(numbers(3, 4, 900, 4000)).tolist() == [WHOLE, 3, 0, 0]


def space_of(folder: Path) -> int:
    """Return the bytes the files of a folder take; where the system does not say, 0."""
    return sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in folder.iterdir())


def test_state_of_a_huge_sparse_volume_takes_the_space_of_what_is_used(tmp_path: Path) -> None:
    pages = (10 << 40) // (64 * PAGE_ENTRIES * 1024)
    volume = opened(tmp_path)
    used = [0, 1, 4711, pages // 2, pages - 1]
    for page in used:
        volume.stage(page, WHOLE, entries_of(page + 1))
    assert volume.staged_pages().tolist() == used
    volume.set_missing(numbers(pages - 1), np.array([1], dtype=np.uint64))
    assert space_of(tmp_path) < 200_000
    volume.sync_staged()
    volume.apply(head_of(1, pages * 64))
    volume.close()
    again = opened(tmp_path)
    assert again.used_pages(0, pages).tolist() == used
    assert again.missing_pages(0, pages).tolist() == [pages - 1]
    assert (again.read(numbers(*used))[-1] == entries_of(pages)).all()
    assert (tmp_path / "map").stat().st_size == pages * 4096
    assert space_of(tmp_path) < 200_000
