"""Reading round bad ranges: what is readable is exact, what is not is zero and named, what is gone is an error."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import BLOCK_BYTES, PART_BYTES
from engine.errors import SourceGone
from engine.pipeline.skips import read_with_skips
from tests.fakes import MemoryVolume

SIZE = 40 * BLOCK_BYTES + 12_345
CONTENT = random.Random(1).randbytes(SIZE)


def check(bad: list[tuple[int, int]], offset: int, length: int) -> MemoryVolume:
    volume = MemoryVolume("data", bytearray(CONTENT), bad=bad)
    buffer = bytearray(b"?" * length)
    found = read_with_skips(volume, offset, memoryview(buffer))
    expected = bytearray(CONTENT[offset : offset + length])
    parts: set[int] = set()
    for bad_offset, bad_length in bad:
        first, last = max(bad_offset, offset), min(bad_offset + bad_length, offset + length) - 1
        if first <= last:
            parts |= set(range(first // PART_BYTES, last // PART_BYTES + 1))
    skipped = 0
    for part in parts:
        start, stop = max(offset, part * PART_BYTES), min(offset + length, (part + 1) * PART_BYTES)
        expected[start - offset : stop - offset] = bytes(stop - start)
        skipped += stop - start
    assert buffer == expected
    assert sum(size for _, size in found) == skipped
    for (start, size), (following, _) in pairwise(found):
        assert start + size < following
    for start, size in found:
        assert {at // PART_BYTES for at in (start, start + size - 1)} <= parts
    return volume


RANGE = st.tuples(st.integers(0, SIZE - 1), st.integers(1, 2 * BLOCK_BYTES))


@settings(max_examples=150, deadline=None)
@given(bad=st.lists(RANGE, max_size=5), offset=st.integers(0, SIZE - 1), length=st.integers(0, 20 * BLOCK_BYTES))
def test_exactly_the_parts_with_a_bad_byte_are_skipped(bad: list[tuple[int, int]], offset: int, length: int) -> None:
    check(bad, offset, min(length, SIZE - offset))


def test_a_volume_without_bad_ranges_is_read_once() -> None:
    assert len(check([], 0, 10 * BLOCK_BYTES).reads) == 1


def test_one_bad_sector_costs_few_slow_attempts() -> None:
    volume = check([(5 * BLOCK_BYTES + 777, 512)], 0, 40 * BLOCK_BYTES)
    slow = [start for start, length in volume.reads if start <= 5 * BLOCK_BYTES + 777 < start + length]
    assert len(slow) == 3
    assert len(volume.reads) <= 1 + 40 + 16


def test_a_volume_that_is_gone_is_not_skipped() -> None:
    class GoneVolume(MemoryVolume):
        def read_into(self, offset: int, buffer: memoryview) -> None:
            raise SourceGone(self.name, offset, len(buffer), "No such device")

    volume = GoneVolume("data", bytearray(BLOCK_BYTES))
    with pytest.raises(SourceGone, match="No such device"):
        read_with_skips(volume, 0, memoryview(bytearray(BLOCK_BYTES)))
