"""What is known of parts through crashes: at every change an apply makes, by kill and by power cut, again and again."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.state.files import Disk
from adapters.state.maps import VolumeMap
from tests.adapters.state.fakes_disk import WHOLE, MachineDied, PlannedDisk, die, head_of, numbers
from tests.adapters.state.fakes_parts import Truth, stage_page, stage_some

PAGES = 8
BLOCKS = PAGES * 64
EVERY = np.arange(PAGES, dtype=np.int64)


def prepared(folder: Path, disk: Disk, truth: Truth) -> VolumeMap:
    """Return a volume of deltas, with changes of every kind sealed over them."""
    volume = VolumeMap(folder, disk, writable=True)
    for page in range(4):
        stage_page([volume], truth, page, ["delta", "whole"] * 32, WHOLE)
    volume.sync_staged()
    volume.apply(head_of(1, BLOCKS))
    stage_page([volume], truth, 1, ["whole"] * 64, WHOLE)
    stage_page([volume], truth, 2, ["delta", "unknown", "zero", "mistaken"] * 16, 0xFFFF)
    stage_page([volume], truth, 3, ["unknown"] * 64, WHOLE)
    stage_page([volume], truth, 5, ["delta"] * 64, WHOLE)
    volume.sync_staged()
    return volume


def keys_of(volume: VolumeMap, page: int) -> list[bytes]:
    rows = volume.parts(numbers(page))[1]["sources"][0, :, 0]["parts_key"]
    return [row.tobytes() for row in rows if row.any()]


@pytest.mark.parametrize("by_power", [False, True], ids=["kill", "power"])
@pytest.mark.parametrize("blocks", [BLOCKS, 140])
def test_an_apply_cut_off_anywhere_ends_with_the_truth_or_nothing(tmp_path: Path, by_power: bool, blocks: int) -> None:
    at, died, known = 0, True, set()
    while died:
        at += 1
        folder, truth = tmp_path / str(at), Truth(at)
        disk = PlannedDisk(folder)
        volume = prepared(folder, disk, truth)
        gone = [*keys_of(volume, 1), *keys_of(volume, 3)]
        assert len(gone) == 64
        disk.at, disk.plan = disk.count + at, die
        try:
            volume.apply(head_of(2, blocks))
            died = False
        except MachineDied:
            volume.close()
            if by_power:
                disk.power_cut(random.Random(at))
        again = VolumeMap(folder, Disk(), writable=True)
        again.apply(head_of(2, blocks))
        assert again.head == head_of(2, blocks)
        known.add(truth.check(again, EVERY))
        if not by_power:
            data = b"".join(path.read_bytes() for path in folder.iterdir())
            assert not [key for key in gone if key in data]
        again.close()
    assert at > 25
    everything = 64 + 64 + 48 + 4 + 64 if blocks == BLOCKS else 64 + 64 + 3
    assert max(known) == everything


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1 << 32),
    sessions=st.lists(
        st.tuples(
            st.lists(st.integers(1, 60), max_size=3),  # deaths: after so many changes, each time further on
            st.booleans(),
            st.sampled_from((BLOCKS, BLOCKS, BLOCKS - 70, 100)),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_sessions_that_die_and_go_on_never_believe_what_is_wrong(
    seed: int, sessions: list[tuple[list[int], bool, int]]
) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder, truth, chance = Path(base) / "volume", Truth(seed), random.Random(seed)
        for order, (deaths, by_power, blocks) in enumerate(sessions):
            sealed = False
            for death in (*deaths, None):
                disk = PlannedDisk(folder)
                for path in folder.glob("*"):
                    disk.durable.setdefault(folder, {})[path.name] = path.stat().st_ino
                    disk.content[path.stat().st_ino] = path.read_bytes()
                if death is not None:
                    disk.at, disk.plan = death, die
                volume = None
                try:
                    volume = VolumeMap(folder, disk, writable=True, keep_sealed=sealed)
                    truth.check(volume, EVERY)
                    if not (folder / "staged.seal").exists() and (volume.head is None or volume.head.order != order):
                        stage_some([volume], truth, chance, PAGES, 4)
                        volume.sync_staged()
                    sealed = True
                    volume.apply(head_of(order, blocks))
                    truth.check(volume, EVERY)
                    volume.close()
                except MachineDied:
                    if volume is not None:
                        volume.close()
                    if by_power:
                        disk.power_cut(chance)
