"""Restores in this process, with the passphrase alone: the same engine as the command line, keys opened once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import anyio

from adapters.stores.folder import FolderStore
from adapters.volumes.open import open_target
from engine.ports import ObjectStore
from engine.recovery.access import Access, SystemAccess, by_passphrase
from engine.recovery.catalogue import LATEST, Catalogue, Point
from engine.recovery.places import CACHE, VAULT, Place, Places, Problems
from engine.recovery.restore import Restore, RestoreReport
from engine.recovery.sources import open_source
from engine.state import Newest
from engine.vault.formatobject import read_format
from tests.engine.recovery.build import MemoryMirror, MemoryTarget
from tests.fakes import FakeClock
from tests.scenario.machine import PASSPHRASE, Machine


@dataclass
class Restored:
    """What came back: the report, the bytes (empty if they went to a file), and the point they are of."""

    report: RestoreReport
    content: bytes
    point: str


@dataclass
class Recoverer:
    """A recovery from `vault` and `cache` (None: without it); `access` is opened at the first use and kept."""

    vault: ObjectStore | None
    cache: ObjectStore | None = None
    system: str = "web-01"
    newest: Newest | None = None
    access: Access | None = field(default=None, repr=False)

    @classmethod
    def of(cls, machine: Machine, *, only_cache: bool = False) -> Recoverer:
        vault = None if only_cache else FolderStore(machine.vault, "test")
        cache = FolderStore(machine.cache, "test", "flush") if machine.cache is not None else None
        return cls(vault, cache, machine.name)

    def places(self) -> tuple[Places, Problems]:
        problems = Problems()
        stores = [(CACHE, self.cache), (VAULT, self.vault)]
        return Places([Place(name, name, store) for name, store in stores if store is not None], problems), problems

    async def open(self, places: Places, *, fresh_keys: bool = False) -> SystemAccess:
        async def check(place: Place) -> None:
            await read_format(place.objects, "vault" if place.name == VAULT else "cache")

        await places.open(check)
        if fresh_keys or self.access is None:
            opened = await by_passphrase(PASSPHRASE, None, places)
            if fresh_keys:
                return opened.named(self.system)
            self.access = opened
        return self.access.named(self.system)

    async def catalogue(self, places: Places, *, fresh_keys: bool = False) -> tuple[Catalogue, SystemAccess]:
        access = await self.open(places, fresh_keys=fresh_keys)
        known = (access.system, self.newest) if self.newest is not None else None
        return Catalogue(places, known), access

    async def points(self) -> list[Point]:
        places, _ = self.places()
        catalogue, access = await self.catalogue(places)
        names = await catalogue.names(access)
        return await catalogue.load(names, names.roots)

    async def restore(
        self, point: str = LATEST, volume: str = "data", to: Path | None = None, *, fresh_keys: bool = False
    ) -> Restored:
        places, _ = self.places()
        catalogue, access = await self.catalogue(places, fresh_keys=fresh_keys)
        found = await catalogue.find(await catalogue.names(access), point, volume)
        source = open_source(places, found, lambda name: MemoryMirror())
        size = found.volume(volume).bytes
        if to is not None:
            report = await Restore(found, volume, open_target(to, size, False), source, FakeClock()).run()
            return Restored(report, b"", str(found.id))
        memory = MemoryTarget(size)
        report = await Restore(found, volume, memory, source, FakeClock()).run()
        return Restored(report, bytes(memory.content), str(found.id))

    def restored(self, point: str = LATEST, volume: str = "data") -> bytes:
        """Return the whole content of a volume of a point."""
        done = anyio.run(self.restore, point, volume)
        assert (done.report.exit_code, done.report.holes) == (0, []), done.report.problems
        return done.content

    def restore_to(self, point: str, volume: str, to: Path) -> RestoreReport:
        """Restore a volume of a point to a new file."""
        return anyio.run(self.restore, point, volume, to).report
