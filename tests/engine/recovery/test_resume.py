"""Restores that are interrupted and run again: what was done is not done again, and the bytes are the same."""

from __future__ import annotations

import pytest

from engine.block import BLOCK_BYTES
from engine.errors import RestoreError
from engine.recovery import restore as restore_module
from engine.recovery.catalogue import Point
from engine.recovery.places import Places
from engine.recovery.restore import Restore, RestoreReport
from engine.recovery.sources import open_source
from tests.engine.recovery.build import MemoryMirror, MemoryTarget, World, find, open_access, volume
from tests.fakes import FakeClock

pytestmark = pytest.mark.anyio
BLOCKS = 23


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_module, "WINDOW_BLOCKS", 4)


async def opened(world: World, name: str = "latest") -> tuple[Places, Point]:
    places, _ = world.places()
    return places, await find(places, (await open_access(places)).named("web-01"), name)


async def run(world: World, target: MemoryTarget, point_name: str = "latest") -> RestoreReport:
    places, point = await opened(world, point_name)
    source = open_source(places, point, lambda _: MemoryMirror())
    return await Restore(point, "data", target, source, FakeClock()).run()


async def backed_up(world: World, *numbers: int) -> bytes:
    content = volume(*numbers)
    await world.backup(world.system(), {"data": content})
    return content


def again(target: MemoryTarget) -> MemoryTarget:
    """Return the same target as the next restore finds it."""
    target.fail_at, target.abandoned, target.written = None, False, 0
    return target


@pytest.mark.parametrize("fail_at", range(0, BLOCKS, 3))
async def test_what_was_kept_is_not_done_again(fail_at: int) -> None:
    world = World()
    content = await backed_up(world, *range(1, BLOCKS + 1))
    target = MemoryTarget(len(content))
    target.fail_at = fail_at * BLOCK_BYTES
    with pytest.raises(RestoreError, match="the target is full"):
        await run(world, target)
    done = fail_at // 4 * 4
    report = await run(world, again(target))
    assert target.content == content
    assert target.finished
    assert (report.resumed, report.exit_code) == (done * BLOCK_BYTES, 0)
    assert target.written == len(content) - done * BLOCK_BYTES
    assert report.from_cache + report.from_vault == target.written
    assert not target.restarted


async def test_a_restore_in_one_window_keeps_nothing() -> None:
    world = World()
    content = await backed_up(world, 1, 2, 3)
    target = MemoryTarget(len(content))
    report = await run(world, target)
    assert (target.kept, report.resumed) == ([], 0)


async def test_holes_found_before_the_interruption_are_told_after_it() -> None:
    world = World(cache=False)
    system = world.system()
    content = volume(*range(1, BLOCKS + 1))
    await world.backup(system, {"data": content})
    for name in [name for name in world.vault.objects.objects if name.startswith("data/")]:
        data = bytearray(world.vault.objects.objects[name])
        data[64 + 2 * BLOCK_BYTES + 2000] ^= 1
        world.vault.objects.objects[name] = bytes(data)
    whole = MemoryTarget(len(content))
    expected = await run(world, whole)
    assert expected.hole_blocks > 0
    target = MemoryTarget(len(content))
    target.fail_at = 17 * BLOCK_BYTES
    with pytest.raises(RestoreError):
        await run(world, target)
    report = await run(world, again(target))
    assert report.resumed
    assert (report.holes, report.hole_blocks, report.exit_code) == (expected.holes, expected.hole_blocks, 1)
    assert target.content == whole.content


async def test_another_point_begins_anew() -> None:
    world = World()
    system = world.system()
    first = volume(*range(1, BLOCKS + 1))
    await world.backup(system, {"data": first})
    target = MemoryTarget(len(first))
    target.fail_at = 9 * BLOCK_BYTES
    with pytest.raises(RestoreError):
        await run(world, target)
    second = volume(*range(101, BLOCKS + 101))
    await world.backup(system, {"data": second})
    report = await run(world, again(target))
    assert target.restarted
    assert report.resumed == 0
    assert target.content == second


@pytest.mark.parametrize("kept", [b"\xc1", b"garbage", b"\x96\x01\xc4\x00\xa4data\xce\xff\xff\xff\xff\x90\x00"])
async def test_what_makes_no_sense_is_not_believed(kept: bytes) -> None:
    world = World()
    content = await backed_up(world, *range(1, BLOCKS + 1))
    target = MemoryTarget(len(content))
    target.kept = [kept]
    report = await run(world, target)
    assert target.restarted
    assert report.resumed == 0
    assert target.content == content
