from __future__ import annotations

import random

import anyio
import pytest

from engine.errors import StoreUnavailable
from engine.workers import read_ahead

pytestmark = pytest.mark.anyio


class Reads:
    """Things to read, of which each takes as many turns of the event loop as it is told."""

    def __init__(self, sizes: list[int], turns: list[int] | None = None) -> None:
        self.sizes, self.turns = sizes, turns or [1] * len(sizes)
        self.open: set[int] = set()
        self.most_bytes = self.most = 0
        self.taken: list[int] = []

    async def read(self, number: int) -> str:
        self.open.add(number)
        self.most = max(self.most, len(self.open))
        self.most_bytes = max(self.most_bytes, sum(self.sizes[each] for each in self.open))
        for _ in range(self.turns[number]):
            await anyio.lowlevel.checkpoint()
        return f"content {number}"

    async def take(self, number: int, what: str) -> None:
        assert what == f"content {number}"
        await anyio.lowlevel.checkpoint()
        self.taken.append(number)
        self.open.remove(number)


@pytest.mark.parametrize("seed", range(20))
async def test_what_is_read_side_by_side_is_taken_in_order_and_within_the_bounds(seed: int) -> None:
    generator = random.Random(seed)
    count = generator.randint(1, 60)
    reads = Reads([generator.randint(0, 40) for _ in range(count)], [generator.randint(0, 9) for _ in range(count)])
    done = await read_ahead(reads.sizes, reads.read, reads.take, bytes_max=100, at_once=8)
    assert (done, reads.taken) == (count, list(range(count)))
    assert reads.most_bytes <= 100
    assert reads.most <= 8


async def test_as_many_are_read_at_once_as_the_bounds_allow() -> None:
    small = Reads([10] * 30, [50] * 30)
    await read_ahead(small.sizes, small.read, small.take, bytes_max=1000, at_once=8)
    assert small.most == 8
    large = Reads([40] * 30, [50] * 30)
    await read_ahead(large.sizes, large.read, large.take, bytes_max=100, at_once=8)
    assert (large.most, large.most_bytes) == (2, 80)


async def test_one_that_is_larger_than_the_bound_is_read_alone() -> None:
    reads = Reads([10, 500, 10, 500, 10])
    await read_ahead(reads.sizes, reads.read, reads.take, bytes_max=100, at_once=8)
    assert reads.taken == [0, 1, 2, 3, 4]
    assert reads.most_bytes == 500


async def test_where_there_is_enough_only_what_was_begun_is_taken() -> None:
    reads = Reads([10] * 50)
    done = await read_ahead(reads.sizes, reads.read, reads.take, lambda: len(reads.taken) >= 5, bytes_max=30, at_once=8)
    assert done == len(reads.taken)
    assert 5 <= done <= 8
    assert reads.taken == list(range(done))
    assert await read_ahead([1], reads.read, reads.take, lambda: True, bytes_max=30, at_once=8) == 0
    assert await read_ahead([], reads.read, reads.take, bytes_max=30, at_once=8) == 0


@pytest.mark.parametrize("where", ["read", "take"])
async def test_the_first_error_ends_all_and_comes_out_alone(where: str) -> None:
    reads = Reads([10] * 50, [1] * 7 + [1000] * 43)

    async def read(number: int) -> str:
        if (where, number) == ("read", 6):
            raise StoreUnavailable("away")
        return await reads.read(number)

    async def take(number: int, what: str) -> None:
        if (where, number) == ("take", 6):
            raise StoreUnavailable("away")
        await reads.take(number, what)

    with pytest.raises(StoreUnavailable, match=r"^away$"):
        await read_ahead(reads.sizes, read, take, bytes_max=1000, at_once=8)
    assert len(reads.taken) <= 6
