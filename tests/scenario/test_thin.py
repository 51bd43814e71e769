"""Only changed parts travel: what rewritten pages cost the vault, and what points made of deltas are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.block import PART_BYTES
from tests.scenario.audit import audit
from tests.scenario.inprocess import backup, stored_bytes
from tests.scenario.machine import BLOCK, Machine
from tests.scenario.recover import Recoverer

BLOCKS = 1536
PAGES = BLOCKS * BLOCK // PART_BYTES
EVERYTHING = ("data", "page", "index", "root", "note")


def incompressible(path: Path, blocks: int = BLOCKS) -> Path:
    generator = np.random.default_rng(3)
    with path.open("wb") as out:
        for _ in range(blocks):
            out.write(generator.bytes(BLOCK))
    return path


def rewrite_pages(path: Path, generator: np.random.Generator, pages: int) -> int:
    """Rewrite so many random pages; return the bytes changed."""
    with path.open("r+b") as out:
        for page in generator.choice(PAGES, pages, replace=False).tolist():
            out.seek(page * PART_BYTES)
            out.write(generator.bytes(PART_BYTES))
    return pages * PART_BYTES


@pytest.mark.timeout(600)
def test_a_percent_of_random_pages_a_day_costs_little_more_than_itself_for_a_month(tmp_path: Path) -> None:
    volume = incompressible(tmp_path / "vol.img")
    machine = Machine(
        tmp_path / "m", tmp_path / "vault", volumes={"data": volume}, extra={"vault": 'compression = "none"'}
    )
    machine.init()
    assert backup(machine).exit_code == 0
    start = stored_bytes(machine.vault, *EVERYTHING)
    generator = np.random.default_rng(11)
    changed = 0
    factors = {}
    kept = {}
    for day in range(1, 31):
        changed += rewrite_pages(volume, generator, PAGES // 100)
        report = backup(machine)
        assert (report.exit_code, report.problems) == (0, [])
        figures = report.volumes["data"]
        assert figures.vault_deltas == figures.vault_blocks == figures.changed
        factors[day] = (stored_bytes(machine.vault, *EVERYTHING) - start) / changed
        if day in (1, 5, 10, 17, 30):
            assert report.point is not None
            kept[report.point] = volume.read_bytes()
    assert factors[1] <= 1.15, factors
    assert factors[10] <= 1.25, factors
    assert factors[30] <= 1.5, factors
    recoverer = Recoverer.of(machine)
    for point, content in kept.items():
        assert recoverer.restored(point) == content
        assert audit(machine, point).records_max <= 5
    newest = audit(machine)
    assert newest.deltas > BLOCKS * 0.9
    assert newest.records_max == 5, "a month makes blocks of four sources"


def test_the_cache_gets_the_whole_block_that_the_vault_gets_a_part_of(tmp_path: Path) -> None:
    volume = incompressible(tmp_path / "vol.img", 64)
    machine = Machine(tmp_path / "m", tmp_path / "vault", tmp_path / "cache", volumes={"data": volume})
    machine.init()
    assert backup(machine).exit_code == 0
    vault, cache = (stored_bytes(folder, "data") for folder in (tmp_path / "vault", tmp_path / "cache"))
    with volume.open("r+b") as out:
        for block in range(10):
            out.seek(block * BLOCK + 5 * PART_BYTES + 17)
            out.write(b"changed")
    report = backup(machine)
    assert (report.exit_code, report.problems) == (0, [])
    figures = report.volumes["data"]
    assert (figures.vault_blocks, figures.vault_deltas, figures.cache_blocks) == (10, 10, 10)
    assert stored_bytes(tmp_path / "vault", "data") - vault < 10 * (PART_BYTES + 400) + 2000
    assert stored_bytes(tmp_path / "cache", "data") - cache > 10 * BLOCK
    from_cache = Recoverer.of(machine, only_cache=True)
    assert from_cache.restored() == volume.read_bytes() == Recoverer(Recoverer.of(machine).vault).restored()


def test_a_page_that_changes_every_day_makes_no_chain(tmp_path: Path) -> None:
    volume = incompressible(tmp_path / "vol.img", 8)
    machine = Machine(tmp_path / "m", tmp_path / "vault", volumes={"data": volume})
    machine.init()
    assert backup(machine).exit_code == 0
    for day in range(8):
        with volume.open("r+b") as out:
            out.write(bytes([day]) * 100)
        assert backup(machine).volumes["data"].vault_deltas == 1
        assert audit(machine).records_max == 2, "what was superseded is no source any more"
    assert Recoverer.of(machine).restored() == volume.read_bytes()
