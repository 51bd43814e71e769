"""Faults strike when the plan says, and the fake clock moves when it is told."""

from __future__ import annotations

import anyio
import pytest

from engine.errors import SourceError, StoreRejected, StoreUnavailable
from tests.fakes import FakeClock, FaultPlan, FaultyStore, MemoryStore, MemoryVolume

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_third_to_the_fifth_put_fail_and_leave_nothing() -> None:
    store = FaultyStore(MemoryStore(), FaultPlan().fail("put", 3, 5))
    outcomes = []
    for number in range(7):
        try:
            await store.put(f"a/{number}", b"x")
            outcomes.append(True)
        except StoreUnavailable:
            outcomes.append(False)
    assert outcomes == [True, True, False, False, False, True, True]
    assert [info.name async for info in store.list("a/")] == ["a/0", "a/1", "a/5", "a/6"]


async def test_a_fault_may_concern_some_names_only() -> None:
    plan = FaultPlan().fail("put", 2, error=lambda: StoreRejected("full"), prefix="root/")
    store = FaultyStore(MemoryStore(), plan)
    await store.put("data/1", b"x")
    await store.put("root/1", b"x")
    await store.put("data/2", b"x")
    with pytest.raises(StoreRejected):
        await store.put("root/2", b"x")


async def test_a_lost_acknowledgement_is_applied() -> None:
    store = FaultyStore(MemoryStore(), FaultPlan().lose_acknowledgement("put", 1))
    with pytest.raises(StoreUnavailable):
        await store.put("a/1", b"x")
    assert await store.get("a/1") == b"x"


async def test_a_stalled_call_waits_for_its_event() -> None:
    go_on, plan, inner = anyio.Event(), FaultPlan(), MemoryStore()
    reached = plan.stall("put", 1, until=go_on)
    store = FaultyStore(inner, plan)
    async with anyio.create_task_group() as group:
        group.start_soon(store.put, "a/1", b"x")
        await reached.wait()
        assert inner.objects == {}
        go_on.set()
    assert inner.objects == {"a/1": b"x"}


async def test_a_corrupted_get_differs_in_one_bit_once() -> None:
    store = FaultyStore(MemoryStore(), FaultPlan().corrupt("get", 1))
    await store.put("a/1", bytes(9))
    damaged = await store.get("a/1")
    assert sum(byte.bit_count() for byte in damaged) == 1
    assert await store.get("a/1") == bytes(9)


async def test_an_automatic_clock_moves_by_sleeps() -> None:
    clock = FakeClock(now_ms=1000)
    await clock.sleep(2.5)
    assert (clock.now_ms(), clock.monotonic(), clock.slept) == (3500, 2.5, [2.5])


async def test_a_manual_clock_wakes_sleepers_when_they_are_due() -> None:
    clock, woken = FakeClock(manual=True), list[float]()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with anyio.create_task_group() as group:
        for seconds in (3.0, 1.0):
            group.start_soon(sleep, seconds)
        await anyio.wait_all_tasks_blocked()
        clock.advance(2.0)
        await anyio.wait_all_tasks_blocked()
        assert (woken, clock.sleepers) == ([1.0], 1)
        clock.advance(1.0)
    assert woken == [1.0, 3.0]


def test_a_memory_volume_fails_where_it_is_bad_and_where_it_ends() -> None:
    volume = MemoryVolume("v", bytearray(b"0123456789"), extents=[(0, 2), (6, 4)], bad=[(4, 2)])
    buffer = memoryview(bytearray(4))
    volume.read_into(0, buffer)
    assert bytes(buffer) == b"0123"
    for offset in (2, 5, 7):
        with pytest.raises(SourceError):
            volume.read_into(offset, buffer)
    assert list(volume.data_extents(1, 8)) == [(1, 1), (6, 2)]
