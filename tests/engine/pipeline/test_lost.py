"""Lost blocks and wanted ids as columns, against plain sets; runs by stretches; what the columns take of memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import PLACE, Ids
from engine.columns import Column64
from engine.page import IdLeaf
from engine.pipeline.lost import STRETCH_BLOCKS, Lost, Ranges, RunCursor, Wanted, add_ranges

HALVES = (0, 1, 2, 7, (1 << 63) + 5, (1 << 64) - 1)  # few, so that ids share either half, and stand several times
IDENTS = st.tuples(st.sampled_from(HALVES), st.sampled_from(HALVES))


def ids_of(idents: list[tuple[int, int]]) -> Ids:
    return np.array(idents, np.uint64).reshape(-1, 2)


def plain(ids: Ids) -> list[tuple[int, int]]:
    return [(lo, hi) for lo, hi in ids.tolist()]


@settings(deadline=None)
@given(st.lists(st.lists(IDENTS, max_size=12), max_size=3), st.lists(IDENTS, max_size=20), st.integers(1, 5))
def test_wanted_ids_are_a_set_of_which_some_are_found(
    parts: list[list[tuple[int, int]]], asked: list[tuple[int, int]], batch: int
) -> None:
    wanted, model = Wanted([ids_of(part) for part in parts]), {ident for part in parts for ident in part}
    assert len(wanted) == len(model)
    rows = wanted.rows(ids_of(asked))
    assert [row >= 0 for row in rows.tolist()] == [ident in model for ident in asked]
    wanted.found[rows[rows >= 0]] = True
    left = model - {*asked}
    assert wanted.all_found() == (not left)
    opened = list(wanted.open(batch))
    assert [ident for _, ids in opened for ident in plain(ids)] == sorted(left)
    assert all(0 < len(rows) <= batch and wanted.rows(ids).tolist() == rows.tolist() for rows, ids in opened)
    for part in parts:
        lost = Lost(np.arange(len(part), dtype=np.uint64) * 3, ids_of(part))
        gone = [block for blocks in wanted.gone(lost) for block in blocks.tolist()]
        assert gone == [at * 3 for at, ident in enumerate(part) if ident in left]


def test_an_id_is_found_among_many() -> None:
    ids = np.random.default_rng(3).integers(0, 1 << 64, (40_000, 2), np.uint64)
    ids[:100, 0] = ids[0, 0]
    wanted = Wanted([ids])
    rows = wanted.rows(ids)
    assert len(set(rows.tolist())) == len(ids)
    near = ids.copy()
    near[:, 1] ^= np.uint64(1)
    assert (wanted.rows(near) == -1).all()


@given(st.sets(st.integers(0, 60)), st.lists(st.integers(0, 60), max_size=4))
def test_blocks_become_as_few_ranges_as_it_takes_however_they_come(blocks: set[int], cuts: list[int]) -> None:
    ranges: Ranges = []
    for first, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 61], strict=True):
        add_ranges(ranges, np.array(sorted(block for block in blocks if first <= block < stop), np.uint64))
    assert [block for first, count in ranges for block in range(first, first + count)] == sorted(blocks)
    starts = [first for first, _ in ranges]
    assert starts == sorted(block for block in blocks if block - 1 not in blocks)


async def leaves_of(chance: random.Random) -> AsyncGenerator[IdLeaf, None]:
    """Yield a random run; an id is its block number, so that nothing but the order of blocks and zeros can be wrong."""
    at = 0
    for _ in range(chance.randint(1, 6)):
        blocks: list[int] = []
        zeros: list[tuple[int, int]] = []
        for _ in range(chance.randint(1, 8)):
            at += chance.choice((0, 0, 1, 30))
            count = chance.randint(1, 40) if chance.random() < 0.3 else 1
            if count > 1:
                zeros.append((at, count))
            else:
                blocks.append(at)
            at += count
        yield leaf_of(blocks, zeros)


def leaf_of(blocks: list[int], zeros: list[tuple[int, int]]) -> IdLeaf:
    column = np.array(blocks, np.uint64)
    starts, counts = (np.array([pair[side] for pair in zeros], np.uint64) for side in (0, 1))
    return IdLeaf(column, np.stack((column, column), axis=1), np.zeros(len(blocks), PLACE), starts, counts)


def named(leaf: IdLeaf) -> list[tuple[int, str]]:
    zeros = zip(leaf.zero_starts.tolist(), leaf.zero_counts.tolist(), strict=True)
    content = [(block, "zero") for start, count in zeros for block in range(start, start + count)]
    assert leaf.ids[:, 0].tolist() == leaf.blocks.tolist()
    return sorted([*content, *((block, "id") for block in leaf.blocks.tolist())])


@pytest.mark.parametrize("seed", range(100))
def test_a_run_gives_the_same_in_stretches_as_at_once(seed: int) -> None:
    async def main() -> None:
        whole = [pair async for leaf in leaves_of(random.Random(seed)) for pair in named(leaf)]
        chance = random.Random(seed)
        cursor, stop = RunCursor(leaves_of(random.Random(seed))), 0
        parts: list[tuple[int, str]] = []
        while (first := await cursor.next_block()) is not None:
            assert first == whole[len(parts)][0] >= stop
            stop = first + chance.randint(1, 50)
            got = [pair async for leaf in cursor.until(stop) for pair in named(leaf)]
            assert all(block < stop for block, _ in got)
            parts += got
        assert parts == whole

    anyio.run(main)


def test_a_lost_block_takes_64_bytes_at_most() -> None:
    count = 1 << 20
    rng = np.random.default_rng(5)

    async def run(first: int) -> AsyncIterator[tuple[IdLeaf, Column64]]:
        every = np.arange(1024, dtype=np.uint64)
        for start in range(first, first + STRETCH_BLOCKS, 1024):
            ids = rng.integers(0, 1 << 64, (1024, 2), np.uint64)
            nothing = np.empty(0, np.uint64)
            yield IdLeaf(every + np.uint64(start), ids, np.empty(0, PLACE), nothing, nothing), every

    async def main() -> None:
        stretches: list[Lost] = []
        for first in range(0, count, STRETCH_BLOCKS):
            stretches.append(Lost.none())
            await stretches[-1].lay_over(run(first))
        wanted = Wanted([lost.ids for lost in stretches])
        assert len(wanted) == count
        for rows, ids in wanted.open():
            assert (wanted.rows(ids) == rows).all()
            wanted.found[rows[::2]] = True
        left = sum(len(blocks) for lost in stretches for blocks in wanted.gone(lost))
        assert left == count // 2

    tracemalloc.start()
    anyio.run(main)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most <= 64 * count
