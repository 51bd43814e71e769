"""Packs that no index lists leave a cache, and nothing else does: over a real folder, by the real clock rules."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import numpy as np
import pytest

from adapters.stores.folder import FolderStore
from engine.acks import PackAck
from engine.block import Bytes, ids_from_bytes
from engine.cache.orphans import LOOK_DAYS, ORPHAN_DAYS, OrphanSweep
from engine.cache.pins import encode_pins
from engine.cache.stamps import Seen
from engine.cache.trimming import trim_cache
from engine.cache.trimrecord import Orphans, TrimReport
from engine.errors import StoreUnavailable
from engine.fragment import encode_fragment
from engine.names import FragmentName, PinName, RemovalName
from engine.pack import FinishedPack
from engine.policy import TrimPolicy
from engine.ports import Room
from engine.removal import open_removals
from tests.engine.cache.test_lastseen import CAROL, stamping
from tests.engine.cache.test_trim import TEAM, block, found
from tests.engine.fakes_packs import ALICE, BOB, Machine

pytestmark = pytest.mark.anyio
MALLORY = b"m" * 16
DAY = 1000
LARGE = TrimPolicy(size_bytes_max=64 << 20)


@pytest.fixture(autouse=True)
def everybody() -> None:
    TEAM.members[:] = [ALICE, BOB, CAROL]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Folder(FolderStore):
    """A cache in a folder. `happens` before the first call that begins with `when`."""

    def __init__(self, root: Path, owner: str) -> None:
        super().__init__(root, owner, "flush")
        self.when = ""
        self.happens: Callable[[], Awaitable[object]] | None = None

    async def _now(self, call: str) -> None:
        if self.happens is not None and call.startswith(self.when):
            happens, self.happens = self.happens, None
            await happens()

    async def put(self, name: str, data: Bytes) -> None:
        await self._now(f"put {name}")
        await super().put(name, data)

    async def delete(self, name: str) -> None:
        await self._now(f"delete {name}")
        await super().delete(name)


class World:
    """A cache that three systems share; each keeps in mind what packs nobody listed when it trimmed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()
        (root / "format").write_bytes(b"of a test")
        self.stores = {writer: Folder(root, writer.hex()) for writer in (ALICE, BOB, CAROL)}
        self.machines = {writer: Machine(store, TEAM, writer, trimmed=True) for writer, store in self.stores.items()}
        self.known = dict.fromkeys(self.stores, Orphans())

    async def put(self, writer: bytes, numbers: Iterable[int], *, listed: bool = False) -> FinishedPack:
        """Put a pack; unless it is listed, the session dies then, and its state with it."""
        machine = self.machines[writer]
        pack = TEAM.pack([block(number) for number in numbers], writer)
        await machine.store.put_pack(pack)
        await machine.store.flush()
        if listed:
            await machine.store.publish_index()
        else:
            machine.acks.clear()
            await machine.restart().refresh()
        return pack

    async def live(self, writer: bytes, day: int) -> None:
        seen = [Seen(7, np.array([day], np.uint16))]
        await stamping(self.stores[writer], writer, day).add((), seen)

    async def trim(self, day: int, writer: bytes = ALICE, policy: TrimPolicy = LARGE) -> TrimReport:
        machine = self.machines[writer]
        await machine.restart().refresh()
        for each in (ALICE, BOB):
            await self.live(each, day)

        async def room() -> Room:
            return Room(1 << 40, 1 << 39)

        sweep = OrphanSweep(self.known[writer])
        report = await trim_cache(
            machine.store,
            stamping(machine.objects, writer, day),
            policy,
            room,
            lambda: TEAM.builder(writer),
            sweep=sweep,
        )
        self.known[writer] = sweep.known
        return report

    async def trim_until(self, day: int, until: int, writer: bytes = ALICE) -> list[TrimReport]:
        return [await self.trim(each, writer) for each in range(day, until)]

    def packs(self) -> set[str]:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("data/*/*")}

    def objects(self, folder: str) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob(f"{folder}/*/*"))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "cache")


async def test_a_pack_nobody_lists_goes_after_fifteen_days_and_not_before(world: World) -> None:
    kept = await world.put(BOB, range(4), listed=True)
    lost = await world.put(BOB, range(4, 8))
    reports = await world.trim_until(DAY, DAY + ORPHAN_DAYS)
    assert str(lost.name) in world.packs()
    for report in reports:
        assert (report.deleted, report.unlisted, report.unlisted_bytes) == (0, 1, lost.name.size)
        assert report.size_bytes == kept.name.size + lost.name.size
    assert world.objects("gc") == []
    report = await world.trim(DAY + ORPHAN_DAYS)
    assert (report.deleted, report.freed_bytes, report.problems) == (1, lost.name.size, ())
    assert (report.unlisted, report.unlisted_bytes, report.size_bytes) == (0, 0, kept.name.size)
    assert world.packs() == {str(kept.name)}
    assert await world.machines[BOB].restart().refresh() == []
    assert found(world.machines[BOB], range(8)) == {*range(4)}


