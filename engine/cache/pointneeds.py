"""What the restore points that are kept need of blocks, and a cache lacks; but for what the volumes have still.

    points, newest first → each run they list, gone through once: ids that the cache's index does not have → the newest
    point that shows each of them

When a block was seen last is the day of the newest point that shows it: a run says nothing of that, since newer runs
of later points may have named its blocks again. So where something is lacking, the runs are gone through once more, to
see which of those blocks they name; what no point shows is not needed. What the volumes have is left to the sessions,
which heal it without asking the vault.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, TypeAlias

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import PLACE, Ids, Mask, Places, blocks_in
from engine.cache.stamps import day_of
from engine.cache.trimplan import Days
from engine.columns import Column64, Rows
from engine.distinct import distinct
from engine.errors import StoreCorrupt
from engine.index import PackIndex
from engine.page import IdLeaf
from engine.pagestore import PageReader
from engine.pipeline.lost import NO_IDS
from engine.runs import RunReader
from engine.state import PAGE_ENTRIES, VolumeState
from engine.vault.kept import Kept, raise_if_away

HELD_MAX: Final = 1 << 20  # lacking blocks of all volumes that are held; they take some 60 bytes each

Shown: TypeAlias = tuple[int, tuple[int, ...]]  # the day of a point, and a volume's runs there, oldest first


class Needed(msgspec.Struct, eq=False):
    """Blocks that points need and a cache lacks: `ids`, where they lie in the vault, and when they were seen last.

    An id may stand there several times. `more`: not all are there that are lacking.
    """

    ids: Ids
    places: Places
    days: Days
    more: bool = False


class _Part(msgspec.Struct, eq=False):
    """What is lacking of one leaf of run `run`."""

    run: int
    blocks: Column64
    ids: Ids
    places: Places


class PointNeeds:
    """Looks for what the points of `kept` need and `index`, of the cache, does not have; `run` once.

    `states`: local state of the volumes that are backed up still; `today`: the newest day that counts. `problems`:
    runs that cannot be read.
    """

    def __init__(
        self,
        kept: Kept,
        pages: PageReader,
        index: PackIndex,
        states: Mapping[str, VolumeState],
        today: int,
        told: Callable[[int, int], None] = lambda done, runs: None,
        *,
        held_max: int = HELD_MAX,
    ) -> None:
        self._kept, self._pages, self._index, self._states = kept, pages, index, states
        self._today, self._told, self._held_max = today, told, held_max
        self._done = 0
        self.problems: list[str] = []

    async def run(self) -> Needed:
        """Return what is needed and lacking. Raises: StoreUnavailable, StoreRejected of the vault, StateCorrupt."""
        volumes = self._volumes()
        found = Needed(NO_IDS, np.zeros(0, PLACE), np.zeros(0, np.uint16))
        for number, (name, shown) in enumerate(volumes.items()):
            room = (self._held_max - len(found.ids)) // (len(volumes) - number)
            parts, more = await self._lacking(name, shown, room)
            found.more |= more
            if parts:
                days = await self._dated(parts, shown)
                seen = days > 0
                found.ids = np.concatenate((found.ids, np.concatenate([part.ids for part in parts])[seen]))
                found.places = np.concatenate((found.places, np.concatenate([part.places for part in parts])[seen]))
                found.days = np.concatenate((found.days, days[seen]))
        return found

    def _volumes(self) -> dict[str, list[Shown]]:
        """Return each volume's runs at each point, newest first, and where points have the same, once."""
        found: dict[str, list[Shown]] = {}
        for point in self._kept.points:
            day = min(day_of(point.id.order), self._today)
            for volume in point.volumes:
                shown = found.setdefault(volume.name, [])
                if not shown or shown[-1][1] != volume.runs:
                    shown.append((day, volume.runs))
        return found

    async def _lacking(self, name: str, shown: Sequence[Shown], room: int) -> tuple[list[_Part], bool]:
        """Return what is lacking of the runs of a volume, newest point first, and whether there is more than `room`."""
        parts: list[_Part] = []
        held = 0
        seen: set[int] = set()
        for _, runs in shown:
            for run in reversed(runs):
                if run in seen:
                    continue
                seen.add(run)
                self._done += 1
                self._told(self._done, len(self._kept.runs))
                if held >= room:
                    return parts, True
                try:
                    async with aclosing(RunReader(self._pages, self._kept.runs[run]).leaves()) as leaves:
                        async for leaf in leaves:
                            part = await anyio.to_thread.run_sync(self._lacking_of, name, run, leaf)
                            held += len(part.blocks)
                            parts += [part] if len(part.blocks) else []
                            if held >= room:
                                break
                except StoreCorrupt as error:
                    raise_if_away(error)
                    self.problems.append(f"{error}; what it names is not looked for in the cache")
        return parts, held >= room

    def _lacking_of(self, name: str, run: int, leaf: IdLeaf) -> _Part:
        (rows,) = (self._index.lookup(leaf.ids)["length"] == 0).nonzero()
        if rows.size and (state := self._states.get(name)) is not None:
            rows = rows[~on_volume(state, leaf.blocks[rows], leaf.ids[rows])]
        return _Part(run, leaf.blocks[rows], leaf.ids[rows], leaf.places[rows])

    async def _dated(self, parts: Sequence[_Part], shown: Sequence[Shown]) -> Days:
        """Return for each block of `parts` the day of the newest point that shows it, 0: none does."""
        blocks = distinct(*(part.blocks for part in parts))
        rows = np.concatenate([blocks.searchsorted(part.blocks) for part in parts])
        runs = np.repeat([part.run for part in parts], [len(part.blocks) for part in parts])
        lacking = {part.run for part in parts}
        days = np.zeros(len(rows), np.uint16)
        names: dict[int, Mask] = {}
        for day, listed in shown:
            names = {run: mask for run, mask in names.items() if run in listed}
            if lacking.isdisjoint(listed):
                continue
            for run in listed:
                if run not in names:
                    names[run] = await self._named(run, blocks)
            await anyio.to_thread.run_sync(_date, days, day, rows, runs, [(run, names[run]) for run in listed])
            if days.all():
                break
        return days

    async def _named(self, run: int, blocks: Column64) -> Mask:
        """Tell which of `blocks` (ascending) a run names, be it as zero."""
        named: Mask = np.zeros(len(blocks), np.bool_)
        reader = RunReader(self._pages, self._kept.runs[run])
        try:
            async with aclosing(reader.leaves(int(blocks[0]), int(blocks[-1]) + 1)) as leaves:
                async for leaf in leaves:
                    _mark(named, blocks, leaf)
        except StoreCorrupt as error:
            raise_if_away(error)  # what it names is not known: told of when it was gone through
        return named


