"""The backlog: what a spooled point needs, and that leaving takes nothing another point or session needs."""

from __future__ import annotations

import contextlib

import msgspec
import pytest

from engine.errors import ConfigError, ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import FragmentName, PackName, PointId
from engine.note import NoteBody
from engine.recovery.places import SPOOL
from engine.spool import Spool
from tests.engine.recovery.build import INCARNATION, System, World, restore, volume
from tests.fakes import FaultPlan, FaultyStore, MemoryStore, Operation, flip_a_bit

pytestmark = pytest.mark.anyio

NOW_MS = 1_700_000_900_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Backlog:
    """A vault with one point and a spool with three; the second spooled point leans on the first, all on the vault."""

    def __init__(self) -> None:
        self.world = World(cache=False, spool=True)
        self.system = self.world.system()
        self.points: list[PointId] = []
        self.contents = [volume(1, 2), volume(1, 3, 4), volume(1, 3, 5), volume(1, 3, 5, 6)]

    async def fill(self) -> Backlog:
        for content in self.contents:
            self.points.append(await self.world.backup(self.system, {"data": content}))
            self.world.fallback = True
        return self

    @property
    def store(self) -> MemoryStore:
        assert self.world.spool is not None
        return self.world.spool.objects

    async def open(self) -> Spool:
        return await Spool.open(self.store, self.system.identity(self.world))

    def names(self, prefix: str = "") -> set[str]:
        return {name for name in self.store.objects if name.startswith(prefix)}

    async def restores(self, *positions: int) -> None:
        for at in positions:
            outcome = await restore(self.world, str(self.points[at]))
            assert outcome.report.exit_code == 0, outcome.report
            assert outcome.content == self.contents[at]


async def test_points_come_oldest_first_and_only_those_of_the_spool() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    assert await spool.points() == backlog.points[1:]
    root, data = await spool.root(backlog.points[2])
    assert root.point == backlog.points[2]
    assert data == backlog.store.objects[backlog.points[2].root(backlog.system.id)]
    with pytest.raises(ObjectMissing):
        await spool.root(backlog.points[0])


async def test_a_point_lists_the_packs_of_all_its_runs_those_of_the_vault_included() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    present = await spool.packs()
    assert {str(pack) for pack in present} == backlog.names("data/") | backlog.names("page/")
    first, second, third = [await spool.packs_of(point) for point in backlog.points[1:]]
    # Block 3 came with the first, block 5 with the second: each later point lists what it leans on.
    assert first.listed & present.keys() < second.listed & present.keys() < third.listed & present.keys()
    assert third.listed & present.keys() == present.keys()
    vault_packs = {pack for pack in map(PackName.parse, backlog.world.vault.objects.objects) if pack is not None}
    # The table of the vault's run lies in the vault only: what it lists cannot be read here, and is not needed here.
    assert (first.certain, len(first.unread)) == (True, 1)
    assert "'data'" in first.unread[0]
    also = [backlog.world.vault.objects]
    helped = await Spool.open(backlog.store, backlog.system.identity(backlog.world), also=also)
    whole = await helped.packs_of(backlog.points[1])
    assert whole.unread == ()
    assert vault_packs <= whole.listed


async def test_what_leaves_takes_only_what_no_other_point_lists() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    packs, fragments = await spool.packs(), await spool.fragments()
    # The second point goes first (no upload does that, a deletion may): the third lists all it has but its root.
    freed = await spool.remove(backlog.points[2])
    assert freed == 0
    assert await spool.points() == [backlog.points[1], backlog.points[3]]
    assert (await spool.packs()).keys() == packs.keys()
    await backlog.restores(1, 3)
    # Of the last nothing is left but what the first lists, and the fragments that list nothing else are gone.
    freed = await spool.remove(backlog.points[3])
    rest = await spool.packs()
    assert freed == sum(pack.size for pack in packs.keys() - rest.keys()) > 0
    assert rest.keys() == (await spool.packs_of(backlog.points[1])).listed & packs.keys()
    assert len(await spool.fragments()) == len(fragments) - 2
    await backlog.restores(0, 1)
    await spool.remove(backlog.points[1])
    left = backlog.names()
    assert left == {name for name in left if name.startswith(("format", "key/", "cert/"))}


async def test_the_notes_of_a_point_that_was_uploaded_go_with_it() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    kept = await backlog.world.note(backlog.system, backlog.points[2], NoteBody(kind="superseded", time=1))
    gone = await backlog.world.note(backlog.system, backlog.points[1], NoteBody(kind="incomplete", time=1))
    assert await spool.notes() == {backlog.points[1]: [gone], backlog.points[2]: [kept]}
    await spool.remove(backlog.points[1])
    assert await spool.notes() == {backlog.points[2]: [kept]}
    await spool.drop_notes([kept])
    assert await spool.notes() == {}


