"""Gives the contents of blocks, each from the nearest place that has it whole.

The order for a block (DESIGN.md §2, §5): the cache, found by id; the spool, if the pack the run names lies there; the
vault, at the place the run names; then, only for what failed there, by id in each of them, every place an index knows.
Nothing is believed: a content counts once it hashes to its ref. What fails in one place is reported and taken from the
next.

Vault and spool without damage are read by places alone, so their index is fetched only when something is not where it
should be. What is where it should be is read and opened in batches (`rounds.py`), deltas included. Of what is not,
whole records are read in batches again; a block that lies as a delta somewhere is opened alone and carefully, with
every place of its sources (`engine/opener.py`). At most `RECORDS_MAX` records are read for one block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
import numpy as np

from engine.block import DELTA_FLAG, ID_BYTES, SOURCES_MAX, Mask, Places, Refs, ids_of
from engine.errors import ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.opener import RECORDS_MAX, Opener, Shelf
from engine.packstore import PackStore
from engine.recovery.jobs import Positions, Resolve
from engine.recovery.opening import Take
from engine.recovery.places import CACHE, SPOOL, VAULT
from engine.recovery.places import Places as Stores
from engine.recovery.rounds import Round
from engine.recovery.supply import Supply

CAREFUL_READERS: Final = 8
# Where a place a run names is looked for, the nearest first; by id, what a run would name comes first.
FAR: Final = (SPOOL, VAULT)
BY_ID: Final = (VAULT, SPOOL, CACHE)


def places_tried_max(stores: int) -> int:
    """Return how many places of one id are tried in each of `stores`, besides the first one of each.

    So no block costs more than RECORDS_MAX records.
    """
    return (RECORDS_MAX - stores) // stores


@dataclass(slots=True)
class BlockSource:
    """Blocks of one domain from `supply`; `given_bytes` counts what each place, by name, gave, in content."""

    supply: Supply
    given_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def places(self) -> Stores:
        """The places the stores are in, and the problems found there."""
        return self.supply.places

    @property
    def stores(self) -> Mapping[str, PackStore]:
        """The stores by the name of their place."""
        return self.supply.stores

    @property
    def total_bytes(self) -> int:
        """Bytes of content given so far, from all places."""
        return sum(self.given_bytes.values())

    async def give(self, refs: Refs, hints: Places, resolve: Resolve, take: Take) -> Positions:
        """Give every block of `refs` (`uint8[n, 48]`, none twice, none zero) to `take`; return those it could not.

        `hints` are their places in the vault, whose packs `resolve` names. Neighbours in `refs` should be neighbours
        in the volume. Raises: what `take` raises, and StoreError once no place is left.
        """
        giving = _Giving(self, refs, hints, resolve, take)
        await giving.run()
        self.places.require()
        return np.flatnonzero(giving.open)

    async def record(self, ident: bytes) -> bytes | None:
        """Return a record of the id (16 bytes) from wherever an index knows one: the way out for pages."""
        for name in reversed(BY_ID):
            await self.supply.open_index(name)
            store = self.supply.store(name)
            if store is None:
                continue
            try:
                record = await store.record_by_id(ident)
            except (StoreUnavailable, StoreRejected) as error:
                self.supply.put_aside(name, error)
                continue
            except (StoreCorrupt, ObjectMissing) as error:
                self.supply.note(name, error)
                continue
            if record is not None:
                return record
        return None


class _Giving:
    """One call of `give`: `open` are the blocks still to be given, `read` how many records each may have cost."""

    def __init__(self, source: BlockSource, refs: Refs, hints: Places, resolve: Resolve, take: Take) -> None:
        self._source, self._supply = source, source.supply
        self._refs, self._hints, self._resolve, self._take = refs, hints, resolve, take
        self.open: Mask = np.ones(len(refs), np.bool_)
        self._read = np.zeros(len(refs), np.int64)

    async def run(self) -> None:
        await self._supply.open_index(CACHE)
        await self._from_cache(np.arange(len(self._refs)))
        if await self._supply.rely_on_what_is_there():
            await self._from_cache(np.flatnonzero(self.open))
        if self._supply.store(SPOOL) is not None:
            await self._supply.list_spool()
            spooled = np.flatnonzero(self.open & self._in_spool())
            await self._round(SPOOL, spooled, self._hints[spooled], self._resolve)
        await self._round(VAULT, np.flatnonzero(self.open), self._hints[self.open], self._resolve)
        if self.open.any():
            await self._by_id()

    async def _from_cache(self, wanted: Positions) -> None:
        """Give those blocks at `wanted` that the cache's index finds."""
        cache = self._supply.store(CACHE)
        if cache is not None:
            found = await anyio.to_thread.run_sync(lambda: cache.index.lookup(ids_of(self._refs[wanted])))
            (there,) = found["length"].nonzero()
            await self._round(CACHE, wanted[there], found[there], cache.index.pack_name)

    async def _round(self, name: str, wanted: Positions, places: Places, resolve: Resolve) -> None:
        """Give the blocks at `wanted` whose records lie at `places`, one for each of them, in one store."""
        if self._supply.store(name) is None or not len(wanted):
            return
        self._read[wanted] += np.where(places["length"] & DELTA_FLAG, 1 + SOURCES_MAX, 1)
        count = partial(self._count, name)
        failed = await Round(self._supply, name, self._refs, resolve, self._resolve, self._take, count).run(
            wanted, places
        )
        self.open[np.setdiff1d(wanted, failed)] = False

    def _in_spool(self) -> Mask:
        """Tell of each block whether the pack its run names lies in the spool."""
        keys = np.unique(self._hints["pack"])
        spooled = [key for key in keys.tolist() if self._supply.in_spool(self._resolve(key))]
        found: Mask = np.isin(self._hints["pack"], np.array(spooled, np.uint64))
        return found

    async def _by_id(self) -> None:
        """Try every other place the indexes know of what is still open."""
        known: dict[str, dict[int, Places]] = {}
        for name in BY_ID:
            await self._supply.open_index(name)
        there = [(name, store) for name in BY_ID if (store := self._supply.store(name)) is not None]
        for name, store in there:
            known[name] = await anyio.to_thread.run_sync(self._look_up, store, places_tried_max(max(2, len(there))))
        deltas: Mask = (self._hints["length"] & DELTA_FLAG) != 0
        for at, places in (found for each in known.values() for found in each.items()):
            deltas[at] |= bool((places["length"] & DELTA_FLAG).any())
        for name, places_of in known.items():
            await self._try(name, places_of, np.flatnonzero(self.open & ~deltas))
        await self._carefully(np.flatnonzero(self.open & deltas).tolist())

    def _look_up(self, store: PackStore, places_max: int) -> dict[int, Places]:
        idents = ((at, self._refs[at, :ID_BYTES].tobytes()) for at in np.flatnonzero(self.open).tolist())
        return {at: store.index.all_places(ident)[:places_max] for at, ident in idents}

    async def _try(self, name: str, known: Mapping[int, Places], wanted: Positions) -> None:
        """Try the known places of whole records in one store, one after the other, until each block is given."""
        store = self._supply.store(name)
        for turn in range(max(map(len, known.values()), default=0)):
            trying = np.array([at for at in wanted.tolist() if self.open[at] and len(known[at]) > turn], dtype=np.intp)
            if not len(trying) or store is None:
                return
            places = np.concatenate([known[at][turn : turn + 1] for at in trying.tolist()])
            await self._round(name, trying, places, store.index.pack_name)

    async def _carefully(self, wanted: Sequence[int]) -> None:
        """Open blocks one by one, each delta's sources from every place that any store knows of."""
        names = [name for name in BY_ID if self._supply.store(name) is not None]
        if not wanted or not names:
            return
        # Records whose place is given are asked of the first shelf: it reads them in the spool, too.
        pinned = names[0] in FAR
        shelves = [Shelf(self._supply.stores[name].index, partial(self._supply.records, name)) for name in names]
        first = self._supply.pinned_records if pinned else shelves[0].read
        opener = Opener(shelves[0].index, first, self._supply.keys, shelves[1:])
        rest = iter(wanted)

        async def work() -> None:
            for at in rest:
                place, resolve = (self._hints[at], self._resolve) if pinned else (None, None)
                ref = self._refs[at].tobytes()
                try:
                    content, shelf = await opener.open_from(ref, place, resolve, read_before=int(self._read[at]))
                except (StoreCorrupt, ObjectMissing) as error:
                    self._supply.note(names[0], error)
                    continue
                await anyio.to_thread.run_sync(self._take, [at], [content], limiter=self._supply.openers)
                self._count(names[shelf], len(content))
                self.open[at] = False

        async with anyio.create_task_group() as group:
            for _ in range(CAREFUL_READERS):
                group.start_soon(work)

    def _count(self, name: str, given_bytes: int) -> None:
        self._source.given_bytes[name] = self._source.given_bytes.get(name, 0) + given_bytes
