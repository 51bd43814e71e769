"""Putting into the vault again what it lost: out of the cache, and out of damaged packs.

A pack the cache has under the same name goes to the vault as it is. Of other lost packs the records of the blocks that
are wanted are taken, whole, out of packs of the cache that hold together and carry a member's signature, and go to the
vault in a new pack: a restore that does not find a block in its place looks it up by its id. So does what can still be
opened of packs that are damaged (salvage.py).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

import anyio.to_thread
import numpy as np

from engine.block import DELTA_FLAG, Bytes, Mask
from engine.columns import Column64
from engine.distinct import distinct
from engine.errors import ObjectMissing, StoreCorrupt, StoreError, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder, PackEntries, check_pack
from engine.page import IdLeaf
from engine.pagesources import PageSources, PageStore
from engine.pipeline.kept import not_kept
from engine.pipeline.lost import ASKED, RunCursor, Wanted
from engine.pipeline.salvage import salvaged
from engine.pipeline.setup import SessionSetup
from engine.pipeline.standin import put_anyway
from engine.pipeline.stores import Side
from engine.vault.certificate import Certificates


class CacheAway(StoreUnavailable):
    """The cache, which may have what the vault lost, cannot be asked now."""


class Refill:
    """Puts into `vault` what it lost. `beside`: stores besides the vault where damaged packs, and pages, may lie.

    `cache` None: there is nothing to fill from. `problems` takes what there is to tell of the vault.
    Methods raise StoreUnavailable and StoreRejected of the vault and of those beside it, CacheAway, StateCorrupt.
    """

    def __init__(
        self,
        setup: SessionSetup,
        vault: Side,
        beside: Sequence[Side],
        cache: Side | None,
        certificates: Certificates,
    ) -> None:
        self._setup, self._certificates = setup, certificates
        self.vault, self.beside, self.cache = vault, list(beside), cache
        self._session = secrets.token_bytes(16)
        self._put_there: set[PackName] = set()
        self.problems: list[str] = []

    async def copy(self, name: PackName) -> bool:
        """Put a lost pack into the vault again, if the cache has the very same."""
        found = await self._from_cache(name)
        if found is None:
            return False
        data, entries = found
        await self._put_pack(FinishedPack(name, data, entries.ids, entries.offsets, entries.lengths))
        return True

    async def copy_records(self, name: PackName) -> bool:
        """Put all records of a pack the vault has damaged into a new one there, if the cache has the pack whole."""
        found = await self._from_cache(name)
        if found is None:
            return False
        data, entries = found
        builder = self._builder(name.kind)
        for offset, length in zip(entries.offsets.tolist(), entries.lengths.tolist(), strict=True):
            builder = await self._add(builder, data[offset : offset + (length & ~DELTA_FLAG)])
        if builder.count:
            await self._put(builder)
        return True

    async def finish(self) -> None:
        """See that everything that was put lies in the vault, and is listed in its index."""
        await self.vault.packs.publish_index()
        await self.vault.packs.flush()
        if unkept := await self.vault.packs.absent(self._put_there):
            raise not_kept(str(min(unkept, key=str)))
        self._put_there.clear()

    def pages(self, *, cache_first: bool = False) -> PageSources:
        """Return what reads pages of block maps from all these stores."""
        stores = [PageStore(side.packs.read_records, side.packs.record_by_id) for side in (self.vault, *self.beside)]
        if self.cache is not None:
            near = PageStore(self._cached_records, self._cached_record)
            stores = [near, *stores] if cache_first else [*stores, near]
        return PageSources(stores, self._setup.identity.keys.pages, self._by_key)

    async def bad_leaves(
        self, run: RunCursor, stop: int, gone: Column64
    ) -> AsyncGenerator[tuple[IdLeaf, Column64], None]:
        """Yield what a run names before block `stop`, a leaf at a time, and which of its blocks are lost.

        `gone`: keys of packs, ascending; blocks in them are, and deltas with a source there.
        """
        async with aclosing(run.until(stop)) as leaves:
            async for leaf in leaves:
                yield leaf, await anyio.to_thread.run_sync(self._bad, leaf, gone)

    def _by_key(self, key: int) -> PackName | None:
        found = (side.packs.index.pack_name(key) for side in (*self.beside, self.vault))
        return next((name for name in found if name is not None), None)

    async def _from_cache(self, name: PackName) -> tuple[bytes, PackEntries] | None:
        """Return a pack of this system that the cache has whole, and what is in it."""
        # Nobody writes under another system's name: what is needed of such a pack goes into one of this system's.
        data = await self._cached(name) if name.writer == self._setup.identity.system else None
        if data is None:
            return None
        try:
            return data, await anyio.to_thread.run_sync(
                check_pack, name, data, self._setup.identity.keys, self._certificates
            )
        except StoreCorrupt:
            return None

    async def find_there(self, wanted: Wanted, gone: Collection[PackName]) -> None:
        """Find what own packs in the vault hold in whole records: filled in, or sent, before."""
        index = self.vault.packs.index
        await anyio.to_thread.run_sync(index.bar, [name.key for name in gone])
        packs = np.zeros(len(wanted), np.uint64)
        for rows, ids in wanted.open():
            places = await anyio.to_thread.run_sync(index.lookup, ids)
            whole = (places["length"] > 0) & (places["length"] & np.uint32(DELTA_FLAG) == 0)
            packs[rows[whole]] = places["pack"][whole]
        named = {key: index.pack_name(key) for key in distinct(packs).tolist() if key}
        own = {key: name for key, name in named.items() if name and name.writer == self._setup.identity.system}
        absent = await self.vault.packs.absent(own.values())
        good = np.array(sorted(key for key, name in own.items() if name not in absent), np.uint64)
        for start in range(0, len(packs), ASKED):
            wanted.found[start : start + ASKED] |= _among(packs[start : start + ASKED], good)

    async def fill_in(self, wanted: Wanted) -> None:
        """Put the whole records that the cache has of what is wanted into the vault."""
        assert self.cache is not None
        index = self.cache.packs.index
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

    async def salvage(self, wanted: Wanted, packs: Collection[PackName], volumes: Sequence[str]) -> None:
        """Put what can still be opened of what is wanted into the vault."""
        builder = self._builder()
        async with aclosing(salvaged(self._setup, [*self.beside, self.vault], packs, volumes, wanted)) as records:
            async for record in records:
                builder = await self._add(builder, record)
        if builder.count:
            await self._put(builder)

    def _bad(self, leaf: IdLeaf, keys: Column64) -> Column64:
        bad = _among(leaf.places["pack"], keys)
        known = np.zeros(len(bad), np.bool_)
        for side in (*self.beside, self.vault):
            which, sources, answered = side.packs.index.delta_sources(leaf.ids, leaf.places)
            bad[which[_among(sources, keys)]] = True
            known |= answered
        if keys.size:
            bad |= ~known  # deltas, and nobody knows of what
        return np.flatnonzero(bad).astype(np.uint64)

    def _builder(self, kind: str = "data") -> PackBuilder:
        identity = self._setup.identity
        return PackBuilder(
            kind, identity.keys, identity.system, self._session, identity.signer, self._setup.lane.pack_bytes
        )

    async def _add(self, builder: PackBuilder, record: Bytes) -> PackBuilder:
        """Add a record to the open pack, or to a new one if it is full; return the one that is open."""
        if not builder.room(len(record)):
            await self._put(builder)
            builder = self._builder(builder.kind)
        builder.add(record)
        return builder

    async def _put(self, builder: PackBuilder) -> None:
        finished = await anyio.to_thread.run_sync(builder.finish)
        await self._put_pack(finished)

    async def _put_pack(self, finished: FinishedPack) -> None:
        self.problems += await put_anyway(self._setup, self.vault.packs, finished)
        self._put_there.add(finished.name)

    async def _cached(self, name: PackName) -> bytes | None:
        if self.cache is None:
            return None
        try:
            return bytes(await self.cache.objects.get(str(name), 0, name.size))
        except StoreUnavailable as error:
            raise CacheAway(str(error)) from error
        except StoreError:
            return None

    async def _cached_records(self, pack: PackName, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        assert self.cache is not None
        try:
            return await self.cache.packs.read_records(pack, ranges)
        except StoreUnavailable as error:
            raise CacheAway(str(error)) from error
        except StoreRejected as error:
            raise ObjectMissing(str(pack)) from error  # a cache that refuses has nothing to give

    async def _cached_record(self, ident: bytes) -> bytes | None:
        assert self.cache is not None
        try:
            return await self.cache.packs.record_by_id(ident)
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
