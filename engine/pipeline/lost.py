"""Blocks of a point that lie in packs that are gone, as columns; and the ids that are looked for elsewhere.

A volume is gone through in stretches, all its runs beside one another and each once, so that what is held of it is
bounded whatever was lost.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np

from engine.block import Ids, Mask
from engine.columns import Column64, Rows, lower_bound, sort_order
from engine.page import BLOCKS_MAX, IdLeaf

STRETCH_BLOCKS: Final = 1 << 18
ASKED: Final = 1 << 16  # ids that are looked up at once
NO_IDS: Final[Ids] = np.empty((0, 2), np.uint64)

Ranges: TypeAlias = list[tuple[int, int]]  # (first block, count)


class Lost(msgspec.Struct):
    """Blocks of one volume that count and lie in packs that are gone: ascending numbers, and their ids beside."""

    blocks: Column64
    ids: Ids

    @classmethod
    def none(cls) -> Lost:
        """Return no blocks."""
        return cls(np.empty(0, np.uint64), NO_IDS)

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


class RunCursor:
    """What a run names, gone through once and stretch by stretch; `leaves` are all of it, ascending."""

    def __init__(self, leaves: AsyncGenerator[IdLeaf, None]) -> None:
        self._leaves = leaves
        self._next: IdLeaf | None = None

    async def next_block(self) -> int | None:
        """Return the first block that comes, or None at the end. Raises: as the leaves."""
        if self._next is None:
            self._next = await anext(self._leaves, None)
        return self._next.first_block if self._next is not None else None

    async def until(self, stop: int) -> AsyncGenerator[IdLeaf, None]:
        """Yield what comes before block `stop`. Raises: as the leaves."""
        while (first := await self.next_block()) is not None and first < stop:
            leaf, self._next = self._next, None
            assert leaf is not None
            if leaf.stop_block > stop:
                self._next, _ = leaf.clipped(stop, BLOCKS_MAX)
                leaf, _ = leaf.clipped(0, stop)
            yield leaf


class Wanted:
    """Ids that are looked for, once each and ascending, as two columns; and `found`, which of them were found."""

    def __init__(self, parts: Sequence[Ids]) -> None:
        """Take in ids in any order, as often as they come."""
        self._lo = np.concatenate([NO_IDS[:, 0], *(ids[:, 0] for ids in parts)])
        self._hi = np.concatenate([NO_IDS[:, 1], *(ids[:, 1] for ids in parts)])
        order = sort_order(self._lo, self._hi)
        self._lo = self._lo[order]
        self._hi = self._hi[order]
        del order
        first: Mask = np.ones(len(self._lo), np.bool_)
        first[1:] = (self._lo[1:] != self._lo[:-1]) | (self._hi[1:] != self._hi[:-1])
        if not first.all():
            self._lo = self._lo[first]
            self._hi = self._hi[first]
        self.found: Mask = np.zeros(len(self._lo), np.bool_)

    def __len__(self) -> int:
        return len(self._lo)

    def all_found(self) -> bool:
        """Tell whether nothing is left to look for."""
        return bool(self.found.all())

    def open(self, batch: int = ASKED) -> Iterator[tuple[Rows, Ids]]:
        """Yield the rows that were not found, and their ids, `batch` of them at most."""
        for start in range(0, len(self), batch):
            rows = np.flatnonzero(~self.found[start : start + batch]) + start
            if rows.size:
                yield rows, np.stack((self._lo[rows], self._hi[rows]), axis=1)

    def rows(self, ids: Ids) -> Rows:
        """Return the row of each id; -1: nobody looks for it."""
        if not len(self):
            return np.full(len(ids), -1, np.intp)
        lo, hi = np.ascontiguousarray(ids[:, 0]), ids[:, 1]
        rows = lower_bound(self._lo, lo)
        near = self._lo.take(rows, mode="clip") == lo
        same = near & (self._hi.take(rows, mode="clip") == hi)
        # Others may share the first half of an id: then it stands further on, if at all.
        for at in np.flatnonzero(near & ~same).tolist():
            stop = int(self._lo.searchsorted(lo[at], "right"))
            row = int(rows[at]) + int(self._hi[rows[at] : stop].searchsorted(hi[at]))
            rows[at], same[at] = row, row < stop and self._hi[row] == hi[at]
        rows[~same] = -1
        return rows

    def gone(self, lost: Lost) -> Iterator[Column64]:
        """Yield those of the blocks whose ids were not found, ascending, in batches; their ids are among the wanted."""
        for start in range(0, len(lost.blocks), ASKED):
            part = slice(start, start + ASKED)
            yield lost.blocks[part][~self.found[self.rows(lost.ids[part])]]


def add_ranges(ranges: Ranges, blocks: Column64) -> None:
    """Add ascending blocks, all beyond those in `ranges`, in as few ranges as it takes."""
    if not len(blocks):
        return
    starts = np.flatnonzero(np.concatenate(([True], blocks[1:] != blocks[:-1] + np.uint64(1))))
    counts = np.diff(np.append(starts, len(blocks)))
    more = list(zip(blocks[starts].tolist(), counts.tolist(), strict=True))
    if ranges and sum(ranges[-1]) == more[0][0]:
        ranges[-1] = (ranges[-1][0], ranges[-1][1] + more.pop(0)[1])
    ranges += more


def _in_ranges(blocks: Column64, starts: Column64, counts: Column64) -> Mask:
    """Tell which of `blocks` lie in the ranges, which are ascending and do not overlap."""
    if not len(starts):
        return np.zeros(len(blocks), np.bool_)
    at = np.searchsorted(starts, blocks, side="right").astype(np.int64) - 1
    return (at >= 0) & (blocks - starts[at] < counts[at])
