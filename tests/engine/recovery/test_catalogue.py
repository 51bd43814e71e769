"""The catalogue lists every point there is, damaged ones too, and says what the vault has lost."""

from __future__ import annotations

import pytest

from engine.block import BLOCK_BYTES
from engine.errors import ConfigError, RestoreError, StoreCorrupt, StoreUnavailable
from engine.names import PointId
from engine.note import NoteBody, NoteKind
from engine.recovery.access import SystemAccess
from engine.recovery.catalogue import Catalogue, LostPoint, Names, Point
from engine.recovery.places import CACHE, Places
from engine.state import Newest
from tests.engine.recovery.build import System, World, open_access
from tests.fakes import MemoryStore

pytestmark = pytest.mark.anyio

CONTENT = b"\1" * BLOCK_BYTES


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def opened(world: World, *only: str) -> tuple[Places, SystemAccess]:
    places, _ = world.places(*only)
    return places, (await open_access(places)).named("web-01")


async def listed(
    world: World, *only: str, newest: tuple[bytes, Newest] | None = None
) -> tuple[list[Point], list[LostPoint]]:
    places, access = await opened(world, *only)
    catalogue = Catalogue(places, newest)
    names = await catalogue.names(access)
    points = await catalogue.load(names, names.roots)
    return points, await catalogue.lost(names, points)


async def find(world: World, text: str, volume: str = "data", newest: tuple[bytes, Newest] | None = None) -> Point:
    places, access = await opened(world)
    catalogue = Catalogue(places, newest)
    return await catalogue.find(await catalogue.names(access), text, volume)


async def three(world: World) -> tuple[System, list[PointId]]:
    system = world.system()
    return system, [await world.backup(system, {"data": CONTENT}) for _ in range(3)]


def newest_of(system: System) -> tuple[bytes, Newest]:
    previous = system.previous
    assert previous is not None
    newest = Newest(
        order=previous.order,
        incarnation=previous.incarnation,
        root_hash=previous.hash,
        vault=bytes(16),
        system=bytes(16),
    )
    return system.id, newest


async def note(world: World, system: System, point: PointId, kind: NoteKind, text: str = "") -> str:
    return await world.note(system, point, NoteBody(kind=kind, time=1, text=text))


def stores(world: World) -> list[MemoryStore]:
    return [side.objects for side in world.sides]


def flip(store: MemoryStore, name: str) -> None:
    data = store.objects[name]
    store.objects[name] = data[:80] + bytes([data[80] ^ 1]) + data[81:]


async def test_points_are_listed_newest_first_with_their_volumes_and_places() -> None:
    world = World()
    system, points = await three(world)
    await world.backup(system, {"data": CONTENT, "home": b"\2" * 5}, copy=False)
    found, lost = await listed(world)
    assert [point.id for point in found[1:]] == points[::-1]
    assert [point.where for point in found] == [["vault"], *([["cache", "vault"]] * 3)]
    assert {point.state for point in found} == {"ok"}
    root = found[0].require_root()
    assert [(volume.name, volume.bytes) for volume in root.body.volumes] == [("data", BLOCK_BYTES), ("home", 5)]
    assert lost == []


async def test_a_system_without_points_has_none() -> None:
    world = World()
    world.system()
    assert await listed(world) == ([], [])
    with pytest.raises(ConfigError, match="system 'web-01' has no restore points in vault memory:vault or cache"):
        await find(world, "latest")


async def test_points_of_other_systems_are_not_listed() -> None:
    world = World()
    _, points = await three(world)
    await world.backup(world.system("db-02"), {"data": CONTENT})
    found, _ = await listed(world)
    assert sorted(point.id for point in found) == points


async def test_a_root_that_does_not_open_is_listed_as_damaged_with_its_name() -> None:
    world = World()
    system, points = await three(world)
    for store in stores(world):
        flip(store, points[1].root(system.id))
    found, _ = await listed(world)
    assert [point.state for point in found] == ["ok", "damaged", "ok"]
    assert points[1].root(system.id) in found[1].problems[0]
    with pytest.raises(StoreCorrupt, match=points[1].root(system.id)):
        (await find(world, str(points[1]))).require_root()


async def test_a_root_damaged_in_one_place_is_taken_from_the_other_and_reported() -> None:
    world = World()
    system, points = await three(world)
    flip(world.vault.objects, points[2].root(system.id))
    found, _ = await listed(world)
    assert (found[0].state, found[0].where) == ("ok", ["cache"])
    assert found[0].problems[0].startswith(f"vault: object {points[2].root(system.id)} is damaged")
    assert (await find(world, "latest")).id == points[2]


