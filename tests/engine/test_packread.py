"""Reading ranges of packs: every record comes out as it lies, by no more requests than its ranges need."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.index import PackIndex
from engine.names import PackName
from engine.packread import GAP_BYTES, REQUEST_BYTES, PackReads
from engine.seal import Codec, Sealer
from tests.engine.fakes_packs import Team
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

TEAM = Team()
SIZE = 20 << 20
PACK = PackName("data", b"a" * 16, b"h" * 32, SIZE)
DATA = bytes(range(256)) * (SIZE // 256)

ranges_of = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, 66_000)), max_size=30).map(
    lambda drawn: [(offset, min(length, SIZE - offset)) for offset, length in drawn]
)


@given(ranges_of, st.sampled_from([0, 1000, GAP_BYTES, 256 << 10]), st.sampled_from([0, 16 << 10]))
@settings(max_examples=60, deadline=None)
def test_every_range_is_cut_from_few_requests(ranges: list[tuple[int, int]], gap: int, around: int) -> None:
    async def main() -> None:
        store = FaultyStore(MemoryStore(), FaultPlan())
        await store.put(str(PACK), DATA)
        store.calls.clear()
        extents = await PackReads(store, PackIndex()).fetch(PACK, ranges, gap, around)
        gets = [name for operation, name in store.calls if operation == "get"]
        # What lies farther apart than the gap is read apart, what lies nearer together, up to the size of a request.
        apart, last = 0, -(1 << 40)
        for offset, length in sorted(ranges):
            apart += offset - last > gap
            last = max(last, offset + length)
        spread = sum(length for _, length in ranges) + gap * len(ranges)
        assert apart <= len(gets) <= apart + spread // (REQUEST_BYTES - 66_000)
        for offset, length in ranges:
            record = extents.cut(offset, length)
            assert record is not None
            assert record == DATA[offset : offset + length]

    anyio.run(main)


def test_a_wrong_object_that_is_too_long_is_passed_over_for_what_lies_beside_it() -> None:
    async def main() -> None:
        contents = [bytes([number]) * 3000 for number in range(1, 4)]
        pack = TEAM.pack(contents)
        store = MemoryStore()
        store.objects[str(pack.name)] = bytes(len(pack.data) + 1)
        store.objects[f"{pack.name}.3"] = bytes(pack.data)
        ranges = list(zip(pack.offsets.tolist(), pack.lengths.tolist(), strict=True))
        reads = PackReads(store, PackIndex())
        extents = await reads.fetch(pack.name, ranges)
        assert [bytes(extents.cut(*each) or b"") for each in ranges] == await reads.read(pack.name, ranges)
        assert extents.hold_records(ranges)
        assert not extents.hold_records([(ranges[0][0], 39)])
        assert not extents.hold_records([(ranges[0][0] + 1, ranges[0][1])])

    anyio.run(main)


@pytest.mark.parametrize("size", [1, 2])
def test_a_record_at_the_very_end_of_what_was_fetched_is_looked_at_in_bounds(size: int) -> None:
    async def main() -> None:
        record = Sealer(Codec.NONE, TEAM.keys.blocks).seal(TEAM.ref(b"x" * size), b"x" * size)
        name = PackName("data", b"a" * 16, b"h" * 32, len(record))
        store = MemoryStore()
        await store.put(str(name), record)
        extents = await PackReads(store, PackIndex()).fetch(name, [(0, len(record))])
        assert bytes(extents.cut(0, len(record)) or b"") == record

    anyio.run(main)
