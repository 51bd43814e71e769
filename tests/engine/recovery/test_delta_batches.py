"""Deltas are read and opened in batches: few requests, bounded memory, exact bytes or holes that are named."""

from __future__ import annotations

import anyio
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.block import BLOCK_BYTES, DELTA_FLAG, PARTS, PLACE, ref_of
from engine.delta import TRAVELS
from engine.errors import StoreUnavailable
from engine.opener import RECORDS_MAX
from engine.packread import GAP_BYTES
from engine.recovery import jobs
from engine.recovery.jobs import JOB_BLOCKS
from engine.recovery.places import CACHE, VAULT
from engine.seal import RECORD_BYTES_MAX, Codec
from tests.engine.fakes_delta import SourceBlock, encode_delta, map_of, seal_whole
from tests.engine.recovery.daily import SUBKEY, Block, Daily, give, pack_of
from tests.fakes import FaultPlan, FaultyStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Metered(FaultyStore):
    """Counts the bytes that were asked for."""

    asked_bytes = 0

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.asked_bytes += length or 0
        return await super().get(name, offset, length)

    @property
    def gets(self) -> int:
        return sum(operation == "get" for operation, _ in self.calls)


def metered(daily: Daily, plan: FaultPlan | None = None) -> Metered:
    return Metered(daily.vault, plan or FaultPlan())


async def test_ten_days_of_deltas_are_read_by_few_requests_and_no_index() -> None:
    daily = await (await Daily(256).fill()).days(10)
    assert daily.deltas > 200
    vault = metered(daily)
    given = await daily.give(vault)
    given.check(daily.blocks)
    assert (given.failed, given.problems, given.indexed) == ([], [], False)
    assert {operation for operation, _ in vault.calls} == {"get"}
    # Each pack is read once for its deltas, and once for what is whole.
    assert vault.gets <= 2 * len(daily.packs) < daily.deltas / 2
    stored = sum(map(len, daily.vault.objects.values()))
    assert vault.asked_bytes < 1.2 * stored


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.ZSTD, Codec.LZ4])
async def test_every_codec_and_a_block_of_four_sources_opens(codec: Codec) -> None:
    daily = await Daily(12, codec).fill()
    for _ in range(6):
        await daily.change(range(12), parts=2)
    assert max(len({holder.ref for holder in block.holders}) for block in daily.blocks) > 3
    given = await daily.give()
    given.check(daily.blocks)
    assert given.failed == []


async def test_many_groups_and_jobs_pass_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    daily = await (await Daily(64).fill()).days(10, share=0.3)
    for held, job in ((20_000, 100_000), (1, 1), (1 << 20, 1)):
        monkeypatch.setattr(jobs, "HELD_BYTES", held)
        monkeypatch.setattr(jobs, "JOB_BYTES", job)
        given = await daily.give()
        given.check(daily.blocks)
        assert given.failed == []


