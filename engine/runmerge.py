"""Merging runs: which ones, and what the merged run names.

A volume has at most 16 runs. When one more would be too many, neighbours are merged: those whose merged size is
smallest in relation to the square of the number of runs that go. (In relation to that number alone, the newest run
is written again nearly every time: 51 times what changed over 10,000 equal runs. What freed runs are worth grows
faster than their number, since what fills them can be merged among itself again: with the square it is 5.2 times,
where no order of merging 16 runs makes it less than 4.4.) The merged run is written from the current state of the
blocks it names, so blocks that newer runs name anyway are left out, and no key of an old block is needed.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final, Protocol

import msgspec
import numpy as np

from engine.block import Mask
from engine.page import BLOCKS_MAX, Blocks, IdLeaf
from engine.root import RUNS_MAX
from engine.runbuild import NO_BLOCKS, joined

AHEAD_ENTRIES: Final = 8192  # per run, held while merging


def plan_merge(sizes: Sequence[int], runs_max: int = RUNS_MAX) -> tuple[int, int] | None:
    """Return the range [start, stop) of runs to merge into one, or None if there are not too many.

    `sizes` (entries and extents, say) are oldest first. Among all ranges of neighbours whose merging leaves at most
    `runs_max` runs, the one with the smallest merged size in relation to the square of the number of runs that go; of
    equal ones the newest, and of those the shortest.
    """
    fewest = len(sizes) - runs_max + 1
    if fewest < 2:
        return None
    best: tuple[int, int] | None = None
    best_size, best_worth = 0, 1
    for stop in range(len(sizes), fewest - 1, -1):
        size = sum(sizes[stop - fewest + 1 : stop])
        for start in range(stop - fewest, -1, -1):
            size += sizes[start]
            worth = (stop - start - 1) ** 2
            difference = size * best_worth - best_size * worth
            if best is None or difference < 0:
                best, best_size, best_worth = (start, stop), size, worth
    return best


class Covered(msgspec.Struct, frozen=True, eq=False):
    """Blocks that count, in ascending order: `blocks` whose newest naming is an id, extents where it is zero."""

    blocks: Blocks
    zero_starts: Blocks
    zero_counts: Blocks


class NamesBlocks(Protocol):
    """A run, written or still to be: what `covered` needs of it."""

    def leaves(self) -> AsyncGenerator[IdLeaf, None]:
        """Yield what the run names, ascending."""
        ...


async def covered(
    readers: Sequence[NamesBlocks], shadowing: Sequence[NamesBlocks] = ()
) -> AsyncGenerator[Covered, None]:
    """Yield, ascending, what `readers` (oldest first) name and none of the newer runs `shadowing` does.

    Holds a bounded number of leaves of each run, however many there are; zero extents may come in pieces that touch.
    Raises: StoreCorrupt, StoreUnavailable, StoreRejected.
    """
    async with AsyncExitStack() as stack:
        cursors = [
            _Cursor(await stack.enter_async_context(aclosing(reader.leaves()))) for reader in (*readers, *shadowing)
        ]
        merged, newer = cursors[: len(readers)], cursors[len(readers) :]
        position = 0
        while True:
            for cursor in cursors:
                await cursor.fill(position)
            if all(cursor.ended for cursor in merged):
                return
            horizon = min(cursor.horizon for cursor in cursors)
            state = _EMPTY
            for cursor in merged:
                state = _laid_over(state, cursor.part(position, horizon))
            for cursor in newer:
                state = _without(state, cursor.part(position, horizon))
            if len(state.blocks) or len(state.zero_starts):
                yield state
            position = horizon


_EMPTY: Final = Covered(NO_BLOCKS, NO_BLOCKS, NO_BLOCKS)


class _Cursor:
    """The stretch of one run that is held: everything it names between where the merge is and `horizon`."""

    def __init__(self, leaves: AsyncIterator[IdLeaf]) -> None:
        self._leaves = leaves
        self._held: list[IdLeaf] = []
        self._last = False

    @property
    def ended(self) -> bool:
        return self._last and not self._held

    @property
    def horizon(self) -> int:
        return BLOCKS_MAX if self._last else self._held[-1].stop_block

    async def fill(self, position: int) -> None:
        self._held = [leaf for leaf in self._held if leaf.stop_block > position]
        if self._held:
            return
        entries = 0
        while not self._last and entries < AHEAD_ENTRIES:
            leaf = await anext(self._leaves, None)
            if leaf is None:
                self._last = True
            else:
                self._held.append(leaf)
                entries += len(leaf.blocks) + len(leaf.zero_starts)

    def part(self, first: int, stop: int) -> Covered:
        if not self._held:
            return _EMPTY
        cut = [leaf.clipped(first, stop)[0] for leaf in self._held]
        return Covered(
            np.concatenate([leaf.blocks for leaf in cut]),
            np.concatenate([leaf.zero_starts for leaf in cut]),
            np.concatenate([leaf.zero_counts for leaf in cut]),
        )


def _laid_over(older: Covered, newer: Covered) -> Covered:
    below = _without(older, newer)
    starts = np.concatenate((below.zero_starts, newer.zero_starts))
    counts = np.concatenate((below.zero_counts, newer.zero_counts))
    order = np.argsort(starts, kind="stable")
    return Covered(
        np.sort(np.concatenate((below.blocks, newer.blocks)), kind="stable"), *joined(starts[order], counts[order])
    )


def _without(state: Covered, names: Covered) -> Covered:
    if not len(names.blocks) and not len(names.zero_starts):
        return state
    starts = np.concatenate((names.blocks, names.zero_starts))
    stops = np.concatenate((names.blocks + np.uint64(1), names.zero_starts + names.zero_counts))
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], stops[order]
    return Covered(state.blocks[~_inside(state.blocks, starts, stops)], *_cut_out(state, starts, stops))


def _inside(blocks: Blocks, starts: Blocks, stops: Blocks) -> Mask:
    at = np.searchsorted(starts, blocks, side="right")
    inside: Mask = (at > 0) & (blocks < stops[at - 1])
    return inside


def _cut_out(state: Covered, starts: Blocks, stops: Blocks) -> tuple[Blocks, Blocks]:
    """Return the state's zero extents without the ranges given, which are ascending and do not overlap."""
    gap_starts = np.concatenate((np.zeros(1, np.uint64), stops))
    gap_stops = np.concatenate((starts, np.array([BLOCKS_MAX], np.uint64)))
    zero_starts, zero_stops = state.zero_starts, state.zero_starts + state.zero_counts
    # Every extent meets a stretch of neighbouring gaps: one row for each such pair.
    low = np.searchsorted(gap_stops, zero_starts, side="right")
    meets = np.searchsorted(gap_starts, zero_stops, side="left") - low
    extent = np.repeat(np.arange(len(zero_starts)), meets)
    gap = np.arange(len(extent)) - np.repeat(np.cumsum(meets) - meets, meets) + low[extent]
    cut_starts = np.maximum(zero_starts[extent], gap_starts[gap])
    cut_stops = np.minimum(zero_stops[extent], gap_stops[gap])
    left = cut_starts < cut_stops
    return cut_starts[left], cut_stops[left] - cut_starts[left]