async def test_it_is_announced_before_it_goes(world: World) -> None:
    lost = await world.put(BOB, range(4))
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)
    listed: list[int] = []

    async def look() -> None:
        for text in world.objects("gc"):
            name = RemovalName.parse(text)
            assert name is not None
            packs = open_removals(name, (world.root / text).read_bytes(), None, None).packs
            listed.extend(key for keys in packs.values() for key in keys.tolist())

    world.stores[ALICE].when, world.stores[ALICE].happens = "delete data/", look
    await world.trim(DAY + ORPHAN_DAYS)
    assert listed == [lost.name.key]
    assert world.packs() == set()


async def test_one_that_is_announced_and_was_not_deleted_goes_with_the_next_trimming(world: World) -> None:
    lost = await world.put(BOB, range(4))
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)

    async def fail() -> None:
        raise StoreUnavailable("away")

    world.stores[ALICE].when, world.stores[ALICE].happens = "delete data/", fail
    with pytest.raises(StoreUnavailable):
        await world.trim(DAY + ORPHAN_DAYS)
    assert world.packs() == {str(lost.name)}
    await world.trim(DAY + ORPHAN_DAYS, CAROL)
    assert world.packs() == set()


async def test_several_may_remove_the_same_ones_at_once(world: World) -> None:
    for at in range(0, 12, 4):
        await world.put(BOB, range(at, at + 4))
    for day in range(DAY, DAY + ORPHAN_DAYS):
        for writer in (ALICE, CAROL):
            await world.trim(day, writer)
    async with anyio.create_task_group() as group:
        for writer in (ALICE, CAROL):
            group.start_soon(world.trim, DAY + ORPHAN_DAYS, writer)
    assert world.packs() == set()
    assert await world.machines[BOB].restart().refresh() == []


async def test_without_any_it_is_looked_seldom(world: World) -> None:
    await world.put(BOB, range(4), listed=True)
    assert world.known[ALICE].day == 0
    looked = []
    for day in range(DAY, DAY + 3 * LOOK_DAYS):
        await world.trim(day)
        looked.append(world.known[ALICE].day)
    assert sorted(set(looked)) == [DAY, DAY + LOOK_DAYS, DAY + 2 * LOOK_DAYS]


async def test_what_comes_to_be_listed_stays_and_is_counted_anew_if_the_list_is_lost(world: World) -> None:
    machine, pack = world.machines[BOB], TEAM.pack([block(1), block(2)], BOB)
    await machine.store.put_pack(pack)
    await machine.store.flush()
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)
    # Back from weeks in a drawer, it lists what it had put.
    await machine.restart().refresh()
    await machine.store.publish_index()
    await world.trim_until(DAY + ORPHAN_DAYS, DAY + 40)
    assert await world.machines[CAROL].restart().refresh() == []
    assert found(world.machines[CAROL], [1, 2]) == {1, 2}
    (fragment,) = world.objects("index")
    (world.root / fragment).unlink()
    await world.trim_until(DAY + 40, DAY + 40 + ORPHAN_DAYS)
    assert world.packs() == {str(pack.name)}
    for day in range(LOOK_DAYS):
        await world.trim(DAY + 40 + ORPHAN_DAYS + day)
    assert world.packs() == set()


async def test_what_is_listed_at_the_last_moment_stays(world: World) -> None:
    lost = await world.put(BOB, range(4))
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)
    machine = world.machines[BOB]

    async def list_it() -> None:
        name = FragmentName(BOB, b"i" * 8, 1)
        await machine.objects.put(str(name), encode_fragment(name, [PackAck.of(lost)], TEAM.keys, TEAM.signer(BOB)))

    # What is asked last before anything is removed is whether something is pinned.
    store, listing = world.stores[ALICE], FolderStore.list

    async def listed(prefix: str, after: str = "") -> Any:
        if prefix == "pin/":
            await list_it()
        async for info in listing(store, prefix, after):
            yield info

    store.list = listed  # type: ignore[method-assign]
    await world.trim(DAY + ORPHAN_DAYS)
    assert world.packs() == {str(lost.name)}
    assert world.objects("gc") == []


