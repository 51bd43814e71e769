"""Filling in from the cache what the vault lost under a spooled point (DESIGN.md §3.3).

A pack the cache has under the same name goes to the vault as it is. Of other lost packs the records of the blocks that
count are taken, whole, out of packs of the cache that hold together and carry a member's signature, and go to the vault
in a new pack: a restore that does not find a block in its place looks it up by its id. So does what can still be opened
of packs that are damaged in the spool (salvage.py). What is left are holes; but not while the cache is away, which may
have it: then the point waits.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import DELTA_FLAG, Bytes, Mask
from engine.columns import Column64
from engine.distinct import distinct
from engine.errors import ObjectMissing, StoreCorrupt, StoreError, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder, check_pack
from engine.page import IdLeaf
from engine.pagesources import PagesAway, PageSources, PageStore
from engine.pipeline.kept import not_kept
from engine.pipeline.lost import ASKED, STRETCH_BLOCKS, Lost, Ranges, RunCursor, Wanted, add_ranges
from engine.pipeline.salvage import salvaged
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.root import Root, VolumePoint
from engine.runs import RunReader
from engine.vault.certificate import Certificates

LOST_MAX: Final = 1 << 20  # lost blocks that are held; they take some 60 bytes each


class CacheAway(StoreUnavailable):
    """The cache, which may have what the vault lost, cannot be asked now."""


class Filled(msgspec.Struct, frozen=True):
    """What filling in a point came to: `holes` per volume, problems, packs that stay lost, volumes nobody can read."""

    holes: dict[str, Ranges]
    problems: list[str]
    left: frozenset[PackName]
    unread: frozenset[str]


class Filling:
    """Fills in one point; `cache` None: there is nothing to fill from, or it is away, and `away` says why.

    What is lost is settled once it is `lost_max` blocks; volumes are gone through `stretch_blocks` at a time.
    """

    def __init__(
        self,
        setup: SessionSetup,
        vault: Side,
        spooled: Side,
        cache: Side | None,
        certificates: Certificates,
        away: StoreUnavailable | None = None,
        *,
        lost_max: int = LOST_MAX,
        stretch_blocks: int = STRETCH_BLOCKS,
    ) -> None:
        self._setup, self._certificates, self._away = setup, certificates, away
        self._vault, self._spooled, self._cache = vault, spooled, cache
        self._lost_max, self._stretch_blocks = lost_max, stretch_blocks
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
        holes: dict[str, Ranges] = {volume.name: [] for volume in root.body.volumes}
        unread: set[str] = set()
        pending: list[tuple[str, Lost]] = []
        for volume in root.body.volumes:
            faults: list[str] = []
            async with aclosing(self._lost(volume, left, faults)) as stretches:
                async for lost in stretches:
                    pending.append((volume.name, lost))
                    if sum(len(each.blocks) for _, each in pending) >= self._lost_max:
                        await self._settle(pending, left, holes)
                        pending = []
            if faults:
                problems += faults
                unread.add(volume.name)
        await self._settle(pending, left, holes)
        await self._vault.packs.publish_index()
        await self._vault.packs.flush()
        if unkept := await self._vault.packs.present(self._put_there):
            raise not_kept(str(min(unkept, key=str)))
        holes.update({volume.name: [(0, volume.blocks)] for volume in root.body.volumes if volume.name in unread})
        holes = {name: ranges for name, ranges in holes.items() if ranges}
        if holes and self._away is not None:
            raise CacheAway(str(self._away)) from self._away
        return Filled(holes, problems, left, frozenset(unread))

    async def _settle(
        self, pending: Sequence[tuple[str, Lost]], gone: Collection[PackName], holes: dict[str, Ranges]
    ) -> None:
        """Put what is lost into the vault, as far as it is to be had; the rest goes into `holes`, of all volumes."""
        wanted = await anyio.to_thread.run_sync(Wanted, [lost.ids for _, lost in pending])
        if len(wanted):
            await self._find_there(wanted, gone)
        if self._cache is not None and not wanted.all_found():
            await self._fill_in(wanted)
        if not wanted.all_found():
            await self._salvage(wanted, gone, list(holes))
        for name, lost in pending:
            for blocks in wanted.gone(lost):
                add_ranges(holes[name], blocks)

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

    async def _lost(
        self, volume: VolumePoint, gone: Collection[PackName], faults: list[str]
    ) -> AsyncGenerator[Lost, None]:
        """Yield, a stretch at a time, the blocks of a volume in packs of `gone`, and deltas with a source there.

        `faults` takes a sentence about each run that cannot be read: nobody knows which of its blocks count.
        """
        stores = [PageStore(side.packs.read_records, side.packs.record_by_id) for side in (self._vault, self._spooled)]
        if self._cache is not None:
            stores.append(PageStore(self._cached_records, self._cached_record))
        reader = PageSources(stores, self._setup.identity.keys.pages, self._spooled.packs.index.pack_name)
        keys = np.array(sorted(name.key for name in gone), np.uint64)
        async with AsyncExitStack() as opened:
            runs: list[RunCursor] = []
            for descriptor in volume.runs:
                run = RunReader(reader, descriptor)
                with _told(volume, faults):
                    # Pages with keys cannot be opened here: what a pack of pages held, nobody can put elsewhere.
                    needed = (await run.table()).names()
                    if away := next((name for name in needed if name.kind == "page" and name in gone), None):
                        raise StoreCorrupt(str(away), "it held pages of the block map, and no store has it")
                    runs.append(RunCursor(await opened.enter_async_context(aclosing(run.leaves()))))
            while True:
                firsts: list[int] = []
                for cursor in [*runs]:
                    # A run that failed gives nothing more.
                    block: int | None = None
                    with _told(volume, faults):
                        block = await cursor.next_block()
                    if block is not None:
                        firsts.append(block)
                if not firsts:
                    return
                lost = Lost.none()
                for cursor in runs:
                    with _told(volume, faults):
                        async with aclosing(self._read(cursor, min(firsts) + self._stretch_blocks, keys)) as leaves:
                            await lost.lay_over(leaves)
                if len(lost.blocks):
                    yield lost

    async def _read(self, run: RunCursor, stop: int, gone: Column64) -> AsyncGenerator[tuple[IdLeaf, Column64], None]:
        """Yield what a run names before block `stop`, a leaf at a time, and which of its blocks are lost."""
        async with aclosing(run.until(stop)) as leaves:
            async for leaf in leaves:
                yield leaf, await anyio.to_thread.run_sync(self._bad, leaf, gone)

    def _bad(self, leaf: IdLeaf, keys: Column64) -> Column64:
        bad = _among(leaf.places["pack"], keys)
        known = np.zeros(len(bad), np.bool_)
        for side in (self._spooled, self._vault):
            which, sources, answered = side.packs.index.delta_sources(leaf.ids, leaf.places)
            bad[which[_among(sources, keys)]] = True
            known |= answered
        if keys.size:
            bad |= ~known  # deltas, and nobody knows of what
        return np.flatnonzero(bad).astype(np.uint64)

    async def _find_there(self, wanted: Wanted, gone: Collection[PackName]) -> None:
        """Find what own packs in the vault hold in whole records: filled in, or sent, before."""
        index = self._vault.packs.index
        await anyio.to_thread.run_sync(index.bar, [name.key for name in gone])
        packs = np.zeros(len(wanted), np.uint64)
        for rows, ids in wanted.open():
            places = await anyio.to_thread.run_sync(index.lookup, ids)
            whole = (places["length"] > 0) & (places["length"] & np.uint32(DELTA_FLAG) == 0)
            packs[rows[whole]] = places["pack"][whole]
        named = {key: index.pack_name(key) for key in distinct(packs).tolist() if key}
        own = {key: name for key, name in named.items() if name and name.writer == self._setup.identity.system}
        absent = await self._vault.packs.present(own.values())
        good = np.array(sorted(key for key, name in own.items() if name not in absent), np.uint64)
        for start in range(0, len(packs), ASKED):
            wanted.found[start : start + ASKED] |= _among(packs[start : start + ASKED], good)

    async def _salvage(self, wanted: Wanted, packs: Collection[PackName], volumes: Sequence[str]) -> None:
        """Put what can still be opened of what is wanted into the vault."""
        builder = self._builder()
        async with aclosing(salvaged(self._setup, [self._spooled, self._vault], packs, volumes, wanted)) as records:
            async for record in records:
                builder = await self._add(builder, record)
        if builder.count:
            await self._put(builder)

    async def _fill_in(self, wanted: Wanted) -> None:
        """Put the whole records that the cache has of what is wanted into the vault."""
        assert self._cache is not None
        index = self._cache.packs.index
        keys = np.empty(0, np.uint64)
        for _, ids in wanted.open():
            places = await anyio.to_thread.run_sync(index.lookup, ids)
            keys = distinct(keys, places["pack"][places["length"] > 0])
        builder = self._builder()
        for key in keys.tolist():
            name = index.pack_name(key)
            data = await self._cached(name) if name is not None else None
            if name is None or data is None:
                continue
            try:
                entries = await anyio.to_thread.run_sync(
                    check_pack, name, data, self._setup.identity.keys, self._certificates
                )
            except StoreCorrupt:
                continue
            rows = wanted.rows(entries.ids)
            rows[entries.lengths & np.uint32(DELTA_FLAG) != 0] = -1
            for at in np.flatnonzero(rows >= 0).tolist():
                if not wanted.found[rows[at]]:
                    offset, length = int(entries.offsets[at]), int(entries.lengths[at])
                    builder = await self._add(builder, data[offset : offset + length])
                    wanted.found[rows[at]] = True
        if builder.count:
            await self._put(builder)

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


def _among(values: Column64, ascending: Column64) -> Mask:
    """Tell which of `values` are among the `ascending` ones."""
    if not len(ascending):
        return np.zeros(len(values), np.bool_)
    same: Mask = ascending.take(ascending.searchsorted(values), mode="clip") == values
    return same


@contextmanager
def _told(volume: VolumePoint, faults: list[str]) -> Iterator[None]:
    """Add what is wrong with a run of a volume to `faults`. Raises: StoreUnavailable, StoreRejected of a store."""
    try:
        yield
    except StoreCorrupt as error:
        if isinstance(error, PagesAway) and error.away is not None:
            raise error.away from error
        faults.append(f"volume {volume.name!r}: {error}")