async def test_a_copy_of_another_size_is_reported() -> None:
    world = World()
    system, points = await three(world)
    assert world.cache is not None
    world.cache.objects.objects[points[0].root(system.id)] += b"!"
    found, _ = await listed(world)
    assert (found[2].state, found[2].where) == ("ok", ["vault"])
    assert found[2].problems[0].startswith(f"cache: object {points[0].root(system.id)} is damaged")


async def test_latest_is_the_newest_point_that_has_the_volume() -> None:
    world = World()
    system, points = await three(world)
    await world.backup(system, {"home": CONTENT})
    assert (await find(world, "latest")).id == points[2]


async def test_latest_is_looked_for_in_the_cache_too() -> None:
    world = World()
    system, points = await three(world)
    del world.vault.objects.objects[points[2].root(system.id)]
    found = await find(world, "latest")
    assert found.id == points[2]
    assert "is not in the vault" in found.problems[0]


async def test_latest_never_falls_back_behind_a_damaged_root() -> None:
    world = World()
    system, points = await three(world)
    for store in stores(world):
        flip(store, points[2].root(system.id))
    with pytest.raises(StoreCorrupt, match=points[2].root(system.id)):
        await find(world, "latest")
    # Named, an older one can still be had.
    assert (await find(world, str(points[1]))).id == points[1]


async def test_latest_never_falls_back_behind_what_local_state_knows() -> None:
    world = World()
    system, points = await three(world)
    for store in stores(world):
        del store.objects[points[2].root(system.id)]
    with pytest.raises(RestoreError, match=f"latest restore point {points[2]} is not in vault"):
        await find(world, "latest", newest=newest_of(system))


async def test_a_latest_of_the_cache_alone_is_said_to_be_one_unless_local_state_knows_better() -> None:
    world = World()
    system, points = await three(world)
    world.vault.objects.away = True
    for newest, said in ((None, 1), (newest_of(system), 0)):
        places, access = await opened(world)
        catalogue = Catalogue(places, newest)
        found = await catalogue.find(await catalogue.names(access), "latest", "data")
        assert found.id == points[2]
        assert sum("may hold a newer one" in problem for problem in places.problems.listed()) == said


async def test_a_removed_point_is_no_latest_and_not_lost() -> None:
    world = World()
    system, points = await three(world)
    await note(world, system, points[2], "removed")
    assert (await find(world, "latest")).id == points[1]
    for store in stores(world):
        del store.objects[points[2].root(system.id)]
    assert (await find(world, "latest", newest=newest_of(system))).id == points[1]
    found, lost = await listed(world, newest=newest_of(system))
    assert [point.id for point in found] == points[1::-1]
    assert lost == []


async def test_a_superseded_point_is_marked_and_its_successor_is_the_latest() -> None:
    world = World()
    system, points = await three(world)
    await note(world, system, points[1], "superseded")
    found, _ = await listed(world)
    assert [point.state for point in found] == ["ok", "superseded", "ok"]
    assert (await find(world, "latest")).id == points[2]


async def test_a_superseded_point_without_a_successor_is_no_latest() -> None:
    world = World()
    system, points = await three(world)
    await note(world, system, points[2], "superseded")
    with pytest.raises(RestoreError, match=f"newest restore point {points[2]} was superseded"):
        await find(world, "latest")


async def test_a_point_is_found_in_the_root_that_stands_for_its_own() -> None:
    world = World()
    system = world.system()
    both = await world.backup(system, {"data": CONTENT, "home": CONTENT})
    point = await world.backup(system, {"data": CONTENT})
    standing = await world.stand_in(system, point)
    later = await world.backup(system, {"data": CONTENT})
    name, newest = point.root(system.id), newest_of(system)
    near, far = stores(world)[1], stores(world)[0]
    for left, state in (("both", "superseded"), ("the cache", "superseded"), ("none", "damaged"), ("nothing", None)):
        if left == "nothing":
            del near.objects[name], far.objects[name]
        elif left != "both":
            flip(far if left == "the cache" else near, name)
        found, lost = await listed(world, newest=newest)
        states = {one.id: one.state for one in found}
        assert states.pop(point, None) == state
        assert states == {both: "ok", standing: "ok", later: "ok"}
        assert lost == []
        for text in (str(point), str(point)[:16]):
            assert (await find(world, text)).id == standing
        assert (await find(world, "latest", "home")).id == both
    for store in stores(world):
        del store.objects[later.root(system.id)]
    assert (await find(world, "latest", "data")).id == standing
    await note(world, system, point, "removed")
    assert (await find(world, "latest", "data")).id == both