async def test_what_is_listed_while_it_goes_stays_removed_for_all(world: World) -> None:
    lost = await world.put(BOB, range(4))
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)

    async def list_it() -> None:
        name = FragmentName(BOB, b"i" * 8, 1)
        data = encode_fragment(name, [PackAck.of(lost)], TEAM.keys, TEAM.signer(BOB))
        await world.stores[BOB].put(str(name), data)

    world.stores[ALICE].when, world.stores[ALICE].happens = "delete data/", list_it
    await world.trim(DAY + ORPHAN_DAYS)
    assert world.packs() == set()
    for writer in (BOB, CAROL):
        assert await world.machines[writer].restart().refresh() == []
        assert found(world.machines[writer], range(4)) == set()


async def test_who_comes_back_does_not_list_what_was_removed(world: World) -> None:
    machine = world.machines[BOB]
    gone, there = (TEAM.pack([block(at), block(at + 1)], BOB) for at in (1, 3))
    for pack in (gone, there):
        await machine.store.put_pack(pack)
    await machine.store.flush()
    # One that is in the middle of its session, and one that begins anew, with what was put before it died.
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)
    (world.root / str(there.name)).rename(world.root / "aside")
    await world.trim(DAY + ORPHAN_DAYS)
    (world.root / "aside").rename(world.root / str(there.name))
    assert world.packs() == {str(there.name)}
    again = Machine(world.stores[BOB], TEAM, BOB, trimmed=True)
    again.acks.entries = list(machine.acks.entries)
    await again.store.refresh()
    assert found(again, range(1, 5)) == {3, 4}
    assert found(machine, range(1, 5)) == {1, 2, 3, 4}
    assert await machine.store.publish_index() > 0
    assert found(machine, range(1, 5)) == {3, 4}
    for each in (machine, world.machines[CAROL]):
        assert await each.restart().refresh() == []
        assert found(each, range(1, 5)) == {3, 4}
    assert machine.acks.entries == []


async def test_who_finds_all_it_had_put_removed_lists_nothing(world: World) -> None:
    machine = world.machines[BOB]
    await machine.store.put_pack(TEAM.pack([block(1)], BOB))
    await machine.store.flush()
    await world.trim_until(DAY, DAY + ORPHAN_DAYS + 1)
    assert await machine.store.publish_index() == 0
    assert world.objects("index") == []
    assert found(machine, [1]) == set()


async def test_of_a_writer_with_a_damaged_fragment_nothing_goes(world: World) -> None:
    await world.put(BOB, range(4), listed=True)
    lost = await world.put(BOB, range(4, 8))
    (fragment,) = world.objects("index")
    data = (world.root / fragment).read_bytes()
    (world.root / fragment).write_bytes(data[:-1])
    world.machines[ALICE] = Machine(world.stores[ALICE], TEAM, ALICE, trimmed=True)  # that never saw it whole
    await world.trim_until(DAY, DAY + 40)
    assert len(world.packs()) == 2
    (world.root / fragment).write_bytes(data)
    await world.trim_until(DAY + 40, DAY + 40 + ORPHAN_DAYS)
    assert len(world.packs()) == 2
    for day in range(LOOK_DAYS):
        await world.trim(DAY + 40 + ORPHAN_DAYS + day)
    assert str(lost.name) not in world.packs()
    assert len(world.packs()) == 1


async def test_packs_of_systems_nobody_knows_stay(world: World) -> None:
    pack = TEAM.pack([block(1)], MALLORY)
    await world.stores[ALICE].put(str(pack.name), pack.data)
    await world.trim_until(DAY, DAY + 40)
    assert world.packs() == {str(pack.name)}


async def test_what_deltas_need_stays(world: World) -> None:
    source = await world.put(BOB, range(4))
    pack = TEAM.pack([block(4)], BOB)
    ack = PackAck.of(pack)
    lengths = ack.lengths | np.uint32(1 << 31)
    delta = PackAck(ack.name, ack.ids, ack.offsets, lengths, ((0, source.name),))
    name = FragmentName(BOB, b"i" * 8, 1)
    await world.stores[BOB].put(str(pack.name), pack.data)
    await world.stores[BOB].put(str(name), encode_fragment(name, [delta], TEAM.keys, TEAM.signer(BOB)))
    await world.trim_until(DAY, DAY + 40)
    assert world.packs() == {str(pack.name), str(source.name)}


async def test_pages_stay(world: World) -> None:
    pages = TEAM.pack([block(1)], BOB, kind="page")
    await world.stores[BOB].put(str(pages.name), pages.data)
    await world.trim_until(DAY, DAY + 40)
    assert (world.root / str(pages.name)).exists()


