"""One trimming from end to end, over real stamps: when nothing is looked at, what is refused, what is said after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from engine.block import ids_from_bytes
from engine.cache.pins import encode_pins
from engine.cache.seen import SeenPacks, SeenRows
from engine.cache.stamps import Seen
from engine.cache.trimming import NO_ROOM, trim_cache
from engine.cache.trimrecord import TrimReport
from engine.errors import StoreRejected, StoreUnavailable
from engine.names import PackName, PinName
from engine.pack import FinishedPack, check_pack
from engine.policy import TrimPolicy
from engine.ports import Room
from tests.engine.cache.test_lastseen import CAROL, last_seen, stamping
from tests.engine.cache.test_trim import TEAM, block, found, opens, put
from tests.engine.fakes_packs import ALICE, BOB, Machine
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

pytestmark = pytest.mark.anyio
DEVICE = 1_000_000
FREE = TrimPolicy(min_free_share=0.5)


@pytest.fixture(autouse=True)
def everybody() -> None:
    TEAM.members[:] = [ALICE, BOB, CAROL]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class World:
    """A cache in memory on a device of its own, which `others` fill as well; days are those of the machines' clocks."""

    def __init__(self, *, barrier: bool = False) -> None:
        self.objects = MemoryStore(barrier)
        self.plan = FaultPlan()
        self.machines = {
            ALICE: Machine(FaultyStore(self.objects, self.plan), TEAM, ALICE, trimmed=True),
            **{writer: Machine(self.objects, TEAM, writer, trimmed=True) for writer in (BOB, CAROL)},
        }
        self.others = 0

    @property
    def used(self) -> int:
        return self.others + sum(pack.size for pack in self.packs())

    def packs(self) -> list[PackName]:
        return [pack for pack in map(PackName.parse, self.objects._seen()) if pack is not None]

    async def room(self) -> Room:
        return Room(DEVICE, DEVICE - self.used)

    async def put(self, writer: bytes, numbers: Iterable[int]) -> FinishedPack:
        return await put(self.machines[writer], numbers)

    async def see(self, writer: bytes, numbers: Iterable[int], day: int) -> None:
        """Let a system stamp, on a day, that blocks of these numbers are in use."""
        machine = self.machines[writer]
        await machine.restart().refresh()
        ids = ids_from_bytes(b"".join(sorted(TEAM.ref(block(number))[:16] for number in numbers)))
        ids = ids[ids[:, 0].argsort()]
        seen, packs = SeenRows(), SeenPacks()
        for view, rows in machine.index.locate(ids[:, 0].copy(), ids[:, 1].copy())[1]:
            seen.mark(view, rows)
        seen.gather(packs)
        assert await stamping(self.objects, writer, day).add(packs.pieces()) == []

    async def live(self, writer: bytes, day: int) -> None:
        """Let a system stamp something that is nobody else's concern: it shows what day it is."""
        assert await stamping(self.objects, writer, day).add((), [Seen(7, np.array([day], np.uint16))]) == []

    async def trim(self, day: int, policy: TrimPolicy = FREE, writer: bytes = ALICE, **more: Any) -> TrimReport:
        machine = self.machines[writer]
        await machine.restart().refresh()
        more.setdefault("room", self.room)
        stamps = stamping(machine.objects, writer, day)
        report = await trim_cache(machine.store, stamps, policy, new_pack=lambda: TEAM.builder(writer), **more)
        assert report.size_bytes == self.used - self.others
        return report

    async def found(self, numbers: Iterable[int], writer: bytes = BOB) -> set[int]:
        """Return which of these blocks a system finds now; it reads them all."""
        machine = self.machines[writer]
        assert await machine.restart().refresh() == []
        there = found(machine, numbers)
        await opens(machine, there)
        return there


async def full(day: int = 100) -> World:
    """Return a device more than half full: of 24 blocks bob saw the first 16 long ago, carol the rest lately."""
    world = World()
    await world.put(BOB, range(8))
    await world.put(BOB, range(8, 16))
    await world.put(CAROL, range(16, 24))
    await world.see(BOB, range(16), day - 50)
    await world.see(CAROL, range(16, 24), day)
    world.others = DEVICE // 2 - world.used + 1
    return world


async def test_where_all_thresholds_are_met_no_stamp_is_read_and_the_device_is_asked_once() -> None:
    world = await full()
    world.others = 0
    asked = []

    async def room() -> Room:
        asked.append(1)
        return await world.room()

    world.plan.fail("list", 1, 1 << 30, prefix="stamp/")
    report = await world.trim(100, TrimPolicy(size_bytes_max=64 << 20), room=room)
    assert (report.met, report.looked, report.needed_bytes, report.freed_bytes) == (True, False, 0, 0)
    assert (len(asked), report.free_bytes, report.problems) == (1, DEVICE - world.used, ())
    with pytest.raises(StoreUnavailable):
        await world.trim(100, TrimPolicy(age_days_max=30))


