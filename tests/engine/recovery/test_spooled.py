"""Restore points that wait in the spool: listed as what they are, restored like any other, from wherever blocks lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from engine.block import BLOCK_BYTES, PART_BYTES
from engine.errors import RestoreError, StoreUnavailable
from engine.names import PointId
from engine.note import NoteBody
from engine.recovery.access import by_identity
from engine.recovery.catalogue import Catalogue, LostPoint, Point
from engine.recovery.places import CACHE, SPOOL, VAULT
from engine.state import Newest
from tests.engine.recovery.build import Side, System, World, block, open_access, restore, volume
from tests.fakes import flip_a_bit

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Scene:
    """Two points in the vault, then two in the spool; `contents[i]` is the volume at `points[i]`."""

    world: World
    system: System = field(init=False)
    points: list[PointId] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.system = self.world.system()

    async def backup(self, content: bytes, *, copy: bool = True) -> PointId:
        self.points.append(await self.world.backup(self.system, {"data": content}, copy=copy))
        self.contents.append(content)
        return self.points[-1]

    @property
    def spool(self) -> Side:
        assert self.world.spool is not None
        return self.world.spool

    @property
    def newest(self) -> tuple[bytes, Newest]:
        previous = self.system.previous
        assert previous is not None
        return self.system.id, Newest(
            order=previous.order,
            incarnation=previous.incarnation,
            root_hash=previous.hash,
            vault=self.world.formats[SPOOL],
            system=self.system.id,
        )

    def packs(self, side: Side, kind: str = "data") -> list[str]:
        return [name for name in side.objects.objects if name.startswith(f"{kind}/{self.system.id.hex()}/")]

    async def listed(self, *only: str) -> tuple[dict[PointId, Point], list[LostPoint], list[str]]:
        places, problems = self.world.places(*only)
        access = (await open_access(places)).named("web-01")
        catalogue = Catalogue(places, self.newest)
        names = await catalogue.names(access)
        points = await catalogue.load(names, names.roots)
        return {point.id: point for point in points}, await catalogue.lost(names, points), problems.listed()


async def scene(*, cache: bool = True, copy: bool = True, delta: bool = False) -> Scene:
    it = Scene(World(cache=cache, spool=True, pack_bytes=150_000, delta=delta))
    await it.backup(volume(1, 2, 3))
    await it.backup(volume(1, 4, 3), copy=copy)
    it.world.fallback = True
    await it.backup(volume(1, 4, 5), copy=copy)
    await it.backup(volume(6, 4, 5, 7), copy=copy)
    return it


async def test_spooled_points_say_so_and_are_not_lost() -> None:
    it = await scene()
    points, lost, problems = await it.listed()
    assert sorted(points) == it.points
    assert [points[point].state for point in it.points] == ["ok", "ok", "spooled", "spooled"]
    assert [sorted(points[point].where) for point in it.points] == [[CACHE, VAULT]] * 2 + [[CACHE, SPOOL]] * 2
    assert [sentence for point in points.values() for sentence in point.problems] == []
    assert (lost, problems) == ([], [])


async def test_the_identity_lists_them_too() -> None:
    it = await scene()
    places, _ = it.world.places()
    own = (await by_identity(it.system.identity(it.world), places)).only()
    catalogue = Catalogue(places, it.newest)
    names = await catalogue.names(own)
    assert [point.state for point in await catalogue.load(names, names.roots)].count("spooled") == 2


async def test_a_point_that_was_uploaded_and_has_not_left_yet_is_an_ordinary_one() -> None:
    it = await scene()
    name = it.points[2].root(it.system.id)
    it.world.vault.objects.objects[name] = it.spool.objects.objects[name]
    points, lost, _ = await it.listed()
    assert (points[it.points[2]].state, sorted(points[it.points[2]].where)) == ("ok", [CACHE, SPOOL, VAULT])
    assert lost == []


async def test_latest_is_the_spooled_one_and_links_reach_across() -> None:
    it = await scene()
    done = await restore(it.world)
    assert (done.report.point, done.content) == (str(it.points[3]), it.contents[3])
    # The vault loses the point the first spooled one follows on.
    del it.world.vault.objects.objects[it.points[1].root(it.system.id)]
    _, lost, _ = await it.listed()
    assert [(one.id, one.where) for one in lost] == [(it.points[1], [CACHE])]
    assert f"restore point {it.points[2]} follows on it" in lost[0].reason


async def test_a_deleted_point_is_neither_listed_nor_lost() -> None:
    it = await scene()
    await it.world.note(it.system, it.points[2], NoteBody(kind="removed", time=1))
    for side in (it.spool, it.world.cache):
        assert side is not None
        side.objects.objects.pop(it.points[2].root(it.system.id))
    points, lost, _ = await it.listed()
    assert it.points[2] not in points
    assert lost == []
    assert (await restore(it.world)).content == it.contents[3]


async def test_points_only_the_spool_could_have_are_not_said_to_be_lost_while_it_is_away() -> None:
    it = await scene()
    places, problems = it.world.places()
    it.spool.objects.away = True
    access = (await open_access(places)).named("web-01")
    catalogue = Catalogue(places, it.newest)
    names = await catalogue.names(access)
    points = await catalogue.load(names, names.roots)
    assert await catalogue.lost(names, points) == []
    said = "\n".join(problems.listed())
    for point in it.points[2:]:
        assert f"restore point {point} is not in the vault: it may lie in the spool, which is not used" in said
    # Without a cache that knows the newest, an older one is not passed off as the latest.
    assert it.world.cache is not None
    for point in it.points[2:]:
        del it.world.cache.objects.objects[point.root(it.system.id)]
    catalogue = Catalogue(places, it.newest)
    with pytest.raises(RestoreError, match=f"the latest restore point {it.points[3]} is not in"):
        await catalogue.find(await catalogue.names(access), "latest", "data")


async def test_with_the_vault_away_the_latest_is_told_to_be_what_is_near() -> None:
    it = await scene()
    it.world.vault.objects.away = True
    places, problems = it.world.places()
    access = (await open_access(places)).named("web-01")
    catalogue = Catalogue(places)
    point = await catalogue.find(await catalogue.names(access), "latest", "data")
    assert (point.id, point.state) == (it.points[3], "spooled")
    assert f"{point.id} is the latest the cache and spool have; the vault may hold a newer" in str(problems.listed())


async def test_every_block_comes_from_the_nearest_place_that_has_it() -> None:
    it = await scene(copy=False)  # the cache has the blocks of the first point only: 1, 2, 3
    done = await restore(it.world, str(it.points[2]))
    report = done.report
    assert (done.content, report.exit_code, report.problems) == (it.contents[2], 0, [])
    assert (report.from_cache, report.from_spool, report.from_vault) == (BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES)
    # What was where it should be was found by its place: no index but the cache's was fetched.
    assert done.mirrors[SPOOL].files == done.mirrors[VAULT].files == {}
    assert (await restore(it.world, str(it.points[0]))).report.from_spool == 0


async def test_all_points_come_back_with_every_set_of_places_that_has_all_blocks() -> None:
    it = await scene(copy=True)
    for at, content in enumerate(it.contents):
        for only in ((CACHE, SPOOL), (SPOOL, VAULT), (CACHE, SPOOL, VAULT)):
            if at < 2 or SPOOL in only:
                done = await restore(it.world, str(it.points[at]), only=only)
                assert (done.content, done.report.exit_code) == (content, 0), (at, only)


async def test_without_the_vault_what_cache_and_spool_lack_is_named() -> None:
    it = await scene()
    assert it.world.cache is not None
    for name in it.packs(it.world.cache):  # its blocks, not its pages
        del it.world.cache.objects.objects[name]
    it.world.vault.objects.away = True
    done = await restore(it.world, str(it.points[3]))
    # 6, 5 and 7 lie in the spool; 4 in the vault alone.
    assert (done.report.exit_code, done.report.holes) == (1, [(1, 1)])
    assert done.report.from_spool == 3 * BLOCK_BYTES
    expected = volume(6, None, 5, 7)
    assert done.content == expected
    assert any("vault" in problem and "away" in problem for problem in done.report.problems)


async def test_without_vault_and_cache_the_spool_gives_what_its_own_runs_name() -> None:
    it = await scene(cache=False)
    await it.backup(volume(6, None, 5, 7))
    it.world.vault.objects.away = True
    # Blocks 0, 2 and 3 were written by spooled runs, block 1 became zero in the last: the map of older runs is away.
    done = await restore(it.world, str(it.points[3]))
    assert (done.content, done.report.holes) == (volume(6, None, 5, 7), [(1, 1)])
    done = await restore(it.world, str(it.points[4]))
    assert (done.content, done.report.exit_code, done.report.holes) == (it.contents[4], 0, [])
    assert any("a page of the block map cannot be read" in problem for problem in done.report.problems)


async def test_a_full_point_in_the_spool_needs_nothing_else() -> None:
    it = Scene(World(cache=False, spool=True))
    it.world.fallback = True
    await it.backup(volume(1, None, 2, tail=77))
    it.world.vault.objects.away = True
    done = await restore(it.world)
    assert (done.content, done.report.exit_code) == (it.contents[0], 0)
    done = await restore(it.world, only=(SPOOL,))
    assert (done.content, done.report.problems) == (it.contents[0], [])


async def test_what_is_damaged_in_the_spool_comes_from_elsewhere_or_is_a_hole() -> None:
    it = await scene(copy=False)
    objects = it.spool.objects.objects
    good = {name: objects[name] for name in it.packs(it.spool)}
    for name, data in good.items():
        objects[name] = data[:100] + bytes(3000) + data[3100:]
    done = await restore(it.world, str(it.points[2]))
    assert (done.report.exit_code, done.report.holes) == (1, [(2, 1)])
    said = "\n".join(done.report.problems)
    assert any(f"spool: object {name} is damaged" in said for name in good)
    # The vault got them already: the upload was interrupted before the root.
    for name, data in good.items():
        it.world.vault.objects.objects[name] = data
    done = await restore(it.world, str(it.points[2]))
    assert (done.content, done.report.exit_code) == (it.contents[2], 0)
    assert any(problem.startswith("spool: object") for problem in done.report.problems)


@pytest.mark.parametrize("kind", ["page", "index"])
async def test_damaged_pages_and_indexes_of_the_spool_are_made_good_from_the_cache(kind: str) -> None:
    it = await scene(copy=True)
    for name in it.packs(it.spool, kind):
        it.spool.objects.objects[name] = flip_a_bit(it.spool.objects.objects[name])
    done = await restore(it.world)
    assert (done.content, done.report.exit_code) == (it.contents[3], 0)


async def test_a_damaged_cache_is_made_good_from_the_spool() -> None:
    it = await scene(copy=True)
    assert it.world.cache is not None
    for name in it.packs(it.world.cache):
        del it.world.cache.objects.objects[name]
    done = await restore(it.world, only=(CACHE, SPOOL, VAULT))
    assert (done.content, done.report.exit_code) == (it.contents[3], 0)
    assert done.report.from_cache == 0
    assert done.report.from_spool > 0


async def test_deltas_in_the_spool_find_their_sources_in_spool_and_vault() -> None:
    it = Scene(World(cache=False, spool=True, delta=True))
    content = bytearray(volume(1, 2))
    await it.backup(bytes(content))
    it.world.fallback = True
    content += block(3)
    await it.backup(bytes(content))
    # Block 0 leans on the vault's record, block 2 on the spool's.
    content[:PART_BYTES] = block(8)[:PART_BYTES]
    content[2 * BLOCK_BYTES : 2 * BLOCK_BYTES + PART_BYTES] = block(9)[:PART_BYTES]
    await it.backup(bytes(content))
    sources = set(it.spool.sources.values())
    assert {str(pack) in it.spool.objects.objects for pack in sources} == {True, False}
    done = await restore(it.world)
    assert (done.content, done.report.exit_code, done.report.problems) == (it.contents[2], 0, [])
    # Without the index as without damage: the careful way, pinned places first.
    for name in it.packs(it.spool, "index"):
        del it.spool.objects.objects[name]
    for side in (it.spool, it.world.vault):
        for name in it.packs(side, "index"):
            del side.objects.objects[name]
    assert (await restore(it.world)).content == it.contents[2]


async def test_nothing_left_to_read_from_is_the_vaults_own_reason() -> None:
    it = await scene(cache=False)
    it.spool.objects.away = it.world.vault.objects.away = True
    with pytest.raises(StoreUnavailable, match="vault memory:vault is away"):
        await restore(it.world)
