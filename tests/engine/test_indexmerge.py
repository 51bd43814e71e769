"""Merging own index fragments in a cache: few are left, nothing that is there is forgotten, wherever it ends."""

from __future__ import annotations

from typing import Any

import anyio
import numpy as np
import pytest

from engine.acks import PackAck
from engine.errors import StoreUnavailable
from engine.fragment import encode_fragment, open_fragment
from engine.indexmerge import ENTRIES_MAX, FRAGMENTS_MAX, FragmentMerge, packs_in
from engine.names import FragmentName
from tests.engine.cache.test_trim import TEAM, found, put
from tests.engine.fakes_packs import ALICE, BOB, Machine, ack, random_ids
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

COUNT = FRAGMENTS_MAX + 2
ALL = range(COUNT)
GONE = range(20)


def fragments(store: MemoryStore, writer: bytes = ALICE) -> list[str]:
    return [name for name in store.objects if name.startswith(f"index/{writer.hex()}/")]


async def made() -> dict[str, bytes]:
    """Return a cache in which alice has many fragments, of which the packs of 20 were removed by bob, and bob one."""
    TEAM.members[:] = [ALICE, BOB]
    store = MemoryStore()
    alice, bob = Machine(store, TEAM, ALICE, trimmed=True), Machine(store, TEAM, BOB, trimmed=True)
    packs = [await put(alice, [number]) for number in ALL]
    await put(bob, [COUNT])
    await bob.restart().refresh()
    gone = [packs[number].name for number in GONE]
    await bob.store.announce_removal(gone)
    for name in gone:
        await store.delete(str(name))
    await bob.store.settle_removals()
    return store.objects


@pytest.fixture(scope="module")
def template() -> dict[str, bytes]:
    return anyio.run(made)


@pytest.fixture
def store(template: dict[str, bytes]) -> MemoryStore:
    TEAM.members[:] = [ALICE, BOB]
    store = MemoryStore()
    store.objects.update(template)
    return store


async def check(store: MemoryStore, *machines: Machine) -> None:
    """Check that everybody knows what is there, and nothing else."""
    for machine in machines:
        assert await machine.restart().refresh() == []
        assert found(machine, range(COUNT + 1)) == set(range(len(GONE), COUNT + 1))


def test_many_fragments_become_one_that_lists_what_is_there(store: MemoryStore) -> None:
    async def main() -> None:
        alice, bob = Machine(store, TEAM, ALICE, trimmed=True), Machine(store, TEAM, BOB, trimmed=True)
        await bob.store.refresh()
        await alice.store.refresh()
        newest = fragments(store)[-1]
        assert await alice.store.merge_fragments() == COUNT - 1
        merged = next(name for name in fragments(store) if name != newest)
        assert len(fragments(store)) == 2
        name = FragmentName.parse(merged)
        assert name is not None
        fragment = open_fragment(name, store.objects[merged], TEAM.keys, TEAM)
        assert (len(fragment.covers), fragment.columns.entries) == (COUNT - 1, COUNT - 1 - len(GONE))
        await check(store, alice, bob, Machine(store, TEAM, BOB, trimmed=True))
        assert await alice.store.merge_fragments() == 0
        # What nothing lists any more leaves the removal lists with the next trimming.
        await bob.store.announce_removal([])
        await bob.store.settle_removals()
        assert bob.store.removals is not None
        assert bob.store.removals.keys.size in (0, len(GONE))
        await put(alice, [COUNT + 1])
        await check(store, bob)

    anyio.run(main)


def test_few_fragments_stay_as_they_are() -> None:
    async def main() -> None:
        store = MemoryStore()
        alice = Machine(store, TEAM, ALICE, trimmed=True)
        for number in range(3):
            await put(alice, [number])
        await alice.restart().refresh()
        assert await alice.store.merge_fragments() == 0
        assert len(fragments(store)) == 3

    anyio.run(main)


@pytest.mark.parametrize(
    ("operation", "call", "applied"),
    [
        ("get", COUNT + 30, False),
        ("put", 1, True),
        ("put", 1, False),
        ("flush", 1, False),
        ("delete", 1, True),
        ("delete", 40, False),
    ],
)
def test_a_merge_that_ends_anywhere_forgets_nothing(
    store: MemoryStore, operation: Any, call: int, applied: bool
) -> None:
    async def main() -> None:
        plan = FaultPlan()
        alice = Machine(FaultyStore(store, plan), TEAM, ALICE, trimmed=True)
        bob = Machine(store, TEAM, BOB, trimmed=True)
        await alice.store.refresh()
        (plan.lose_acknowledgement if applied else plan.fail)(operation, call)
        with pytest.raises(StoreUnavailable):
            await alice.store.merge_fragments()
        await check(store, bob, alice)
        await alice.store.merge_fragments()
        assert len(fragments(store)) <= 3
        await check(store, bob, alice)

    anyio.run(main)


