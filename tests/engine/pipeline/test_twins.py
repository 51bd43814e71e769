"""Packs made once for both lanes: the same records give the same pack, others never do."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

from engine.block import BLOCK_BYTES, ref_of
from engine.pack import PackBuilder, check_pack
from engine.pipeline.twins import Twins
from engine.seal import Codec, Sealer
from tests.engine.fakes_packs import Team

TEAM = Team()
SEALER = Sealer(Codec.LZ4, TEAM.keys.blocks)


def record(seed: int) -> bytes:
    content = bytes([seed + 1]) * BLOCK_BYTES
    (sealed,) = SEALER.seal_batch([ref_of(TEAM.keys.blocks, content)], [content])
    return bytes(sealed)


def builder(records: list[bytes]) -> PackBuilder:
    made = TEAM.builder()
    for each in records:
        made.add(each)
    return made


def test_the_same_records_are_one_pack_as_long_as_anybody_holds_it() -> None:
    twins, records = Twins(), [record(seed) for seed in range(5)]
    expected = builder(records).finish()
    first, second = twins.finish(builder(records)), twins.finish(builder(records))
    assert first is second
    assert twins.shared == 1
    assert (first.name, bytes(first.data)) == (expected.name, bytes(expected.data))
    check_pack(first.name, first.data, TEAM.keys, TEAM)
    del first, second
    gc.collect()
    again = twins.finish(builder(records))
    assert twins.shared == 1  # nothing was kept for its sake
    assert again.name == expected.name


def test_other_records_or_another_order_are_another_pack() -> None:
    twins, records = Twins(), [record(seed) for seed in range(3)]
    packs = [
        twins.finish(builder(chosen))
        for chosen in (records, records[:2], [*reversed(records)], [*records[:2], record(2)], [records[0]] * 3)
    ]
    assert len({pack.name for pack in packs}) == len(packs)
    assert twins.shared == 0


def test_a_whole_block_and_its_delta_are_told_apart() -> None:
    # The same block sealed twice has the same id; its nonce differs.
    twins = Twins()
    packs = [twins.finish(builder([record(1)])) for _ in range(2)]
    assert packs[0].name != packs[1].name


def test_two_threads_at_once_make_it_once() -> None:
    twins = Twins()
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            records = [record(seed) for seed in range(4)]
            packs = list(threads.map(lambda _, records=records: twins.finish(builder(records)), range(8)))
            assert all(pack is packs[0] for pack in packs)
    assert twins.shared == 20 * 7
