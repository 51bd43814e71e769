"""The stores a restore reads from: every request goes to one that is still used, and what fails there is noted.

A store that cannot be used any more is put aside for good; what is damaged or gone in it becomes a problem the user is
shown, and the reader simply gets nothing from there. That somebody trimmed the cache is no problem, also while it is
read.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
import anyio.to_thread
import numpy as np

from engine.block import Places as Records
from engine.errors import (
    FormatTooNew,
    ObjectMissing,
    SessionAborted,
    StateCorrupt,
    StoreCorrupt,
    StoreRejected,
    StoreUnavailable,
)
from engine.names import PackName
from engine.packread import Extents, PackReads, Range, listed_keys
from engine.packstore import PackStore
from engine.recovery.jobs import Packs, Resolve, Spots
from engine.recovery.places import CACHE, SPOOL, VAULT, Places
from engine.subkeys import DomainKeys

# Packs read at once, each by up to four requests. What waits here has not begun: a call that is made and then queues
# behind a thousand others looks, to whoever watches for calls that hang, like one that hangs.
PACKS_READ_MAX: Final = 8
REMOVALS_ASKED_MAX: Final = 64  # times that a pack the cache lacks makes its removal lists be read again
OPENERS: Final = 1  # threads that open records, where nobody says how many processors there are


@dataclass(slots=True)
class Supply:
    """What `stores` hold, by place name, of the domain of `keys`; `writers` (16 bytes): whose fragments matter most.

    `openers` bounds the threads that open records, `turns` how many of them do so at once.
    """

    places: Places
    stores: Mapping[str, PackStore]
    keys: DomainKeys
    openers: anyio.CapacityLimiter
    turns: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(OPENERS))
    writers: set[bytes] = field(default_factory=set)
    _reads: dict[str, PackReads] = field(default_factory=dict)
    _turns: anyio.Semaphore = field(default_factory=lambda: anyio.Semaphore(PACKS_READ_MAX))
    _indexed: set[str] = field(default_factory=set)
    _spooled: set[PackName] | None = None
    _missed: bool = False  # the cache's index named a pack that is not there
    _listed: bool = False
    _asked: int = 0  # whether somebody trimmed the cache
    _opening: anyio.Lock = field(default_factory=anyio.Lock)

    def store(self, name: str) -> PackStore | None:
        """Return the store called `name` if it is there and not put aside."""
        return self.stores.get(name) if self.places.get(name) is not None else None

    def put_aside(self, name: str, error: StoreUnavailable | StoreRejected) -> None:
        """Use the store `name` no more."""
        place = self.places.get(name)
        if place is not None:
            self.places.put_aside(place, error)

    def has_index(self, name: str) -> bool:
        """Tell whether the index of a store was fetched."""
        return name in self._indexed

    async def open_index(self, name: str) -> None:
        """Fetch a store's index, once; what is wrong with it is noted, and the rest of it used."""
        store = self.store(name)
        async with self._opening:
            if store is None or name in self._indexed:
                return
            self._indexed.add(name)
            try:
                for problem in await store.refresh(self.writers):
                    self.note(name, problem)
            except (StoreUnavailable, StoreRejected) as error:
                self.put_aside(name, error)
            except (StoreCorrupt, FormatTooNew, StateCorrupt, SessionAborted) as error:
                # A mirror that cannot be kept (a full disk) costs the way by id, not the restore.
                self.places.problems.add(f"the index of the {name} cannot be used: {error}")

    async def list_spool(self) -> None:
        """Find out which packs of blocks lie in the spool, once: of any other it is never asked."""
        store = self.store(SPOOL)
        async with self._opening:
            if store is None or self._spooled is not None:
                return
            self._spooled = set()
            try:
                async for info in store.objects.list("data/"):
                    pack = PackName.parse(info.name)
                    if pack is not None and pack.size == info.size:
                        self._spooled.add(pack)
            except (StoreUnavailable, StoreRejected) as error:
                self.put_aside(SPOOL, error)

    async def rely_on_what_is_there(self) -> bool:
        """List the packs of the cache, once, if one of them was gone; True: its index names them only from now on.

        An index goes on naming packs somebody else took away, and of each place that leads nowhere a block may only
        have so many.
        """
        store = self.store(CACHE)
        async with self._opening:
            if store is None or not self._missed or self._listed:
                return False
            self._listed = True
            try:
                keys = await listed_keys(store.objects)
            except (StoreUnavailable, StoreRejected) as error:
                self.put_aside(CACHE, error)
                return False
            present = np.sort(np.fromiter(keys, np.uint64, len(keys)))
            gone = await anyio.to_thread.run_sync(store.index.absent, present)
            await anyio.to_thread.run_sync(store.index.bar, gone.tolist())
            return True

    def in_spool(self, pack: PackName | None) -> bool:
        """Tell whether a pack lies in the spool, as far as `list_spool` found."""
        return self._spooled is not None and pack in self._spooled and self.store(SPOOL) is not None

    def pinned(self, packs: Packs, places: Records, resolve: Resolve) -> Spots:
        """Return where the records at `places` are read: in the spool if their pack lies there, else in the vault."""
        found = packs.spots(VAULT, places, resolve)
        if not self._spooled:
            return found
        near = packs.spots(SPOOL, places, lambda key: pack if self.in_spool(pack := resolve(key)) else None)
        return Spots(*(np.where(near.numbers >= 0, *columns) for columns in zip(near, found, strict=True)))

    async def fetch(
        self, name: str, pack: PackName, ranges: Sequence[Range], gap_bytes: int, around_bytes: int
    ) -> Extents | None:
        """Return what `PackReads.fetch` returns of a pack in the store `name`, or None; why is noted."""
        try:
            async with self._turns:
                return await self._of(name, pack).fetch(pack, ranges, gap_bytes, around_bytes)
        except (StoreUnavailable, StoreRejected) as error:
            self.put_aside(name, error)
        except (StoreCorrupt, ObjectMissing) as error:
            gone = name == CACHE and isinstance(error, ObjectMissing)
            self._missed |= gone
            trimmed = gone and await self._trimmed(pack)
            if self.store(name) is not None and not trimmed:
                self.note(name, error)
        return None

    async def _trimmed(self, pack: PackName) -> bool:
        """Tell whether somebody said that a pack, which is not there, leaves the cache."""
        store = self.store(CACHE)
        if store is None or store.removals is None:
            return False
        async with self._opening:
            if pack.key not in store.removals.keys and self._asked < REMOVALS_ASKED_MAX:
                self._asked += 1
                try:
                    await store.removals.refresh()
                except (StoreUnavailable, StoreRejected) as error:
                    self.put_aside(CACHE, error)
                except (StateCorrupt, SessionAborted):
                    self._asked = REMOVALS_ASKED_MAX  # nothing can be kept here
            return pack.key in store.removals.keys

    async def records(self, name: str, pack: PackName, ranges: Sequence[Range]) -> list[bytes]:
        """Return records of the store `name`, for an `Opener`. Raises: StoreCorrupt, ObjectMissing."""
        try:
            async with self._turns:
                return await self._of(name, pack).read(pack, ranges)
        except (StoreUnavailable, StoreRejected) as error:
            self.put_aside(name, error)
            raise ObjectMissing(str(pack), f"object {pack} cannot be read: {error}") from error

    async def pinned_records(self, pack: PackName, ranges: Sequence[Range]) -> list[bytes]:
        """Return records from where `pinned` says; see `records`."""
        if self.in_spool(pack):
            try:
                return await self.records(SPOOL, pack, ranges)
            except (StoreCorrupt, ObjectMissing) as error:
                self.note(SPOOL, error)
        return await self.records(VAULT, pack, ranges)

    def _of(self, name: str, pack: PackName) -> PackReads:
        store = self.store(name)
        if store is None:
            raise ObjectMissing(str(pack), f"object {pack} cannot be read: the {name} is not used")
        if name not in self._reads:
            self._reads[name] = PackReads(store.objects, store.index)
        return self._reads[name]

    def note(self, name: str, problem: object) -> None:
        """Keep a problem with something in the store `name` for the user."""
        self.places.problems.add(f"{name}: {problem}")
