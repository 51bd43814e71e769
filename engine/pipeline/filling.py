"""Filling in from the cache what the vault lost under a spooled point (DESIGN.md §3.3).

A pack the cache has under the same name goes to the vault as it is. Of other lost packs the records of the blocks that
count are taken, whole, out of packs of the cache that hold together and carry a member's signature, and go to the vault
in a new pack: a restore that does not find a block in its place looks it up by its id. So does what can still be opened
of packs that are damaged in the spool (salvage.py). What is left are holes; but not while the cache is away, which may
have it: then the point waits.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from contextlib import aclosing
from typing import Final, TypeAlias

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import DELTA_FLAG, LENGTH_MASK, Bytes, Ids, Mask, ids_from_bytes
from engine.columns import Column64
from engine.errors import ObjectMissing, StoreCorrupt, StoreError, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder, check_pack
from engine.page import IdLeaf
from engine.pagesources import PagesAway, PageSources, PageStore
from engine.pipeline.kept import not_kept
from engine.pipeline.salvage import salvaged
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.root import Root, VolumePoint
from engine.runs import RunReader
from engine.vault.certificate import Certificates

_NO_IDS: Final[Ids] = np.empty((0, 2), np.uint64)

Ranges: TypeAlias = list[tuple[int, int]]  # (first block, count)


class CacheAway(StoreUnavailable):
    """The cache, which may have what the vault lost, cannot be asked now."""


class Lost(msgspec.Struct):
    """Blocks of one volume that count and lie in packs that are gone: ascending numbers, and their ids beside.

    `all_of_it`: a run cannot be read, or will not be: nobody knows which of its blocks count, or nobody opens them.
    """

    blocks: Column64
    ids: Ids
    all_of_it: bool = False

    async def lay_over(self, leaves: AsyncIterator[tuple[IdLeaf, Column64]]) -> None:
        """Take in what a newer run names, leaf by leaf, each with the positions of those of its blocks that are lost.

        What was lost is gone through once, beside the run. Raises: as `leaves`; what they gave until then counts.
        """
        done, at = [(self.blocks[:0], self.ids[:0])], 0
        try:
            async for leaf, bad in leaves:
                stop = max(at, int(np.searchsorted(self.blocks, np.uint64(leaf.stop_block))))
                older = self.blocks[at:stop]
                stays = ~np.isin(older, leaf.blocks) & ~_in_ranges(older, leaf.zero_starts, leaf.zero_counts)
                blocks = np.concatenate((older[stays], leaf.blocks[bad]))
                ids = np.concatenate((self.ids[at:stop][stays], leaf.ids[bad]))
                order = blocks.argsort()
                done.append((blocks[order], ids[order]))
                at = stop
        finally:
            done.append((self.blocks[at:], self.ids[at:]))
            self.blocks = np.concatenate([blocks for blocks, _ in done])
            self.ids = np.concatenate([ids for _, ids in done])


class Filled(msgspec.Struct, frozen=True):
    """What filling in a point came to: `holes` per volume, problems, packs that stay lost, volumes nobody can read."""

    holes: dict[str, Ranges]
    problems: list[str]
    left: frozenset[PackName]
    unread: frozenset[str]


class Filling:
    """Fills in one point; `cache` None: there is nothing to fill from, or it is away, and `away` says why."""

    def __init__(
        self,
        setup: SessionSetup,
        vault: Side,
        spooled: Side,
        cache: Side | None,
        certificates: Certificates,
        away: StoreUnavailable | None = None,
    ) -> None:
        self._setup, self._certificates, self._away = setup, certificates, away
        self._vault, self._spooled, self._cache = vault, spooled, cache
        self._session = secrets.token_bytes(16)
        self._put_there: set[PackName] = set()

    async def fill(self, root: Root, absent: Collection[PackName], damaged: Collection[PackName] = ()) -> Filled:
        """Put into the vault what it lacks of a point; return what is left.

        `absent`: packs the point lists that neither vault nor spool have whole; `damaged`: those of them that the spool
        has, and of which that was said. Raises: CacheAway (it has to wait), StoreUnavailable and StoreRejected of vault
        and spool, StateCorrupt.
        """
        problems = [f"object {name} is gone from the vault" for name in sorted({*absent} - {*damaged}, key=str)]
        left = frozenset([name for name in absent if not await self._copy(name)])
        lost = {volume.name: await self._lost(volume, left, problems) for volume in root.body.volumes}
        wanted = {ident for each in lost.values() for ident in map(bytes, each.ids)}
        found = await self._there(wanted, left) if wanted else set()
        if self._cache is not None and wanted - found:
            found |= await self._fill_in(wanted - found)
        if wanted - found:
            found |= await self._salvage(wanted - found, left, list(lost))
        await self._vault.packs.publish_index()
        await self._vault.packs.flush()
        if unkept := await self._vault.packs.present(self._put_there):
            raise not_kept(str(min(unkept, key=str)))
        holes: dict[str, Ranges] = {}
        for volume in root.body.volumes:
            each = lost[volume.name]
            if each.all_of_it:
                holes[volume.name] = [(0, volume.blocks)]
                continue
            gone = [int(block) for block, ident in zip(each.blocks, each.ids, strict=True) if bytes(ident) not in found]
            if gone:
                holes[volume.name] = _ranges(gone)
        if holes and self._away is not None:
            raise CacheAway(str(self._away)) from self._away
        unread = frozenset([name for name, each in lost.items() if each.all_of_it])
        return Filled(holes, problems, left, unread)

    async def _copy(self, name: PackName) -> bool:
        """Put a lost pack into the vault again, if the cache has the very same."""
        # Nobody writes under another system's name: what is needed of such a pack goes into one of this system's.
        data = await self._cached(name) if name.writer == self._setup.identity.system else None
        if data is None:
            return False
        try:
            finished = await anyio.to_thread.run_sync(self._checked, name, data)
        except StoreCorrupt:
            return False
        await self._vault.packs.put_pack(finished)
        self._put_there.add(name)
        return True

    def _checked(self, name: PackName, data: Bytes) -> FinishedPack:
        entries = check_pack(name, data, self._setup.identity.keys, self._certificates)
        return FinishedPack(name, data, entries.ids, entries.offsets, entries.lengths)

    async def _lost(self, volume: VolumePoint, gone: Collection[PackName], problems: list[str]) -> Lost:
        """Return the blocks of a volume that lie in packs of `gone`, or are deltas with a source there."""
        lost = Lost(np.empty(0, np.uint64), _NO_IDS)
        stores = [PageStore(side.packs.read_records, side.packs.record_by_id) for side in (self._vault, self._spooled)]
        if self._cache is not None:
            stores.append(PageStore(self._cached_records, self._cached_record))
        reader = PageSources(stores, self._setup.identity.keys.pages, self._spooled.packs.index.pack_name)
        keys = np.array(sorted(name.key for name in gone), np.uint64)
        for descriptor in volume.runs:
            run = RunReader(reader, descriptor)
            try:
                # Pages with keys cannot be opened here: what a pack of pages held, nobody can put elsewhere.
                needed = (await run.table()).names()
                if away := next((name for name in needed if name.kind == "page" and name in gone), None):
                    raise StoreCorrupt(str(away), "it held pages of the block map, and no store has it")
                async with aclosing(self._read(run, keys)) as leaves:
                    await lost.lay_over(leaves)
            except StoreCorrupt as error:
                if isinstance(error, PagesAway) and error.away is not None:
                    raise error.away from error
                problems.append(f"volume {volume.name!r}: {error}")
                lost.all_of_it = True
        return lost

    async def _read(self, run: RunReader, gone: Column64) -> AsyncGenerator[tuple[IdLeaf, Column64], None]:
        """Yield what a run names, a leaf at a time, and which of its blocks are lost."""
        async with aclosing(run.leaves()) as leaves:
            async for leaf in leaves:
                yield leaf, await anyio.to_thread.run_sync(self._bad, leaf, gone)

    def _bad(self, leaf: IdLeaf, keys: Column64) -> Column64:
        bad = np.isin(leaf.places["pack"], keys)
        known = np.zeros(len(bad), np.bool_)
        for side in (self._spooled, self._vault):
            which, sources, answered = side.packs.index.delta_sources(leaf.ids, leaf.places)
            bad[which[np.isin(sources, keys)]] = True
            known |= answered
        if keys.size:
            bad |= ~known  # deltas, and nobody knows of what
        return np.flatnonzero(bad).astype(np.uint64)

    async def _there(self, wanted: set[bytes], gone: Collection[PackName]) -> set[bytes]:
        """Return those of the ids that own packs in the vault hold in whole records: filled in, or sent, before."""
        index = self._vault.packs.index
        await anyio.to_thread.run_sync(index.bar, [name.key for name in gone])
        idents = sorted(wanted)
        places = index.lookup(ids_from_bytes(b"".join(idents)))
        whole = (places["length"] > 0) & (places["length"] & np.uint32(DELTA_FLAG) == 0)
        packs = {key: index.pack_name(key) for key in set(places["pack"][whole].tolist())}
        own = {key: name for key, name in packs.items() if name and name.writer == self._setup.identity.system}
        absent = await self._vault.packs.present(own.values())
        good = {key for key, name in own.items() if name not in absent}
        keys = places["pack"].tolist()
        return {ident for ident, key, fits in zip(idents, keys, whole.tolist(), strict=True) if fits and key in good}

    async def _salvage(self, wanted: set[bytes], packs: Collection[PackName], volumes: Sequence[str]) -> set[bytes]:
        """Put what of `wanted` can still be opened into the vault; return the ids."""
        ids = ids_from_bytes(b"".join(sorted(wanted)))
        builder = self._builder()
        found: set[bytes] = set()
        records = salvaged(self._setup, [self._spooled, self._vault], packs, volumes, ids)
        async with aclosing(records):
            async for ident, record in records:
                builder = await self._add(builder, record)
                found.add(ident)
        if found:
            await self._put(builder)
        return found

    async def _fill_in(self, wanted: set[bytes]) -> set[bytes]:
        """Put the whole records of these ids that the cache has into the vault; return the ids of those it had."""
        assert self._cache is not None
        places = self._cache.packs.index.lookup(ids_from_bytes(b"".join(sorted(wanted))))
        keys = sorted(set(places["pack"][places["length"] > 0].tolist()))
        found: set[bytes] = set()
        builder = self._builder()
        for key in keys:
            name = self._cache.packs.index.pack_name(key)
            data = await self._cached(name) if name is not None else None
            if name is None or data is None:
                continue
            try:
                entries = await anyio.to_thread.run_sync(
                    check_pack, name, data, self._setup.identity.keys, self._certificates
                )
            except StoreCorrupt:
                continue
            for ident, offset, length in zip(
                map(bytes, entries.ids), entries.offsets.tolist(), entries.lengths.tolist(), strict=True
            ):
                if length & DELTA_FLAG or ident not in wanted or ident in found:
                    continue
                record = data[offset : offset + (length & LENGTH_MASK)]
                builder = await self._add(builder, record)
                found.add(ident)
        if found:
            await self._put(builder)
        return found

    def _builder(self) -> PackBuilder:
        identity = self._setup.identity
        return PackBuilder(
            "data", identity.keys, identity.system, self._session, identity.signer, self._setup.lane.pack_bytes
        )

    async def _add(self, builder: PackBuilder, record: Bytes) -> PackBuilder:
        """Add a record to the open pack, or to a new one if it is full; return the one that is open."""
        if not builder.room(len(record)):
            await self._put(builder)
            builder = self._builder()
        builder.add(record)
        return builder

    async def _put(self, builder: PackBuilder) -> None:
        finished = await anyio.to_thread.run_sync(builder.finish)
        await self._vault.packs.put_pack(finished)
        self._put_there.add(finished.name)

    async def _cached(self, name: PackName) -> bytes | None:
        if self._cache is None:
            return None
        try:
            return bytes(await self._cache.objects.get(str(name), 0, name.size))
        except StoreUnavailable as error:
            raise CacheAway(str(error)) from error
        except StoreError:
            return None

    async def _cached_records(self, pack: PackName, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        assert self._cache is not None
        try:
            return await self._cache.packs.read_records(pack, ranges)
        except StoreUnavailable as error:
            raise CacheAway(str(error)) from error
        except StoreRejected as error:
            raise ObjectMissing(str(pack)) from error  # a cache that refuses has nothing to give

    async def _cached_record(self, ident: bytes) -> bytes | None:
        assert self._cache is not None
        try:
            return await self._cache.packs.record_by_id(ident)
        except StoreUnavailable as error:
            raise CacheAway(str(error)) from error
        except StoreRejected:
            return None


def _in_ranges(blocks: Column64, starts: Column64, counts: Column64) -> Mask:
    """Tell which of `blocks` lie in the ranges, which are ascending and do not overlap."""
    if not len(starts):
        return np.zeros(len(blocks), np.bool_)
    at = np.searchsorted(starts, blocks, side="right").astype(np.int64) - 1
    return (at >= 0) & (blocks - starts[at] < counts[at])


def _ranges(blocks: list[int]) -> Ranges:
    ranges: Ranges = []
    for block in blocks:
        if ranges and sum(ranges[-1]) == block:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((block, 1))
    return ranges