async def test_the_oldest_goes_until_enough_is_free_and_no_more() -> None:
    world = await full()
    report = await world.trim(100)
    assert (report.met, report.looked, report.deleted, report.refused, report.problems) == (True, True, 1, None, ())
    assert report.needed_bytes == 1
    assert report.free_bytes == DEVICE - world.used
    assert len(await world.found(range(24)) & set(range(16))) == 8
    assert await world.found(range(16, 24)) == set(range(16, 24))


async def test_what_protection_keeps_from_being_met_is_said_with_the_day_the_device_is_full() -> None:
    world = await full()
    world.others = DEVICE * 3 // 4
    grown = [(97, 0), (98, 100), (99, 200)]
    report = await world.trim(100, grown=grown)
    assert not report.met
    assert report.deleted == 2
    assert report.lacking_bytes == DEVICE // 2 - (DEVICE - world.used)
    assert report.protected_bytes > 8 * 3000
    assert report.full_day is not None
    assert report.full_day > 100
    assert await world.found(range(24)) == set(range(16, 24))


async def test_pins_stay_and_are_counted() -> None:
    world = await full()
    world.others = DEVICE * 3 // 4
    for writer, number in ((BOB, 3), (CAROL, 9)):
        ids = ids_from_bytes(TEAM.ref(block(number))[:16])
        name = PinName(writer, b"i" * 8, 1)
        world.objects.objects[str(name)] = encode_pins(name, 100, ids, TEAM.keys, TEAM.signer(writer))
    damaged = PinName(BOB, b"i" * 8, 2)
    world.objects.objects[str(damaged)] = b"no pins"
    report = await world.trim(100)
    assert report.refused is not None
    assert str(damaged) in report.refused
    assert await world.found(range(24)) == {*range(24)}
    del world.objects.objects[str(damaged)]
    report = await world.trim(100)
    assert report.pinned_bytes > 2 * 3000
    assert await world.found(range(24)) == {3, 9, *range(16, 24)}


async def test_what_nobody_saw_is_stamped_once_and_goes_when_that_is_old() -> None:
    world = await full()
    world.others = DEVICE * 3 // 4
    pack = await world.put(BOB, range(24, 28))
    report = await world.trim(100)
    assert report.unseen_bytes > 4 * 3000
    (name,) = [name for name in world.objects.objects if name.startswith(f"stamp/{ALICE.hex()}/")]
    assert (await last_seen(world.objects, 0).packs(pack.ids[:0, 0])).tolist() == []
    for day in (101, 114):
        assert (await world.trim(day)).unseen_bytes == 0
        assert set(range(24, 28)) <= await world.found(range(28))
    assert [each for each in world.objects.objects if each.startswith(f"stamp/{ALICE.hex()}/")] == [name]
    await world.see(CAROL, range(16, 24), 115)
    await world.trim(115)
    assert await world.found(range(28)) == set(range(16, 24))


async def half_old(*, barrier: bool = False) -> World:
    """Return a cache of one pack, of which bob saw half long ago, and carol the other half a week ago."""
    world = World(barrier=barrier)
    await world.put(BOB, range(8))
    await world.see(BOB, range(4), 50)
    await world.see(CAROL, range(4, 8), 93)
    world.others = DEVICE * 3 // 4
    return world


async def test_what_is_rewritten_keeps_the_days_it_was_seen_on_also_without_those_who_saw_it() -> None:
    world = await half_old()
    report = await world.trim(100)
    assert (report.deleted, report.rewritten, report.problems) == (0, 1, ())
    (heir,) = world.packs()
    # Those who saw it are gone for good.
    for name in [name for name in world.objects.objects if name.startswith("stamp/") and ALICE.hex() not in name]:
        del world.objects.objects[name]
    await world.live(CAROL, 107)
    assert (await world.trim(107)).deleted == 0
    await world.live(BOB, 108)
    assert (await world.trim(108)).deleted == 1
    assert heir not in world.packs()


async def test_a_trimming_cut_off_before_its_stamp_leaves_the_days_in_the_pack() -> None:
    world = await half_old(barrier=True)
    world.plan.fail("put", 1, 1, prefix="stamp/")
    with pytest.raises(StoreUnavailable):
        await world.trim(100)
    world.objects.power_cut()
    (heir,) = world.packs()
    assert check_pack(heir, world.objects.objects[str(heir)], TEAM.keys, TEAM).days.tolist() == [93] * 4
    report = await world.trim(101, writer=BOB)
    assert (report.unseen_bytes, report.deleted) == (0, 0)
    await world.live(CAROL, 108)
    assert (await world.trim(108, writer=BOB)).deleted == 1