async def test_a_deleted_point_leaves_a_note_and_what_later_points_lean_on() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    # Later points are made of its runs, too.
    assert await spool.delete(backlog.points[1], NOW_MS, "deleted by hand") == 0
    assert await spool.points() == backlog.points[2:]
    ((point, names),) = (await spool.notes()).items()
    assert point == backlog.points[1]
    assert [parsed[2] for parsed in map(PointId.parse_note, names) if parsed] == ["removed"]
    await backlog.restores(0, 2, 3)
    # Once more does no harm; the newest takes along what no other lists.
    assert await spool.delete(backlog.points[1], NOW_MS, "deleted by hand") == 0
    assert await spool.delete(backlog.points[3], NOW_MS) > 0
    assert await spool.points() == [backlog.points[2]]
    await backlog.restores(0, 2)


@pytest.mark.parametrize(
    ("operation", "call"),
    [("put", 1), *(("flush", call) for call in (1, 2, 3)), *(("delete", call) for call in range(1, 6))],
)
async def test_a_deletion_that_was_cut_off_anywhere_is_finished_by_the_next_sweep(
    operation: Operation, call: int
) -> None:
    backlog, whole = await Backlog().fill(), await Backlog().fill()
    plan = FaultPlan().fail(operation, call, 99)
    identity = backlog.system.identity(backlog.world)
    faulty = await Spool.open(FaultyStore(backlog.store, plan), identity)
    with contextlib.suppress(StoreUnavailable):
        await faulty.delete(backlog.points[3], NOW_MS)
    spool = await backlog.open()
    begun = bool(await spool.notes())
    assert begun == (operation != "put")
    await spool.sweep()
    if begun:
        await (await whole.open()).delete(whole.points[3], NOW_MS)
        assert await spool.points() == backlog.points[1:3]
    for kind in ("data/", "page/", "root/", "index/"):
        assert len(backlog.names(kind)) == len(whole.names(kind)), kind
    await backlog.restores(0, 1, 2)


@pytest.mark.parametrize(
    ("operation", "call"), [*(("flush", call) for call in (1, 2)), *(("delete", call) for call in range(1, 6))]
)
async def test_a_point_that_leaves_is_whole_or_gone_wherever_that_is_cut_off(operation: Operation, call: int) -> None:
    backlog, whole = await Backlog().fill(), await Backlog().fill()
    await backlog.world.note(backlog.system, backlog.points[3], NoteBody(kind="superseded", time=1))
    plan = FaultPlan().fail(operation, call, 99)
    faulty = await Spool.open(FaultyStore(backlog.store, plan), backlog.system.identity(backlog.world))
    with pytest.raises(StoreUnavailable):
        await faulty.remove(backlog.points[3])
    spool = await backlog.open()
    listed = await spool.points()
    assert (backlog.points[3] in listed) == ((operation, call) == ("delete", 1))
    if backlog.points[3] in listed:
        await backlog.restores(3)
        await spool.remove(backlog.points[3])
    await spool.sweep()
    await (await whole.open()).remove(whole.points[3])
    for kind in ("data/", "page/", "root/", "index/"):
        assert len(backlog.names(kind)) == len(whole.names(kind)), kind
    await backlog.restores(0, 1, 2)


async def test_the_sweep_leaves_what_an_open_session_sent_and_takes_what_nobody_knows() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    session, other = b"s" * 16, b"o" * 16
    packs = {}
    for of in (session, other):
        builder = backlog.world._builder(backlog.system, of, "data")
        builder.add(bytes(100))
        packs[of] = finished = builder.finish()
        await backlog.store.put(str(finished.name), finished.data)
    foreign = f"data/{'ab' * 16}/{'cd' * 32}-9"
    await backlog.store.put(foreign, b"123456789")
    before = backlog.names()
    assert await spool.sweep([session]) == packs[other].name.size
    assert before - backlog.names() == {str(packs[other].name)}
    assert await spool.sweep() == packs[session].name.size
    assert before - backlog.names() == {str(packs[other].name), str(packs[session].name)}
    await backlog.restores(0, 1, 2, 3)


