"""Calls that hang are given up in time, their threads left behind, bounded, and harmless when they wake up."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future

import anyio
import anyio.to_thread
import pytest

from adapters.stores.calls import BEAT_S, Abandoned, Call, DaemonThreads, WatchedThreads
from engine.errors import StoreUnavailable
from engine.liveness import StallBound, moved

pytestmark = pytest.mark.anyio
SOON_S = 0.05


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_call_returns_what_its_function_returns() -> None:
    assert await WatchedThreads("folder x", 2).run(5, lambda call: threading.current_thread().daemon)


async def test_a_call_raises_what_its_function_raises() -> None:
    def fail(call: Call) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await WatchedThreads("folder x", 2).run(5, fail)


async def test_a_call_without_progress_is_given_up_and_its_thread_told() -> None:
    begun, wake, ended = threading.Event(), threading.Event(), threading.Event()

    def hang(call: Call) -> None:
        begun.set()
        wake.wait()
        try:
            call.progress()
        except Abandoned:
            ended.set()
            raise

    while not begun.is_set():  # a call whose thread did not come to begin is given up before it
        with pytest.raises(StoreUnavailable, match=r"folder x did not answer for 0\.05 s"):
            await WatchedThreads("folder x", 2).run(SOON_S, hang)
    wake.set()
    assert await anyio.to_thread.run_sync(ended.wait, 10)


class TurnedClock:
    """A monotonic clock that only the test turns on, and that tells when the event loop has looked at it."""

    def __init__(self) -> None:
        self.now_s, self.looked = 0.0, threading.Event()
        self._loop = threading.get_ident()

    def monotonic(self) -> float:
        if threading.get_ident() == self._loop:
            self.looked.set()
        return self.now_s


async def test_progress_keeps_a_long_call_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = TurnedClock()
    monkeypatch.setattr("adapters.stores.calls.time", clock)

    def crawl(call: Call) -> str:
        for _ in range(3):
            clock.now_s += 0.6
            clock.looked.clear()
            assert clock.looked.wait(30)
            call.progress()
        return "done"

    assert await WatchedThreads("folder x", 2).run(1, crawl) == "done"


async def test_a_cancelled_call_waits_until_its_thread_has_noticed() -> None:
    begun, noticed = threading.Event(), list[bool]()

    def work(call: Call) -> None:
        begun.set()
        try:
            while True:
                call.progress()
        except Abandoned:
            noticed.append(True)
            raise

    async with anyio.create_task_group() as group:
        group.start_soon(WatchedThreads("folder x", 2).run, 60, work)
        await anyio.to_thread.run_sync(begun.wait)
        group.cancel_scope.cancel()
    assert noticed == [True]


async def test_when_all_threads_hang_further_calls_are_unavailable_and_not_stuck() -> None:
    wake, threads = threading.Event(), WatchedThreads("folder x", 2)
    try:
        for _ in range(4):
            with pytest.raises(StoreUnavailable):
                await threads.run(SOON_S, lambda call: wake.wait())
    finally:
        wake.set()
    assert await threads.run(5, lambda call: "again") == "again"


async def test_waiting_for_a_free_thread_is_bounded_too() -> None:
    wake, threads = threading.Event(), WatchedThreads("folder x", 1)
    outcomes: list[str] = []

    async def run(name: str) -> None:
        try:
            await threads.run(SOON_S, lambda call: wake.wait())
        except StoreUnavailable:
            outcomes.append(name)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(run, "first")
            group.start_soon(run, "second")
    finally:
        wake.set()
    assert sorted(outcomes) == ["first", "second"]


def test_no_more_threads_run_than_allowed_and_all_jobs_are_done() -> None:
    threads = DaemonThreads("test", 3)
    lock, running, most = threading.Lock(), 0, 0

    def job(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1
        return number

    futures: list[Future[int]] = [threads.submit(job, number) for number in range(100)]
    assert [future.result(30) for future in futures] == list(range(100))
    assert 1 <= most <= 3


def test_a_pool_without_threads_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        DaemonThreads("test", 0)


async def test_progress_of_a_call_is_told_to_the_bound_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    told = threading.Event()

    def tell() -> None:
        moved()
        told.set()

    monkeypatch.setattr("adapters.stores.calls.moved", tell)

    def crawl(call: Call) -> str:
        for _ in range(3):
            told.clear()
            call.progress()
            assert told.wait(30)
        return "done"

    with StallBound(60) as bound:
        assert await WatchedThreads("folder x", 2).run(60, crawl) == "done"
    assert not bound.stalled


async def test_a_call_that_hangs_is_told_to_end_what_it_waits_on() -> None:
    wake = threading.Event()

    def hang(call: Call) -> bool:
        call.waits_on(wake.set)
        return wake.wait(60)

    with pytest.raises(StoreUnavailable):
        await WatchedThreads("share x", 2).run(SOON_S, hang)
    assert await anyio.to_thread.run_sync(wake.wait, 10)


async def test_what_a_call_begins_to_wait_on_after_it_was_given_up_is_ended_at_once() -> None:
    call, ended = Call(), list[str]()
    call.cut()
    call.waits_on(lambda: ended.append("at once"))
    assert ended == ["at once"]


async def test_waiting_for_a_turn_is_no_stall_while_others_get_on_and_one_while_they_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, free, wake = WatchedThreads("share x", 2), anyio.Semaphore(0), threading.Event()
    loop, waiting, told = asyncio.get_running_loop(), anyio.get_current_task().id, threading.Event()

    def tell() -> None:
        moved()
        if anyio.get_current_task().id == waiting:
            told.set()

    monkeypatch.setattr("adapters.stores.calls.moved", tell)

    def crawl(call: Call) -> None:
        while not told.wait(0.01):  # until it is told in the task that waits for its turn
            call.progress()
        loop.call_soon_threadsafe(free.release)

    with StallBound(60) as bound:
        async with anyio.create_task_group() as group:
            group.start_soon(threads.run, 60, crawl)
            await threads.turn(free)
    assert told.is_set()
    assert not bound.stalled
    with StallBound(BEAT_S * 2) as bound:
        async with anyio.create_task_group() as group:
            group.start_soon(threads.run, 60, lambda call: call.waits_on(wake.set) or wake.wait(60))
            await threads.turn(free)
    assert bound.stalled
