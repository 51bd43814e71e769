"""Machines enrolled in this process, with a passphrase that is cheap to guess: for tests that need many of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from adapters.main import run
from engine.vault import slots
from tests.scenario.machine import Machine, random_volume
from tests.scenario.recover import Recoverer, Restored

BLOCKS = 40


@contextmanager
def cheap_keys() -> Iterator[type[slots.KdfCost]]:
    """Have commands in this process make slots that are cheap to guess; the value is what a slot costs otherwise."""
    real = slots.KdfCost
    vars(slots)["KdfCost"] = lambda *cost: real(*cost) if cost else real.cheapest()
    try:
        yield real
    finally:
        vars(slots)["KdfCost"] = real


def enrol(machine: Machine, *arguments: str) -> None:
    """Run `init`; the readers of the slot it makes take its cost from there."""
    machine.write_config()
    file = str(machine.passphrase_file)
    with cheap_keys():
        assert run(["--config", str(machine.config), "init", "--passphrase-file", file, *arguments]) == 0


def enrolled(root: Path, *, cache: bool = False, blocks: int = BLOCKS) -> tuple[Machine, Path]:
    """Return a new machine below `root` and the path of its one volume, "data", of random blocks."""
    volume = random_volume(root / "data.img", blocks)
    machine = Machine(root / "machine", root / "vault", root / "cache" if cache else None, volumes={"data": volume})
    enrol(machine)
    return machine, volume


def restored(machine: Machine, *, only_cache: bool = False) -> Restored:
    """Restore the latest point of the volume "data" with the passphrase alone."""
    return anyio.run(Recoverer.of(machine, only_cache=only_cache).restore)
