"""The retry stage: what is tried again, how often, how long, and what passes at once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import pytest

from engine.block import Bytes
from engine.errors import ObjectMissing, StoreCorrupt, StoreError, StoreRejected, StoreThrottled, StoreUnavailable
from engine.liveness import moved
from engine.pipeline.retry import FailedTry, RetryingStore
from engine.policy import CacheErrorPolicy, RetryPolicy
from engine.ports import ObjectInfo, ObjectStore
from tests.engine.pipeline.fakes_pipeline import LoopClock, run
from tests.fakes import FakeClock, FaultPlan, FaultyStore, MemoryStore

OPERATIONS: dict[str, Callable[[RetryingStore], Awaitable[object]]] = {
    "put": lambda store: store.put("a", b"newer"),
    "get": lambda store: store.get("a"),
    "stat": lambda store: store.stat("a"),
    "delete": lambda store: store.delete("a"),
    "list": lambda store: listed(store),
}


class Highest(random.Random):
    """Jitter without chance: always the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def listed(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.name async for info in store.list(prefix)]


def stage(
    inner: ObjectStore, policy: RetryPolicy | None = None, log: Callable[[FailedTry], None] | None = None
) -> RetryingStore:
    return RetryingStore(inner, policy or RetryPolicy(), LoopClock(), Highest(), log)


def stored(plan: FaultPlan | None = None) -> FaultyStore:
    memory = MemoryStore()
    memory.objects["a"] = b"old"
    return FaultyStore(memory, plan or FaultPlan())


def calls(store: FaultyStore, operation: str) -> int:
    return sum(call == operation for call, _ in store.calls)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_unavailable_store_is_tried_again_until_it_answers(operation: str) -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail(operation, 1, 3))  # type: ignore[arg-type]
        await OPERATIONS[operation](stage(inner))
        assert calls(inner, operation) == 4

    run(scenario)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_after_the_last_retry_the_failure_passes(operation: str) -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail(operation, 1, 99))  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable, match="by plan"):
            await OPERATIONS[operation](stage(inner, RetryPolicy(retries_max=2)))
        assert calls(inner, operation) == 3

    run(scenario)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "error",
    [StoreRejected("no right"), StoreCorrupt("a", "torn"), ObjectMissing("a"), StoreError("too new")],
    ids=lambda error: type(error).__name__,
)
def test_everything_but_unavailable_passes_at_once(operation: str, error: StoreError) -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail(operation, 1, 99, error=lambda: error))  # type: ignore[arg-type]
        with pytest.raises(type(error)) as caught:
            await OPERATIONS[operation](stage(inner))
        assert caught.value is error
        assert calls(inner, operation) == 1

    run(scenario)


def test_what_is_no_error_of_a_store_passes_at_once() -> None:
    class Broken(MemoryStore):
        async def put(self, name: str, data: Bytes) -> None:
            raise TimeoutError("from a library nobody translated")

    async def scenario() -> None:
        with pytest.raises(TimeoutError, match="nobody translated"):
            await stage(Broken()).put("a", b"")

    run(scenario)


def test_a_lost_acknowledgement_costs_one_more_put_and_nothing_else() -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().lose_acknowledgement("put", 1))
        await stage(inner).put("b", b"content")
        assert await inner.inner.get("b") == b"content"
        assert calls(inner, "put") == 2

    run(scenario)


def test_waits_double_up_to_a_bound_with_full_jitter() -> None:
    async def waits(jitter: random.Random) -> list[float]:
        clock = FakeClock()
        inner = stored(FaultPlan().fail("put", 1, 99))
        policy = RetryPolicy(retries_max=7, retry_within_s=1000, backoff_s=1, backoff_max_s=16)
        with pytest.raises(StoreUnavailable):
            await RetryingStore(inner, policy, clock, jitter).put("a", b"")
        return clock.slept

    assert run(lambda: waits(Highest())) == [1, 2, 4, 8, 16, 16, 16]
    drawn = run(lambda: waits(random.Random(5)))
    assert all(0 <= wait <= bound for wait, bound in zip(drawn, [1, 2, 4, 8, 16, 16, 16], strict=True))
    assert len(set(drawn)) == 7
    assert run(lambda: waits(random.Random(5))) == drawn


def test_no_retry_begins_after_the_window_and_the_last_one_is_at_its_end() -> None:
    async def scenario() -> None:
        began: list[float] = []

        class Away(MemoryStore):
            async def put(self, name: str, data: Bytes) -> None:
                began.append(anyio.current_time())
                raise StoreUnavailable("away")

        with pytest.raises(StoreUnavailable):
            await stage(Away(), RetryPolicy(retries_max=99, retry_within_s=20)).put("a", b"")
        assert began == [0, 1, 3, 7, 15, 20]

    run(scenario)


