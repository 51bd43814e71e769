"""Opening deltas from a store: pinned sources first, then by id, within a bound, and never to wrong bytes."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import PART_BYTES, PARTS
from engine.errors import ObjectMissing, StoreCorrupt
from engine.opener import RECORDS_MAX, Opener, Shelf
from engine.pack import FinishedPack, check_pack
from tests.engine.fakes_delta import SourceBlock, encode_delta, map_of, pieces, seal_whole
from tests.engine.fakes_packs import ALICE, BOB, Machine, Team
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

TEAM = Team()
SUBKEY = TEAM.keys.blocks


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    anyio.run(main)


def block(seed: int) -> bytes:
    return random.Random(seed).randbytes(PARTS * PART_BYTES)


def pack_of(records: list[bytes], writer: bytes = ALICE) -> FinishedPack:
    builder = TEAM.builder(writer)
    for record in records:
        builder.add(record)
    return builder.finish()


class Family:
    """Four source blocks, one of them a delta of an older one, and a block that takes parts from all four."""

    def __init__(self) -> None:
        self.objects = MemoryStore()
        self.calls = FaultyStore(self.objects, FaultPlan())
        self.machine = Machine(self.calls, TEAM)

    async def fill(self) -> Family:
        old = block(0)
        wholes = [block(seed) for seed in (1, 2, 3)]
        changed = b"".join([pieces(old)[0], pieces(block(9))[1], *pieces(old)[2:]])
        old_pack = pack_of([seal_whole(SUBKEY, old)])
        delta_of_old = encode_delta(
            SUBKEY, changed, [SourceBlock(TEAM.ref(old), old_pack.places()[0])],
            map_of(changed, {number: 0 for number in range(PARTS) if number != 1}),
        )  # fmt: skip
        self.source_blocks = [*wholes, changed]
        self.source_packs = [pack_of([seal_whole(SUBKEY, each)]) for each in wholes] + [pack_of([delta_of_old])]
        origins = {0: 0, 5: 1, 9: 2, 1: 3}
        own = pieces(block(7))
        self.content = b"".join(
            pieces(self.source_blocks[origins[number]])[number] if number in origins else own[number]
            for number in range(PARTS)
        )
        sources = [
            SourceBlock(TEAM.ref(each), pack.places()[0])
            for each, pack in zip(self.source_blocks, self.source_packs, strict=True)
        ]
        self.ref = TEAM.ref(self.content)
        self.record = encode_delta(SUBKEY, self.content, sources, map_of(self.content, origins))
        self.pack = pack_of([seal_whole(SUBKEY, block(30)), self.record])
        for pack in [old_pack, *self.source_packs, self.pack]:
            await self.machine.store.put_pack(pack)
        await self.machine.store.publish_index()
        await self.machine.restart().refresh()
        self.place = self.pack.places()[1]
        self.calls.calls.clear()
        return self

    async def open(self) -> bytes:
        return await self.machine.open_block(self.ref, self.place)


def test_an_undamaged_delta_opens_from_five_records_and_no_listing() -> None:
    async def main() -> None:
        family = await Family().fill()
        assert await family.open() == family.content
        assert [call for call, _ in family.calls.calls] == ["get"] * 5
        check_pack(family.pack.name, family.pack.data, TEAM.keys, TEAM)

    run(main)


@pytest.mark.parametrize("lost", range(4))
def test_a_source_gone_from_its_place_is_looked_up_by_id(lost: int) -> None:
    async def main() -> None:
        family = await Family().fill()
        del family.objects.objects[str(family.source_packs[lost].name)]
        with pytest.raises(StoreCorrupt, match=f"{family.pack.name}.*gone from the store"):
            await family.open()
        copy = pack_of([seal_whole(SUBKEY, block(55)), seal_whole(SUBKEY, family.source_blocks[lost])], BOB)
        other = Machine(family.objects, TEAM, BOB)
        await other.store.put_pack(copy)
        await other.store.publish_index()
        await family.machine.store.refresh()
        assert await family.open() == family.content

    run(main)


def test_a_delta_is_passed_over_for_a_whole_copy_when_its_sources_are_gone() -> None:
    async def main() -> None:
        family = await Family().fill()
        for pack in family.source_packs:
            del family.objects.objects[str(pack.name)]
        copy = pack_of([seal_whole(SUBKEY, family.content)])
        await family.machine.store.put_pack(copy)
        assert await family.open() == family.content
        assert await family.machine.store.record_by_id(family.ref[:16]) is not None

    run(main)


# Which pack, where in it, and the bit that is flipped there; None: the pack is cut there.
damages = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1 << 20), st.none() | st.integers(0, 7)), min_size=1)


@given(damages)
@settings(max_examples=60, deadline=None)
def test_damage_anywhere_gives_the_exact_block_or_an_error_that_names_a_pack(
    drawn: list[tuple[int, int, int | None]],
) -> None:
    async def main() -> None:
        family = await Family().fill()
        names = [str(pack.name) for pack in [*family.source_packs, family.pack]]
        for number, position, bit in drawn:
            content = bytearray(family.objects.objects[names[number]])
            if bit is None or not content:
                del content[position % (len(content) + 1) :]
            else:
                content[position % len(content)] ^= 1 << bit
            family.objects.objects[names[number]] = bytes(content)
        failure = None
        try:
            assert await family.open() == family.content
        except (StoreCorrupt, ObjectMissing) as error:
            failure = error
        assert failure is None or failure.name in names

    run(main)


def test_the_records_read_for_one_block_are_bounded() -> None:
    async def main() -> None:
        machine = Machine(calls := FaultyStore(MemoryStore(), FaultPlan()), TEAM)
        content = block(1)
        garbage = block(2)
        forged = bytearray(seal_whole(SUBKEY, garbage))
        forged[:16] = TEAM.ref(content)[:16]
        # Forty packs claim the block and hold garbage under its id.
        for number in range(40):
            await machine.store.put_pack(pack_of([seal_whole(SUBKEY, bytes([number + 1])), bytes(forged)]))
        calls.calls.clear()
        with pytest.raises(StoreCorrupt):
            await machine.open_block(TEAM.ref(content))
        assert len([call for call, _ in calls.calls if call == "get"]) == RECORDS_MAX

    run(main)


def test_what_one_store_lacks_is_taken_from_another_within_the_same_bound() -> None:
    async def main() -> None:
        family = await Family().fill()
        for pack in family.source_packs[:2]:
            del family.objects.objects[str(pack.name)]
        near = Machine(calls := FaultyStore(MemoryStore(), FaultPlan()), TEAM)
        await near.store.put_pack(pack_of([seal_whole(SUBKEY, family.source_blocks[0])]))
        await near.store.put_pack(pack_of([seal_whole(SUBKEY, family.source_blocks[1])]))
        vault, index = family.machine.store, family.machine.index
        alone = Opener(index, vault.read_records, TEAM.keys)
        with pytest.raises(StoreCorrupt, match="gone from the store"):
            await alone.open(family.ref, family.place)
        both = Opener(index, vault.read_records, TEAM.keys, [Shelf(near.index, near.store.read_records)])
        assert await both.open_from(family.ref, family.place) == (family.content, 0)
        await near.store.put_pack(pack_of([seal_whole(SUBKEY, family.content)]))
        del family.objects.objects[str(family.pack.name)]
        assert await both.open_from(family.ref, family.place) == (family.content, 1)
        calls.calls.clear()
        with pytest.raises(StoreCorrupt, match=f"could not be had from {RECORDS_MAX} records"):
            await both.open_from(family.ref, family.place, read_before=RECORDS_MAX)
        assert calls.calls == []

    run(main)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFFFFF, 1 << 20, 56, 1])
def test_a_place_of_impossible_length_is_not_read(length: int) -> None:
    async def main() -> None:
        family = await Family().fill()
        place = np.array([(family.place["pack"], family.place["offset"], length)], family.place.dtype)[0]
        family.calls.calls.clear()
        assert await family.machine.open_block(family.ref, place) == family.content
        assert len([call for call, _ in family.calls.calls if call == "get"]) == 5

    run(main)


def test_a_delta_of_garbage_under_a_valid_id_is_refused() -> None:
    async def main() -> None:
        family = await Family().fill()
        wanted = block(77)
        source = SourceBlock(TEAM.ref(family.source_blocks[0]), family.source_packs[0].places()[0])
        garbage = family.content
        record = encode_delta(SUBKEY, garbage, [source], map_of(garbage, {0: 0}), ref=TEAM.ref(wanted))
        pack = pack_of([record])
        await family.machine.store.put_pack(pack)
        with pytest.raises(StoreCorrupt, match=f"{pack.name}.*does not hold what its name says"):
            await family.machine.open_block(TEAM.ref(wanted))

    run(main)


def test_places_are_numbers_of_any_kind() -> None:
    async def main() -> None:
        family = await Family().fill()
        place = np.array([(family.place["pack"], 5, 7)], family.place.dtype)[0]
        assert await family.machine.open_block(family.ref, place) == family.content

    run(main)