@pytest.mark.parametrize("days", [(DAY + 10,), (DAY, DAY + 10, 0, DAY - 90)], ids=["all of it", "some of it"])
async def test_what_any_system_stamped_lately_stays(world: World, days: Sequence[int]) -> None:
    lost = await world.put(BOB, range(4))
    await world.trim_until(DAY, DAY + 10)
    seen = [Seen(lost.name.key, np.array(days, np.uint16))]
    await stamping(world.stores[CAROL], CAROL, DAY + 10).add((), seen)
    await world.trim_until(DAY + 10, DAY + 25)
    assert world.packs() == {str(lost.name)}
    await world.trim(DAY + 25)
    assert world.packs() == set()


async def test_what_is_pinned_stays_and_so_does_all_while_pins_or_stamps_cannot_be_read(world: World) -> None:
    pinned, lost = await world.put(BOB, range(4)), await world.put(BOB, range(4, 8))
    name = PinName(CAROL, b"i" * 8, 1)
    ids = ids_from_bytes(TEAM.ref(block(2))[:16])
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)
    await world.stores[CAROL].put(str(name), b"no pins")
    (problem,) = (await world.trim(DAY + ORPHAN_DAYS)).problems
    assert str(name) in problem
    assert len(world.packs()) == 2
    (world.root / str(name)).unlink()
    await world.stores[CAROL].put(str(name), encode_pins(name, DAY, ids, TEAM.keys, TEAM.signer(CAROL)))
    stamp = world.objects("stamp")[-1]
    data = (world.root / stamp).read_bytes()
    (world.root / stamp).write_bytes(data[:40])
    (problem,) = (await world.trim(DAY + ORPHAN_DAYS + 1)).problems
    assert stamp in problem
    assert len(world.packs()) == 2
    (world.root / stamp).write_bytes(data)
    report = await world.trim(DAY + ORPHAN_DAYS + 2)
    assert (report.deleted, report.unlisted) == (1, 1)
    assert world.packs() == {str(pinned.name)}
    assert str(lost.name) not in world.packs()


async def test_nothing_goes_by_a_clock_that_is_not_believed(world: World) -> None:
    lost = await world.put(BOB, range(4))
    await world.trim(DAY)
    machine = world.machines[ALICE]

    async def by(day: int) -> None:
        sweep = OrphanSweep(world.known[ALICE])
        await machine.restart().refresh()

        async def room() -> Room:
            return Room(1 << 40, 1 << 39)

        stamps = stamping(machine.objects, ALICE, day)
        await trim_cache(machine.store, stamps, LARGE, room, lambda: TEAM.builder(ALICE), sweep=sweep)
        world.known[ALICE] = sweep.known

    for day in (DAY + 40, DAY + 400, DAY - 40):
        await by(day)
        assert world.packs() == {str(lost.name)}
    # What a clock noted that ran ahead is of no day: it is counted from when that is seen.
    (key,) = world.known[ALICE].since()
    world.known[ALICE] = Orphans.of(DAY, 1, 1, {key: DAY + 900})
    await world.trim_until(DAY + 1, DAY + 1 + ORPHAN_DAYS)
    assert world.packs() == {str(lost.name)}
    await world.trim(DAY + 1 + ORPHAN_DAYS)
    assert world.packs() == set()


async def test_one_that_is_cut_goes_too_and_counts_what_is_there(world: World) -> None:
    lost = await world.put(BOB, range(4))
    path = world.root / str(lost.name)
    path.write_bytes(path.read_bytes()[:1000])
    await world.trim_until(DAY, DAY + ORPHAN_DAYS)
    report = await world.trim(DAY + ORPHAN_DAYS)
    assert (report.deleted, report.freed_bytes, world.packs()) == (1, 1000, set())


async def test_they_count_in_the_size_that_is_kept(world: World) -> None:
    kept = await world.put(BOB, range(4), listed=True)
    lost = await world.put(BOB, range(4, 8))
    await stamping(world.stores[BOB], BOB, DAY - 100).add((), [Seen(kept.name.key, np.array([DAY - 100], np.uint16))])
    small = TrimPolicy(size_bytes_max=64 << 20)
    msgspec.structs.force_setattr(small, "size_bytes_max", kept.name.size + 10)  # less than anybody may configure
    report = await world.trim(DAY, policy=small)
    assert report.freed_bytes == kept.name.size
    assert (report.size_bytes, report.lacking_bytes) == (lost.name.size, 0)


async def test_what_is_kept_in_mind_is_bounded_and_its_order_does_not_matter() -> None:
    known = Orphans.of(5, 2, 10, {9: 4, 3: 5})
    assert known.since() == {3: 5, 9: 4}
    assert Orphans(noted=known.noted + b"cut").since() == known.since()
