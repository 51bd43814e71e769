"""Trimming carried out: what is to stay is found by its id ever after, whatever fails, whoever else trims."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import Mask, ids_from_bytes
from engine.cache.trim import MIXED, Trimmed, Trimmer
from engine.cache.trimplan import Days, Ints
from engine.columns import Column64
from engine.errors import StoreError, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.pack import FinishedPack, check_pack
from engine.policy import TrimPolicy
from engine.ports import Room
from tests.engine.fakes_packs import ALICE, BOB, Machine, Team
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

TODAY = 2500
OLD, NEW = 1000, TODAY - 1
TEAM = Team()
NOISE = random.Random(6).randbytes(1 << 20)
CAROL = b"c" * 16
DEVICE = 1 << 40


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    anyio.run(main)


def block(number: int) -> bytes:
    """Return 3,000 bytes that do not compress, like no others."""
    return NOISE[number * 3000 : (number + 1) * 3000]


@dataclass
class Diary:
    """Who saw what when, by ids: what stamps tell. `inherited` are the days rewritten packs carry."""

    objects: MemoryStore
    days: dict[bytes, int] = field(default_factory=dict)
    lately: set[int] = field(default_factory=set)  # packs that were seen after the plan was made

    def see(self, numbers: Iterable[int], day: int) -> None:
        for number in numbers:
            self.days[TEAM.ref(block(number))[:16]] = day

    def of(self, key: int) -> Days:
        for name, data in (self.objects.objects | self.objects.volatile).items():
            pack = PackName.parse(name)
            if pack is not None and pack.key == key:
                entries = check_pack(pack, data, None, None)
                known = [self.days.get(ident.tobytes(), 0) for ident in entries.ids]
                return np.maximum(np.array(known, np.uint16), entries.days)
        return np.full(100, 1, np.uint16)  # a ghost: whatever was said of it once

    async def packs(self, keys: Column64) -> Days:
        days = [self.of(key) for key in keys.tolist()]
        return np.array([each[0] if (each == each[0]).all() else MIXED for each in days], np.uint16)

    async def records(self, keys: Column64, counts: Ints) -> Days:
        each = [self.of(key)[:count] for key, count in zip(keys.tolist(), counts.tolist(), strict=True)]
        return np.concatenate([np.empty(0, np.uint16), *each])

    async def since(self, keys: Column64) -> Mask:
        return np.isin(keys, np.array(sorted(self.lately), np.uint64))

    async def later(self, keys: Column64, counts: Ints) -> Days:
        return np.zeros(int(counts.sum()), np.uint16)


class World:
    """A cache in memory that several systems share."""

    def __init__(self, *, barrier: bool = False) -> None:
        self.objects = MemoryStore(barrier)
        self.diary = Diary(self.objects)

    def machine(self, writer: bytes = ALICE, plan: FaultPlan | None = None) -> Machine:
        objects = self.objects if plan is None else FaultyStore(self.objects, plan)
        return Machine(objects, TEAM, writer, trimmed=True)

    def trimmer(self, machine: Machine, free: int | None = None, pinned: Sequence[int] = ()) -> Trimmer:
        async def room() -> Room:
            if free is None:
                return Room()
            used = sum(len(data) for name, data in self.objects.objects.items() if name.startswith("data/"))
            return Room(DEVICE, free - used)

        refs = b"".join(TEAM.ref(block(number))[:16] for number in pinned)
        return Trimmer(
            machine.store, self.diary, TEAM.keys, TEAM, lambda: TEAM.builder(machine.writer), room,
            ids_from_bytes(refs) if pinned else None,
        )  # fmt: skip

    def packs(self) -> list[PackName]:
        return [pack for pack in map(PackName.parse, self.objects.objects) if pack is not None]

    def used(self) -> int:
        return sum(pack.size for pack in self.packs())


async def put(machine: Machine, numbers: Iterable[int]) -> FinishedPack:
    pack = TEAM.pack([block(number) for number in numbers], machine.writer)
    await machine.store.put_pack(pack)
    await machine.store.publish_index()
    return pack


def found(machine: Machine, numbers: Iterable[int]) -> set[int]:
    numbers = list(numbers)
    ids = ids_from_bytes(b"".join(TEAM.ref(block(number))[:16] for number in numbers))
    places = machine.index.lookup(ids)
    return {number for number, length in zip(numbers, places["length"].tolist(), strict=True) if length}


async def opens(machine: Machine, numbers: Iterable[int]) -> None:
    for number in numbers:
        assert await machine.open_block(TEAM.ref(block(number))) == block(number)


AGED = TrimPolicy(age_days_max=15)  # all that may go goes, as far as packs are worth rewriting


async def trim(world: World, machine: Machine, policy: TrimPolicy = AGED, **more: Any) -> Trimmed:
    await machine.restart().refresh()
    return await world.trimmer(machine, **more).run(policy, TODAY)


def test_old_packs_go_whole_and_half_old_ones_are_rewritten() -> None:
    async def main() -> None:
        world = World()
        alice, bob = world.machine(), world.machine(BOB)
        old, half, new = await put(bob, range(4)), await put(bob, range(4, 8)), await put(alice, range(8, 12))
        world.diary.see(range(6), OLD)
        world.diary.see(range(6, 12), NEW)
        before = world.used()
        done = await trim(world, alice)
        assert (done.deleted, done.rewritten, done.problems, done.unseen) == (1, 1, (), ())
        assert not {old.name, half.name} & set(world.packs())
        assert new.name in world.packs()
        assert done.freed_bytes == before - world.used()
        ((heir, days),) = done.heirs
        assert (heir.writer, days.tolist()) == (ALICE, [NEW, NEW])
        entries = check_pack(heir, world.objects.objects[str(heir)], TEAM.keys, TEAM)
        assert entries.days.tolist() == [NEW, NEW]
        for each in (alice, bob):
            assert await each.restart().refresh() == []
            assert found(each, range(12)) == set(range(6, 12))
            await opens(each, range(6, 12))
        assert len([name for name in world.objects.objects if name.startswith("gc/")]) == 1
        done = await trim(world, bob)
        assert (done.deleted, done.rewritten) == (0, 0)

    run(main)


def test_records_are_copied_as_they_are() -> None:
    async def main() -> None:
        world = World()
        alice = world.machine()
        pack = await put(alice, range(6))
        world.diary.see(range(4), OLD)
        world.diary.see(range(4, 6), NEW)
        done = await trim(world, alice)
        ((heir, _),) = done.heirs
        data = world.objects.objects[str(heir)]
        for offset, length in zip(pack.offsets[4:].tolist(), pack.lengths[4:].tolist(), strict=True):
            assert bytes(pack.data[offset : offset + length]) in data

    run(main)


def test_a_rewrite_is_no_stamp() -> None:
    async def main() -> None:
        world = World()
        alice, bob = world.machine(), world.machine(BOB)
        await put(bob, range(4))
        world.diary.see(range(2), OLD)
        world.diary.see(range(2, 4), NEW)
        await trim(world, alice)
        world.diary.days.clear()
        await bob.restart().refresh()
        done = await world.trimmer(bob).run(TrimPolicy(size_bytes_max=64 << 20, age_days_max=15), NEW + 15)
        assert (done.deleted, len(done.unseen)) == (0, 0)
        # However late it is, what is old is counted from another day, if that is more to be believed.
        done = await world.trimmer(bob).run(AGED, NEW + 30, NEW + 15)
        assert (done.deleted, len(done.unseen)) == (0, 0)
        done = await world.trimmer(bob).run(AGED, NEW + 16)
        assert (done.deleted, world.packs()) == (1, [])

    run(main)


def test_pins_and_what_nobody_saw_stay() -> None:
    async def main() -> None:
        world = World()
        alice = world.machine()
        pinned, unseen = await put(alice, range(4)), await put(alice, range(4, 8))
        world.diary.see(range(5), OLD)
        done = await trim(world, alice, pinned=[1])
        assert pinned.name not in world.packs()
        assert unseen.name in world.packs()
        assert found(alice, range(8)) == {1, 4, 5, 6, 7}
        ((key, days),) = [(seen.pack, seen.days.tolist()) for seen in done.unseen]
        assert (key, days) == (unseen.name.key, [0, TODAY, TODAY, TODAY])
        assert done.plan.pinned_bytes > 0

    run(main)


def test_page_packs_stay() -> None:
    async def main() -> None:
        world = World()
        alice = world.machine()
        pages = TEAM.pack([block(1), block(2)], kind="page")
        await alice.store.put_pack(pages)
        blocks = await put(alice, range(4))
        world.diary.see(range(4), OLD)
        for ident in pages.ids:
            world.diary.days[ident.tobytes()] = OLD
        done = await trim(world, alice)
        assert (done.deleted, done.rewritten, world.packs()) == (1, 0, [pages.name])
        assert blocks.name not in world.packs()

    run(main)


async def half_old(packs: int) -> tuple[World, Machine, list[FinishedPack]]:
    """Return a cache of so many packs of four blocks, two of each old, whose days are known whatever befalls them."""
    world = World()
    alice, bob = world.machine(), world.machine(BOB)
    made = [await put(bob, range(4 * at, 4 * at + 4)) for at in range(packs)]
    for at in range(packs):
        world.diary.see(range(4 * at, 4 * at + 2), OLD)
        world.diary.see(range(4 * at + 2, 4 * at + 4), NEW)
    await alice.store.refresh()
    days = {pack.name.key: world.diary.of(pack.name.key) for pack in made}
    world.diary.of = lambda key: days.get(key, np.full(2, NEW, np.uint16))  # type: ignore[method-assign]
    return world, alice, made


def rot(world: World, pack: FinishedPack) -> None:
    data = bytearray(world.objects.objects[str(pack.name)])
    data[100] ^= 1
    world.objects.objects[str(pack.name)] = bytes(data)


def test_a_pack_that_is_gone_gives_nothing_and_a_damaged_one_is_left_and_named() -> None:
    async def main() -> None:
        world, alice, (gone, short, bad, _) = await half_old(4)
        rot(world, bad)
        del world.objects.objects[str(gone.name)]
        world.objects.objects[str(short.name)] = world.objects.objects[str(short.name)][:-1]
        before = world.used()
        done = await world.trimmer(alice).run(AGED, TODAY)
        (problem,) = done.problems
        assert str(bad.name) in problem
        assert bad.name in world.packs()
        assert (done.deleted, done.rewritten, done.freed_bytes) == (0, 1, before - world.used())
        assert done.absent_bytes == gone.name.size + short.name.size
        bob = world.machine(BOB)
        await bob.restart().refresh()
        assert found(bob, range(16)) == {*range(12), 14, 15}

    run(main)


def test_a_pack_that_goes_while_it_is_to_be_rewritten_is_listed_as_removed() -> None:
    async def main() -> None:
        world, alice, (gone, _) = await half_old(2)
        listed = world.objects.list

        async def going(prefix: str, after: str = "") -> Any:
            async for info in listed(prefix, after):
                yield info
            if prefix == "data/":
                world.objects.objects.pop(str(gone.name), None)

        world.objects.list = going  # type: ignore[method-assign]
        done = await world.trimmer(alice).run(AGED, TODAY)
        assert (done.deleted, done.rewritten, done.problems, done.absent_bytes) == (0, 1, (), 0)
        assert found(alice, range(8)) == {6, 7}

    run(main)


@pytest.mark.parametrize("day", [OLD, 0])
def test_what_is_gone_is_listed_as_removed_once_nobody_saw_any_of_it_lately(day: int) -> None:
    async def main() -> None:
        world, alice, (gone,) = await half_old(1)
        world.diary.of = lambda key: np.full(4, day, np.uint16)  # type: ignore[method-assign]
        del world.objects.objects[str(gone.name)]
        done = await world.trimmer(alice).run(AGED, TODAY)
        assert (done.deleted, done.freed_bytes, done.absent_bytes, done.unseen) == (0, 0, 0, ())
        assert not found(alice, range(4))

    run(main)


@pytest.mark.parametrize("lost", [["rotten"], ["rotten"] * 11, ["gone"], ["rotten", "gone", "rotten"]])
def test_what_damaged_and_missing_packs_do_not_give_others_do_in_the_same_run(lost: list[str]) -> None:
    async def main() -> None:
        world, alice, packs = await half_old(12)
        for pack, how in zip(sorted(packs, key=lambda pack: pack.name.key), lost, strict=False):
            if how == "rotten":
                rot(world, pack)
            else:
                del world.objects.objects[str(pack.name)]
        device = 2 * world.used()
        needed = (12 - len(lost)) * 4000
        taken = device - world.used() - device // 2 + needed

        async def room() -> Room:
            return Room(device, device - taken - world.used())

        trimmer = Trimmer(alice.store, world.diary, TEAM.keys, TEAM, lambda: TEAM.builder(ALICE), room)
        done = await trimmer.run(TrimPolicy(min_free_share=0.5), TODAY)
        assert done.plan.needed_bytes == needed
        assert done.freed_bytes >= needed
        free = (await room()).free_bytes
        assert free is not None
        assert free >= device // 2
        assert len(done.problems) <= lost.count("rotten")
        # What is known to be damaged is not read again for it.
        again = Trimmer(
            alice.store, world.diary, TEAM.keys, TEAM, lambda: TEAM.builder(ALICE), room,
            damaged=[pack.name.key for pack in packs],
        )  # fmt: skip
        assert (await again.run(AGED, TODAY)).problems == ()

    run(main)


def test_where_not_even_a_list_fits_packs_go_before_it() -> None:
    async def main() -> None:
        world = World()
        plan = FaultPlan().fail("put", 1, 1, lambda: StoreRejected("no space left on device"), prefix="gc/")
        alice = world.machine(plan=plan)
        await put(alice, range(4))
        await put(alice, range(4, 8))
        world.diary.see(range(8), OLD)
        done = await trim(world, alice)
        assert (done.deleted, world.packs()) == (2, [])
        await alice.restart().refresh()
        assert not found(alice, range(8))

    run(main)


def test_rewriting_stops_where_others_have_filled_the_device() -> None:
    async def main() -> None:
        world = World()
        alice = world.machine()
        await put(alice, range(8))
        world.diary.see(range(4), OLD)
        world.diary.see(range(4, 8), NEW)
        await alice.restart().refresh()
        rooms = iter([Room(DEVICE, 1 << 30), Room(DEVICE, 100)])

        async def room() -> Room:
            return next(rooms)

        trimmer = Trimmer(alice.store, world.diary, TEAM.keys, TEAM, lambda: TEAM.builder(ALICE), room)
        done = await trimmer.run(AGED, TODAY)
        (problem,) = done.problems
        assert "others filled it meanwhile" in problem
        assert found(alice, range(8)) == set(range(8))

    run(main)


# Interruptions, and two at once.


async def scene(barrier: bool = True) -> tuple[World, set[int], set[int]]:
    """Return a cache with all kinds of packs, which of its blocks must stay, and which are there at all."""
    world = World(barrier=barrier)
    bob, carol = world.machine(BOB), world.machine(CAROL)
    for machine, first in ((bob, 0), (carol, 8), (bob, 16), (bob, 24)):
        await put(machine, range(first, first + 8))
    old = {*range(8), *range(8, 13), *range(16, 20)}
    world.diary.see(old, OLD)
    world.diary.see(set(range(32)) - old, NEW)
    return world, set(range(32)) - old, set(range(32))


# A stat finds nothing here, which is no acknowledgement that could be lost.
CALLS = {"put": 5, "flush": 5, "delete": 5, "get": 2, "list": 2, "stat": 3}
FAILURES = [
    (operation, call, applied)
    for operation, most in CALLS.items()
    for call in range(1, most + 1)
    for applied in (True, False)
    if not (applied and operation == "stat")
]


@pytest.mark.parametrize(("operation", "call", "applied"), FAILURES)
def test_a_trimming_that_ends_anywhere_loses_nothing_and_the_next_one_makes_it_good(
    operation: Any, call: int, applied: bool
) -> None:
    async def main() -> None:
        TEAM.members[:] = [ALICE, BOB, CAROL]
        world, stays, every = await scene()
        plan = FaultPlan()
        alice, bob = world.machine(plan=plan), world.machine(BOB)
        (plan.lose_acknowledgement if applied else plan.fail)(operation, call)
        with pytest.raises(StoreUnavailable):
            await trim(world, alice)
        world.objects.power_cut()
        # Whoever looks now believes in nothing that is not there, and can restore all that stays.
        await bob.restart().refresh()
        known = found(bob, every)
        await opens(bob, known)
        await opens(bob, stays)
        for each in (alice, bob):
            done = await trim(world, each)
            assert done.problems == ()
        for each in (alice, bob, world.machine(CAROL)):
            assert await each.restart().refresh() == []
            assert found(each, every) == stays
            await opens(each, stays)
            assert each.store.removals is not None
        assert alice.store.removals is not None
        assert bob.store.removals is not None
        assert not [known for known in bob.store.removals.unsettled() if known.name.writer == BOB]
        # Nothing is left that no index leads to.
        listed = {pack for view in bob.index.views() for key in view.keys.tolist() for pack in view.names_of(key)}
        assert set(world.packs()) <= listed

    run(main)


def test_what_a_vanished_system_announced_is_deleted_by_the_next_one_to_trim() -> None:
    async def main() -> None:
        TEAM.members[:] = [ALICE, BOB, CAROL]
        world, stays, every = await scene(barrier=False)
        alice, bob = world.machine(plan=FaultPlan().fail("delete")), world.machine(BOB)
        with pytest.raises(StoreUnavailable):
            await trim(world, alice)
        before = len(world.packs())
        await trim(world, bob)
        assert len(world.packs()) < before
        assert found(bob, every) == stays

    run(main)


@pytest.mark.parametrize(
    ("operation", "prefix"),
    [("put", "gc/"), ("put", "index/"), ("put", "data/"), ("delete", "data/"), ("delete", "gc/")],
)
def test_two_who_trim_at_once_lose_nothing(operation: Any, prefix: str) -> None:
    """One is held up at a step while the other one does all of it, and a third refreshes in between."""

    async def main() -> None:
        TEAM.members[:] = [ALICE, BOB, CAROL]
        world, stays, every = await scene(barrier=False)
        plan = FaultPlan()
        alice, bob, carol = world.machine(plan=plan), world.machine(BOB), world.machine(CAROL)
        go = anyio.Event()
        reached = plan.stall(operation, 1, go, prefix=prefix)
        async with anyio.create_task_group() as group:
            group.start_soon(trim, world, alice)
            await reached.wait()
            await carol.store.refresh()
            await opens(carol, stays)
            await trim(world, bob)
            await carol.restart().refresh()
            await opens(carol, stays)
            assert found(carol, stays) == stays
            go.set()
        for each in (alice, bob, carol):
            assert await each.restart().refresh() == []
            assert found(each, every) == stays
            await opens(each, stays)

    run(main)


def test_who_refreshed_before_reads_what_stays_from_its_heir_after_the_next_refresh() -> None:
    async def main() -> None:
        TEAM.members[:] = [ALICE, BOB, CAROL]
        world, stays, every = await scene(barrier=False)
        alice, carol = world.machine(), world.machine(CAROL)
        await carol.store.refresh()
        await trim(world, alice)
        assert found(carol, every) == every  # it cannot know better
        await carol.store.refresh()
        assert found(carol, every) == stays
        await opens(carol, stays)

    run(main)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.sampled_from([0, OLD, OLD + 1, TODAY - 15, TODAY - 14, NEW]), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 60_000),
    st.integers(-1, 30_000),
    st.sets(st.integers(0, 35), max_size=4),
    st.sampled_from(["put", "delete", "flush", "get"]),
    st.integers(1, 20),
)
def test_what_stays_by_the_plan_is_found_by_its_id_afterwards(
    packs: list[list[int]], needed: int, free: int, pins: set[int], operation: Any, call: int
) -> None:
    """Whatever packs there are, however much is to go and however little is free, whichever call fails."""

    async def main() -> None:
        TEAM.members[:] = [ALICE, BOB]
        world = World()
        bob = world.machine(BOB)
        day_of: dict[int, int] = {}
        for at, days in enumerate(packs):
            await put(bob, range(6 * at, 6 * at + len(days)))
            for number, day in enumerate(days):
                day_of[6 * at + number] = day
        for number, day in day_of.items():
            if day:
                world.diary.see([number], day)
        held = world.used() + free
        policy = TrimPolicy(min_free_share=0.5, age_days_max=None if free < 0 else 20)
        alice = world.machine(plan=FaultPlan().fail(operation, call))

        async def room() -> Room:
            left = held - world.used()
            assert left >= min(free, 0) or free < 0
            return Room(2 * (free + needed) if free >= 0 else None, left if free >= 0 else None)

        for _ in range(2):
            await alice.restart().refresh() if operation != "get" else await refreshed(alice)
            trimmer = Trimmer(
                alice.store, world.diary, TEAM.keys, TEAM, lambda: TEAM.builder(ALICE), room,
                ids_from_bytes(b"".join(TEAM.ref(block(pin))[:16] for pin in pins)) if pins else None,
            )  # fmt: skip
            try:
                await trimmer.run(policy, TODAY)
                break
            except StoreError:
                continue
        protected = {number for number, day in day_of.items() if day == 0 or day > TODAY - 15 or number in pins}
        for each in (bob, alice):
            await refreshed(each)
            assert found(each, protected) == protected
            assert found(each, day_of) == found(bob, day_of)
        await opens(bob, found(bob, day_of))

    run(main)


async def refreshed(machine: Machine) -> None:
    for _ in range(30):
        try:
            await machine.restart().refresh()
        except StoreUnavailable:
            continue
        return