async def test_what_is_opened_at_once_is_bounded_however_small_the_records() -> None:
    daily = Daily(0, per_pack=1000)
    contents = [number.to_bytes(2, "big") * (BLOCK_BYTES // 2) for number in range(1, 1000)]
    records = [seal_whole(SUBKEY, content) for content in contents]
    places = await daily.put(records)
    daily.blocks = [Block(one, ref_of(SUBKEY, one), place) for one, place in zip(contents, places, strict=True)]
    given = await daily.give()
    given.check(daily.blocks)
    assert given.failed == []
    assert max(given.batches) <= JOB_BLOCKS * BLOCK_BYTES


async def test_a_record_needed_by_many_is_read_once() -> None:
    daily = await Daily(1).fill()
    base = daily.blocks[0]
    records, blocks = [], []
    for number in range(40):
        content = bytes([number]) * 4096 + base.content[4096:]
        source = SourceBlock(base.ref, base.place)
        part_map = [TRAVELS] + [0] * (PARTS - 1)
        records.append(encode_delta(SUBKEY, content, [source], part_map))
        blocks.append(Block(content, ref_of(SUBKEY, content), base.place))
    for block, place in zip(blocks, await daily.put(records), strict=True):
        block.place = place
    daily.blocks += blocks
    vault = metered(daily)
    given = await daily.give(vault)
    given.check(daily.blocks)
    assert given.failed == []
    assert vault.asked_bytes < 2 * BLOCK_BYTES + sum(map(len, records))


async def test_a_lost_pack_of_sources_is_found_by_id_or_its_blocks_are_holes_that_name_it() -> None:
    daily = await (await Daily(48).fill()).days(4, share=0.5)
    lost = daily.packs[int(daily.blocks[20].holders[0].place["pack"])]
    needing = [
        at for at, block in enumerate(daily.blocks) if lost.key in {int(one.place["pack"]) for one in block.holders}
    ]
    assert 0 < len(needing) < 48
    kept = daily.vault.objects.pop(str(lost))
    given = await daily.give()
    given.check(daily.blocks)
    assert given.failed == needing
    assert f"vault: object {lost} is gone" in "\n".join(given.problems)

    # Another pack has the same records; only an index tells of it.
    offsets = sorted({(int(one.place["offset"]), int(one.place["length"]) & ~DELTA_FLAG) for block in daily.blocks
                      for one in block.holders if int(one.place["pack"]) == lost.key})  # fmt: skip
    await daily.put([kept[offset : offset + length] for offset, length in reversed(offsets)], publish=True)
    given = await daily.give()
    given.check(daily.blocks)
    assert given.failed == []
    assert given.indexed
    assert f"vault: object {lost} is gone" in "\n".join(given.problems)


async def test_a_damaged_source_makes_holes_of_those_only_that_need_it() -> None:
    daily = await (await Daily(32).fill()).days(3, share=0.4)
    hurt = daily.blocks[7].holders[0]
    name = str(daily.packs[int(hurt.place["pack"])])
    data = bytearray(daily.vault.objects[name])
    data[int(hurt.place["offset"]) + 300] ^= 1
    daily.vault.objects[name] = bytes(data)
    needing = [at for at, block in enumerate(daily.blocks) if any(one.ref == hurt.ref for one in block.holders)]
    given = await daily.give()
    given.check(daily.blocks)
    assert given.failed == needing
    assert name in "\n".join(given.problems)


async def test_deltas_of_the_vault_stand_on_whole_records_of_the_cache() -> None:
    daily = await Daily(40).fill()
    await daily.put([seal_whole(SUBKEY, block.content) for block in daily.blocks], cache=True, publish=True)
    first = set(daily.packs)
    await daily.days(3, share=0.4)
    changed = daily.deltas
    # The vault has nothing but the deltas left: every whole record comes from the cache.
    for pack in first:
        daily.vault.objects.pop(str(daily.packs[pack]), None)
    given = await daily.give(cache=True)
    given.check(daily.blocks)
    assert given.failed == []
    assert given.problems == []
    assert given.source.given_bytes == {CACHE: (40 - changed) * BLOCK_BYTES, VAULT: changed * BLOCK_BYTES}


async def test_a_source_damaged_in_the_cache_is_taken_from_the_vault() -> None:
    daily = await Daily(8).fill()
    await daily.put([seal_whole(SUBKEY, block.content) for block in daily.blocks], cache=True, publish=True)
    await daily.change(range(8))
    (name,) = [name for name in daily.cache.objects if name.startswith("data/")]
    data = bytearray(daily.cache.objects[name])
    data[70_000] ^= 1
    daily.cache.objects[name] = bytes(data)
    given = await daily.give(cache=True)
    given.check(daily.blocks)
    assert given.failed == []
    assert f"cache: object {name} is damaged" in "\n".join(given.problems)


async def test_a_cache_may_hold_deltas_with_their_sources_and_lack_some() -> None:
    daily = await Daily(6).fill()
    places = await daily.put([seal_whole(SUBKEY, block.content) for block in daily.blocks[:4]], cache=True)
    await daily.change(range(6))
    records = [record_at(daily, block.place) for block in daily.blocks]
    sources = [daily.packs[int(places[0]["pack"])]]
    await daily.put(records, cache=True, publish=True, sources=sources)
    given = await daily.give(cache=True)
    given.check(daily.blocks)
    assert (given.failed, given.problems) == ([], [])
    assert given.source.given_bytes == {CACHE: 6 * BLOCK_BYTES}


def record_at(daily: Daily, place: np.void) -> bytes:
    data = daily.vault.objects[str(daily.packs[int(place["pack"])])]
    offset = int(place["offset"])
    return data[offset : offset + (int(place["length"]) & ~DELTA_FLAG)]


async def test_a_vault_lost_among_deltas_ends_the_restore_or_leaves_what_the_cache_has() -> None:
    daily = await (await Daily(24).fill()).days(3, share=0.4)
    plan = FaultPlan().fail("get", 2, 10**6)
    with pytest.raises(StoreUnavailable):
        await daily.give(metered(daily, plan))
    cached = list(range(0, 24, 2))
    await daily.put([seal_whole(SUBKEY, daily.blocks[at].content) for at in cached], cache=True, publish=True)
    plan = FaultPlan().fail("get", 1, 10**6)
    given = await give(daily.blocks, daily.packs, metered(daily, plan), daily.cache)
    given.check(daily.blocks)
    assert sorted(given.contents) == cached


async def test_cancelling_among_deltas_ends_at_once() -> None:
    daily = await (await Daily(24).fill()).days(3, share=0.4)
    plan = FaultPlan()
    reached = plan.stall("get", 5, anyio.Event())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(daily.give, metered(daily, plan))
        await reached.wait()
        tasks.cancel_scope.cancel()


# What a hostile or damaged delta says of a source: how its place is twisted.
TWISTS = ("itself", "page pack", "nowhere", "4 GiB", "beyond", "footer", "other", "no length", "short")


ITSELF = 1  # a pack's key that stands for the one the delta lies in


def twisted(daily: Daily, twist: str, base: Block, page: np.void) -> np.void:
    key, offset, length = int(base.place["pack"]), int(base.place["offset"]), int(base.place["length"])
    places = {
        "itself": (ITSELF, 64, 5000),
        "page pack": tuple(page.tolist()),
        "nowhere": (key ^ 1, offset, length),
        "4 GiB": (key, offset, 0xFFFFFFFF),
        "beyond": (key, 0xFFFFFFF0, length),
        "footer": (key, daily.packs[key].size - length, length),
        "other": (key, 64 + length, length),
        "no length": (key, offset, 0),
        "short": (key, offset, 60),
    }
    place: np.void = np.array([places[twist]], PLACE)[0]
    return place


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(TWISTS), st.integers(1, 4)), min_size=1, max_size=6), st.booleans())
def test_hostile_deltas_cost_bounded_reads_and_harm_no_other_block(
    twists: list[tuple[str, int]], published: bool
) -> None:
    async def main() -> None:
        daily = await Daily(4, Codec.NONE, per_pack=2).fill()
        good = await honest(daily)
        page = pack_of([seal_whole(SUBKEY, bytes([7]) * 60_000)], "page")
        await daily.writer.store.put_pack(page)
        daily.packs[page.name.key] = page.name
        hostile: list[Block] = []
        for twist, count in twists:
            base = daily.blocks[0]
            content = bytes([len(hostile) + 1]) * 4096 + base.content[4096:]
            sources = [SourceBlock(base.ref, twisted(daily, twist, base, page.places()[0]))] * count
            part_map = map_of(content, {at: at % count for at in range(1, 16)})
            length = len(encode_delta(SUBKEY, content, sources, part_map))
            if twist == "itself":
                own = np.array([(ITSELF, 64, length)], PLACE)[0]
                sources = [SourceBlock(ref_of(SUBKEY, content), own)] * count
            (lies,) = await daily.put([encode_delta(SUBKEY, content, sources, part_map)])
            daily.packs[ITSELF] = daily.packs[int(lies["pack"])]
            hostile.append(Block(content, ref_of(SUBKEY, content), lies))
        daily.blocks += good + hostile
        if published:
            await daily.writer.store.publish_index()
        vault = metered(daily)
        given = await daily.give(vault)
        given.check(daily.blocks)
        # With an index every source but the block itself is found by its id after all.
        alone = {8 + at for at, (twist, _) in enumerate(twists) if not published or twist == "itself"}
        assert set(given.failed) <= alone
        records = 8 + len(hostile) * RECORDS_MAX
        assert vault.asked_bytes <= records * (RECORD_BYTES_MAX + GAP_BYTES) + 2 * sum(
            len(data) for name, data in daily.vault.objects.items() if name.startswith("index/")
        )

    anyio.run(main)


async def honest(daily: Daily) -> list[Block]:
    """Change all blocks once and return what they were before as blocks of their own."""
    before = [Block(block.content, block.ref, block.place, list(block.holders)) for block in daily.blocks]
    await daily.change(range(len(daily.blocks)))
    daily.blocks, changed = before, daily.blocks
    return changed
