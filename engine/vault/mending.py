"""What a vault lost under its own points is put there again, as far as anybody has it; what cannot be are holes.

    packs the cache has itself → runs that need a lost pack, each gone through once: blocks in lost packs → found
    elsewhere in the vault, filled in from the cache, salvaged → holes of each point, where a newer run has not named
    the block again

A pack of the same name cannot be made again from records, and a damaged one not be replaced: what is put goes into new
packs of this system, where a restore finds it by its id. While something is filled in from the cache, its ids are
pinned there: they may be the last copy (engine/cache/pins.py).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import Ids, Mask
from engine.columns import Column64, Rows
from engine.distinct import distinct
from engine.errors import StoreCorrupt, StoreError
from engine.index import PackIndex
from engine.names import PackName
from engine.packtable import keys_of
from engine.page import BLOCKS_MAX, IdLeaf
from engine.pipeline.lost import Lost, Ranges, RunCursor, Wanted, add_ranges
from engine.pipeline.refill import CacheAway, Refill
from engine.runs import RunReader
from engine.vault.kept import Kept, KeptPoint, KeptVolume, raise_if_away, tables

LOST_MAX: Final = 1 << 20  # lost blocks that are held; they take some 60 bytes each
WINDOW_BLOCKS: Final = 1 << 18
KNOWN_MAX: Final = 16  # volumes whose holes are kept for the next point
HOLES_MAX: Final = 1 << 17  # ranges a note lists of one volume; of more, the nearest are joined

Pin = Callable[[Ids], Awaitable[None]]


class LostRun(msgspec.Struct):
    """What cannot be had of one run: ranges of block numbers, ascending; and which damaged packs its table lists."""

    starts: list[Column64] = []
    counts: list[Column64] = []
    damaged: Column64 = msgspec.field(default_factory=lambda: np.empty(0, np.uint64))
    unread: bool = False

    def add(self, blocks: Column64) -> None:
        """Take in ascending blocks beyond all there are."""
        if not len(blocks):
            return
        first = np.flatnonzero(np.concatenate(([True], blocks[1:] != blocks[:-1] + np.uint64(1))))
        self.starts.append(blocks[first])
        self.counts.append(np.diff(np.append(first, len(blocks))).astype(np.uint64))

    def among(self, blocks: Column64) -> Rows:
        """Return the positions of those of `blocks` that are lost."""
        starts, counts = self.starts[0], self.counts[0]
        at = starts.searchsorted(blocks, "right").astype(np.intp) - 1
        return np.flatnonzero((at >= 0) & (blocks - starts[at] < counts[at]))

    def any_in(self, first: int, stop: int) -> bool:
        """Tell whether anything is lost of the blocks [first, stop)."""
        at = int(self.starts[0].searchsorted(np.uint64(stop)))
        return at > 0 and int(self.starts[0][at - 1] + self.counts[0][at - 1]) > first

    def close(self) -> None:
        """Say that all was taken in."""
        self.starts = [np.concatenate([np.empty(0, np.uint64), *self.starts])]
        self.counts = [np.concatenate([np.empty(0, np.uint64), *self.counts])]

    @property
    def extent(self) -> tuple[int, int]:
        """The first lost block and the one behind the last; 0, 0: there are none."""
        if not len(self.starts[0]):
            return 0, 0
        return int(self.starts[0][0]), int(self.starts[0][-1] + self.counts[0][-1])


class Mending:
    """Mends one vault; `run` once, then ask for holes.

    `absent`, `damaged`: the packs that points need and that are lost; `volumes`: whose maps may open blocks of damaged
    packs. `pin` is told ids that only the cache may have, before they are filled in.
    """

    def __init__(
        self,
        refill: Refill,
        kept: Kept,
        absent: Collection[PackName],
        damaged: Collection[PackName],
        volumes: Sequence[str],
        pin: Pin | None = None,
        told: Callable[[str], None] = lambda phase: None,
        *,
        lost_max: int = LOST_MAX,
        window_blocks: int = WINDOW_BLOCKS,
    ) -> None:
        self._refill, self._kept, self._volumes, self._pin, self._told = refill, kept, volumes, pin, told
        self._absent, self._damaged = sorted(absent, key=str), sorted(damaged, key=str)
        self._lost_max, self._window_blocks = lost_max, window_blocks
        self._pages = refill.pages(cache_first=True)
        self._runs: dict[int, LostRun] = {}
        self._known: dict[tuple[int, ...], Ranges] = {}
        self.copied: list[PackName] = []
        self.filled = 0
        self.problems: list[str] = []

    async def run(self) -> None:
        """Put into the vault what is to be had. Raises: StoreUnavailable, StoreRejected of the vault, StateCorrupt."""
        index = self._refill.vault.packs.index
        index.bar([name.key for name in (*self._absent, *self._damaged)])
        unpaged = await self._packs()
        lost = [name for name in (*self._absent, *self._damaged) if name not in self.copied]
        await self._find_runs(lost, unpaged)
        await self._blocks(lost)
        await self._refill.finish()
        self.problems += self._refill.problems
        for run in self._runs.values():
            run.close()

    async def holes(self, point: KeptPoint) -> dict[str, Ranges]:
        """Return per volume which blocks of a point cannot be given back. Raises: StoreUnavailable, StoreRejected."""
        found = {}
        for volume in point.volumes:
            if ranges := await self._holes(volume):
                found[volume.name] = ranges
        return found

    def damaged_in(self, point: KeptPoint) -> list[bytes]:
        """Return the keys of the damaged packs that a point needs."""
        runs = {number for volume in point.volumes for number in volume.runs}
        keys = distinct(np.empty(0, np.uint64), *(self._runs[n].damaged for n in sorted(runs) if n in self._runs))
        return [key.to_bytes(8, "little") for key in keys.tolist()]

    async def _packs(self) -> Column64:
        """Copy what the cache has itself; return the keys of page packs of which no other one holds the pages."""
        self._told("putting packs there again")
        for name in self._absent:
            if await self._tried(self._refill.copy, name):
                self.copied.append(name)
        pages = [n for n in (*self._absent, *self._damaged) if n.kind == "page" and n not in self.copied]
        if not pages:
            return np.empty(0, np.uint64)
        elsewhere = await self._elsewhere(pages)
        rest = [name for name in pages if name not in elsewhere]
        rest = [name for name in rest if not await self._tried(self._refill.copy_records, name)]
        return np.array(sorted(name.key for name in rest), np.uint64)

    async def _tried(self, put: Callable[[PackName], Awaitable[bool]], name: PackName) -> bool:
        try:
            return await put(name)
        except CacheAway as error:
            self._without_cache(error)
            return False

    def _without_cache(self, error: CacheAway) -> None:
        self._refill.cache = None
        self.problems.append(f"cache: {error}; what the vault lost cannot be filled in from it now")

    async def _elsewhere(self, pages: Sequence[PackName]) -> set[PackName]:
        """Return those of lost page packs all pages of which lie in other packs that are there."""
        index = self._refill.vault.packs.index
        listed = await anyio.to_thread.run_sync(_ids_of, index, [name.key for name in pages])
        found: dict[PackName, set[PackName]] = {}
        for name in pages:
            ids = listed.get(name.key)
            places = await anyio.to_thread.run_sync(index.lookup, ids) if ids is not None else None
            if places is not None and bool((places["length"] > 0).all()):
                others = index.pack_names(np.ascontiguousarray(places["pack"]))
                found[name] = {other for other in others if other is not None}
        absent = await self._refill.vault.packs.absent({other for others in found.values() for other in others})
        return {name for name, others in found.items() if not others & absent}

    async def _find_runs(self, lost: Sequence[PackName], unpaged: Column64) -> None:
        """Find the runs that need a lost pack."""
        keys = np.array(sorted(name.key for name in lost), np.uint64)
        bad = np.array(sorted(name.key for name in self._damaged), np.uint64)
        async with aclosing(tables(self._kept, self._pages)) as found:
            async for number, rows in found:
                listed = keys_of(rows) if rows is not None else keys[:0]
                if rows is not None and not np.isin(listed, keys).any():
                    continue
                # Pages with keys cannot be opened here: which blocks a lost one is of, nobody knows.
                unread = rows is None or bool(np.isin(listed, unpaged).any())
                self._runs[number] = LostRun(damaged=distinct(listed[np.isin(listed, bad)]), unread=unread)

    async def _blocks(self, lost: Sequence[PackName]) -> None:
        """Go through the runs that need a lost pack, and put there what is to be had of the blocks in it."""
        keys = np.array(sorted(name.key for name in lost), np.uint64)
        pending: list[tuple[int, Lost]] = []
        held = done = 0
        for number, run in self._runs.items():
            done += 1
            self._told(f"looking for what was lost: run {done} of {len(self._runs)}")
            if run.unread:
                continue
            cursor = RunCursor(RunReader(self._pages, self._kept.runs[number]).leaves())
            try:
                async with aclosing(self._refill.bad_leaves(cursor, BLOCKS_MAX, keys)) as leaves:
                    async for leaf, bad in leaves:
                        if len(bad):
                            pending.append((number, Lost(leaf.blocks[bad], leaf.ids[bad])))
                            held += len(bad)
                        if held >= self._lost_max:
                            await self._settle(pending, lost)
                            pending, held = [], 0
            except StoreCorrupt as error:
                raise_if_away(error)
                self.problems.append(str(error))
                run.unread = True
        await self._settle(pending, lost)

    async def _settle(self, pending: Sequence[tuple[int, Lost]], lost: Sequence[PackName]) -> None:
        wanted = await anyio.to_thread.run_sync(Wanted, [each.ids for _, each in pending])
        if len(wanted):
            await self._refill.find_there(wanted, lost)
            before = int(np.count_nonzero(wanted.found))
            await self._from_cache(wanted)
            if not wanted.all_found():
                await self._refill.salvage(wanted, self._damaged, self._volumes)
            self.filled += int(np.count_nonzero(wanted.found)) - before
        for number, each in pending:
            for blocks in wanted.gone(each):
                self._runs[number].add(blocks)

    async def _from_cache(self, wanted: Wanted) -> None:
        if self._refill.cache is None or wanted.all_found():
            return
        if self._pin is not None:
            try:
                await self._pin_all(wanted, self._refill.cache.packs.index, self._pin)
            except StoreError as error:
                self.problems.append(
                    f"cache: {error}; a trimming may remove what is put into the vault again meanwhile"
                )
                self._pin = None
        try:
            await self._refill.fill_in(wanted)
        except CacheAway as error:
            self._without_cache(error)

    async def _pin_all(self, wanted: Wanted, index: PackIndex, pin: Pin) -> None:
        """Pin what the cache has of what is wanted."""
        for _, ids in wanted.open(LOST_MAX):
            places = await anyio.to_thread.run_sync(index.lookup, ids)
            if (there := places["length"] > 0).any():
                await pin(ids[there])

    async def _holes(self, volume: KeptVolume) -> Ranges:
        hurt = [number in self._runs for number in volume.runs]
        if not any(hurt):
            return []
        if any(self._runs[number].unread for number in volume.runs if number in self._runs):
            return [(0, volume.blocks)] if volume.blocks else []
        if (known := self._known.get(volume.runs)) is not None:
            return known
        runs = volume.runs[hurt.index(True) :]
        extents = [self._runs[number].extent for number in runs if number in self._runs]
        ranges: Ranges = []
        low, high = min(first for first, _ in extents), max(stop for _, stop in extents)
        for first in range(low, high, self._window_blocks):
            stop = min(first + self._window_blocks, high)
            if any(self._runs[number].any_in(first, stop) for number in runs if number in self._runs):
                try:
                    add_ranges(ranges, await self._lost_in(runs, first, stop))
                except StoreCorrupt as error:
                    raise_if_away(error)
                    self.problems.append(f"volume {volume.name!r}: {error}")
                    return [(0, volume.blocks)]
        ranges = joined(_below(ranges, volume.blocks), HOLES_MAX)
        # Points that follow on one another often share a volume's runs; to keep all of it would be as much as all maps.
        if len(self._known) >= KNOWN_MAX:
            del self._known[next(iter(self._known))]
        self._known[volume.runs] = ranges
        return ranges

    async def _lost_in(self, runs: Sequence[int], first: int, stop: int) -> Column64:
        lost = Lost.none()
        for number in runs:
            async with aclosing(self._named(number, first, stop)) as leaves:
                await lost.lay_over(leaves)
        return lost.blocks

    async def _named(self, number: int, first: int, stop: int) -> AsyncGenerator[tuple[IdLeaf, Column64], None]:
        """Yield what a run names in [first, stop), and which of it is lost."""
        run = self._runs.get(number)
        async with aclosing(RunReader(self._pages, self._kept.runs[number]).leaves(first, stop)) as leaves:
            async for leaf in leaves:
                bad = run.among(leaf.blocks) if run is not None and len(run.starts[0]) else np.empty(0, np.intp)
                yield leaf, bad.astype(np.uint64)


def joined(ranges: Ranges, count_max: int) -> Ranges:
    """Return ranges that cover all of `ranges` (ascending), at most so many: the nearest are joined first."""
    if len(ranges) <= count_max:
        return ranges
    starts, counts = np.array(ranges, np.int64).T
    gaps = starts[1:] - (starts + counts)[:-1]
    # Where gaps are alike, more than need be are joined.
    kept: Mask = gaps > np.partition(gaps, len(gaps) - count_max)[len(gaps) - count_max]
    first = np.concatenate(([True], kept))
    begin, end = starts[first], (starts + counts)[np.append(kept, True)]
    return list(zip(begin.tolist(), (end - begin).tolist(), strict=True))


def _below(ranges: Ranges, blocks: int) -> Ranges:
    return [(first, min(count, blocks - first)) for first, count in ranges if first < blocks]


def _ids_of(index: PackIndex, keys: Sequence[int]) -> dict[int, Ids]:
    """Return the ids of all records that the index lists of packs (*sync*)."""
    wanted = np.array(sorted(keys), np.uint64)
    found: dict[int, list[Ids]] = {}
    for view in index.views():
        (tables_rows,) = np.isin(view.keys, wanted).nonzero()
        for row in tables_rows.tolist():
            (at,) = (view.columns.pack == row).nonzero()
            if at.size:
                ids = np.stack((view.columns.lo[at], view.columns.hi[at]), axis=1)
                found.setdefault(int(view.keys[row]), []).append(ids)
    return {key: np.concatenate(parts) for key, parts in found.items()}