def on_volume(state: VolumeState, blocks: Column64, ids: Ids) -> Mask:
    """Tell which of these blocks are on the volume still, by its map (*sync*). Raises: StateCorrupt."""
    still: Mask = np.zeros(len(blocks), np.bool_)
    head = state.head
    if head is None:
        return still
    (inside,) = (blocks < np.uint64(blocks_in(head.volume_bytes))).nonzero()
    if not inside.size:
        return still
    numbers = (blocks[inside] // np.uint64(PAGE_ENTRIES)).astype(np.int64)
    pages = distinct(numbers)
    slots = (blocks[inside] % np.uint64(PAGE_ENTRIES)).astype(np.intp)
    entries = state.read(pages)[pages.searchsorted(numbers), slots]
    words = np.ascontiguousarray(entries["ref"]).view("<u8").reshape(len(inside), -1)
    still[inside] = (words[:, :2] == ids[inside]).all(axis=1)
    return still


def _date(days: Days, day: int, rows: Rows, runs: Rows, listed: Sequence[tuple[int, Mask]]) -> None:
    """Date what a point of `day` shows of what is not dated; `listed`: its runs, and which blocks they name."""
    last = np.full(len(listed[0][1]), -1, np.intp)
    for run, named in listed:
        last[named] = run
    days[(days == 0) & (last[rows] == runs)] = day


def _mark(named: Mask, blocks: Column64, leaf: IdLeaf) -> None:
    first, stop = blocks.searchsorted(np.array([leaf.first_block, leaf.stop_block], np.uint64)).tolist()
    part = blocks[first:stop]
    if not len(part):
        return
    if len(leaf.blocks):
        named[first:stop] |= leaf.blocks.take(leaf.blocks.searchsorted(part), mode="clip") == part
    if len(leaf.zero_starts):
        at = leaf.zero_starts.searchsorted(part, "right").astype(np.intp) - 1
        named[first:stop] |= (at >= 0) & (part - leaf.zero_starts[at] < leaf.zero_counts[at])
