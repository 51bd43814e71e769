"""How a run is cut into leaves and leaves are built into trees, in memory that does not grow with the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np

from engine.block import ID_BYTES, PLACE, REF_BYTES, Places, Refs, ids_of
from engine.page import (
    BLOCKS_MAX,
    CHILD,
    INNER_CHILDREN,
    LEAF_ENTRIES,
    LEAF_EXTENTS,
    Blocks,
    Children,
    IdLeaf,
    Inner,
    Keys,
    PageAddress,
    encode,
)
from engine.pagestore import PageHandle, PageWriter

NO_BLOCKS: Final[Blocks] = np.empty(0, np.uint64)


class RunChunk(msgspec.Struct, frozen=True):
    """A stretch of a run: `blocks` ascending with `refs` and `places` beside, extents of zero blocks between them."""

    blocks: Blocks
    refs: Refs
    places: Places
    zero_starts: Blocks
    zero_counts: Blocks

    @classmethod
    def of(
        cls,
        blocks: Blocks = NO_BLOCKS,
        refs: Refs | None = None,
        places: Places | None = None,
        zero_starts: Blocks = NO_BLOCKS,
        zero_counts: Blocks = NO_BLOCKS,
    ) -> RunChunk:
        """Return a chunk; what is left out is empty."""
        return cls(
            blocks,
            np.empty((0, REF_BYTES), np.uint8) if refs is None else refs,
            np.empty(0, PLACE) if places is None else places,
            zero_starts,
            zero_counts,
        )

    def then(self, later: RunChunk) -> RunChunk:
        """Return both stretches as one; zero extents that touch are joined."""
        starts = np.concatenate((self.zero_starts, later.zero_starts))
        counts = np.concatenate((self.zero_counts, later.zero_counts))
        return RunChunk(
            np.concatenate((self.blocks, later.blocks)),
            np.concatenate((self.refs, later.refs)),
            np.concatenate((self.places, later.places)),
            *joined(starts, counts),
        )

    def split(self, block: int) -> tuple[RunChunk, RunChunk]:
        """Return what begins before `block` and the rest; extents are not cut."""
        at = int(np.searchsorted(self.blocks, np.uint64(block)))
        zero = int(np.searchsorted(self.zero_starts, np.uint64(block)))
        return (
            RunChunk(
                self.blocks[:at], self.refs[:at], self.places[:at], self.zero_starts[:zero], self.zero_counts[:zero]
            ),
            RunChunk(
                self.blocks[at:], self.refs[at:], self.places[at:], self.zero_starts[zero:], self.zero_counts[zero:]
            ),
        )

    def leaf(self) -> tuple[IdLeaf, Keys]:
        """Return the two leaves this stretch becomes."""
        ids = ids_of(self.refs)
        return IdLeaf(self.blocks, ids, self.places, self.zero_starts, self.zero_counts), self.refs[:, ID_BYTES:]


def joined(starts: Blocks, counts: Blocks) -> tuple[Blocks, Blocks]:
    """Return ascending extents with those that touch joined."""
    if len(starts) < 2:
        return starts, counts
    stops = starts + counts
    begins = np.concatenate(([True], starts[1:] != stops[:-1]))
    last = np.concatenate((begins[1:], [True]))
    return starts[begins], stops[last] - starts[begins]


class LeafCutter:
    """Cuts a run into leaves: a base run at fixed ranges of 1024 blocks, others after 1024 entries or extents.

    Fixed ranges make the leaves of a base run repeat, byte for byte, where nothing changed; zero extents have no
    meaning in it (there is nothing they could shadow) and are dropped.
    """

    def __init__(self, base: bool) -> None:
        self._base = base
        self._rest = RunChunk.of()
        self._stop = 0

    def feed(self, chunk: RunChunk) -> Iterator[RunChunk]:
        """Take the next stretch; yield the stretches that have become whole leaves."""
        if self._base:
            chunk = RunChunk.of(chunk.blocks, chunk.refs, chunk.places)
        if len(chunk.blocks) or len(chunk.zero_starts):
            self._check(chunk)
            self._rest = self._rest.then(chunk)
            yield from self._cut_ranges() if self._base else self._cut_counts()

    def end(self) -> Iterator[RunChunk]:
        """Yield what is left as the last leaf."""
        if len(self._rest.blocks) or len(self._rest.zero_starts):
            yield self._rest
        self._rest = RunChunk.of()

    def _check(self, chunk: RunChunk) -> None:
        # Order across chunks; order within a leaf is checked when the leaf is encoded.
        leaf, _ = chunk.leaf()
        assert leaf.first_block >= self._stop, "the chunks of a run are not in ascending order"
        assert len(chunk.blocks) == len(chunk.refs) == len(chunk.places)
        self._stop = leaf.stop_block

    def _cut_ranges(self) -> Iterator[RunChunk]:
        while len(self._rest.blocks):
            stop = (int(self._rest.blocks[0]) // LEAF_ENTRIES + 1) * LEAF_ENTRIES
            if int(self._rest.blocks[-1]) < stop:
                return
            leaf, self._rest = self._rest.split(stop)
            yield leaf

    def _cut_counts(self) -> Iterator[RunChunk]:
        while len(self._rest.blocks) > LEAF_ENTRIES or len(self._rest.zero_starts) > LEAF_EXTENTS:
            stop = BLOCKS_MAX
            if len(self._rest.blocks) > LEAF_ENTRIES:
                stop = int(self._rest.blocks[LEAF_ENTRIES])
            if len(self._rest.zero_starts) > LEAF_EXTENTS:
                stop = min(stop, int(self._rest.zero_starts[LEAF_EXTENTS]))
            leaf, self._rest = self._rest.split(stop)
            yield leaf


class _Node(msgspec.Struct, frozen=True):
    first: int
    entries: int
    handle: PageHandle


class TreeBuilder:
    """Builds a tree of pages from its leaves, left to right; holds at most one page's children per level.

    `used` are the ordinals of the packs its pages lie in.
    """

    def __init__(self, writer: PageWriter) -> None:
        self._writer = writer
        self._levels: list[list[_Node]] = [[]]
        self.used: set[int] = set()

    async def add(self, first: int, entries: int, handle: PageHandle) -> None:
        """Add the next leaf, its first block (or ordinal) and its number of entries."""
        self.used.add(handle.pack)
        self._levels[0].append(_Node(first, entries, handle))
        level = 0
        while len(self._levels[level]) == INNER_CHILDREN:
            await self._raise(level)
            level += 1

    async def end(self) -> PageHandle | None:
        """Return the root, writing the inner pages that are still missing; None if there were no leaves."""
        level = 0
        while level < len(self._levels) - 1 or len(self._levels[level]) > 1:
            if self._levels[level]:
                await self._raise(level)
            level += 1
        return self._levels[level][0].handle if self._levels[level] else None

    async def _raise(self, level: int) -> None:
        nodes = self._levels[level]
        handle = await self._writer.put_inner(lambda place: encode(Inner(level + 1, _children(nodes, place))))
        self.used.add(handle.pack)
        if level + 1 == len(self._levels):
            self._levels.append([])
        self._levels[level + 1].append(_Node(nodes[0].first, sum(node.entries for node in nodes), handle))
        self._levels[level] = []


def _children(nodes: list[_Node], place: Callable[[PageHandle], PageAddress]) -> Children:
    rows = b"".join(
        node.first.to_bytes(8, "little") + node.entries.to_bytes(8, "little") + bytes(place(node.handle))
        for node in nodes
    )
    return np.frombuffer(rows, CHILD)