async def test_nothing_goes_by_a_clock_that_is_wrong_but_what_was_announced() -> None:
    world = await full()
    before = world.packs()
    report = await world.trim(90)
    assert report.refused is not None
    assert "behind" in report.refused
    assert not report.met
    assert (report.lacking_bytes, report.deleted, world.packs()) == (1, 0, before)
    report = await world.trim(130)
    assert report.refused is not None
    assert "ahead" in report.refused
    # What is announced is deleted all the same: it went by a clock that was believed.
    machine = world.machines[BOB]
    await machine.restart().refresh()
    await machine.store.announce_removal([before[0]])
    assert (await world.trim(90)).refused is None
    assert before[0] not in world.packs()


async def test_a_clock_that_runs_ahead_of_the_others_lets_nothing_go_that_they_saw_lately() -> None:
    for ahead in (1, 3, 10, 14):
        world = await full()
        world.others = DEVICE * 3 // 4
        await world.see(BOB, range(16), 86)
        await world.live(CAROL, 100)
        await world.live(BOB, 100)
        report = await world.trim(100 + ahead)
        assert (report.refused, report.deleted, report.met) == (None, 0, False)
        # They have reached the next day.
        await world.live(CAROL, 101)
        await world.live(BOB, 101)
        assert (await world.trim(101 + min(ahead, 13))).deleted == 2


async def test_a_clock_that_is_behind_lets_nothing_go_that_was_seen_on_days_it_takes_for_such_to_come() -> None:
    world = await full(95)
    world.others = DEVICE * 3 // 4
    await world.see(BOB, range(16), 100)
    report = await world.trim(96)
    assert (report.refused, report.deleted, report.rewritten) == (None, 0, 0)


async def test_what_is_said_of_days_to_come_does_not_hide_the_right_days_in_the_same_stamp() -> None:
    world = await full()
    world.others = DEVICE * 3 // 4
    machine = world.machines[BOB]
    await machine.restart().refresh()
    first, second = sorted(pack.key for pack in world.packs() if pack.writer == BOB)
    for name in [name for name in world.objects.objects if name.startswith(f"stamp/{BOB.hex()}/")]:
        del world.objects.objects[name]
    told = [Seen(first, np.array([90], np.uint16)), Seen(second, np.array([50, 150] * 4, np.uint16))]
    assert await stamping(world.objects, BOB, 150).add((), told) == []
    report = await world.trim(100)
    assert [BOB.hex() in problem for problem in report.problems] == [True]
    assert (report.deleted, report.rewritten) == (0, 1)
    assert len(await world.found(range(16))) == 12


async def test_a_system_whose_clock_runs_ahead_is_named_and_protects_nothing() -> None:
    world = await full()
    for name in [name for name in world.objects.objects if name.startswith(f"stamp/{BOB.hex()}/")]:
        del world.objects.objects[name]
    await world.see(BOB, range(16), 150)
    report = await world.trim(100)
    # Nothing else is known of what it uses: that counts as seen today, once, however long its clock stays wrong.
    assert (report.met, report.deleted) == (False, 0)
    assert report.unseen_bytes > 16 * 3000
    assert [BOB.hex() in problem for problem in report.problems] == [True]
    await world.live(CAROL, 115)
    assert (await world.trim(115)).met


async def test_a_damaged_stamp_of_the_protected_days_refuses_until_it_is_renewed() -> None:
    world = await full()
    (name,) = [name for name in world.objects.objects if name.startswith(f"stamp/{CAROL.hex()}/")]
    good = world.objects.objects[name]
    world.objects.objects[name] = good[:60] + b"??" + good[62:]
    report = await world.trim(100)
    assert report.refused is not None
    assert name in report.refused
    assert (report.lacking_bytes, report.deleted) == (1, 0)
    assert len(await world.found(range(24))) == 24
    world.objects.objects[name] = good
    assert (await world.trim(100)).met


async def test_a_list_of_a_system_that_vanished_is_taken_over_once() -> None:
    world = await full()
    world.others = 0
    bob = world.machines[BOB]
    await bob.restart().refresh()
    pack = world.packs()[0]
    await bob.store.announce_removal([pack])
    await world.trim(100)
    assert pack not in world.packs()
    lists = [name for name in world.objects.objects if name.startswith("gc/")]
    assert [ALICE.hex() in name for name in lists] == [True]
    world.plan.fail("delete", 1, 1 << 30)
    await world.trim(100)
    # Who announced it was only slow, and finds it done.
    await bob.store.objects.delete(str(pack))
    await bob.store.settle_removals()
    assert len(await world.found(range(24))) == 16


