"""What is known of the parts of blocks: bound to the map, dropped when in doubt, gone when it has to be."""

from __future__ import annotations

import random
import stat
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.state.files import Disk
from adapters.state.maps import VolumeMap
from engine.parts import ORIGINS, PART_ENTRY
from engine.state import ENTRY, VolumeState
from tests.adapters.state.fakes_disk import WHOLE, PlannedDisk, head_of, numbers
from tests.adapters.state.fakes_parts import (
    BLOCKS,
    EVERY,
    KINDS,
    PAGES,
    Truth,
    commit,
    committed,
    opened,
    stage_page,
    stage_some,
    staged_parts,
)
from tests.fakes_state import MemoryVolumeState

FILES = ("parts", "origins", "parts.sums")


def keys_in(folder: Path, keys: list[bytes]) -> int:
    """Return how many of `keys` stand in any file of a folder."""
    data = b"".join(path.read_bytes() for path in folder.iterdir())
    return sum(key in data for key in keys)


def some_keys(volume: VolumeState, page: int) -> list[bytes]:
    """Return the keys of the first source of every block of a page."""
    return [row["parts_key"].tobytes() for row in volume.parts(numbers(page))[1]["sources"][0, :, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_parts_count_when_the_block_became_the_record_they_are_of(tmp_path: Path, kind: str) -> None:
    truth = Truth()
    volume = committed(tmp_path, truth, {3: kind})
    wanted = 64 if kind in ("whole", "delta") else 0
    assert truth.check(volume, EVERY) == wanted
    volume.close()
    assert truth.check(opened(tmp_path), EVERY) == wanted


def test_what_is_staged_is_found_and_does_not_count_yet(tmp_path: Path) -> None:
    truth = Truth()
    volume = committed(tmp_path, truth, {3: "whole"})
    first, second = truth.page(["delta"] * 64), truth.page(["whole"] * 64)
    volume.stage_parts(3, 0b0111, first[2], first[3])
    volume.stage_parts(3, 0b1110, second[2], None)
    masks, parts, origins = staged_parts(volume, numbers(2, 3))
    assert masks.tolist() == [0, 0b1111]
    assert parts[1, 0] == first[2][0]
    assert (parts[1, 1:4] == second[2][1:4]).all()
    assert origins[1, 0] == first[3][0]
    assert not any(origins[1, 1:4].tobytes())
    assert truth.check(volume, EVERY) == 64
    volume.discard_staged()
    assert staged_parts(volume, numbers(3))[0].tolist() == [0]
    assert truth.check(volume, EVERY) == 64


def test_parts_of_a_block_that_did_not_change_may_be_learned_later(tmp_path: Path) -> None:
    truth = Truth()
    volume, (entries, mask, parts, _) = opened(tmp_path), truth.page(["whole"] * 64)
    volume.stage(3, WHOLE, entries)
    commit(volume, 1)
    assert truth.check(volume, EVERY) == 0
    volume.stage_parts(3, mask & 0xFF, parts, None)
    commit(volume, 2)
    assert truth.check(volume, EVERY) == 8


def test_of_a_block_staged_without_its_parts_nothing_stays_known(tmp_path: Path) -> None:
    truth = Truth()
    volume = committed(tmp_path, truth, {3: "delta", 4: "delta"})
    keys = some_keys(volume, 3)
    assert keys_in(tmp_path, keys) == 64
    volume.stage(3, 0xFF, volume.read(numbers(3))[0])  # to the same places even
    commit(volume, 2)
    assert truth.check(volume, EVERY) == 120
    assert keys_in(tmp_path, keys) == 56
    stage_page([volume], truth, 3, ["whole"] * 64, WHOLE)
    commit(volume, 3)
    assert truth.check(volume, EVERY) == 128
    assert keys_in(tmp_path, keys) == 0


def test_a_sealed_set_is_applied_with_its_parts_by_the_next_process(tmp_path: Path) -> None:
    truth, volume = Truth(), opened(tmp_path)
    stage_page([volume], truth, 3, ["delta"] * 64, WHOLE)
    volume.sync_staged()
    volume.close()
    again = opened(tmp_path)
    again.apply(head_of(1, BLOCKS))
    assert truth.check(again, EVERY) == 64


def test_staging_parts_breaks_the_seal(tmp_path: Path) -> None:
    truth, volume = Truth(), opened(tmp_path)
    stage_page([volume], truth, 3, ["delta"] * 64, WHOLE)
    volume.sync_staged()
    assert (tmp_path / "staged.seal").exists()
    volume.stage_parts(4, 1, truth.page(["whole"] * 64)[2], None)
    assert not (tmp_path / "staged.seal").exists()


@pytest.mark.parametrize("sealed", [False, True])
def test_what_a_dead_session_staged_is_dropped(tmp_path: Path, sealed: bool) -> None:
    truth, volume = Truth(), opened(tmp_path)
    stage_page([volume], truth, 3, ["delta"] * 64, WHOLE)
    if sealed:
        volume.sync_staged()
    volume.close()
    opened(tmp_path, keep_sealed=not sealed)
    assert not [path.name for path in tmp_path.iterdir() if path.stat().st_size]


def test_nothing_beyond_the_end_stays_and_nothing_comes_back(tmp_path: Path) -> None:
    truth = Truth()
    volume = committed(tmp_path, truth, dict.fromkeys(range(PAGES), "delta"))
    keys = [*some_keys(volume, 3)[7:], *some_keys(volume, 4), *some_keys(volume, 9)]
    assert keys_in(tmp_path, keys) == 57 + 128
    commit(volume, 2, 3 * 64 + 7)
    assert truth.check(volume, EVERY) == 3 * 64 + 7
    assert keys_in(tmp_path, keys) == 0
    commit(volume, 3)
    assert truth.check(volume, EVERY) == 3 * 64 + 7
    commit(volume, 4, 0)
    commit(volume, 5)
    assert truth.check(volume, EVERY) == 0
    assert [(tmp_path / name).stat().st_size for name in FILES] == [0, 0, 0]


def test_parts_can_be_forgotten_and_the_map_stays(tmp_path: Path) -> None:
    truth = Truth()
    volume = committed(tmp_path, truth, {3: "delta"})
    stage_page([volume], truth, 4, ["delta"] * 64, WHOLE)
    keys = some_keys(volume, 3)
    volume.forget_parts()
    assert keys_in(tmp_path, keys) == 0
    commit(volume, 2)
    assert volume.used_pages(0, PAGES).tolist() == [3, 4]
    assert truth.check(volume, EVERY) == 0


def test_forgetting_parts_that_are_not_there_changes_nothing_on_disk(tmp_path: Path) -> None:
    disk = PlannedDisk(tmp_path)
    volume = opened(tmp_path, disk)
    volume.stage(3, WHOLE, Truth().page(["whole"] * 64)[0])
    commit(volume, 1)
    before = disk.count
    volume.forget_parts()
    assert disk.count == before


def test_a_forgotten_map_and_one_begun_anew_take_the_parts_with_them(tmp_path: Path) -> None:
    truth = Truth()
    volume = committed(tmp_path, truth, {3: "delta"})
    volume.forget()
    assert not [path.name for path in tmp_path.iterdir() if path.stat().st_size]
    stage_page([volume], truth, 4, ["delta"] * 64, WHOLE)
    commit(volume, 2)
    keys = some_keys(volume, 4)
    volume.close()
    (tmp_path / "head").unlink()
    volume = opened(tmp_path)
    stage_page([volume], truth, 5, ["delta"] * 64, WHOLE)
    commit(volume, 3)
    assert truth.check(volume, EVERY) == 64
    assert keys_in(tmp_path, keys) == 0


def test_threads_stage_parts_of_different_pages_at_the_same_time(tmp_path: Path) -> None:
    truth, volume = Truth(), opened(tmp_path)
    made = [truth.page(["delta" if page % 2 else "whole"] * 64) for page in range(200)]

    def stage(page: int) -> None:
        entries, mask, parts, origins = made[page]
        volume.stage(page, WHOLE, entries)
        for half in (mask & 0xFFFFFFFF, mask & ~0xFFFFFFFF):
            volume.stage_parts(page, half, parts, origins if page % 2 else None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(stage, range(200)))
    commit(volume, 1, 200 * 64)
    assert truth.check(volume, np.arange(200, dtype=np.int64)) == 200 * 64


def test_only_the_owner_may_read_what_holds_keys(tmp_path: Path) -> None:
    committed(tmp_path, Truth(), {3: "delta"})
    if sys.platform != "win32":
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        assert {"parts", "origins", "staged.origins"} < modes.keys()
        assert set(modes.values()) == {0o600}


def test_without_the_right_to_write_no_file_of_parts_is_made_or_changed(tmp_path: Path) -> None:
    truth = Truth()
    volume = committed(tmp_path / "a", truth, {3: "delta"})
    stage_page([volume], truth, 4, ["delta"] * 64, WHOLE)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "a").iterdir()}
    looking = VolumeMap(tmp_path / "a", Disk(), writable=False)
    assert truth.check(looking, EVERY) == 64
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "a").iterdir()}
    assert not any(VolumeMap(tmp_path / "none", Disk(), writable=False).parts(EVERY)[0].tobytes())


