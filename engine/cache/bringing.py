"""Bringing blocks out of the vault into the cache: sealed records as they are, with the sources of deltas.

    packs of the vault, a few side by side, each read whole → whole records into new packs of this system; deltas are
    held → what the cache lacks of their sources, likewise → deltas, once all their sources lie there

The agent has no keys of older blocks, so it cannot open their records: one is believed if its whole pack hashes to its
name and carries a member's signature. That is why packs are read whole. What is brought inherits the day it was seen
last, and is stamped as seen then: so it goes from the cache when it would have gone without having been lost.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import DELTA_FLAG, ID_BYTES, LENGTH_MASK, Ids, ids_from_bytes
from engine.cache.pointneeds import Needed
from engine.cache.stamping import Stamping
from engine.cache.stamps import Seen
from engine.cache.trimplan import RECORD_COST, Days
from engine.columns import Column32, Column64, Rows
from engine.delta import parse_delta
from engine.distinct import distinct
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import PackName
from engine.pack import PackBuilder, check_pack
from engine.packstore import PackStore
from engine.pipeline.lost import Wanted
from engine.subkeys import DomainKeys
from engine.trailer import Verifier
from engine.workers import read_ahead

HELD_BYTES: Final = 32 << 20  # deltas whose sources are looked for together
IN_FLIGHT_BYTES: Final = 64 << 20  # of packs that are read, or wait for those before them
READS_MAX: Final = 8
ASKED: Final = 1024  # deltas whose sources are looked up at once
ROUNDS_MAX: Final = 32  # sources of sources …; points share them, so few are ever brought for one block alone
PACKS_MAX: Final = 64  # read before what was written is listed and stamped

Spare = Callable[[], Awaitable[int]]


class Held(msgspec.Struct, frozen=True):
    """A delta that waits for its `sources` (ids, 16 bytes each), seen last on `day`; not `needed`: only as a source."""

    record: bytes
    sources: tuple[bytes, ...]
    day: int
    needed: bool


class _Chosen(msgspec.Struct, eq=False):
    """Ids to bring, with the keys of the packs they lie in, the lengths of their records and their days, by row."""

    wanted: Wanted
    packs: Column64
    lengths: Column32
    days: Days
    needed: bool = True

    def left(self) -> Column64:
        """Return the packs that have not given what is wanted of them."""
        return self.packs[(self.packs > 0) & ~self.wanted.found]

    def asked(self, ids: Ids) -> Rows:
        """Return the row of each id that is still to be brought; -1: it is not."""
        rows = self.wanted.rows(ids)
        rows[(rows >= 0) & (self.wanted.found.take(rows, mode="clip") | (self.packs.take(rows, mode="clip") == 0))] = -1
        return rows


class _Pack(NamedTuple):
    """The bytes of a pack, and ids, offsets and lengths of its records."""

    data: bytes
    ids: Ids
    offsets: Column32
    lengths: Column32


class Bringing:
    """Brings what is needed from `vault` into `cache`, as far as `spare` says that there is room.

    `name_of` names packs of the vault by key; `new_pack` opens an own pack. While it runs `wanted` says how many
    different blocks are needed, `healed` how many of them were put (when it is over, how many the cache has),
    `put_bytes` what was put, with the sources of deltas, `read_bytes` what was read, `no_room` for how many there was
    no room.
    Methods raise StoreUnavailable and StoreRejected of either, StateCorrupt, SessionAborted.
    """

    def __init__(
        self,
        vault: PackStore,
        cache: PackStore,
        stamping: Stamping,
        members: Verifier,
        name_of: Callable[[int], PackName | None],
        new_pack: Callable[[], PackBuilder],
        spare: Spare,
    ) -> None:
        self._vault, self._cache, self._stamping, self._members = vault, cache, stamping, members
        self._keys: DomainKeys = stamping.identity.keys
        self._name_of, self._new_pack, self._spare_now = name_of, new_pack, spare
        self._builder = new_pack()
        self._spare = 0
        self._heirs: list[tuple[PackName, Days]] = []
        self._held: list[Held] = []
        self._held_bytes = 0
        self._open = 0  # of the records in the open pack, those of blocks that are needed themselves
        self.wanted = self.healed = self.put_bytes = self.read_bytes = self.no_room = 0
        self.problems: list[str] = []

    async def bring(self, needed: Needed) -> None:
        """Bring what is needed, what was seen last first; call it once."""
        self._spare = await self._spare_now()
        chosen = await anyio.to_thread.run_sync(self._choose, needed)
        self.wanted = len(chosen.wanted)
        keys, taken, settled = _newest_first(chosen), 0, 0
        while taken < len(keys):
            taken += await self._take_packs(keys[taken : settled + PACKS_MAX], chosen, enough=self._held_enough)
            if self._held_enough():
                await self._put_deltas(chosen)
            if taken == settled + PACKS_MAX:
                await self._settle()
                settled = taken
        await self._put_deltas(chosen)
        await self._settle()
        self.healed = await anyio.to_thread.run_sync(self._there, chosen.wanted)

    def _choose(self, needed: Needed) -> _Chosen:
        """Return what there is room for, the newest first (*sync*)."""
        wanted = Wanted([needed.ids])
        rows = wanted.rows(needed.ids)
        packs, lengths = np.zeros(len(wanted), np.uint64), np.zeros(len(wanted), np.uint32)
        days = np.zeros(len(wanted), np.uint16)
        packs[rows], lengths[rows] = needed.places["pack"], needed.places["length"]
        np.maximum.at(days, rows, needed.days)
        # What the vault lost and was put there again lies elsewhere than a run says.
        for at, ids in wanted.open():
            places = self._vault.index.lookup(ids)
            known = places["length"] > 0
            packs[at[known]], lengths[at[known]] = places["pack"][known], places["length"][known]
        lost = np.isin(packs, [key for key in distinct(packs).tolist() if self._vault.index.bars(key)])
        packs[lost] = 0
        if lost.any():
            self.problems.append(
                f"blocks of older restore points ({np.count_nonzero(lost)}) lie in packs that the vault lost or has "
                "damaged: run 'forebay verify --vault'"
            )
        order = np.argsort(-days.astype(np.int64), kind="stable")
        taken = np.cumsum((lengths[order] & np.uint32(LENGTH_MASK)).astype(np.int64) + RECORD_COST)
        over = order[int(taken.searchsorted(self._spare, "right")) :]
        self.no_room = len(over)
        packs[over] = 0
        return _Chosen(wanted, packs, lengths, days)

    def _held_enough(self) -> bool:
        return self._held_bytes >= HELD_BYTES

    async def _take_packs(
        self,
        keys: Sequence[int],
        chosen: _Chosen,
        besides: _Chosen | None = None,
        enough: Callable[[], bool] = lambda: False,
    ) -> int:
        """Take what is wanted out of packs of the vault, in order, until it is `enough`; return how many were gone to.

        They are read side by side: with a vault far away it is the round trips that take the time.
        """
        left = set(distinct(chosen.left()).tolist())
        names = [self._name(key) if key in left else None for key in keys]

        async def read(at: int) -> _Pack | None:
            name = names[at]
            return await self._read(name) if name is not None else None

        async def take(_: int, found: _Pack | None) -> None:
            if found is not None:
                await self._take_pack(found, chosen, besides)

        sizes = [name.size if name is not None else 0 for name in names]
        return await read_ahead(sizes, read, take, enough, bytes_max=IN_FLIGHT_BYTES, at_once=READS_MAX)

    async def _take_pack(self, found: _Pack, chosen: _Chosen, besides: _Chosen | None) -> None:
        """Take what is wanted out of a pack: whole records are put, deltas held. Of `besides` only whole ones are."""
        data, ids, offsets, lengths = found
        wanted = [(each, each.asked(ids)) for each in (chosen, besides) if each is not None]
        asked = np.logical_or.reduce([rows >= 0 for _, rows in wanted])
        if besides is not None:
            asked &= (wanted[0][1] >= 0) | (lengths & np.uint32(DELTA_FLAG) == 0)
        for at in np.flatnonzero(asked).tolist():
            for_ = [(each, int(rows[at])) for each, rows in wanted if rows[at] >= 0]
            if all(each.wanted.found[row] for each, row in for_):
                continue  # it lies in the pack twice
            offset, length = int(offsets[at]), int(lengths[at])
            record = data[offset : offset + (length & LENGTH_MASK)]
            day, needed = max(int(each.days[row]) for each, row in for_), any(each.needed for each, _ in for_)
            if await self._take(record, bool(length & DELTA_FLAG), day, needed):
                for each, row in for_:
                    each.wanted.found[row] = True

    async def _take(self, record: bytes, delta: bool, day: int, needed: bool) -> bool:
        """Put a whole record, or hold a delta; False: there is no room for it any more."""
        cost = len(record) + RECORD_COST
        if cost > self._spare:
            self.no_room += 1
            return False
        if delta:
            try:
                self._held.append(Held(record, parse_delta(record, "a delta in the vault").source_ids, day, needed))
                self._held_bytes += len(record)
            except StoreCorrupt as error:
                self.problems.append(f"{error}; it is not put into the cache")
        else:
            self._spare -= cost
            await self._add(record, (), day, needed)
        return True

    async def _put_deltas(self, chosen: _Chosen) -> None:
        """Bring the sources of the deltas that are held, and put each after all of its own."""
        tried: set[bytes] = set()
        for _ in range(ROUNDS_MAX):
            await self._put()
            known = {each.record[:ID_BYTES] for each in self._held} | tried
            days: dict[bytes, int] = {}
            for each in self._held:
                for source in each.sources:
                    if source not in known:
                        days[source] = max(days.get(source, 0), each.day)
            absent = await anyio.to_thread.run_sync(self._absent, list(days))
            tried |= set(absent)
            if not absent:
                break
            await self._take_sources({source: days[source] for source in absent}, chosen)
        held, self._held, self._held_bytes = self._held, [], 0
        while held:
            rest = []
            for start in range(0, len(held), ASKED):
                part = held[start : start + ASKED]
                there = await anyio.to_thread.run_sync(self._sources_of, part)
                for each, sources in zip(part, there, strict=True):
                    if not await self._put_delta(each, sources):
                        rest.append(each)
            await self._put()
            if len(rest) == len(held):
                what = "a block has" if len(rest) == 1 else f"{len(rest)} blocks have"
                self.problems.append(
                    f"{what} parts in records that the vault does not give, or there is no room for them: not put into "
                    "the cache"
                )
                break
            held = rest

    def _absent(self, idents: Sequence[bytes]) -> list[bytes]:
        """Return those ids that cannot be relied on in the cache (*sync*)."""
        if not idents:
            return []
        there = self._cache.index.lookup(_ids(idents))["length"] > 0
        return [ident for ident, known in zip(idents, there.tolist(), strict=True) if not known]

    async def _take_sources(self, days: dict[bytes, int], chosen: _Chosen) -> None:
        """Take these records out of the vault, as seen last on these days, and what is `chosen` of the same packs."""
        ids = _ids([*days])
        wanted = Wanted([ids])
        places = await anyio.to_thread.run_sync(self._vault.index.lookup, ids)
        for at in np.flatnonzero(places["length"] == 0).tolist():
            known = self._vault.index.all_places(ids[at].tobytes())  # deltas of other systems among them
            places["pack"][at] = known["pack"][0] if len(known) else 0
        rows = wanted.rows(ids)
        packs, newest = np.zeros(len(wanted), np.uint64), np.zeros(len(wanted), np.uint16)
        packs[rows], newest[rows] = places["pack"], [*days.values()]
        sources = _Chosen(wanted, packs, np.zeros(len(wanted), np.uint32), newest, needed=False)
        # What is wanted besides is taken with them: so no pack is read twice, for itself and for its sources.
        await self._take_packs(_newest_first(sources), sources, chosen)

    def _sources_of(self, held: Sequence[Held]) -> list[list[PackName]]:
        """Return the packs of the cache that hold all sources of each delta, none if not all are there (*sync*)."""
        places = self._cache.index.lookup(_ids([source for each in held for source in each.sources]))
        named = self._cache.index.pack_names(np.ascontiguousarray(places["pack"]))
        names = iter([name if length else None for name, length in zip(named, places["length"].tolist(), strict=True)])
        found: list[list[PackName]] = []
        for each in held:
            mine = [next(names) for _ in each.sources]
            there = [name for name in mine if name is not None]
            found.append(there if len(there) == len(mine) else [])
        return found

    async def _put_delta(self, held: Held, sources: Sequence[PackName]) -> bool:
        """Put a delta whose `sources` can be relied on in the cache; False: not yet."""
        cost = len(held.record) + RECORD_COST * (1 + len(sources))
        if not sources or cost > self._spare:
            return False
        self._spare -= cost
        await self._add(held.record, sources, held.day, held.needed)
        return True

    def _name(self, key: int) -> PackName | None:
        """Return the pack of the vault to read for a key; None: there is none to rely on."""
        name = self._name_of(key) or self._vault.index.pack_name(key)
        return self._vault.stand_in(name) if name is not None and not self._vault.index.bars(key) else None

    async def _read(self, name: PackName) -> _Pack | None:
        """Return a pack of the vault, checked; None: not to be had."""
        try:
            data = bytes(await self._vault.objects.get(str(name), 0, name.size))
            self.read_bytes += len(data)
            entries = await anyio.to_thread.run_sync(check_pack, name, data, self._keys, self._members)
        except (ObjectMissing, StoreCorrupt) as error:
            reason = "is gone from the vault" if isinstance(error, ObjectMissing) else f"is damaged: {error.reason}"
            self.problems.append(f"object {name} {reason}; the cache does not get back what is in it")
            return None
        return _Pack(data, entries.ids, entries.offsets, entries.lengths)

    async def _add(self, record: bytes, sources: Sequence[PackName], day: int, needed: bool) -> None:
        if not self._builder.room(len(record)):
            await self._put()
        self._builder.add(record, sources, day)
        self._open += needed

    async def _put(self) -> None:
        """Put the open pack into the cache, if there is anything in it."""
        builder, self._builder = self._builder, self._new_pack()
        if not builder.count:
            return
        days = builder.days
        finished = await anyio.to_thread.run_sync(builder.finish)
        await self._cache.put_pack(finished)
        self.put_bytes += finished.name.size
        self.healed, self._open = self.healed + self._open, 0
        self._heirs.append((finished.name, days))

    async def _settle(self) -> None:
        """Make what was put durable, list it in the index, and stamp it as seen when it was."""
        await self._put()
        if self._heirs:
            await self._cache.publish_index()
            heirs, self._heirs = self._heirs, []
            told = sorted((Seen(name.key, days) for name, days in heirs), key=lambda each: each.pack)
            self.problems += await self._stamping.add((), told)
            self._spare = await self._spare_now()

    def _there(self, wanted: Wanted) -> int:
        """Return how many of the blocks the cache has now (*sync*)."""
        wanted.found[:] = False
        return sum(int(np.count_nonzero(self._cache.index.lookup(ids)["length"])) for _, ids in wanted.open())


def _newest_first(chosen: _Chosen) -> list[int]:
    """Return the packs to read, what was seen last first, and of one day as the packs are named."""
    (rows,) = ((chosen.packs > 0) & ~chosen.wanted.found).nonzero()
    order = np.lexsort((chosen.packs[rows], -chosen.days[rows].astype(np.int64)))
    return list(dict.fromkeys(chosen.packs[rows][order].tolist()))


def _ids(idents: Sequence[bytes]) -> Ids:
    return ids_from_bytes(b"".join(idents))
