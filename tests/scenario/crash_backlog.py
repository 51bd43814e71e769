"""A machine whose restore points wait in the spool, with the content of each: what crash tests of it compare with."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.scenario.crash_machine import (
    CrashMachine,
    Forge,
    change,
    check_whole,
    fill,
    leftovers,
    made,
    objects,
)
from tests.scenario.machine import BLOCK, overwrite

SPOOL_KEPT = ("format", "key", "cert")  # what is in a spool in which nothing waits


@dataclass
class Backlog:
    """`contents`: of each point the bytes of each volume; `packs`: of each spooled one the packs it brought there."""

    machine: CrashMachine
    contents: dict[str, dict[str, bytes]] = field(default_factory=dict)
    packs: dict[str, set[str]] = field(default_factory=dict)

    @property
    def spooled(self) -> set[str]:
        """The points that were made into the spool."""
        return {*self.packs}

    @property
    def spool(self) -> Path:
        assert self.machine.spool is not None
        return self.machine.spool

    def keep(self, point: str) -> None:
        """Keep what the volumes hold now as the content of a point."""
        self.contents[point] = {name: path.read_bytes() for name, path in self.machine.volumes.items()}

    def copy_to(self, root: Path) -> Backlog:
        """Copy all of it, see `CrashMachine.copy_to`."""
        return Backlog(self.machine.copy_to(root), {**self.contents}, {**self.packs})

    def in_spool(self) -> list[str]:
        """Return the objects in the spool that are there because points wait, and what an interruption left."""
        names = [name for name in objects(self.spool) if name.split("/")[0] not in SPOOL_KEPT]
        return names + leftovers(self.spool)

    def listed(self) -> set[str]:
        """Return the points `points` lists."""
        return {row["id"] for row in self.machine.run("points", expect=None).document["points"]}

    def restore(self, point: str, *arguments: str) -> None:
        """Restore a point and compare it with what it was made of."""
        for name, content in self.contents[point].items():
            target = self.machine.root / "out"
            target.unlink(missing_ok=True)
            self.machine.restore(point, name, target, *arguments)
            assert target.read_bytes() == content, f"{name} of {point}"

    def restore_some(self, turn: int, *arguments: str) -> None:
        """Restore one point, another one each turn."""
        points = sorted(self.contents)
        if points:
            self.restore(points[turn % len(points)], *arguments)

    def restore_all(self, *arguments: str) -> None:
        """Restore every point."""
        for point in self.contents:
            self.restore(point, *arguments)

    @contextmanager
    def without_cache(self) -> Iterator[None]:
        """Take the cache away until the block is left."""
        cache = self.machine.cache
        assert cache is not None
        hidden = cache.with_name("cache-aside")
        cache.rename(hidden)
        try:
            yield
        finally:
            hidden.rename(cache)

    def upload_all(self) -> None:
        """Upload what waits; then nothing does, and everything in the vault is whole."""
        done = self.machine.run("upload").document
        assert done["problems"] == [], done["problems"]
        assert self.in_spool() == []
        check_whole(self.machine.vault, objects(self.machine.vault))
        assert leftovers(self.machine.vault) == []

    def stands(self) -> None:
        """Check that every point comes back without the cache, and that the next session goes on."""
        with self.without_cache():
            self.restore_all()
        self.goes_on()

    def goes_on(self) -> None:
        """Check that the next session knows all there is: it sends what changed since, and nothing else."""
        generator = random.Random(9)
        before = self.contents[max(self.contents)]
        for path in self.machine.volumes.values():
            overwrite(path, 3, generator.randbytes(BLOCK))
        report = self.machine.backup()
        assert report["problems"] == []
        assert report["route"] == "VAULT"
        self.keep(report["point"])
        for name, content in self.contents[report["point"]].items():
            if len(content) == len(before[name]):
                assert report["volumes"][name]["changed"] == differing(before[name], content)
        with self.without_cache():
            self.restore(report["point"])


def differing(before: bytes, after: bytes) -> int:
    """Return how many blocks of a volume are others than they were."""
    starts = range(0, len(after), BLOCK)
    return sum(before[start : start + BLOCK] != after[start : start + BLOCK] for start in starts)


def waiting(
    root: Path, forge: Forge, points: int, *, in_vault: int = 2, extra: Mapping[str, str] | None = None
) -> Backlog:
    """Return a machine with so many points in the spool, its vault away, and changes that are in none of them."""
    generator = random.Random(77)
    machine = made(root, forge, 0, spool=True, extra={"vault": "retries_max = 0", **(extra or {})})
    backlog = Backlog(machine)
    for _ in range(in_vault):
        backlog.keep(machine.backup()["point"])
        change(machine, generator)
        fill(machine, generator)
    machine.away()
    for _ in range(points):
        before = objects(backlog.spool).keys()
        point = machine.backup(expect=3)["point"]
        backlog.keep(point)
        new = objects(backlog.spool).keys() - before
        backlog.packs[point] = {name for name in new if name.split("/")[0] in ("data", "page")}
        change(machine, generator)
        fill(machine, generator)
    return backlog