def space_of(folder: Path) -> int:
    """Return the bytes the files of a folder take; where the system does not say, 0."""
    return sum(getattr(path.stat(), "st_blocks", 0) * 512 for path in folder.iterdir())


def test_parts_of_a_huge_sparse_volume_take_the_space_of_what_is_used(tmp_path: Path) -> None:
    pages = (10 << 40) >> 22
    used, truth, volume = numbers(0, 1, 4711, pages // 2, pages - 1), Truth(), opened(tmp_path)
    for page in used.tolist():
        stage_page([volume], truth, page, ["delta"] * 64, WHOLE)
    assert space_of(tmp_path) < 400_000
    commit(volume, 1, pages * 64)
    assert truth.check(volume, used) == 5 * 64
    assert space_of(tmp_path) < 400_000
    for page in used.tolist():
        stage_page([volume], truth, page, ["whole"] * 64, WHOLE)
    stage_page([volume], truth, 77, ["unknown"] * 64, WHOLE)
    commit(volume, 2, pages * 64)
    assert truth.check(volume, np.union1d(used, numbers(77))) == 5 * 64
    assert space_of(tmp_path) < 400_000


def same_known(left: VolumeState, right: VolumeState) -> None:
    """Compare all that two states say of parts."""
    for known, wanted in zip(left.parts(EVERY), right.parts(EVERY), strict=True):
        assert known.tobytes() == wanted.tobytes()
    mine, theirs = staged_parts(left, EVERY), staged_parts(right, EVERY)
    assert mine[0].tolist() == theirs[0].tolist()
    for page, mask in enumerate(mine[0].tolist()):
        rows = [bit for bit in range(64) if mask >> bit & 1]
        assert mine[1][page, rows].tobytes() == theirs[1][page, rows].tobytes()
        assert mine[2][page, rows].tobytes() == theirs[2][page, rows].tobytes()


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1 << 32),
    steps=st.lists(
        st.sampled_from(
            ("stage", "stage", "stage", "commit", "commit", "resize", "discard", "forget", "parts", "open")
        ),
        max_size=25,
    ),
)
def test_the_state_in_memory_and_the_one_on_disk_agree(seed: int, steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "volume"  # what the disk buries lies beside it
        truth, chance = Truth(seed), random.Random(seed)
        memory, disk = MemoryVolumeState(), PlannedDisk(folder)  # one that does not wait for syncs
        volume = opened(folder, disk)
        blocks = BLOCKS - 3
        for order, step in enumerate(steps):
            if step == "stage":
                stage_some([memory, volume], truth, chance, PAGES, chance.randint(1, 4))
            elif step in ("commit", "resize"):
                blocks = chance.randint(0, BLOCKS) if step == "resize" else blocks
                volume.sync_staged()
                for state in (memory, volume):
                    state.apply(head_of(order, blocks))
            elif step == "open":
                volume.close()
                volume = opened(folder, disk, keep_sealed=False)
                memory.discard_staged()
            else:
                for state in (memory, volume):
                    {
                        "discard": state.discard_staged,
                        "forget": state.forget,
                        "parts": state.forget_parts,
                    }[step]()
            same_known(memory, volume)
            truth.check(volume, EVERY)
        volume.close()


def test_entries_have_the_size_the_files_are_made_for() -> None:
    assert (ENTRY.itemsize, PART_ENTRY.itemsize, ORIGINS.itemsize) == (64, 152, 272)
