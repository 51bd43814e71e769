"""Restores give the exact bytes, from the nearest place, or say which blocks they could not give."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.block import BLOCK_BYTES, blocks_in
from engine.errors import ConfigError, RestoreError, SessionAborted, StoreUnavailable
from engine.note import NoteBody
from engine.opener import RECORDS_MAX
from engine.recovery.catalogue import Point
from engine.recovery.places import CACHE, VAULT, Place, Places, Problems
from engine.recovery.restore import Restore
from engine.recovery.sources import open_source
from tests.engine.recovery.build import (
    MemoryMirror,
    MemoryTarget,
    System,
    World,
    block,
    find,
    open_access,
    restore,
    restore_point,
    volume,
)
from tests.fakes import FakeClock, FaultPlan, FaultyStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def packs_of(world: World, system: System, kind: str = "data", *, cache: bool = False) -> list[str]:
    side = world.cache if cache else world.vault
    assert side is not None
    return sorted(name for name in side.objects.objects if name.startswith(f"{kind}/{system.id.hex()}/"))


async def test_a_volume_comes_back_bit_for_bit_from_the_cache_with_zeros_repeats_and_a_short_end() -> None:
    world = World()
    system = world.system()
    content = volume(1, None, 2, 1, None, 3, tail=777)
    await world.backup(system, {"data": content})
    done = await restore(world)
    assert done.content == content
    assert done.report.exit_code == 0
    assert done.report.problems == []
    assert done.report.holes == []
    # A content that is needed at two block numbers is fetched once.
    assert (done.report.from_cache, done.report.from_vault) == (3 * BLOCK_BYTES + 777, 0)


async def test_a_vault_without_damage_is_read_by_places_alone() -> None:
    world = World(cache=False)
    system = world.system()
    content = volume(*range(12), tail=1)
    await world.backup(system, {"data": content})
    done = await restore(world)
    assert done.content == content
    assert done.report.from_vault == len(content)
    assert done.mirrors[VAULT].files == {}


async def test_an_empty_volume_and_one_of_zeros_come_back() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": b"", "zeros": bytes(3 * BLOCK_BYTES + 5)})
    assert (await restore(world)).content == b""
    done = await restore(world, volume="zeros")
    assert done.content == bytes(3 * BLOCK_BYTES + 5)
    assert done.report.from_cache == done.report.from_vault == 0


async def test_every_point_of_a_volume_that_grows_shrinks_and_changes_comes_back() -> None:
    world = World()
    system = world.system()
    states = [
        volume(1, 2, 3, 4, tail=9),
        volume(1, 2, 30, 4, 5, 6, None, 7),
        volume(1, None),
        volume(1, None, None, 8, tail=100),
        volume(9),
    ]
    points = [await world.backup(system, {"data": state}) for state in states]
    for point, state in zip(points, states, strict=True):
        assert (await restore(world, str(point))).content == state


@st.composite
def histories(draw: st.DrawFn) -> list[bytes]:
    """A few states of one volume: random sizes, zeros, repeats; each state changes some blocks of the one before."""
    states: list[bytes] = []
    seeds: list[int | None] = []
    for _ in range(draw(st.integers(1, 4))):
        count = draw(st.integers(0, 24))
        seeds = (seeds + [None] * 24)[:count]
        for at in draw(st.lists(st.integers(0, max(0, count - 1)), max_size=8)) if count else []:
            seeds[at] = draw(st.none() | st.integers(0, 6))
        states.append(volume(*seeds, tail=draw(st.sampled_from([0, 0, 1, 4096, 65535]))))
    return states


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.data())
def test_whatever_was_backed_up_is_what_is_restored(states: list[bytes], data: st.DataObject) -> None:
    async def scenario() -> None:
        world = World(cache=data.draw(st.booleans()), pack_bytes=data.draw(st.sampled_from([70_000, 400_000])))
        system = world.system()
        points = []
        for state in states:
            base = ("data",) if data.draw(st.booleans()) else ()
            points.append(await world.backup(system, {"data": state}, base=base, copy=data.draw(st.booleans())))
        for point, state in zip(points, states, strict=True):
            done = await restore(world, str(point))
            assert done.content == state
            assert done.report.exit_code == 0
            distinct = {state[at : at + BLOCK_BYTES] for at in range(0, len(state), BLOCK_BYTES)}
            given_bytes = done.report.from_cache + done.report.from_vault
            assert given_bytes == sum(len(one) for one in distinct if any(one))

    anyio.run(scenario)


async def test_what_only_the_vault_has_is_filled_in_from_there() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": volume(1, 2, 3)})
    content = volume(1, 20, 3, 4)
    await world.backup(system, {"data": content}, copy=False)
    done = await restore(world)
    assert done.content == content
    assert (done.report.from_cache, done.report.from_vault) == (2 * BLOCK_BYTES, 2 * BLOCK_BYTES)


async def test_a_damaged_cache_is_reported_and_the_vault_gives_its_blocks() -> None:
    world = World()
    system = world.system()
    content = volume(*range(6))
    await world.backup(system, {"data": content})
    assert world.cache is not None
    first, second, *_ = packs_of(world, system, cache=True)
    objects = world.cache.objects.objects
    objects[first] = objects[first][:100] + bytes(3000) + objects[first][3100:]
    del objects[second]
    done = await restore(world)
    assert done.content == content
    assert done.report.exit_code == 0
    assert done.report.from_vault > 0
    said = "\n".join(done.report.problems)
    assert f"cache: object {first} is damaged" in said
    assert f"cache: object {second} is gone" in said


async def test_blocks_that_no_place_gives_are_holes_and_the_rest_is_restored() -> None:
    world = World(cache=False, pack_bytes=140_000)
    system = world.system()
    content = volume(1, 2, None, 3, 4, 1, 2)
    await world.backup(system, {"data": content})
    gone = str(world.vault.places[system.maps["data"][0][:16]][0])
    del world.vault.objects.objects[gone]
    done = await restore(world)
    assert done.report.exit_code == 1
    assert done.report.holes == [(0, 2), (5, 2)]
    assert done.report.hole_blocks == 4
    assert gone in "\n".join(done.report.problems)
    assert done.content == volume(None, None, None, 3, 4, None, None)


async def test_a_block_that_is_not_at_its_place_is_found_by_its_id() -> None:
    world = World(cache=False)
    system, other = world.system(), world.system("db-02")
    content = volume(1, 2, 3)
    await world.backup(system, {"data": content})
    # The other system sends the same blocks again, as it would had it not seen them; then the first pack goes.
    lost = packs_of(world, system)
    places, world.vault.places = world.vault.places, {}
    await world.backup(other, {"data": content})
    world.vault.places = places
    for name in lost:
        del world.vault.objects.objects[name]
    done = await restore(world)
    assert done.content == content
    assert done.report.exit_code == 0
    assert lost[0] in "\n".join(done.report.problems)
    assert done.mirrors[VAULT].files != {}


async def test_a_cache_that_lost_its_packs_again_and_again_gives_what_it_has_now() -> None:
    """Its index names more places that lead nowhere than are tried for a block."""
    world = World(pack_bytes=140_000)
    system = world.system()
    content = volume(1, 2, 3, 4)
    assert world.cache is not None
    for _ in range(RECORDS_MAX + 4):
        for name in packs_of(world, system, cache=True):
            del world.cache.objects.objects[name]
        world.cache.places = {}
        await world.backup(system, {"data": content})
    done = await restore(world, only=(CACHE,))
    assert done.content == content
    assert (done.report.exit_code, done.report.from_cache) == (0, len(content))


async def test_blocks_another_system_wrote_need_no_index() -> None:
    world = World(cache=False)
    system, other = world.system(), world.system("db-02")
    content = volume(1, 2, 3)
    await world.backup(other, {"data": content})
    await world.backup(system, {"data": content + block(4)})
    done = await restore(world)
    assert done.content == content + block(4)
    assert done.mirrors[VAULT].files == {}


async def deltas(world: World) -> tuple[System, bytes]:
    """Back up three blocks, then change a part of the first two: the vault gets these as deltas."""
    system = world.system()
    content = bytearray(volume(1, 2, 3))
    await world.backup(system, {"data": bytes(content)})
    for at in (5000, BLOCK_BYTES):
        content[at] ^= 0xFF
    await world.backup(system, {"data": bytes(content)})
    assert len(world.vault.sources) == 2
    return system, bytes(content)


async def test_deltas_are_opened_by_places_alone() -> None:
    world = World(cache=False, delta=True)
    _, content = await deltas(world)
    done = await restore(world)
    assert done.content == content
    assert done.report.from_vault == len(content)
    assert done.mirrors[VAULT].files == {}


async def test_a_delta_whose_source_is_gone_is_a_hole_or_comes_from_the_cache() -> None:
    world = World(delta=True, pack_bytes=70_000)
    system, content = await deltas(world)
    source = str(world.vault.sources[system.maps["data"][0][:16]])
    del world.vault.objects.objects[source]
    done = await restore(world, only=(VAULT,))
    assert done.report.exit_code == 1
    assert done.report.holes == [(0, 1)]
    assert source in "\n".join(done.report.problems)
    assert done.content == bytes(BLOCK_BYTES) + content[BLOCK_BYTES:]
    done = await restore(world)
    assert (done.content, done.report.from_vault) == (content, 0)


@pytest.mark.parametrize("only", [(CACHE,), (VAULT,)])
async def test_each_place_alone_is_enough(only: tuple[str, ...]) -> None:
    world = World()
    system = world.system()
    content = volume(*range(5), tail=50)
    await world.backup(system, {"data": content})
    done = await restore(world, only=only)
    assert done.content == content
    assert done.report.problems == []


async def test_a_vault_that_is_away_costs_nothing_while_the_cache_has_all() -> None:
    world = World()
    system = world.system()
    content = volume(*range(5))
    await world.backup(system, {"data": content})
    world.vault.objects.away = True
    done = await restore(world)
    assert done.content == content
    assert done.report.exit_code == 0
    assert "vault memory:vault is not used" in done.report.problems[0]


async def faulty_point(world: World, plan: FaultPlan) -> tuple[Places, Point]:
    """Open the latest point over a vault that fails by plan from then on."""
    assert world.cache is not None
    problems = Problems()
    places = Places(
        [
            Place(CACHE, "memory:cache", world.cache.objects),
            Place(VAULT, "memory:vault", FaultyStore(world.vault.objects, plan)),
        ],
        problems,
    )
    access = (await open_access(places)).named("web-01")
    return places, await find(places, access)


async def test_a_vault_lost_in_the_middle_leaves_holes_and_what_the_cache_has() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": volume(1, 2)})
    content = volume(1, 2, 3, 4)
    await world.backup(system, {"data": content}, copy=False)
    plan = FaultPlan()
    places, point = await faulty_point(world, plan)
    plan.fail("get", 1, 10**9, prefix="data/")
    done = await restore_point(places, point)
    assert done.report.holes == [(2, 2)]
    assert done.content == volume(1, 2, None, None)
    assert places.is_aside(VAULT)


async def test_a_page_that_no_place_gives_makes_its_blocks_holes() -> None:
    world = World(cache=False)
    system = world.system()
    count = 1500
    content = volume(*([1, 2, 3] * (count // 3)))
    await world.backup(system, {"data": content})
    pack = packs_of(world, system, "page")[0]
    data = bytearray(world.vault.objects.objects[pack])
    data[200] ^= 1  # the first page of the pack: the first leaf of ids
    world.vault.objects.objects[pack] = bytes(data)
    done = await restore(world)
    assert done.report.exit_code == 1
    assert done.report.holes == [(0, 1024)]
    assert done.content[1024 * BLOCK_BYTES :] == content[1024 * BLOCK_BYTES :]
    assert pack in "\n".join(done.report.problems)


async def test_a_damaged_page_in_the_cache_is_reported_and_taken_from_the_vault() -> None:
    world = World()
    system = world.system()
    content = volume(*range(3))
    await world.backup(system, {"data": content})
    assert world.cache is not None
    for pack in packs_of(world, system, "page", cache=True):
        data = world.cache.objects.objects[pack]
        world.cache.objects.objects[pack] = data[:100] + bytes(60) + data[160:]
    done = await restore(world)
    assert done.content == content
    assert any(problem.startswith("cache: object page/") for problem in done.report.problems)


async def test_a_page_pack_the_cache_has_no_copy_of_is_no_problem() -> None:
    world = World()
    system = world.system()
    content = volume(*range(3))
    await world.backup(system, {"data": content})
    assert world.cache is not None
    for pack in packs_of(world, system, "page", cache=True):
        del world.cache.objects.objects[pack]
    done = await restore(world)
    assert done.content == content
    assert done.report.problems == []


class FullMirror(MemoryMirror):
    """A mirror on a full disk."""

    def publish(self, name: str, data: memoryview | bytes) -> None:
        raise SessionAborted("no space left on the disk of the mirror")


async def test_a_full_disk_under_the_mirror_costs_the_way_by_id_only() -> None:
    world = World()
    system = world.system()
    content = volume(1, 2, 3)
    await world.backup(system, {"data": content})
    places, _ = world.places()
    point = await find(places, (await open_access(places)).only())
    target = MemoryTarget(len(content))
    source = open_source(places, point, lambda _: FullMirror())
    report = await Restore(point, "data", target, source, FakeClock()).run()
    assert target.content == content
    assert (report.exit_code, report.from_vault) == (0, len(content))
    assert "the index of the cache cannot be used: no space left" in report.problems[0]


async def test_ranges_the_backup_could_not_read_are_named() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": volume(1, 2)}, unreadable={"data": [(4096, 512)]})
    done = await restore(world)
    assert done.report.exit_code == 4
    assert "512 bytes at offset 4096" in done.report.problems[-1]


async def test_holes_a_note_names_are_restored_where_a_place_has_them_after_all() -> None:
    world = World()
    system = world.system()
    content = volume(1, 2)
    point = await world.backup(system, {"data": content})
    await world.note(
        system, point, NoteBody(kind="incomplete", time=1, text="a pack is gone", holes={"data": [(1, 1)]})
    )
    done = await restore(world)
    assert done.content == content
    assert done.report.exit_code == 0
    assert done.report.problems == ["incomplete: a pack is gone"]


async def test_a_target_that_fails_is_abandoned() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": volume(*range(9))})
    places, _ = world.places()
    point = await find(places, (await open_access(places)).named("web-01"))
    target = MemoryTarget(9 * BLOCK_BYTES)
    target.fail_at = 5 * BLOCK_BYTES
    source = open_source(places, point, lambda _: MemoryMirror())
    with pytest.raises(RestoreError, match="the target is full"):
        await Restore(point, "data", target, source, FakeClock()).run()
    assert target.abandoned
    assert not target.finished


async def test_with_no_place_left_the_restore_ends_and_the_target_is_abandoned() -> None:
    world = World(cache=False)
    system = world.system()
    await world.backup(system, {"data": volume(*range(9))})
    places, _ = world.places()
    point = await find(places, (await open_access(places)).named("web-01"))
    world.vault.objects.away = True
    target = MemoryTarget(9 * BLOCK_BYTES)
    source = open_source(places, point, lambda _: MemoryMirror())
    with pytest.raises(StoreUnavailable, match="vault memory:vault is away"):
        await Restore(point, "data", target, source, FakeClock()).run()
    assert target.abandoned


async def test_cancelling_a_restore_abandons_the_target() -> None:
    world = World()
    system = world.system()
    await world.backup(system, {"data": volume(*range(9))}, copy=False)
    plan = FaultPlan()
    places, point = await faulty_point(world, plan)
    reached = plan.stall("get", 1, anyio.Event(), prefix="data/")
    target = MemoryTarget(9 * BLOCK_BYTES)
    source = open_source(places, point, lambda _: MemoryMirror())
    async with anyio.create_task_group() as group:
        group.start_soon(Restore(point, "data", target, source, FakeClock()).run)
        await reached.wait()
        group.cancel_scope.cancel()
    assert target.abandoned
    assert not target.finished


async def test_an_unknown_volume_is_refused_with_the_names_there_are() -> None:
    world = World()
    system = world.system()
    point = await world.backup(system, {"data": volume(1), "home": volume(2)})
    with pytest.raises(ConfigError, match=r"has no volume 'date'; it has: data, home"):
        await restore(world, str(point), "date")


async def test_progress_ends_at_the_volumes_size() -> None:
    world = World()
    system = world.system()
    content = volume(1, None, 1, 2, tail=3)
    await world.backup(system, {"data": content})
    places, _ = world.places()
    point = await find(places, (await open_access(places)).named("web-01"))
    restoring = Restore(
        point, "data", MemoryTarget(len(content)), open_source(places, point, lambda _: MemoryMirror()), FakeClock()
    )
    assert restoring.done_bytes == 0
    await restoring.run()
    assert restoring.done_bytes == len(content)
    assert blocks_in(len(content)) == 5


async def test_many_small_reads_of_one_pack_become_few_requests() -> None:
    world = World(cache=False, pack_bytes=4 << 20)
    system = world.system()
    content = volume(*range(40))
    await world.backup(system, {"data": content})
    problems = Problems()
    store = FaultyStore(world.vault.objects, FaultPlan())
    places = Places([Place(VAULT, "memory:vault", store)], problems)
    point = await find(places, (await open_access(places)).named("web-01"))
    store.calls.clear()
    done = await restore_point(places, point)
    assert done.content == content
    gets = [name for operation, name in store.calls if operation == "get" and name.startswith("data/")]
    assert len(gets) <= 3
    assert [operation for operation, _ in store.calls if operation != "get"] == []
