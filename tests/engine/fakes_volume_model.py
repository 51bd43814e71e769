"""A volume's state as a dictionary, and the runs that are to say the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Protocol, TypeAlias

import numpy as np
from hypothesis import strategies as st

from engine.block import PLACE
from engine.page import Blocks
from engine.runbuild import RunChunk
from engine.runmerge import covered
from engine.runs import overlay
from tests.engine.fakes_pages import PageVault, Run, chunk

SPACE = 6000


class VolumeModel:
    """The state of a volume as a dictionary, and the runs that are to say the same."""

    def __init__(self, seed: int) -> None:
        self.vault = PageVault()
        self.state: dict[int, tuple[bytes, bytes]] = {}
        self.runs: list[Run] = []
        self.blocks = SPACE
        self._random = random.Random(seed)

    def change(self, writes: set[int], zeros: set[int], blocks: int) -> RunChunk:
        """Change the model and return the run's content: what was written, zeroed, or lost by shrinking."""
        zeros = (zeros - writes) | set(range(blocks, self.blocks))
        writes = {block for block in writes if block < blocks}
        made = chunk(sorted(writes), self._random.randrange(1 << 30), extents(zeros))
        for position, block in enumerate(made.blocks.tolist()):
            self.state[block] = made.refs[position].tobytes(), made.places[position].tobytes()
        for block in zeros:
            self.state.pop(block, None)
        self.blocks = blocks
        return made

    def current(self, blocks: Blocks, zero_starts: Blocks, zero_counts: Blocks) -> RunChunk:
        """Return a stretch with what the state says now, as the commit does from its local map."""
        entries = [self.state[block] for block in blocks.tolist()]
        refs = np.frombuffer(b"".join(ref for ref, _ in entries), np.uint8).reshape(-1, 48)
        places = np.frombuffer(b"".join(place for _, place in entries), PLACE)
        return RunChunk(blocks, refs, places, zero_starts, zero_counts)

    def pieces(self, whole: RunChunk) -> Iterator[RunChunk]:
        """Cut a stretch at random places."""
        for cut in sorted(self._random.randrange(SPACE) for _ in range(4)):
            first, whole = whole.split(cut)
            yield first
        yield whole

    async def add(self, content: RunChunk) -> None:
        self.runs.append(await self.vault.write(*self.pieces(content), base=not self.runs))

    async def merge(self, start: int, stop: int) -> None:
        readers = [run.read(self.vault) for run in self.runs]
        chunks = [
            self.current(part.blocks, part.zero_starts, part.zero_counts)
            async for part in covered(readers[start:stop], readers[stop:])
        ]
        assert all(block not in self.state for part in chunks for block in blocks_of(part))
        self.runs[start:stop] = [await self.vault.write(*chunks, base=start == 0)]

    async def check(self, first: int = 0, stop: int = SPACE) -> None:
        readers = [run.read(self.vault) for run in self.runs]
        window = await overlay(readers, first, stop)
        nothing = bytes(48), bytes(16)
        for position, block in enumerate(range(first, stop)):
            state = window.refs[position].tobytes(), window.places[position].tobytes()
            assert state == self.state.get(block, nothing), block


def extents(blocks: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for block in sorted(blocks):
        if found and sum(found[-1]) == block:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((block, 1))
    return found


class ZeroExtents(Protocol):
    """What has zero extents: leaves, chunks, what a merge covers."""

    @property
    def zero_starts(self) -> Blocks: ...

    @property
    def zero_counts(self) -> Blocks: ...


def blocks_of(part: ZeroExtents) -> Iterator[int]:
    """Yield the blocks in the zero extents."""
    for start, count in zip(part.zero_starts.tolist(), part.zero_counts.tolist(), strict=True):
        yield from range(start, start + count)


Pieces: TypeAlias = list[tuple[int, int, int]]  # (start, count, step)
ranges = st.lists(st.tuples(st.integers(0, SPACE - 1), st.sampled_from([1, 1, 2, 30, 1500]), st.integers(1, 3)))
changes = st.tuples(ranges, ranges, st.one_of(st.just(SPACE), st.integers(1, SPACE)), st.booleans())


def chosen(pieces: Pieces) -> set[int]:
    return {block for start, length, step in pieces for block in range(start, min(SPACE, start + length * step), step)}