def test_being_asked_to_slow_down_is_no_failure_until_it_lasts() -> None:
    def slower() -> StoreThrottled:
        return StoreThrottled("slow down")

    async def scenario() -> None:
        inner = stored(FaultPlan().fail("put", 1, 4, slower).fail("put", 5, 5))
        await stage(inner, RetryPolicy(retries_max=1, session_retries_max=1)).put("b", b"x")
        assert calls(inner, "put") == 6
        inner = stored(FaultPlan().fail("put", 1, 4, slower).fail("put", 5, 6))
        with pytest.raises(StoreUnavailable, match="by plan"):
            await stage(inner, RetryPolicy(retries_max=1)).put("b", b"x")
        began = anyio.current_time()
        inner = stored(FaultPlan().fail("put", 1, 99, slower))
        with pytest.raises(StoreThrottled):
            await stage(inner, RetryPolicy(retries_max=1, retry_within_s=60)).put("b", b"x")
        assert anyio.current_time() - began == 60

    run(scenario)


def test_a_put_that_succeeds_keeps_the_window_open_for_the_others() -> None:
    async def scenario(others: bool) -> int:
        inner = stored(FaultPlan().fail("put", 1, 99, prefix="bad"))
        store = stage(inner, RetryPolicy(retries_max=8, retry_within_s=20, backoff_s=8, backoff_max_s=8))

        async def others_progress() -> None:
            while True:
                await anyio.sleep(5)
                await store.put("good", b"")

        async with anyio.create_task_group() as group:
            if others:
                group.start_soon(others_progress)
            with pytest.raises(StoreUnavailable):
                await store.put("bad", b"")
            group.cancel_scope.cancel()
        return [name for _, name in inner.calls].count("bad")

    assert run(lambda: scenario(others=True)) == 9
    assert run(lambda: scenario(others=False)) == 4


def test_reading_that_succeeds_says_nothing_about_writing() -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail("put", 1, 99))
        store = stage(inner, RetryPolicy(retries_max=99, retry_within_s=20, backoff_s=8, backoff_max_s=8))

        async def reads() -> None:
            while True:
                await anyio.sleep(5)
                await store.get("a")

        async with anyio.create_task_group() as group:
            group.start_soon(reads)
            with pytest.raises(StoreUnavailable):
                await store.put("b", b"")
            group.cancel_scope.cancel()
        assert calls(inner, "put") == 4

    run(scenario)


def test_idle_time_does_not_count_against_the_window() -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail("put", 2, 3))
        store = stage(inner, RetryPolicy(retry_within_s=20))
        await store.put("b", b"1")
        await anyio.sleep(3600)
        await store.put("c", b"2")
        assert calls(inner, "put") == 4

    run(scenario)


def test_the_retries_of_a_session_are_counted_over_all_calls() -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail("put", 1, 2, prefix="b").fail("put", 1, 99, prefix="c"))
        store = stage(inner, CacheErrorPolicy(retries_max=5).retry())
        await store.put("b", b"")
        assert store.retries == 2
        with pytest.raises(StoreUnavailable):
            await store.put("c", b"")
        assert store.retries == 5
        assert calls(inner, "put") == 3 + 4
        with pytest.raises(StoreUnavailable):
            await store.put("c", b"")
        assert calls(inner, "put") == 3 + 4 + 1

    run(scenario)


def test_a_call_that_moves_nothing_has_failed_and_is_tried_again() -> None:
    async def scenario() -> None:
        plan = FaultPlan()
        plan.stall("put", 1, until=anyio.Event())
        inner = stored(plan)
        await stage(inner).put("b", b"content")
        assert anyio.current_time() == 30 + 1
        assert await inner.inner.get("b") == b"content"

    run(scenario)


def test_a_store_that_moves_nothing_is_named_with_the_time_waited() -> None:
    async def scenario() -> None:
        plan = FaultPlan()
        for call in range(1, 9):
            plan.stall("put", call, until=anyio.Event())
        with pytest.raises(StoreUnavailable, match="put of b: the store moved nothing for 30 s"):
            await stage(stored(plan)).put("b", b"")
        # Two tries of 30 s are all that fits into the window of 60 s.
        assert anyio.current_time() == 61

    run(scenario)


def test_a_slow_put_that_keeps_moving_is_well() -> None:
    class Thin(MemoryStore):
        puts = 0

        async def put(self, name: str, data: Bytes) -> None:
            self.puts += 1
            for _ in range(20):
                await anyio.sleep(29)
                moved()

    async def scenario() -> None:
        inner = Thin()
        await stage(inner).put("b", b"")
        assert inner.puts == 1
        assert anyio.current_time() == 580

    run(scenario)


