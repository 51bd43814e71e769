"""Filling in from the cache what the vault lost under a spooled point (DESIGN.md §3.3).

A pack the cache has under the same name goes to the vault as it is. Of other lost packs the records of the blocks that
count are taken, whole, out of packs of the cache that hold together and carry a member's signature, and go to the vault
in a new pack: a restore that does not find a block in its place looks it up by its id. What is left are holes.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Final, TypeAlias

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import DELTA_FLAG, LENGTH_MASK, Bytes, Ids, ids_from_bytes
from engine.columns import Column64
from engine.errors import StoreCorrupt, StoreError, StoreUnavailable
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder, check_pack
from engine.page import IdLeaf
from engine.pagestore import PageReader
from engine.pipeline.pagesources import PageSources
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.root import Root, VolumePoint
from engine.runs import RunReader
from engine.vault.certificate import Certificates

_NO_IDS: Final[Ids] = np.empty((0, 2), np.uint64)

Ranges: TypeAlias = list[tuple[int, int]]  # (first block, count)


class Lost(msgspec.Struct):
    """Blocks of one volume that count and lie in packs that are gone: ascending numbers, and their ids beside.

    `all_of_it`: a run cannot be read, or will not be: nobody knows which of its blocks count, or nobody opens them.
    """

    blocks: Column64
    ids: Ids
    all_of_it: bool = False

    def lay_over(self, leaf: IdLeaf, bad: Column64) -> None:
        """Take in what a newer run names; `bad`: positions of those of its blocks that are lost."""
        named = np.isin(self.blocks, leaf.blocks)
        for start, count in zip(leaf.zero_starts.tolist(), leaf.zero_counts.tolist(), strict=True):
            named |= (self.blocks >= np.uint64(start)) & (self.blocks < np.uint64(start + count))
        blocks = np.concatenate((self.blocks[~named], leaf.blocks[bad]))
        ids = np.concatenate((self.ids[~named], leaf.ids[bad]))
        order = blocks.argsort()
        self.blocks, self.ids = blocks[order], ids[order]


class Filled(msgspec.Struct, frozen=True):
    """What filling in a point came to: `holes` per volume, problems, packs that stay lost, volumes nobody can read."""

    holes: dict[str, Ranges]
    problems: list[str]
    left: frozenset[PackName]
    unread: frozenset[str]


class Filling:
    """Fills in one point; `cache` None: there is nothing to fill from."""

    def __init__(
        self, setup: SessionSetup, vault: Side, spooled: Side, cache: Side | None, certificates: Certificates
    ) -> None:
        self._setup, self._certificates = setup, certificates
        self._vault, self._spooled, self._cache = vault, spooled, cache
        self._session = secrets.token_bytes(16)

    async def fill(self, root: Root, absent: Collection[PackName]) -> Filled:
        """Put into the vault what it lacks of a point; return what is left.

        `absent`: packs the point lists that neither vault nor spool have. Raises: StoreUnavailable and StoreRejected of
        every store, StateCorrupt.
        """
        problems = [f"object {name} is gone from the vault" for name in sorted(absent, key=str)]
        left = frozenset([name for name in absent if not await self._copy(name)])
        lost = {volume.name: await self._lost(volume, left, problems) for volume in root.body.volumes}
        wanted = {ident for each in lost.values() for ident in map(bytes, each.ids)}
        found = await self._fill_in(wanted) if wanted and self._cache is not None else set()
        await self._vault.packs.publish_index()
        await self._vault.packs.flush()
        holes: dict[str, Ranges] = {}
        for volume in root.body.volumes:
            each = lost[volume.name]
            if each.all_of_it:
                holes[volume.name] = [(0, volume.blocks)]
                continue
            gone = [int(block) for block, ident in zip(each.blocks, each.ids, strict=True) if bytes(ident) not in found]
            if gone:
                holes[volume.name] = _ranges(gone)
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
        return True

    def _checked(self, name: PackName, data: Bytes) -> FinishedPack:
        entries = check_pack(name, data, self._setup.identity.keys, self._certificates)
        return FinishedPack(name, data, entries.ids, entries.offsets, entries.lengths)

    async def _lost(self, volume: VolumePoint, gone: Collection[PackName], problems: list[str]) -> Lost:
        """Return the blocks of a volume that lie in packs of `gone`, or are deltas with a source there."""
        lost = Lost(np.empty(0, np.uint64), _NO_IDS)
        sides = [side for side in (self._vault, self._spooled, self._cache) if side is not None]
        pages = PageSources([side.packs for side in sides], whole=True, strict=True)
        index = self._spooled.packs.index
        reader = PageReader(pages.read_records, index.pack_name, pages.record_by_id, self._setup.identity.keys.pages)
        keys = np.array(sorted(name.key for name in gone), np.uint64)
        for descriptor in volume.runs:
            run = RunReader(reader, descriptor)
            try:
                # Pages with keys cannot be opened here: what a pack of pages held, nobody can put elsewhere.
                needed = (await run.table()).names()
                if away := next((name for name in needed if name.kind == "page" and name in gone), None):
                    raise StoreCorrupt(str(away), "it held pages of the block map, and no store has it")
                async for leaf in run.leaves():
                    bad = await anyio.to_thread.run_sync(self._bad, leaf, keys)
                    lost.lay_over(leaf, bad)
            except StoreCorrupt as error:
                problems.append(f"volume {volume.name!r}: {error}")
                lost.all_of_it = True
        return lost

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
                if not builder.room(len(record)):
                    await self._put(builder)
                    builder = self._builder()
                builder.add(record)
                found.add(ident)
        if found:
            await self._put(builder)
        return found

    def _builder(self) -> PackBuilder:
        identity = self._setup.identity
        return PackBuilder(
            "data", identity.keys, identity.system, self._session, identity.signer, self._setup.lane.pack_bytes
        )

    async def _put(self, builder: PackBuilder) -> None:
        await self._vault.packs.put_pack(await anyio.to_thread.run_sync(builder.finish))

    async def _cached(self, name: PackName) -> bytes | None:
        if self._cache is None:
            return None
        try:
            return bytes(await self._cache.objects.get(str(name), 0, name.size))
        except StoreUnavailable:
            raise  # it may have the pack, and what is published as a hole stays one
        except StoreError:
            return None


def _ranges(blocks: list[int]) -> Ranges:
    ranges: Ranges = []
    for block in blocks:
        if ranges and sum(ranges[-1]) == block:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((block, 1))
    return ranges