def test_a_damaged_fragment_stays_and_is_told_by_the_refresh(store: MemoryStore) -> None:
    async def main() -> None:
        bad = fragments(store)[50]
        alice = Machine(store, TEAM, ALICE, trimmed=True)
        await alice.store.refresh()
        store.objects[bad] = store.objects[bad][:-1] + b"?"
        assert await alice.store.merge_fragments() == COUNT - 2
        assert bad in fragments(store)
        bob = Machine(store, TEAM, BOB, trimmed=True)
        assert [bad in problem for problem in await bob.store.refresh()] == [True]

    anyio.run(main)


def test_what_is_damaged_of_its_own_goes_once_newer_fragments_are_there(store: MemoryStore) -> None:
    async def main() -> None:
        names, foreign = fragments(store), fragments(store, BOB)
        torn, empty, newest = names[5], names[40], names[-1]
        for name in (torn, newest, *foreign):
            store.objects[name] = store.objects[name][:200]
        store.objects[empty] = b""
        alice = Machine(store, TEAM, ALICE, trimmed=True)
        problems = await alice.store.refresh()
        assert [sum(name in problem for problem in problems) for name in (torn, empty, newest)] == [1, 1, 1]
        await alice.store.merge_fragments()
        assert {torn, empty, newest, *foreign} & store.objects.keys() == {newest, *foreign}
        # Its number is not given again: others may have mirrored it whole. Once there is a newer one, it goes, too.
        await put(alice, [COUNT + 1])
        assert str(alice.store._name or fragments(store)[-1]) > newest
        await alice.restart().refresh()
        await alice.store.merge_fragments()
        assert newest not in store.objects
        assert not any(ALICE.hex() in problem for problem in await alice.restart().refresh())

    anyio.run(main)


def test_what_was_only_read_badly_stays(store: MemoryStore) -> None:
    async def main() -> None:
        name = fragments(store)[5]
        alice = Machine(FaultyStore(store, FaultPlan().corrupt("get", prefix=name)), TEAM, ALICE, trimmed=True)
        (problem,) = await alice.store.refresh()
        assert name in problem
        await alice.store.merge_fragments()
        assert name in store.objects
        assert await alice.restart().refresh() == []

    anyio.run(main)


def test_the_packs_of_a_fragment_are_those_it_was_made_of() -> None:
    generator = np.random.default_rng(3)
    acks = [ack(ALICE, seed, random_ids(generator, 5)) for seed in range(4)]
    source = ack(ALICE, 9, random_ids(generator, 1)).name
    delta = ack(ALICE, 5, random_ids(generator, 6), delta=[2, 4])
    delta = PackAck(delta.name, delta.ids, delta.offsets, delta.lengths, ((2, source), (4, source), (4, acks[0].name)))
    name = FragmentName(ALICE, b"i" * 8, 1)
    data = encode_fragment(name, [*acks, delta], TEAM.keys, TEAM.signer(ALICE))
    removed = np.array(sorted([acks[1].name.key, 7]), np.uint64)
    packs = {pack.name: pack for pack in packs_in(open_fragment(name, data, TEAM.keys, TEAM), removed)}
    assert packs.keys() == {each.name for each in (acks[0], *acks[2:], delta)}
    for each in (acks[0], *acks[2:], delta):
        again = packs[each.name]
        assert np.array_equal(again.ids, each.ids)
        assert np.array_equal(again.offsets, each.offsets)
        assert np.array_equal(again.lengths, each.lengths)
        assert sorted(again.sources) == sorted(each.sources)
    merged = encode_fragment(name, list(packs.values()), TEAM.keys, TEAM.signer(ALICE))
    assert open_fragment(name, merged, TEAM.keys, TEAM).columns.entries == 4 * 5 + 6 - 5


def test_large_fragments_stay_unless_most_of_them_was_removed() -> None:
    async def main() -> None:
        store, generator = MemoryStore(), np.random.default_rng(4)
        listed: dict[FragmentName, int] = {}

        async def add(sequence: int, packs: list[PackAck]) -> FragmentName:
            name = FragmentName(ALICE, b"i" * 8, sequence)
            data = encode_fragment(name, packs, TEAM.keys, TEAM.signer(ALICE))
            await store.put(str(name), data)
            listed[name] = len(data)
            return name

        half = ENTRIES_MAX // 2 + 1
        great = [ack(ALICE, seed, random_ids(generator, half), size=64 << 20) for seed in range(3)]
        whole = await add(1, [great[0]])
        outdated = await add(2, great[1:])
        small = [
            await add(sequence, [ack(ALICE, sequence, random_ids(generator, 1))])
            for sequence in range(3, FRAGMENTS_MAX + 3)
        ]

        async def next_name() -> FragmentName:
            return FragmentName(ALICE, b"i" * 8, max(name.sequence for name in listed) + 1)

        removed = np.array([great[1].name.key, great[2].name.key], np.uint64)
        removed.sort()
        merge = FragmentMerge(
            store, TEAM.keys, TEAM, TEAM.signer(ALICE), listed, {}, (), removed, next_name, store.flush
        )
        assert await merge.run() == len(small)
        assert whole in listed
        assert outdated not in listed
        assert len(listed) == 3

    anyio.run(main)
