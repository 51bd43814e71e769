"""Removal lists: what left a cache is believed in by nobody, whoever removed it, and lists stay few."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from engine import removals
from engine.columns import Column64
from engine.errors import StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import PackName, RemovalName
from engine.pack import FinishedPack
from engine.removal import REMOVAL_LABEL, RemovalList, encode_removals, open_removals
from engine.subkeys import DomainKeys
from engine.trailer import make_trailer
from tests.engine.fakes_packs import ALICE, BOB, Machine, Team, ids
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

TEAM = Team()
CAROL = b"c" * 16
BLOCKS = [bytes([number]) * 5000 for number in range(1, 40)]
NAME = RemovalName(ALICE, b"i" * 8, 7)
GOLDEN = bytes.fromhex(
    "4642474f4e4500010100010003000000"  # magic, version, settled, 3 packs
    "64646464646464646464646464646464"  # domain
    "61616161616161616161616161616161"  # writer
    "6969696969696969 07000000 02000000 01000000 00000000"  # incarnation, sequence, 2 writers, 1 cover
    "61616161616161616161616161616161 01000000 00000000"
    "62626262626262626262626262626262 02000000 00000000"
    "0500000000000000 0600000000000000 0700000000000000"
    "6969696969696969 06000000 00000000"
)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    anyio.run(main)


def keys_of(*keys: int) -> Column64:
    return np.array(keys, np.uint64)


def removal_names(objects: MemoryStore) -> list[str]:
    return sorted(name for name in objects.objects if name.startswith("gc/"))


def machine(objects: Any, writer: bytes = ALICE, **more: Any) -> Machine:
    return Machine(objects, TEAM, writer, trimmed=True, **more)


async def put_blocks(machine: Machine, blocks: Sequence[bytes]) -> FinishedPack:
    pack = TEAM.pack(blocks, machine.writer)
    await machine.store.put_pack(pack)
    await machine.store.publish_index()
    return pack


def finds(machine: Machine, blocks: Sequence[bytes]) -> list[bool]:
    return [bool(length) for length in machine.index.lookup(ids(blocks, TEAM))["length"]]


async def remove(machine: Machine, packs: Sequence[PackName]) -> None:
    await machine.store.announce_removal(packs)
    for pack in packs:
        await machine.objects.delete(str(pack))


# The format.


def encoded(covers: Sequence[RemovalName] = (), *, settled: bool = False) -> bytes:
    packs = {BOB: keys_of(6, 7), ALICE: keys_of(5)}
    return encode_removals(NAME, packs, TEAM.keys, TEAM.signer(ALICE), covers, settled=settled)


def said(known: RemovalList) -> dict[bytes, list[int]]:
    return {writer: keys.tolist() for writer, keys in known.packs.items()}


def test_a_list_says_what_was_written() -> None:
    covers = [RemovalName(ALICE, b"h" * 8, 9), RemovalName(ALICE, b"i" * 8, 6)]
    known = open_removals(NAME, encoded(covers, settled=True), TEAM.keys, TEAM)
    assert said(known) == {ALICE: [5], BOB: [6, 7]}
    assert (known.covers, known.settled, known.count) == (tuple(covers), True, 3)
    assert not open_removals(NAME, encoded(), TEAM.keys, TEAM).settled


def test_its_bytes_are_those_of_the_first_version() -> None:
    data = encoded([RemovalName(ALICE, b"i" * 8, 6)], settled=True)
    assert data[:-128] == GOLDEN
    body, trailer = data[:-128], data[-128:]
    checksum = blake3(body).digest()
    assert trailer == make_trailer(REMOVAL_LABEL, checksum, TEAM.keys, TEAM.signer(ALICE))


@given(st.data())
def test_no_damage_goes_unseen_and_none_does_more_than_be_refused(data: st.DataObject) -> None:
    good = encoded([RemovalName(ALICE, b"i" * 8, 6)], settled=True)
    at = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(
        st.sampled_from([good[:at], good + good[:at] + b"x", good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]])
    )
    with pytest.raises(StoreCorrupt):
        open_removals(NAME, bad, TEAM.keys, TEAM)


@given(st.data())
def test_what_a_member_makes_up_is_refused_or_in_order(data: st.DataObject) -> None:
    """The checks behind the seal: any bytes in the fields, sealed by a member."""
    body = bytearray(encoded([RemovalName(ALICE, b"i" * 8, 6)], settled=True)[:-128])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(8, 15), st.integers(56, len(body) - 1)))
        body[at] = data.draw(st.integers(0, 255))
    sealed = bytes(body) + make_trailer(REMOVAL_LABEL, blake3(bytes(body)).digest(), TEAM.keys, TEAM.signer(ALICE))
    try:
        known = open_removals(NAME, sealed, TEAM.keys, TEAM)
    except StoreCorrupt:
        return
    for keys in known.packs.values():
        assert keys.size
        assert (keys[1:] > keys[:-1]).all()
    assert NAME not in known.covers
    assert known.count == 3


@pytest.mark.parametrize(
    ("name", "keys", "sentence"),
    [
        (RemovalName(BOB, NAME.incarnation, 7), TEAM.keys, "copied here from another name"),
        (RemovalName(ALICE, NAME.incarnation, 8), TEAM.keys, "copied here from another name"),
        (NAME, DomainKeys.of(b"e" * 16, b"other!" * 6), "another domain"),
        (NAME, DomainKeys.of(b"d" * 16, b"other!" * 6), "MAC is not of this domain"),
    ],
)
def test_a_list_of_another_name_or_domain_is_refused(name: RemovalName, keys: DomainKeys, sentence: str) -> None:
    with pytest.raises(StoreCorrupt, match=sentence):
        open_removals(name, encoded(), keys, TEAM)


def test_names_are_parsed_as_they_are_written() -> None:
    assert str(NAME) == f"gc/{ALICE.hex()}/{(b'i' * 8).hex()}-00000007"
    assert RemovalName.parse(str(NAME)) == NAME
    for bad in (str(NAME) + "0", str(NAME).upper(), str(NAME).replace("gc/", "index/"), "gc/x"):
        assert RemovalName.parse(bad) is None


# What readers make of them.


def test_what_was_removed_is_passed_over_here_and_by_others() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        gone, stays = await put_blocks(bob, BLOCKS[:3]), await put_blocks(bob, BLOCKS[3:6])
        await alice.store.refresh()
        assert all(finds(alice, BLOCKS[:6]))
        await remove(alice, [gone.name])
        assert finds(alice, BLOCKS[:6]) == [False] * 3 + [True] * 3
        for each in (alice, bob):
            for _ in range(2):
                assert await each.restart().refresh() == []
                assert finds(each, BLOCKS[:6]) == [False] * 3 + [True] * 3
                assert await each.open_block(TEAM.ref(BLOCKS[4])) == BLOCKS[4]
        assert str(stays.name) in objects.objects

    run(main)


def test_a_refresh_downloads_only_lists_it_has_not_seen() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        packs = [await put_blocks(alice, BLOCKS[at : at + 1]) for at in range(4)]
        for pack in packs[:3]:
            await remove(alice, [pack.name])
        await bob.store.refresh()
        seen = FaultyStore(objects, FaultPlan())
        bob.objects = seen
        await bob.restart().refresh()
        assert [call for call, _ in seen.calls] == ["list", "list"]
        await remove(alice, [packs[3].name])
        seen.calls.clear()
        await bob.restart().refresh()
        assert [(call, name[:3]) for call, name in seen.calls] == [("list", "ind"), ("list", "gc/"), ("get", "gc/")]
        assert not any(finds(bob, BLOCKS[:4]))

    run(main)


def test_a_list_that_lies_keeps_nobody_from_reading_what_is_there() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        pack = await put_blocks(alice, BLOCKS[:3])
        await bob.store.refresh()
        await bob.store.announce_removal([pack.name])
        await alice.restart().refresh()
        assert not any(finds(alice, BLOCKS[:3]))
        for block in BLOCKS[:3]:
            assert await alice.open_block(TEAM.ref(block)) == block

    run(main)


def test_lists_of_strangers_forgers_and_other_domains_are_ignored() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        pack = await put_blocks(bob, BLOCKS[:3])
        packs = {BOB: keys_of(pack.name.key)}
        other = DomainKeys.of(b"e" * 16, b"other!" * 6)
        foreign, forged = RemovalName(BOB, b"x" * 8, 1), RemovalName(BOB, b"y" * 8, 1)
        stranger = RemovalName(CAROL, b"z" * 8, 1)
        copied = RemovalName(BOB, b"w" * 8, 1)
        objects.objects[str(foreign)] = encode_removals(foreign, packs, other, TEAM.signer(BOB))
        objects.objects[str(stranger)] = encode_removals(stranger, packs, TEAM.keys, TEAM.signer(CAROL))
        objects.objects[str(forged)] = encode_removals(forged, packs, TEAM.keys, TEAM.signer(CAROL))
        objects.objects[str(copied)] = encode_removals(NAME, packs, TEAM.keys, TEAM.signer(ALICE))
        objects.objects["gc/whatever"] = b"?"
        problems = await alice.store.refresh()
        assert all(finds(alice, BLOCKS[:3]))
        assert len(problems) == 2
        assert all(any(str(name) in problem for problem in problems) for name in (forged, copied))

    run(main)


def test_a_list_written_again_with_other_content_is_named_and_the_first_is_used() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        gone, stays = await put_blocks(bob, BLOCKS[:3]), await put_blocks(bob, BLOCKS[3:6])
        await remove(bob, [gone.name])
        await alice.store.refresh()
        (name,) = removal_names(objects)
        parsed = RemovalName.parse(name)
        assert parsed is not None
        keys = np.sort(keys_of(gone.name.key, stays.name.key))
        objects.objects[name] = encode_removals(parsed, {BOB: keys}, TEAM.keys, TEAM.signer(BOB))
        for _ in range(2):
            (problem,) = await alice.restart().refresh()
            assert name in problem
            assert finds(alice, BLOCKS[:6]) == [False] * 3 + [True] * 3

    run(main)


def test_a_damaged_copy_here_is_fetched_again() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        gone = await put_blocks(bob, BLOCKS[:3])
        await remove(bob, [gone.name])
        await alice.store.refresh()
        (name,) = removal_names(objects)
        alice.mirror.files[name] = alice.mirror.files[name][:-1]
        assert await alice.restart().refresh() == []
        assert not any(finds(alice, BLOCKS[:3]))

    run(main)


def test_what_is_read_of_others_is_bounded_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr(removals, "LISTS_MAX", 2)
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(4)]
        for pack in packs:
            await remove(bob, [pack.name])
        (problem,) = await alice.store.refresh()
        assert "more removal lists than are read" in problem
        assert sum(finds(alice, BLOCKS[:4])) == 2
        assert not any(finds(bob, BLOCKS[:4]))

    run(main)


def test_an_acknowledged_pack_that_was_removed_is_not_recalled() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        pack = TEAM.pack(BLOCKS[:3])
        await alice.store.put_pack(pack)
        await remove(bob, [pack.name])
        await alice.restart().refresh()
        assert not any(finds(alice, BLOCKS[:3]))

    run(main)


# How lists stay few and short.


def test_lists_whose_packs_are_deleted_become_one() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(12)]
        await alice.store.refresh()
        for pack in packs[:11]:
            await remove(alice, [pack.name])
        assert alice.store.removals is not None
        assert len(alice.store.removals.unsettled()) == 11
        await alice.store.settle_removals()
        assert len(removal_names(objects)) == 1
        assert alice.store.removals.unsettled() == []
        for each in (alice, bob):
            await each.restart().refresh()
            assert finds(each, BLOCKS[:12]) == [False] * 11 + [True]
            assert [name for name in each.mirror.files if name.startswith("gc/")] == removal_names(objects)
        await alice.store.settle_removals()
        assert len(removal_names(objects)) == 1

    run(main)


def test_what_is_damaged_of_its_own_goes_once_newer_lists_are_there() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(3)]
        await alice.store.refresh()
        for pack in packs[:2]:
            await remove(alice, [pack.name])
        first, second = removal_names(objects)
        await remove(bob, [packs[2].name])
        (foreign,) = set(removal_names(objects)) - {first, second}
        for name in (first, second, foreign):
            objects.objects[name] = objects.objects[name][:-1]
        alice, fresh = machine(objects), machine(objects)
        assert len(await alice.store.refresh()) == 3
        await alice.store.settle_removals()
        assert removal_names(objects) == [first, second, foreign]
        await alice.store.announce_removal([packs[0].name])
        await alice.store.settle_removals()
        assert {first, second, foreign} & {*removal_names(objects)} == {foreign}
        (problem,) = await fresh.store.refresh()
        assert foreign in problem

    run(main)


def test_a_list_that_was_only_read_badly_stays() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(2)]
        await alice.store.refresh()
        for pack in packs:
            await remove(alice, [pack.name])
        first, second = removal_names(objects)
        plan = FaultPlan().corrupt("get", prefix=first)
        alice = machine(FaultyStore(objects, plan))
        assert len(await alice.store.refresh()) == 1
        assert alice.store.removals is not None
        await alice.store.removals._sweep()
        assert removal_names(objects) == [first, second]

    run(main)


def test_a_key_is_written_few_times_however_many_lists_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(32)]
        await alice.store.refresh()
        assert alice.store.removals is not None
        written = 0
        for pack in packs:
            await remove(alice, [pack.name])
            await alice.store.settle_removals()
            newest = max(alice.store.removals._lists)
            written += alice.store.removals._lists[newest].count
            assert len(removal_names(objects)) <= 4
        assert written <= 32 * 4
        monkeypatch.setattr(removals, "MERGED_PACKS_MAX", 8)
        await alice.restart().refresh()
        assert not any(finds(alice, BLOCKS[:32]))

    run(main)


def test_what_no_fragment_lists_any_more_leaves_the_lists() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(3)]
        first, second, third = sorted(name for name in objects.objects if name.startswith("index/"))
        await alice.store.refresh()
        await remove(alice, [pack.name for pack in packs[:2]])
        await alice.store.settle_removals()
        del objects.objects[first]
        await alice.restart().refresh()
        await remove(alice, [packs[2].name])
        await alice.store.settle_removals()
        assert alice.store.removals is not None
        (known,) = alice.store.removals._lists.values()
        assert sorted(known.packs[BOB].tolist()) == sorted(pack.name.key for pack in packs[1:])
        await put_blocks(bob, BLOCKS[3:4])
        del objects.objects[second], objects.objects[third]
        await alice.restart().refresh()
        await alice.store.announce_removal([packs[0].name])
        await alice.store.settle_removals()
        # The last one stays, empty: its number is not to be given again.
        assert len(removal_names(objects)) == 1
        assert alice.store.removals is not None
        assert [known.count for known in alice.store.removals._lists.values()] == [0]

    run(main)


def test_a_key_stays_on_the_list_as_long_as_not_all_fragments_are_known() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, bob = machine(objects, index_max=0), machine(objects, BOB)
        pack = await put_blocks(bob, BLOCKS[:1])
        await alice.store.refresh()
        await remove(alice, [pack.name])
        await alice.store.settle_removals()
        await bob.restart().refresh()
        assert not any(finds(bob, BLOCKS[:1]))

    run(main)


@pytest.mark.parametrize("operation", ["put", "flush", "stat", "delete"])
@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("applied", [True, False])
def test_a_settlement_that_fails_anywhere_is_made_good_by_the_next(operation: Any, call: int, applied: bool) -> None:
    async def main() -> None:
        plan = FaultPlan()
        objects = MemoryStore(barrier=True)
        faulty = FaultyStore(objects, plan)
        alice, bob = machine(faulty), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(4)]
        await alice.store.refresh()
        for pack in packs[:3]:
            await remove(alice, [pack.name])
        calls = [each for each, _ in faulty.calls].count(operation)
        strike = plan.lose_acknowledgement if applied else plan.fail
        strike(operation, calls + call)
        try:
            await alice.store.settle_removals()
        except StoreUnavailable:
            objects.power_cut()
        for each in (bob, alice):
            await each.restart().refresh()
            assert finds(each, BLOCKS[:4]) == [False] * 3 + [True]
        await alice.store.settle_removals()
        await alice.store.settle_removals()
        assert len(removal_names(objects)) == 1
        assert alice.store.removals is not None
        assert alice.store.removals.unsettled() == []
        await bob.restart().refresh()
        assert finds(bob, BLOCKS[:4]) == [False] * 3 + [True]

    run(main)


def test_a_clone_that_took_the_next_names_is_not_overwritten() -> None:
    async def main() -> None:
        objects = MemoryStore()
        alice, clone, bob = machine(objects), machine(objects), machine(objects, BOB)
        packs = [await put_blocks(bob, BLOCKS[at : at + 1]) for at in range(2)]
        for each in (alice, clone):
            await each.store.refresh()
        await remove(clone, [packs[0].name])
        await remove(alice, [packs[1].name])
        assert len(removal_names(objects)) == 2
        for number in range(3, 3 + removals.SEQUENCES_TRIED_MAX):
            objects.objects[str(RemovalName(ALICE, b"i" * 8, number))] = b"x"
        with pytest.raises(StoreRejected, match="forebay init"):
            await alice.store.announce_removal([packs[0].name])

    run(main)
