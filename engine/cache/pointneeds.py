"""What the restore points that are kept need of blocks, and a cache lacks; but for what the volumes have still.

    points, newest first → each run they list, gone through once, but for what was found before (pointsfound.py): ids
    that the cache's index does not have → the newest point that shows each of them

When a block was seen last is the day of the newest point that shows it: a run says nothing of that, since newer runs
of later points may have named its blocks again. So where something is lacking, the runs are gone through once more, to
see which of those blocks they name; what no point shows is not needed. What the volumes have is left to the sessions,
which heal it without asking the vault.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Final, TypeAlias

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import PLACE, Ids, Mask, Places, blocks_in
from engine.cache.pointsfound import LACKING_MAX, STRETCH_BLOCKS, PointsFound, Stretch
from engine.cache.stamps import day_of
from engine.cache.trimplan import Days
from engine.columns import Column64, Rows
from engine.distinct import distinct
from engine.errors import StoreCorrupt
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
    """Looks for what the points of `kept` need and the cache that `found` knows of does not have; `run` once.

    `states`: local state of the volumes that are backed up still; `today`: the newest day that counts, `oldest`: the
    least day of a point that does. `problems`: runs that cannot be read.
    """

    def __init__(
        self,
        kept: Kept,
        pages: PageReader,
        found: PointsFound,
        states: Mapping[str, VolumeState],
        today: int,
        oldest: int = 0,
        told: Callable[[int, int], None] = lambda done, runs: None,
        *,
        held_max: int = HELD_MAX,
    ) -> None:
        self._kept, self._pages, self._found, self._states = kept, pages, found, states
        self._today, self._oldest, self._told, self._held_max = today, oldest, told, held_max
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
            if day < self._oldest:
                continue  # what younger points do not show is older still
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
                    async with aclosing(self._parts(name, run)) as found:
                        async for part in found:
                            held += len(part.blocks)
                            parts += [part] if len(part.blocks) else []
                            if held >= room:
                                break
                except StoreCorrupt as error:
                    self._found.forget(self._kept.digests[run])
                    raise_if_away(error)
                    self.problems.append(f"{error}; what it names is not looked for in the cache")
        return parts, held >= room

    async def _parts(self, name: str, run: int) -> AsyncGenerator[_Part, None]:
        """Yield what is lacking of a run, and have what was gone through remembered, stretch by stretch."""
        digest = self._kept.digests[run]
        for stretch in await anyio.to_thread.run_sync(self._found.known, digest):
            yield await anyio.to_thread.run_sync(self._part, name, run, stretch)
        reader = RunReader(self._pages, self._kept.runs[run])
        for first, stop in self._found.unknown(digest):
            stretch, sure, count = Stretch.at(first), True, 0
            async with aclosing(reader.leaves(first, stop)) as leaves:
                async for leaf in leaves:
                    if count >= STRETCH_BLOCKS:
                        if sure:
                            self._found.note(digest, stretch)
                        stretch, sure, count = Stretch.at(stretch.stop), True, 0
                    lacking, known = await anyio.to_thread.run_sync(self._look, stretch, leaf)
                    sure, count = sure and known, count + len(leaf.blocks)
                    yield await anyio.to_thread.run_sync(self._part, name, run, lacking)
            stretch.stop = stop
            if sure:
                self._found.note(digest, stretch)

    def _look(self, stretch: Stretch, leaf: IdLeaf) -> tuple[Stretch, bool]:
        """Take a leaf into a stretch (*sync*); return what lacks of it, and whether the rest is known to be there."""
        packs, lacks, sure = self._found.look(leaf.ids)
        stretch.packs, stretch.stop = distinct(stretch.packs, packs), leaf.stop_block
        ids, places = leaf.ids[lacks], leaf.places[lacks]
        lacking = Stretch(leaf.first_block, leaf.stop_block, packs, leaf.blocks[lacks], ids, places)
        # One that lacks so much is not noted.
        if lacks.any() and len(stretch.blocks) <= LACKING_MAX:
            stretch.blocks = np.concatenate((stretch.blocks, lacking.blocks))
            stretch.ids = np.concatenate((stretch.ids, ids))
            stretch.places = np.concatenate((stretch.places, places))
        return lacking, sure

    def _part(self, name: str, run: int, stretch: Stretch) -> _Part:
        """Return what is lacking of a stretch, but for what the volumes have (*sync*)."""
        blocks, ids, places = stretch.blocks, stretch.ids, stretch.places
        if len(blocks) and (state := self._states.get(name)) is not None:
            rest = ~on_volume(state, blocks, ids)
            blocks, ids, places = blocks[rest], ids[rest], places[rest]
        return _Part(run, blocks, ids, places)

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
