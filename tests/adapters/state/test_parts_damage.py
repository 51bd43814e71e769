"""Files of parts that are damaged, of another time, or met a full disk: what they held is unknown, never wrong."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import SessionAborted
from tests.adapters.state.fakes_disk import WHOLE, PlannedDisk, fill_up, head_of, numbers
from tests.adapters.state.fakes_parts import (
    BLOCKS,
    EVERY,
    PAGES,
    Truth,
    commit,
    committed,
    opened,
    stage_page,
    stage_some,
    staged_parts,
)

FILES = ("parts", "origins", "parts.sums")


def test_a_delta_whose_origins_are_lost_is_not_known(tmp_path: Path) -> None:
    truth = Truth()
    volume = committed(tmp_path, truth, {3: "delta", 4: "whole"})
    (tmp_path / "origins").write_bytes(b"")
    assert truth.check(volume, EVERY) == 64


@pytest.mark.parametrize("name", FILES)
def test_pages_of_another_time_are_not_believed(tmp_path: Path, name: str) -> None:
    truth, volume = Truth(), opened(tmp_path)
    older: list[dict[str, bytes]] = []
    for order in range(4):
        for page in range(PAGES):
            kinds = ["delta" if (bit + order) % 3 else "whole" for bit in range(64)]
            stage_page([volume], truth, page, kinds, 0x0F0F << 8 * order)
        commit(volume, order + 1)
        older.append({each: (tmp_path / each).read_bytes() for each in FILES})
    assert truth.check(volume, EVERY) == 200
    for files in older:
        for each in FILES:
            (tmp_path / each).write_bytes(older[-1][each])
        (tmp_path / name).write_bytes(files[name])
        truth.check(volume, EVERY)
        for each in FILES:
            (tmp_path / each).write_bytes(files[each])
        truth.check(volume, EVERY)


def test_origins_of_another_time_are_not_believed_with_their_checksum_either(tmp_path: Path) -> None:
    truth, volume = Truth(), opened(tmp_path)
    older: list[dict[str, bytes]] = []
    for order in range(4):
        stage_page([volume], truth, 0, ["delta"] * 64, 0xFFFF << 8 * order)
        commit(volume, order + 1)
        older.append({each: (tmp_path / each).read_bytes() for each in FILES})
    assert truth.check(volume, EVERY) == 40
    for files in older[:-1]:
        (tmp_path / "origins").write_bytes(files["origins"])
        (tmp_path / "parts.sums").write_bytes(older[-1]["parts.sums"][:8] + files["parts.sums"][8:])
        assert truth.check(volume, EVERY) == 0


def damaged(chance: random.Random, raw: bytes) -> bytes:
    """Return `raw` with a bit flipped, its end cut off, a range zeroed, sectors moved, or a mixture."""
    out = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        if not out:
            break
        at, length = chance.randrange(len(out)), chance.choice((1, 8, 512, 4096, 20000))
        style = chance.choice(("flip", "cut", "zero", "move"))
        if style == "flip":
            out[at] ^= 1 << chance.randrange(8)
        elif style == "cut":
            del out[at:]
        elif style == "zero":
            out[at : at + length] = bytes(len(out[at : at + length]))
        else:
            source = chance.randrange(len(out))
            piece = out[source : source + length][: len(out) - at]
            out[at : at + len(piece)] = piece
    return bytes(out)


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), names=st.sets(st.sampled_from(FILES), min_size=1))
def test_damaged_pages_are_unknown_never_wrong(seed: int, names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "volume"  # what the disk buries lies beside it
        truth, chance, volume = Truth(seed), random.Random(seed), opened(folder, PlannedDisk(folder))
        for order in (1, 2):
            stage_some([volume], truth, chance, PAGES, 8)
            commit(volume, order)
        for name in sorted(names):
            path = folder / name
            path.write_bytes(damaged(chance, path.read_bytes()))
        truth.check(volume, EVERY)
        stage_some([volume], truth, chance, PAGES, 3)
        commit(volume, 3)
        truth.check(volume, EVERY)
        volume.close()


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), names=st.sets(st.sampled_from((*FILES, "parts.masks")), min_size=1))
def test_damaged_staged_parts_are_unknown_never_wrong(seed: int, names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "volume"  # what the disk buries lies beside it
        truth, chance, volume = Truth(seed), random.Random(seed), opened(folder, PlannedDisk(folder))
        stage_some([volume], truth, chance, PAGES, 8)
        commit(volume, 1)
        stage_some([volume], truth, chance, PAGES, 8)
        volume.sync_staged()
        volume.close()
        for name in sorted(names):
            path = folder / f"staged.{name}"
            path.write_bytes(damaged(chance, path.read_bytes()))
        volume = opened(folder, PlannedDisk(folder))
        volume.apply(head_of(2, BLOCKS))
        truth.check(volume, EVERY)
        volume.close()


def test_an_older_staging_of_the_same_blocks_is_not_believed_after_a_crash(tmp_path: Path) -> None:
    truth, volume = Truth(), opened(tmp_path)
    stage_page([volume], truth, 3, ["whole"] * 64, WHOLE)
    names = [path.name for path in tmp_path.iterdir() if "staged." in path.name and "parts" in path.name]
    older = {name: (tmp_path / name).read_bytes() for name in names}
    stage_page([volume], truth, 3, ["whole"] * 64, WHOLE)
    volume.sync_staged()
    volume.close()
    for name, raw in older.items():
        (tmp_path / name).write_bytes(raw)
    again = opened(tmp_path)
    assert staged_parts(again, numbers(3))[0].tolist() == [0]
    again.apply(head_of(1, BLOCKS))
    assert truth.check(again, EVERY) == 0


def test_damage_to_the_map_is_not_told_twice(tmp_path: Path) -> None:
    volume = committed(tmp_path, Truth(), {3: "whole"})
    (tmp_path / "map").write_bytes(b"")
    assert not any(volume.parts(numbers(3))[0].tobytes())


def test_a_full_disk_while_applying_costs_the_parts_not_the_map(tmp_path: Path) -> None:
    at, outcomes = 0, set()
    while "done" not in outcomes:
        at += 1
        truth, folder = Truth(), tmp_path / str(at)
        committed(folder, truth, {3: "delta", 5: "delta"}).close()
        disk = PlannedDisk(folder)
        volume = opened(folder, disk)
        stage_page([volume], truth, 3, ["whole"] * 64, 0xFFFF)
        stage_page([volume], truth, 4, ["delta"] * 64, WHOLE)
        volume.sync_staged()
        disk.at, disk.plan = disk.count + at, fill_up
        try:
            volume.apply(head_of(2, BLOCKS))
        except SessionAborted:
            outcomes.add("aborted")
            volume.apply(head_of(2, BLOCKS))
            assert truth.check(volume, EVERY) == 192
        else:
            known = truth.check(volume, EVERY)
            assert known in (0, 192)
            outcomes.add("done" if known and disk.count < disk.at else "forgotten" if not known else "late")
        assert volume.head == head_of(2, BLOCKS)
        assert volume.used_pages(0, PAGES).tolist() == [3, 4, 5]
        volume.close()
    assert outcomes >= {"aborted", "forgotten", "done"}


def test_a_full_disk_while_staging_is_told(tmp_path: Path) -> None:
    truth, disk = Truth(), PlannedDisk(tmp_path)
    volume = opened(tmp_path, disk)
    disk.at, disk.plan = disk.count + 2, fill_up
    with pytest.raises(SessionAborted, match="full"):
        volume.stage_parts(3, WHOLE, *truth.page(["delta"] * 64)[2:])
    assert staged_parts(volume, numbers(3))[0].tolist() == [0]