async def test_nothing_is_dropped_while_it_is_not_known_what_a_point_needs() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    newest, _ = await spool.root(backlog.points[3])
    (near,) = {
        name
        for name in backlog.names("page/")
        if PackName.parse(name) in (await spool.packs_of(backlog.points[3])).listed
        and PackName.parse(name) not in (await spool.packs_of(backlog.points[2])).listed
    }
    backlog.store.objects[near] = bytes(len(backlog.store.objects[near]))
    damaged = await backlog.open()
    packs = await damaged.packs_of(newest.point)
    assert not packs.certain
    assert any(near in sentence for sentence in packs.unread)
    before = backlog.names("data/") | backlog.names("page/")
    assert await damaged.remove(backlog.points[1]) == 0
    assert await damaged.sweep() == 0
    assert backlog.names("data/") | backlog.names("page/") == before
    await backlog.restores(2)
    # With that point gone it is known again.
    await damaged.remove(newest.point)
    assert await damaged.sweep() > 0
    await backlog.restores(2)


async def test_a_damaged_root_is_a_point_that_can_be_deleted_and_holds_the_others_back() -> None:
    backlog = await Backlog().fill()
    root = backlog.points[1].root(backlog.system.id)
    backlog.store.objects[root] = flip_a_bit(backlog.store.objects[root])
    spool = await backlog.open()
    assert await spool.points() == backlog.points[1:]
    with pytest.raises(StoreCorrupt):
        await spool.packs_of(backlog.points[1])
    assert await spool.remove(backlog.points[3]) == 0
    await spool.delete(backlog.points[1], NOW_MS)
    assert await spool.sweep() > 0
    await backlog.restores(0, 2)


async def test_what_a_point_shared_with_one_whose_root_and_pages_vanished_stays() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    older = (await spool.packs_of(backlog.points[1])).listed
    data = {str(pack) for pack in older if pack.kind == "data"} & backlog.names()
    pages = {str(pack) for pack in older if pack.kind == "page"} & backlog.names()
    assert data
    for name in (*pages, backlog.points[1].root(backlog.system.id)):
        kept = backlog.store.objects.pop(name)
        if name in pages:
            backlog.world.vault.objects.objects[name] = kept  # as a cache may have them, which is away now
    identity = backlog.system.identity(backlog.world)
    near = await Spool.open(backlog.store, identity, published=lambda packs: not pages & {*map(str, packs)})
    assert await near.sweep() == 0
    assert data <= backlog.names()
    # Where its pages can be read it is known what the later points need.
    await (await Spool.open(backlog.store, identity, also=[backlog.world.vault.objects])).sweep()
    await backlog.restores(2, 3)


async def test_a_forged_removed_note_removes_nothing() -> None:
    backlog = await Backlog().fill()
    stranger = System("web-01", backlog.world.opened, id=backlog.system.id)
    await backlog.world.note(stranger, backlog.points[2], NoteBody(kind="removed", time=1))
    spool = await backlog.open()
    assert await spool.points() == backlog.points[1:]
    await spool.sweep()
    await backlog.restores(1, 2, 3)


async def test_only_the_adopted_spool_is_opened() -> None:
    backlog = await Backlog().fill()
    identity = backlog.system.identity(backlog.world)
    with pytest.raises(ConfigError, match=r"has adopted no spool yet: run 'forebay init'"):
        await Spool.open(backlog.store, msgspec.structs.replace(identity, spool=None))
    with pytest.raises(
        ConfigError, match=rf"\[spool\] path \(/s\) leads to spool {backlog.world.formats[SPOOL].hex()}"
    ):
        await Spool.open(backlog.store, msgspec.structs.replace(identity, spool=bytes(16)), "/s")
    with pytest.raises(StoreRejected, match="is a vault, not a spool"):
        await Spool.open(backlog.world.vault.objects, identity)
    with pytest.raises(StoreUnavailable, match="the spool holds no forebay store"):
        await Spool.open(MemoryStore(), identity)


async def test_a_fragment_that_does_not_open_stays_until_nothing_is_left() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    damaged = str(FragmentName(backlog.system.id, INCARNATION, 99))
    await backlog.store.put(damaged, b"no fragment")
    for point in backlog.points[1:]:
        assert damaged in backlog.names("index/")
        await spool.remove(point)
    assert backlog.names("index/") == set()


async def test_what_has_the_name_of_a_pack_and_another_size_is_swept() -> None:
    backlog = await Backlog().fill()
    spool = await backlog.open()
    listed = backlog.names("data/")
    whole = PackName("data", backlog.system.id, bytes(32), 1000)
    await backlog.store.put(str(whole), bytes(10))
    assert await spool.sweep() == 10
    assert backlog.names("data/") == listed
