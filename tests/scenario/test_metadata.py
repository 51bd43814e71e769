"""A point's metadata costs what changed, never what is there."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from engine.block import BLOCK_BYTES
from tests.scenario.inprocess import backup, newest_root, stored_bytes
from tests.scenario.machine import Machine, overwrite, random_volume

METADATA = ("page", "index", "root", "note")
# Of entries written per entry changed over 100 equal increments; tests/engine/test_runmerge.py has the theory.
REWRITES_MAX = 2.0
# What a changed block costs in all metadata at its first writing (docs/FORMAT.md): id, key, place, index, root.
BYTES_A_BLOCK = 100


def test_an_increment_of_a_thousand_blocks_in_a_terabyte_writes_less_than_200_kb_beside_them(tmp_path: Path) -> None:
    volume = tmp_path / "vol.img"
    with volume.open("wb") as out:
        out.truncate(1 << 40)
    machine = Machine(tmp_path / "m", tmp_path / "vault", volumes={"data": volume})
    machine.init()
    generator = np.random.default_rng(5)
    blocks = np.sort(generator.choice((1 << 40) // BLOCK_BYTES, 2000, replace=False))
    for block in blocks[:1000].tolist():
        overwrite(volume, block, generator.bytes(BLOCK_BYTES))
    first = backup(machine)
    assert (first.exit_code, first.volumes["data"].changed) == (0, 1000)
    before = stored_bytes(machine.vault)
    for block in blocks[1000:].tolist():
        overwrite(volume, block, generator.bytes(BLOCK_BYTES))
    second = backup(machine)
    assert (second.exit_code, second.volumes["data"].changed) == (0, 1000)
    # Headers, tags and footers of the data packs count as metadata here; only the blocks themselves do not.
    assert stored_bytes(machine.vault) - before - 1000 * BLOCK_BYTES < 200_000
    # What was read, not what the volume has: holes and unchanged pages of nothing cost nothing.
    assert second.volumes["data"].read_bytes == 2000 * BLOCK_BYTES


def test_a_hundred_daily_increments_stay_within_sixteen_runs_and_a_small_factor(tmp_path: Path) -> None:
    volume = random_volume(tmp_path / "vol.img", 600)
    machine = Machine(
        tmp_path / "m", tmp_path / "vault", volumes={"data": volume}, extra={"vault": 'compression = "lz4"'}
    )
    machine.init()
    assert backup(machine).exit_code == 0
    chooser = random.Random(7)
    kept: dict[str, bytes] = {}
    changed = runs_max = 0
    before = stored_bytes(machine.vault, *METADATA)
    for day in range(100):
        for block in chooser.sample(range(600), 30):
            overwrite(volume, block, chooser.randbytes(64) + bytes(BLOCK_BYTES - 64))
        report = backup(machine)
        assert (report.exit_code, report.problems) == (0, [])
        changed += report.volumes["data"].changed
        (point,) = newest_root(machine).body.volumes
        runs_max = max(runs_max, len(point.runs))
        if day % 33 == 0:
            assert report.point is not None
            kept[report.point] = volume.read_bytes()
    assert runs_max == 16
    roots = stored_bytes(machine.vault, "root")
    written = stored_bytes(machine.vault, *METADATA) - before - roots
    fixed = 100 * 4096  # headers, footers, signatures and tables of a hundred small packs and fragments
    assert written < changed * BYTES_A_BLOCK * REWRITES_MAX + fixed
    assert roots < 101 * 17 * 2048
    for point_id, content in kept.items():
        target = tmp_path / point_id
        machine.restore(point_id, "data", target)
        assert target.read_bytes() == content
