"""The pack store: what one session puts, the next one and other systems find, and nothing that is not there."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import numpy as np
import pytest

from engine import packread, packstore, refresh
from engine.acks import PackAck
from engine.block import PLACE
from engine.errors import ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.fragment import encode_fragment
from engine.names import FragmentName, PackName
from engine.pack import FinishedPack, stand_in_for
from engine.subkeys import DomainKeys
from tests.engine.fakes_packs import ALICE, BOB, Machine, Team, ack, ids, random_ids
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

TEAM = Team()
BLOCKS = [bytes([number]) * 5000 for number in range(1, 40)]
CAROL = b"c" * 16


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    anyio.run(main)


def index_names(objects: MemoryStore) -> list[str]:
    return [name for name in objects.objects if name.startswith("index/")]


async def put_blocks(machine: Machine, blocks: list[bytes], publish: bool = True) -> FinishedPack:
    pack = TEAM.pack(blocks, machine.writer)
    await machine.store.put_pack(pack)
    if publish:
        await machine.store.publish_index()
    return pack


def finds(machine: Machine, blocks: list[bytes]) -> list[bool]:
    return [bool(length) for length in machine.index.lookup(ids(blocks, TEAM))["length"]]


def test_what_is_put_and_published_is_found_by_the_next_session_and_by_others() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = Machine(objects, TEAM), Machine(objects, TEAM, BOB)
        assert await alice.store.refresh() == []
        pack = await put_blocks(alice, BLOCKS[:5])
        assert all(finds(alice, BLOCKS[:5]))
        assert alice.acks.entries == []
        assert await bob.store.refresh() == []
        assert finds(bob, BLOCKS[:6]) == [True] * 5 + [False]
        assert bob.index.pack_names(bob.index.lookup(ids(BLOCKS[:1], TEAM))["pack"]) == [pack.name]
        assert await alice.restart().refresh() == []
        assert all(finds(alice, BLOCKS[:5]))
        for block in BLOCKS[:5]:
            assert await bob.open_block(TEAM.ref(block)) == block

    run(main)


def test_a_refresh_downloads_only_names_it_has_not_seen() -> None:
    async def main() -> None:
        objects = FaultyStore(MemoryStore(), FaultPlan())
        alice, bob = Machine(objects, TEAM), Machine(objects, TEAM, BOB)
        await alice.store.refresh()
        for at in range(0, 30, 2):
            await put_blocks(alice, BLOCKS[at : at + 2])
        await bob.store.refresh()
        await bob.restart().refresh()
        await put_blocks(alice, BLOCKS[30:32])
        objects.calls.clear()
        await bob.restart().refresh()
        assert [call for call, _ in objects.calls] == ["list", "get"]
        assert all(finds(bob, BLOCKS[:32]))

    run(main)


def test_own_only_neither_fetches_nor_sees_what_others_have() -> None:
    async def main() -> None:
        objects = FaultyStore(MemoryStore(), FaultPlan())
        alice, bob = Machine(objects, TEAM), Machine(objects, TEAM, BOB, own_only=True)
        await put_blocks(alice, BLOCKS[:3])
        await put_blocks(bob, BLOCKS[1:2])
        bob.restart()
        objects.calls.clear()
        await bob.store.refresh()
        assert finds(bob, BLOCKS[:3]) == [False, True, False]
        assert all(BOB.hex() in name for call, name in objects.calls if call == "get")

    run(main)


@pytest.mark.parametrize("barrier", [False, True])
def test_packs_of_an_interrupted_session_are_known_to_the_next(barrier: bool) -> None:
    async def main() -> None:
        alice = Machine(MemoryStore(barrier), TEAM)
        await alice.store.refresh()
        await put_blocks(alice, BLOCKS[:3], publish=False)
        await alice.store.flush()
        await put_blocks(alice, BLOCKS[3:5], publish=False)
        assert await alice.restart().refresh() == []
        assert all(finds(alice, BLOCKS[:5]))
        size = await alice.store.publish_index()
        assert size > 0
        assert await alice.store.publish_index() == 0
        alice.acks.clear()
        await alice.restart().refresh()
        assert all(finds(alice, BLOCKS[:5]))

    run(main)


def test_after_a_power_cut_unflushed_packs_are_not_believed_in() -> None:
    async def main() -> None:
        objects = MemoryStore(barrier=True)
        alice = Machine(objects, TEAM)
        await alice.store.refresh()
        await put_blocks(alice, BLOCKS[:3], publish=False)
        await alice.store.flush()
        lost = await put_blocks(alice, BLOCKS[3:5], publish=False)
        torn = await put_blocks(alice, BLOCKS[5:7], publish=False)
        objects.power_cut()
        # The file system kept the name and the size of one of them, and none of its bytes.
        objects.objects[str(torn.name)] = bytes(torn.name.size)
        assert str(lost.name) not in objects.objects
        await alice.restart().refresh()
        assert finds(alice, BLOCKS[:7]) == [True] * 3 + [False] * 4
        await alice.restart().refresh()
        assert finds(alice, BLOCKS[:7]) == [True] * 3 + [False] * 4

    run(main)


def test_a_pack_that_was_read_back_is_durable_from_the_next_flush_on() -> None:
    async def main() -> None:
        objects = MemoryStore(barrier=True)
        alice = Machine(objects, TEAM)
        await put_blocks(alice, BLOCKS[:2], publish=False)
        await alice.restart().refresh()  # it was killed: what it put lies in memory still
        assert all(finds(alice, BLOCKS[:2]))
        objects.power_cut()
        await alice.restart().refresh()
        assert not any(finds(alice, BLOCKS[:2]))
        await put_blocks(alice, BLOCKS[2:4], publish=False)
        await alice.restart().refresh()
        await alice.store.flush()
        objects.power_cut()
        await alice.restart().refresh()
        assert all(finds(alice, BLOCKS[2:4]))

    run(main)


def test_reading_back_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        alice = Machine(MemoryStore(), TEAM)
        packs = [await put_blocks(alice, [block], publish=False) for block in BLOCKS[:4]]
        monkeypatch.setattr(packstore, "READ_BACK_BYTES_MAX", packs[0].name.size + packs[1].name.size)
        await alice.restart().refresh()
        assert finds(alice, BLOCKS[:4]) == [True, True, False, False]

    run(main)


def test_a_fragment_never_lists_packs_that_are_not_durable() -> None:
    async def main() -> None:
        objects = MemoryStore(barrier=True)
        alice = Machine(objects, TEAM)
        await put_blocks(alice, BLOCKS[:3])
        objects.power_cut()
        await alice.restart().refresh()
        assert all(finds(alice, BLOCKS[:3]))
        assert await alice.open_block(TEAM.ref(BLOCKS[0])) == BLOCKS[0]

    run(main)


@pytest.mark.parametrize("operation", ["put", "flush", "stat"])
@pytest.mark.parametrize("call", [1, 2])
def test_a_publication_that_fails_is_made_good_by_the_next(operation: Any, call: int) -> None:
    async def main() -> None:
        plan = FaultPlan()
        objects = FaultyStore(MemoryStore(), plan)
        alice = Machine(objects, TEAM)
        await put_blocks(alice, BLOCKS[:3], publish=False)
        plan.lose_acknowledgement(operation, call, prefix="index/" if operation != "flush" else "")
        try:
            await alice.store.publish_index()
        except StoreUnavailable:
            await alice.store.publish_index()
        assert alice.acks.entries == []
        assert await alice.restart().refresh() == []
        assert all(finds(alice, BLOCKS[:3]))
        places = alice.index.all_places(TEAM.ref(BLOCKS[0])[:16])
        assert len(places) == 1

    run(main)


def test_a_pack_put_while_the_index_is_published_is_not_forgotten() -> None:
    async def main() -> None:
        plan = FaultPlan()
        alice = Machine(FaultyStore(MemoryStore(), plan), TEAM)
        await put_blocks(alice, BLOCKS[:3], publish=False)
        go = anyio.Event()
        reached = plan.stall("put", 1, go, prefix="index/")
        async with anyio.create_task_group() as group:
            group.start_soon(alice.store.publish_index)
            await reached.wait()
            await put_blocks(alice, BLOCKS[3:6], publish=False)
            go.set()
        assert all(finds(alice, BLOCKS[:6]))
        await alice.restart().refresh()
        assert all(finds(alice, BLOCKS[:6]))
        assert await alice.store.publish_index() > 0
        assert alice.acks.entries == []

    run(main)


def test_so_many_records_are_unlisted_and_then_a_fragment_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(packstore, "UNLISTED_ENTRIES_MAX", 5)
        objects = MemoryStore()
        alice = Machine(objects, TEAM)
        for at in range(0, 20, 2):
            await put_blocks(alice, BLOCKS[at : at + 2], publish=False)
        assert len(index_names(objects)) == 3
        assert all(finds(alice, BLOCKS[:20]))

    run(main)


def test_putting_a_pack_twice_lists_it_once() -> None:
    async def main() -> None:
        alice = Machine(MemoryStore(), TEAM)
        pack = TEAM.pack(BLOCKS[:2])
        await alice.store.put_pack(pack)
        await alice.store.put_pack(pack)
        assert len(alice.acks.entries) == 1

    run(main)


def test_a_clone_that_took_the_next_name_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, clone = Machine(objects, TEAM), Machine(objects, TEAM)
        for machine in (alice, clone):
            await machine.store.refresh()
        await put_blocks(clone, BLOCKS[:2])
        await put_blocks(alice, BLOCKS[2:4])
        assert len(index_names(objects)) == 2
        await alice.restart().refresh()
        assert all(finds(alice, BLOCKS[:4]))
        monkeypatch.setattr(packstore, "SEQUENCES_TRIED_MAX", 2)
        for number in range(3, 9):
            objects.objects[str(FragmentName(ALICE, b"i" * 8, number))] = b"x"
        with pytest.raises(StoreRejected, match="forebay init"):
            await put_blocks(alice, BLOCKS[4:5])

    run(main)


# What a neighbour, or a failing disk, may put where fragments are.


async def two_with_index(objects: MemoryStore) -> tuple[Machine, Machine, str]:
    alice, bob = Machine(objects, TEAM), Machine(objects, TEAM, BOB)
    await put_blocks(bob, BLOCKS[:3])
    (name,) = index_names(objects)
    return alice, bob, name


def flipped(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize("damage", [flipped, lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"])
def test_a_damaged_fragment_is_named_with_its_writer_and_not_used(damage: Callable[[bytes], bytes]) -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, _, name = await two_with_index(objects)
        objects.objects[name] = damage(objects.objects[name])
        for _ in range(2):
            (problem,) = await alice.store.refresh()
            assert name in problem
            assert BOB.hex() in problem
            assert not any(finds(alice, BLOCKS[:3]))
            alice.restart()

    run(main)


def test_an_old_index_replayed_under_a_new_name_is_noticed() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, _, name = await two_with_index(objects)
        await alice.store.refresh()
        replayed = str(FragmentName(BOB, b"i" * 8, 2))
        objects.objects[replayed] = objects.objects[name]
        stolen = str(FragmentName(CAROL, b"i" * 8, 1))
        objects.objects[stolen] = objects.objects[name]
        problems = await alice.store.refresh()
        assert len(problems) == 1
        assert replayed in problems[0]
        TEAM.members.append(CAROL)
        try:
            assert any(stolen in problem for problem in await alice.restart().refresh())
        finally:
            TEAM.members.remove(CAROL)

    run(main)


def test_a_fragment_written_again_with_other_content_is_named_and_the_first_is_used() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, _, name = await two_with_index(objects)
        await alice.store.refresh()
        fragment = FragmentName.parse(name)
        assert fragment is not None
        lie = ack(BOB, 5, random_ids(np.random.default_rng(1), 9))
        objects.objects[name] = encode_fragment(fragment, [lie], TEAM.keys, TEAM.signer(BOB))
        for _ in range(2):
            (problem,) = await alice.store.refresh()
            assert name in problem
            assert BOB.hex() in problem
            assert all(finds(alice, BLOCKS[:3]))
            assert not alice.index.lookup(lie.ids)["length"].any()
            alice.restart()

    run(main)


@pytest.mark.parametrize("durable", [True, False])
def test_a_torn_own_fragment_is_put_again_where_puts_may_tear(durable: bool) -> None:
    async def main() -> None:
        objects = MemoryStore(barrier=not durable)
        alice, bob = Machine(objects, TEAM, durable_puts=durable), Machine(objects, TEAM, BOB)
        await alice.store.refresh()
        await put_blocks(alice, BLOCKS[:3])
        (name,) = index_names(objects)
        objects.objects[name] = objects.objects[name][:52]
        (problem,) = await alice.restart().refresh()
        assert problem.startswith(f"object {name} ")
        # A vault tells what it was given; what lay in the memory of a cache's server may be anything after a power cut.
        assert finds(alice, BLOCKS[:3]) == [durable] * 3
        await put_blocks(alice, BLOCKS[:3])
        (problem,) = await bob.store.refresh()
        assert name in problem
        assert finds(bob, BLOCKS[:3]) == [True] * 3

    run(main)


def test_what_left_the_store_leaves_the_index() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, _, name = await two_with_index(objects)
        await alice.store.refresh()
        assert all(finds(alice, BLOCKS[:3]))
        del objects.objects[name]
        assert await alice.store.refresh() == []
        assert not any(finds(alice, BLOCKS[:3]))

    run(main)


def test_a_merged_fragment_takes_the_place_of_what_it_covers() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob, _ = await two_with_index(objects)
        second = await put_blocks(bob, BLOCKS[3:6])
        await alice.store.refresh()
        # A collector has dropped the first pack, and has not removed the fragments yet.
        covered = [FragmentName.parse(name) for name in index_names(objects)]
        merged = FragmentName(BOB, b"m" * 8, 1)
        covers = [name for name in covered if name is not None]
        data = encode_fragment(merged, [PackAck.of(second)], TEAM.keys, TEAM.signer(BOB), covers)
        objects.objects[str(merged)] = data
        fetched = FaultyStore(objects, FaultPlan())
        alice.objects = fetched
        for _ in range(2):
            assert await alice.restart().refresh() == []
            assert finds(alice, BLOCKS[:6]) == [False] * 3 + [True] * 3
        assert [name for call, name in fetched.calls if call == "get"] == [str(merged)]
        for name in covers:
            del objects.objects[str(name)]
        assert await alice.restart().refresh() == []
        assert finds(alice, BLOCKS[:6]) == [False] * 3 + [True] * 3

    run(main)


def test_strangers_and_other_domains_are_passed_over_in_silence() -> None:
    async def main() -> None:
        objects = MemoryStore()
        other = Team(keys=DomainKeys.of(b"e" * 16, b"other!" * 6), members=[ALICE, BOB])
        await put_blocks(Machine(objects, other, BOB), BLOCKS[:2])
        objects.objects[str(FragmentName(CAROL, b"i" * 8, 1))] = b"whatever"
        alice = Machine(objects, TEAM)
        assert await alice.store.refresh() == []
        assert not any(finds(alice, BLOCKS[:2]))
        objects.objects["index/notes.txt"] = b""
        (problem,) = await alice.store.refresh()
        assert "index/notes.txt" in problem

    run(main)


@pytest.mark.parametrize("listed_max", [1000, 2], ids=["their names fit", "their names are too many to hold"])
def test_many_writers_are_held_in_rotation_within_the_bound(monkeypatch: pytest.MonkeyPatch, listed_max: int) -> None:
    async def main() -> None:
        monkeypatch.setattr(refresh, "LISTED_MAX", listed_max)
        monkeypatch.setattr(refresh, "FOREIGN_WRITERS_MAX", 3)
        monkeypatch.setattr(refresh, "WRITERS_ROTATED", 2)
        objects = MemoryStore()
        writers = [bytes([number]) * 16 for number in range(1, 8)]
        team = Team(members=[ALICE, *writers])
        for number, writer in enumerate(writers):
            await put_blocks(Machine(objects, team, writer), [BLOCKS[number]])
        alice = Machine(objects, team)
        seen: set[int] = set()
        for turn in range(7):
            preferred = [writers[6]]
            await alice.restart().refresh(preferred)
            found = [number for number in range(7) if finds(alice, [BLOCKS[number]])[0]]
            assert 6 in found
            assert len(found) == 4
            seen |= set(found)
            await put_blocks(alice, [BLOCKS[20 + turn]])
        assert seen == set(range(7))

    run(main)


def test_names_of_others_fragments_are_held_of_those_only_that_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(refresh, "LISTED_MAX", 2)
        monkeypatch.setattr(refresh, "FOREIGN_WRITERS_MAX", 1)
        objects = MemoryStore()
        writers = [bytes([number]) * 16 for number in range(1, 8)]
        team = Team(members=[ALICE, *writers])
        for number, writer in enumerate(writers):
            await put_blocks(Machine(objects, team, writer), [BLOCKS[number]])
        one = refresh.Refresh(objects, Machine(objects, team).store._mirror, team.keys, team, ALICE)
        await one.run()
        assert {name.writer for name in one.listed} == {writers[0]}

    run(main)


def test_foreign_fragments_are_held_up_to_a_bound_in_bytes() -> None:
    async def main() -> None:
        objects = MemoryStore()
        bob = Machine(objects, TEAM, BOB)
        for number in range(6):
            await put_blocks(bob, [BLOCKS[number]])
        size = max(len(objects.objects[name]) for name in index_names(objects))
        alice = Machine(objects, TEAM, index_max=size * 3)
        for _ in range(2):
            await alice.restart().refresh()
            assert sum(finds(alice, BLOCKS[:6])) == 3
        alice.index_max = size
        await alice.restart().refresh()
        assert sum(finds(alice, BLOCKS[:6])) <= 1

    run(main)


def test_a_store_that_is_away_is_not_an_empty_one() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, _, _ = await two_with_index(objects)
        await alice.store.refresh()
        objects.away = True
        with pytest.raises(StoreUnavailable):
            await alice.store.refresh()
        assert all(finds(alice, BLOCKS[:3]))

    run(main)


def test_a_lost_connection_in_the_middle_of_a_refresh_comes_out_alone_and_costs_nothing() -> None:
    async def main() -> None:
        plan = FaultPlan()
        objects = FaultyStore(MemoryStore(), plan)
        bob = Machine(objects, TEAM, BOB)
        for number in range(20):
            await put_blocks(bob, [BLOCKS[number]])
        alice = Machine(objects, TEAM)
        plan.fail("get", 7)
        with pytest.raises(StoreUnavailable):
            await alice.store.refresh()
        assert await alice.restart().refresh() == []
        assert all(finds(alice, BLOCKS[:20]))

    run(main)


# Reading.


def test_neighbouring_records_are_read_by_few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        noise = random.Random(1)
        blocks = [noise.randbytes(60000) for _ in range(30)]
        objects = FaultyStore(MemoryStore(), FaultPlan())
        alice = Machine(objects, TEAM)
        pack = await put_blocks(alice, blocks)
        ranges = list(zip(pack.offsets.tolist(), pack.lengths.tolist(), strict=True))
        wanted = [ranges[at] for at in (3, 1, 2, 4, 2, 20, 7, 5)]
        objects.calls.clear()
        records = await alice.store.read_records(pack.name, wanted)
        assert records == [pack.data[offset : offset + length] for offset, length in wanted]
        # 1 to 7 with one gap of a record, and 20.
        assert [call for call, _ in objects.calls] == ["get", "get"]
        monkeypatch.setattr(packread, "REQUEST_BYTES", 130_000)
        objects.calls.clear()
        assert len(await alice.store.read_records(pack.name, ranges)) == 30
        assert len(objects.calls) == 15
        assert await alice.store.read_records(pack.name, []) == []

    run(main)


def test_ranges_outside_the_pack_are_refused_unread() -> None:
    async def main() -> None:
        alice = Machine(MemoryStore(), TEAM)
        pack = await put_blocks(alice, BLOCKS[:1])
        for offset, length in ((-1, 60), (64, 0), (64, pack.name.size), (1 << 40, 60)):
            with pytest.raises(StoreCorrupt, match="outside the pack"):
                await alice.store.read_records(pack.name, [(offset, length)])

    run(main)


@pytest.mark.parametrize("wrong", [b"", b"short", bytes(30000), None])
def test_a_pack_of_the_wrong_size_is_absent_or_read_from_where_it_was_written_again(wrong: bytes | None) -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice = Machine(objects, TEAM)
        pack = await put_blocks(alice, BLOCKS[:3])
        other = await put_blocks(alice, BLOCKS[3:4])
        name = str(pack.name)
        data = objects.objects.pop(name)
        if wrong is not None:
            objects.objects[name] = wrong
        assert len(data) != len(wrong or b"")
        with pytest.raises(ObjectMissing, match=name):
            await alice.open_block(TEAM.ref(BLOCKS[1]))
        assert await alice.store.absent([pack.name, other.name]) == {pack.name}
        objects.objects[f"{name}.1"] = b"wrong as well"
        objects.objects[f"{name}.2"] = data
        for _ in range(2):
            assert await alice.open_block(TEAM.ref(BLOCKS[1])) == BLOCKS[1]
        if wrong is not None:
            assert await alice.store.absent([pack.name, other.name]) == set()

    run(main)


def test_of_a_damaged_pack_what_stands_in_for_it_is_read_and_asked_about() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice = Machine(objects, TEAM)
        pack, other = await put_blocks(alice, BLOCKS[:3]), await put_blocks(alice, BLOCKS[3:4])
        place = alice.index.lookup(ids(BLOCKS[1:2], TEAM))[0]
        where = [(int(place["offset"]), int(place["length"]))]
        (record,) = await alice.store.read_records(pack.name, where)
        standing = stand_in_for(pack, TEAM.keys, TEAM.signer(pack.name.writer))
        objects.objects[str(pack.name)] = bytes(pack.name.size)
        alice.store.rely_instead({pack.name: standing.name})
        assert await alice.store.absent([pack.name, other.name]) == {pack.name}
        assert finds(alice, BLOCKS[:2]) == [False, False]
        await alice.store.put_pack(standing)
        assert await alice.store.absent([pack.name, other.name]) == set()
        assert await alice.store.read_records(pack.name, where) == [record]
        assert alice.index.lookup(ids(BLOCKS[1:2], TEAM))["pack"] == [standing.name.key]
        # It was taken away, and put again as it was.
        objects.objects[str(pack.name)] = bytes(pack.data)
        alice.store.rely_instead({pack.name: pack.name})
        del objects.objects[str(standing.name)]
        assert await alice.store.absent([pack.name]) == set()

    run(main)


@pytest.mark.parametrize("count", [2, 20])
def test_presence_is_asked_by_stat_or_by_listing(count: int) -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = Machine(objects, TEAM), Machine(objects, TEAM, BOB)
        packs = [await put_blocks(alice if at % 2 else bob, [BLOCKS[at]], publish=False) for at in range(count)]
        missing = PackName("page", ALICE, b"\x01" * 32, 700)
        names = [pack.name for pack in packs]
        assert await alice.store.absent(names) == set()
        objects.objects[str(names[0])] = b"cut"
        del objects.objects[str(names[1])]
        assert await alice.store.absent([*names, missing]) == {names[0], names[1], missing}
        assert await alice.store.absent([]) == set()

    run(main)


def test_a_block_is_taken_from_any_place_that_has_it() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = Machine(objects, TEAM), Machine(objects, TEAM, BOB)
        first = await put_blocks(alice, BLOCKS[:3])
        second = await put_blocks(bob, BLOCKS[1:4])
        await alice.store.refresh()
        ref = TEAM.ref(BLOCKS[1])
        pinned = first.places()[1]
        data = bytearray(objects.objects[str(first.name)])
        data[int(pinned["offset"]) + 50] ^= 1
        objects.objects[str(first.name)] = bytes(data)
        assert await alice.open_block(ref, pinned) == BLOCKS[1]
        del objects.objects[str(second.name)]
        with pytest.raises(StoreCorrupt, match=str(first.name)):
            await alice.open_block(ref, pinned)
        with pytest.raises(ObjectMissing):
            await alice.open_block(TEAM.ref(b"never stored"))

    run(main)


def test_a_place_is_a_hint_and_another_block_there_is_not_given() -> None:
    async def main() -> None:
        alice = Machine(MemoryStore(), TEAM)
        pack = await put_blocks(alice, BLOCKS[:3])
        for place in pack.places():
            assert await alice.open_block(TEAM.ref(BLOCKS[0]), place) == BLOCKS[0]
        nowhere = np.zeros(1, PLACE)[0]
        assert await alice.open_block(TEAM.ref(BLOCKS[0]), nowhere) == BLOCKS[0]

    run(main)


def test_a_pack_the_index_does_not_know_is_named_by_the_caller() -> None:
    async def main() -> None:
        objects = MemoryStore()
        pack = await put_blocks(Machine(objects, TEAM), BLOCKS[:1])
        stranger = Machine(objects, TEAM, BOB)
        ref, place = TEAM.ref(BLOCKS[0]), pack.places()[0]
        with pytest.raises(ObjectMissing):
            await stranger.open_block(ref, place)
        resolve = {pack.name.key: pack.name}.get
        assert await stranger.open_block(ref, place, resolve) == BLOCKS[0]

    run(main)


def test_a_record_is_found_by_id() -> None:
    async def main() -> None:
        alice = Machine(MemoryStore(), TEAM)
        pack = await put_blocks(alice, BLOCKS[:2])
        ref = TEAM.ref(BLOCKS[1])
        offset, length = int(pack.offsets[1]), int(pack.lengths[1])
        assert await alice.store.record_by_id(ref[:16]) == pack.data[offset : offset + length]
        assert await alice.store.record_by_id(bytes(16)) is None

    run(main)