async def test_a_list_that_cannot_be_taken_over_for_lack_of_room_is_carried_out_all_the_same() -> None:
    world = await full()
    world.others = 0
    bob = world.machines[BOB]
    await bob.restart().refresh()
    pack = world.packs()[0]
    await bob.store.announce_removal([pack])
    world.plan.fail("put", 1, 1 << 30, lambda: StoreRejected("no space left on device"), prefix="gc/")
    await world.trim(100)
    assert pack not in world.packs()


async def test_a_device_nobody_can_ask_is_said_and_the_size_is_held_all_the_same() -> None:
    async def unknown() -> Room:
        return Room()

    world = await full()
    report = await world.trim(100, room=unknown)
    assert (report.problems, report.met, report.free_bytes, report.full_day) == ((NO_ROOM,), True, None, None)


async def test_packs_seen_while_it_trims_stay() -> None:
    """Bob's session ends, with a stamp, between alice's look at the stamps and the first pack that goes."""
    world = await full()
    asked = []

    async def room() -> Room:
        asked.append(1)
        if len(asked) == 2:  # when it plans
            await world.see(BOB, range(16), 100)
        return await world.room()

    report = await world.trim(100, room=room)
    assert (report.deleted, report.met) == (0, False)
    assert len(await world.found(range(24))) == 24


async def test_a_cut_pack_that_goes_makes_room_to_rewrite_others_at_once() -> None:
    world = await half_old()
    cut = str((await world.put(BOB, range(8, 24))).name)
    await world.see(BOB, range(8, 24), 50)
    world.objects.objects[cut] = world.objects.objects[cut][:-1]

    def taken() -> int:
        return sum(len(data) for name, data in world.objects.objects.items() if name.startswith("data/"))

    before = taken()

    async def room() -> Room:
        return Room(DEVICE, before - taken())  # none at first

    assert (await world.trim(100, room=room)).rewritten == 1
    assert await world.found(range(24)) == set(range(4, 8))


async def test_what_others_fill_while_it_trims_goes_too() -> None:
    world = await full()

    async def room() -> Room:
        if len(world.packs()) < 3 and not filled:
            filled.append(1)
            world.others += 30_000  # more than that pack has, once it has gone
        return await world.room()

    filled: list[int] = []
    report = await world.trim(100, room=room)
    assert (report.deleted, report.met, report.needed_bytes) == (2, True, 1)
    assert await world.found(range(24)) == set(range(16, 24))


async def test_what_is_seen_in_a_pack_while_it_is_rewritten_counts_for_its_heir() -> None:
    """Bob stamps the pack that alice copies, after her look at the stamps."""
    world = await half_old()
    asked = []

    async def room() -> Room:
        asked.append(1)
        if len(asked) == 3:  # before the first record is copied
            await world.see(BOB, range(5, 7), 100)
        return await world.room()

    assert (await world.trim(100, room=room)).rewritten == 1
    await world.live(CAROL, 114)
    await world.trim(114)
    assert await world.found(range(8)) == {5, 6}
    await world.live(CAROL, 115)
    await world.trim(115)
    assert await world.found(range(8)) == set()


async def test_what_is_pinned_while_it_trims_stays() -> None:
    world = await full()
    asked = []

    async def room() -> Room:
        asked.append(1)
        if len(asked) == 2:  # when it plans
            name = PinName(CAROL, b"i" * 8, 1)
            ids = ids_from_bytes(TEAM.ref(block(3))[:16])
            world.objects.objects[str(name)] = encode_pins(name, 100, ids, TEAM.keys, TEAM.signer(CAROL))
        return await world.room()

    report = await world.trim(100, room=room)
    assert (report.deleted, report.met) == (0, False)
    assert ["while it was trimmed" in problem for problem in report.problems] == [True]
    assert (await world.trim(100)).met
    assert 3 in await world.found(range(24))


async def test_own_only_systems_trim_what_others_left_too() -> None:
    world = await full()
    world.machines[ALICE].own_only = True
    report = await world.trim(100)
    assert (report.met, report.deleted) == (True, 1)


async def test_an_empty_cache_on_a_full_device_is_no_trouble() -> None:
    world = World()
    world.others = DEVICE
    await world.live(BOB, 100)
    report = await world.trim(100)
    assert (report.met, report.looked, report.size_bytes, report.deleted) == (False, True, 0, 0)