def test_being_cancelled_from_outside_is_no_failure_of_the_store() -> None:
    async def scenario() -> None:
        plan = FaultPlan()
        plan.stall("put", 1, until=anyio.Event())
        inner = stored(plan)
        with anyio.move_on_after(10) as scope:
            await stage(inner).put("b", b"")
        assert scope.cancelled_caught
        assert calls(inner, "put") == 1

    run(scenario)


def test_a_probe_is_one_try() -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail("probe", 1))
        store = stage(inner)
        with pytest.raises(StoreUnavailable):
            await store.probe()
        assert calls(inner, "probe") == 1
        await store.probe()

    run(scenario)


def test_a_flush_is_one_try_with_a_bound_of_its_own() -> None:
    async def scenario() -> None:
        inner = stored(FaultPlan().fail("flush", 1))
        plan = inner.plan
        store = stage(inner)
        with pytest.raises(StoreUnavailable, match="by plan"):
            await store.flush()
        assert calls(inner, "flush") == 1
        plan.stall("flush", 2, until=anyio.Event())
        with pytest.raises(StoreUnavailable, match="flush: the store moved nothing for 300 s"):
            await store.flush()
        await store.flush()

    run(scenario)


def test_a_flush_reaches_a_barrier_and_is_nothing_without_one() -> None:
    class Plain:
        """An ObjectStore that is durable at once."""

        def __getattr__(self, name: str) -> object:
            assert name == "flush"
            raise AttributeError(name)

    async def scenario() -> None:
        memory = MemoryStore(barrier=True)
        store = stage(memory)
        await store.put("a", b"1")
        assert memory.objects == {}
        await store.flush()
        assert memory.objects == {"a": b"1"}
        await stage(Plain()).flush()  # type: ignore[arg-type]

    run(scenario)


def test_a_listing_passes_a_failure_once_rows_came_rather_than_repeat_them() -> None:
    class Torn(MemoryStore):
        lists = 0

        async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
            self.lists += 1
            yield ObjectInfo("a", 1)
            raise StoreUnavailable("in the middle")

    async def scenario() -> None:
        inner = Torn()
        rows = stage(inner).list("")
        assert (await anext(rows)).name == "a"
        with pytest.raises(StoreUnavailable, match="in the middle"):
            await anext(rows)
        assert inner.lists == 1

    run(scenario)


def test_a_listing_gives_every_row_with_its_prefix_and_position_and_stalls_are_bounded() -> None:
    class Hanging(MemoryStore):
        async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
            async for info in super().list(prefix, after):
                yield info
            await anyio.sleep_forever()

    async def scenario() -> None:
        memory = MemoryStore()
        memory.objects = {f"x/{n}": b"" for n in range(5)} | {"y": b""}
        rows = [info.name async for info in stage(memory).list("x/", after="x/1")]
        assert rows == ["x/2", "x/3", "x/4"]
        assert [info async for info in stage(memory).list("z")] == []
        with pytest.raises(StoreUnavailable, match="list of q: the store moved nothing"):
            await listed(stage(Hanging(), RetryPolicy(retries_max=0)), "q")
        began, hanging = anyio.current_time(), Hanging()
        hanging.objects = {"q/1": b""}
        with pytest.raises(StoreUnavailable, match="list of q: the store moved nothing"):
            await listed(stage(hanging), "q")
        assert anyio.current_time() == began + 30

    run(scenario)


def test_a_listing_that_is_left_early_is_closed() -> None:
    closed = []

    class Watched(MemoryStore):
        async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
            try:
                for n in range(5):
                    yield ObjectInfo(str(n), 1)
            finally:
                closed.append(True)

    async def scenario() -> None:
        rows = stage(Watched()).list("")
        assert (await anext(rows)).name == "0"
        await rows.aclose()  # type: ignore[attr-defined]
        assert closed == [True]

    run(scenario)


def test_the_log_hears_of_every_failure_that_will_be_tried_again() -> None:
    async def scenario() -> None:
        heard: list[FailedTry] = []
        inner = stored(FaultPlan().fail("put", 1, 99))
        with pytest.raises(StoreUnavailable):
            await stage(inner, RetryPolicy(retries_max=2), heard.append).put("b", b"")
        assert [(tried.operation, tried.name, tried.retry, tried.wait_s) for tried in heard] == [
            ("put", "b", 1, 1.0),
            ("put", "b", 2, 2.0),
        ]
        assert str(heard[0].error) == "failed by plan"

    run(scenario)