async def test_an_incomplete_point_says_which_blocks_it_lacks_and_a_held_one_that_it_is_held() -> None:
    world = World()
    system, points = await three(world)
    await world.note(
        system,
        points[0],
        NoteBody(kind="incomplete", time=1, text="2 packs were gone", holes={"data": [(3, 2), (9, 1)]}),
    )
    await note(world, system, points[1], "held")
    found, _ = await listed(world)
    assert (found[2].state, found[2].holes) == ("incomplete", {"data": [(3, 2), (9, 1)]})
    assert found[2].problems == ["incomplete: 2 packs were gone"]
    assert (found[1].state, found[1].held) == ("ok", True)


async def test_a_damaged_or_forged_note_changes_nothing_and_is_named() -> None:
    world = World()
    system, points = await three(world)
    name = await note(world, system, points[2], "superseded")
    for store in stores(world):
        flip(store, name)
    found = await find(world, "latest")
    assert (found.id, found.state) == (points[2], "ok")
    assert f"object {name} is damaged" in found.problems[0]


async def test_a_point_its_successor_names_and_the_vault_lacks_is_lost() -> None:
    world = World()
    system, points = await three(world)
    for store in stores(world):
        store.objects.pop(points[1].root(system.id))
    _, lost = await listed(world)
    assert [(one.id, one.where) for one in lost] == [(points[1], [])]
    assert f"restore point {points[2]} follows on it" in lost[0].reason


async def test_the_newest_point_that_only_local_state_or_the_cache_knows_is_lost() -> None:
    world = World()
    system, points = await three(world)
    del world.vault.objects.objects[points[2].root(system.id)]
    _, lost = await listed(world)
    assert [(one.id, one.where) for one in lost] == [(points[2], ["cache"])]
    assert world.cache is not None
    del world.cache.objects.objects[points[2].root(system.id)]
    assert (await listed(world))[1] == []
    _, lost = await listed(world, newest=newest_of(system))
    assert [(one.id, one.reason) for one in lost] == [(points[2], "the vault has lost it: local state ends with it")]


async def test_nothing_is_called_lost_while_the_vault_is_away() -> None:
    world = World()
    system, points = await three(world)
    assert world.cache is not None
    del world.cache.objects.objects[points[1].root(system.id)]
    assert (await listed(world, CACHE, newest=newest_of(system)))[1] == []


async def test_a_root_put_in_anothers_stead_is_told_by_its_successor() -> None:
    world = World()
    system, points = await three(world)
    system.order, system.previous = points[0].order, None
    assert await world.backup(system, {"data": CONTENT + b"other"}) == points[1]
    _, lost = await listed(world)
    assert [one.id for one in lost] == [points[1]]
    assert "the vault holds another root in its stead" in lost[0].reason


@pytest.mark.parametrize("text", ["", "abc", "zzzz", "latest!", "0000018b/../x"])
async def test_what_is_no_id_is_refused(text: str) -> None:
    world = World()
    await three(world)
    with pytest.raises(ConfigError, match="is no restore point"):
        await find(world, text)


async def test_an_unambiguous_prefix_is_enough_and_an_ambiguous_one_is_refused() -> None:
    world = World()
    _, points = await three(world)
    assert (await find(world, str(points[1])[:16])).id == points[1]
    assert (await find(world, str(points[1]).upper())).id == points[1]
    with pytest.raises(ConfigError, match=f"means 3 restore points: .*{points[2]}"):
        await find(world, str(points[1])[:8])
    with pytest.raises(ConfigError, match=r"has no restore point 'ffff' in vault memory:vault or cache memory:cache"):
        await find(world, "ffff")


async def test_stray_objects_among_the_roots_are_passed_over() -> None:
    world = World()
    system, points = await three(world)
    world.vault.objects.objects[f"root/{system.id.hex()}/notes.txt"] = b"hello"
    found, _ = await listed(world)
    assert len(found) == 3
    assert points


async def test_a_place_that_goes_away_while_listing_is_put_aside() -> None:
    world = World()
    await three(world)
    places, access = await opened(world)
    world.vault.objects.away = True
    catalogue = Catalogue(places)
    names = await catalogue.names(access)
    found = await catalogue.load(names, names.roots)
    assert [point.where for point in found] == [["cache"]] * 3
    assert world.cache is not None
    world.cache.objects.away = True
    with pytest.raises(StoreUnavailable, match="vault memory:vault is away"):
        await catalogue.names(access)


async def test_names_say_what_the_listing_holds() -> None:
    world = World(cache=False)
    system, points = await three(world)
    places, access = await opened(world)
    names: Names = await Catalogue(places).names(access)
    assert sorted(names.roots) == points
    assert names.notes == {}
    assert system.id == access.system
