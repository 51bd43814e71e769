"""A lane's rules, one by one (the top of engine/pipeline/lane.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import anyio
import pytest

from engine.errors import StoreError, StoreRejected, StoreUnavailable
from engine.pack import FinishedPack, PackBuilder
from engine.pipeline.lane import Lane, LaneResult
from engine.pipeline.queue import QueueAborted, TransmissionQueue
from engine.policy import MIB, CacheErrorPolicy, LanePolicy, SlowPolicy
from tests.engine.pipeline.fakes_pipeline import (
    KEYS,
    LoopClock,
    StoreSink,
    at_once,
    bytes_for,
    held,
    new_pack,
    number_of,
    numbers_in,
    run,
    settle,
    slot_of,
)
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

VAULT, CACHE, BOTH = 1, 2, 3
PACK_RECORDS = 3
TWO_PACKS = LanePolicy(pack_bytes=64 * MIB)  # two packs of this size are all that may be in memory
WARN = CacheErrorPolicy("warn", retries_max=0)


class Bench:
    """One queue and what happens to one lane at it."""

    def __init__(self, plan: FaultPlan | None = None, slots_max: int = 100) -> None:
        self.plan = plan or FaultPlan()
        self.memory = MemoryStore(barrier=True)
        self.store = FaultyStore(self.memory, self.plan)
        self.sink = StoreSink(self.store)
        self.queue = self.new_queue(slots_max)
        self.acked: list[int] = []
        self.dropped: list[int] = []

    def new_queue(self, slots_max: int = 100) -> TransmissionQueue:
        return TransmissionQueue(bytes_for(slots_max), ("vault", "cache"), LoopClock())

    def lane(
        self,
        name: str = "vault",
        errors: CacheErrorPolicy | None = None,
        policy: LanePolicy = TWO_PACKS,
        slow: SlowPolicy | None = None,
    ) -> Lane:
        return Lane(
            name,
            self.sink,
            new_pack(PACK_RECORDS),
            policy,
            LoopClock(),
            errors=errors,
            slow=slow,
            on_ack=lambda finished: self.acked.extend(numbers_in(finished)),
            on_drop=lambda ids: self.dropped.extend(number_of(gone) for gone in ids),
            in_thread=at_once,
        )

    async def feed(self, count: int, lanes: int = BOTH, first: int = 0, queue: TransmissionQueue | None = None) -> None:
        queue = queue or self.queue
        for number in range(first, first + count):
            await queue.put([slot_of(number, lanes)])
        queue.close()

    @property
    def durable(self) -> set[str]:
        return set(self.memory.objects)


async def run_with(lane: Lane, queue: TransmissionQueue, *others: Callable[[], object]) -> LaneResult:
    """Run a lane beside other coroutine functions."""
    async with anyio.create_task_group() as group:
        for other in others:
            group.start_soon(other)  # type: ignore[arg-type]
        return await lane.run(queue)
    raise AssertionError


async def take_all(queue: TransmissionQueue, lane: str, seen: list[int]) -> None:
    while slots := await queue.get(lane, 7):
        queue.took(lane, slots)
        seen.extend(number_of(slot.id) for slot in slots)


def test_everything_taken_is_put_once_flushed_and_counted() -> None:
    async def scenario() -> None:
        bench = Bench()
        result = await run_with(bench.lane(), bench.queue, lambda: bench.feed(8, VAULT))
        assert bench.acked == bench.sink.numbers == list(range(8))
        assert bench.durable == {str(pack.name) for pack in bench.sink.acknowledged}
        bytes_put = sum(len(pack.data) for pack in bench.sink.acknowledged)
        assert result == LaneResult(packs=3, records=8, bytes_put=bytes_put, dropped=0, gave_up=None)
        assert held(bench.queue) == 0

    run(scenario)


def test_a_round_without_slots_puts_nothing() -> None:
    async def scenario() -> None:
        bench = Bench()
        result = await run_with(bench.lane(), bench.queue, lambda: bench.feed(3, CACHE), lambda: drain_cache(bench))
        assert result == LaneResult(0, 0, 0, 0, None)
        assert bench.memory.objects == {}

    async def drain_cache(bench: Bench) -> None:
        await take_all(bench.queue, "cache", [])

    run(scenario)


def test_a_lane_takes_no_more_than_its_packs_in_memory_hold() -> None:
    async def scenario() -> None:
        go_on = anyio.Event()
        plan = FaultPlan()
        for call in (1, 2):
            plan.stall("put", call, until=go_on)
        bench = Bench(plan)
        async with anyio.create_task_group() as group:
            group.start_soon(bench.lane().run, bench.queue)
            await bench.queue.put([slot_of(number, VAULT) for number in range(20)])
            await settle()
            assert held(bench.queue) == bytes_for(20 - 2 * PACK_RECORDS)
            go_on.set()
            bench.queue.close()
        assert bench.acked == list(range(20))

    run(scenario)


@pytest.mark.parametrize(("pack_mib", "packs", "puts"), [(4, 32, 16), (16, 8, 8), (64, 2, 2)])
def test_puts_at_once_and_packs_in_memory_are_bounded_by_bytes(pack_mib: int, packs: int, puts: int) -> None:
    async def scenario() -> None:
        go_on = anyio.Event()
        plan = FaultPlan()
        for call in range(1, 100):
            plan.stall("put", call, until=go_on)
        bench = Bench(plan, slots_max=400)
        lane = bench.lane(policy=LanePolicy(pack_bytes=pack_mib * MIB))
        async with anyio.create_task_group() as group:
            group.start_soon(lane.run, bench.queue)
            await bench.queue.put([slot_of(number, VAULT) for number in range(200)])
            await settle()
            assert bench.sink.running == puts
            assert held(bench.queue) == bytes_for(200 - packs * PACK_RECORDS)
            go_on.set()
            bench.queue.close()
        assert bench.sink.running_most == puts
        assert sorted(bench.acked) == list(range(200))

    run(scenario)


def test_a_slow_store_stalls_the_other_lane_at_exactly_the_queue_and_the_packs() -> None:
    async def scenario() -> None:
        never = anyio.Event()
        plan = FaultPlan()
        for call in (1, 2):
            plan.stall("put", call, until=never)
        bench = Bench(plan, slots_max=10)
        seen: list[int] = []
        async with anyio.create_task_group() as group:
            group.start_soon(bench.lane("cache", WARN).run, bench.queue)
            group.start_soon(take_all, bench.queue, "vault", seen)
            group.start_soon(bench.feed, 100)
            await settle()
            assert seen == list(range(2 * PACK_RECORDS + 10))
            assert held(bench.queue) == bytes_for(10)
            group.cancel_scope.cancel()

    run(scenario)


def test_an_error_of_the_vault_ends_its_lane_and_aborts_the_queue() -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("put", 2, error=lambda: StoreRejected("no right to write")))
        await bench.queue.put([slot_of(number, BOTH) for number in range(30)])
        with pytest.raises(StoreRejected, match="no right to write") as caught:
            await bench.lane().run(bench.queue)
        assert held(bench.queue) == 0
        with pytest.raises(QueueAborted) as aborted:
            await bench.queue.get("cache", 1)
        assert aborted.value.error is caught.value
        assert bench.sink.running == 0
        assert ("flush", "") not in bench.store.calls

    run(scenario)


def test_an_error_of_the_vaults_lane_wakes_it_from_whatever_it_waits_for() -> None:
    async def at_the_bound_of_packs() -> None:
        fail = anyio.Event()
        plan = FaultPlan()
        plan.stall("put", 1, until=fail)
        plan.fail("put", 1)
        plan.stall("put", 2, until=anyio.Event())
        bench = Bench(plan)
        await bench.queue.put([slot_of(number, VAULT) for number in range(30)])
        await expect_failure(bench, fail)

    async def at_an_empty_queue() -> None:
        fail = anyio.Event()
        plan = FaultPlan()
        plan.stall("put", 1, until=fail)
        plan.fail("put", 1)
        bench = Bench(plan)
        await bench.queue.put([slot_of(number, VAULT) for number in range(PACK_RECORDS + 1)])
        await expect_failure(bench, fail)

    async def expect_failure(bench: Bench, fail: anyio.Event) -> None:
        async def lane() -> None:
            with pytest.raises(StoreUnavailable, match="by plan"):
                await bench.lane().run(bench.queue)

        async with anyio.create_task_group() as group:
            group.start_soon(lane)
            await settle()
            fail.set()
        assert held(bench.queue) == 0
        assert bench.sink.acknowledged == []

    run(at_the_bound_of_packs)
    run(at_an_empty_queue)


def test_a_vault_that_cannot_flush_ends_the_session() -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("flush"))
        await bench.feed(4, VAULT)
        with pytest.raises(StoreUnavailable):
            await bench.lane().run(bench.queue)
        with pytest.raises(QueueAborted):
            await bench.queue.get("cache", 1)

    run(scenario)


def test_the_flush_comes_after_the_last_acknowledgement() -> None:
    async def scenario() -> None:
        last = anyio.Event()
        plan = FaultPlan()
        plan.stall("put", 1, until=last)
        bench = Bench(plan)
        async with anyio.create_task_group() as group:
            await bench.feed(5, VAULT)
            group.start_soon(bench.lane().run, bench.queue)
            await settle()
            assert len(bench.sink.acknowledged) == 1
            assert ("flush", "") not in bench.store.calls
            last.set()
        assert bench.store.calls[-1] == ("flush", "")
        assert bench.sink.flushed == 2

    run(scenario)


def test_the_ids_to_remember_until_a_flush_are_bounded_by_flushing_in_between() -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("flush", 3))
        lane = bench.lane("cache", WARN, LanePolicy(pack_bytes=64 * MIB, unflushed_records_max=6))
        result = await run_with(lane, bench.queue, lambda: bench.feed(5 * PACK_RECORDS, CACHE))
        assert [call for call, _ in bench.store.calls].count("flush") == 3
        # The first two flushes covered two packs each; only what came after them is lost with the third.
        assert sorted(bench.dropped) == list(range(12, 15))
        assert isinstance(result.gave_up, StoreUnavailable)

    run(scenario)


@pytest.mark.parametrize("on_error", ["warn", "error"])
def test_a_cache_that_fails_is_given_up_and_the_other_lane_gets_everything(on_error: str) -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("put", 2, last=99), slots_max=4)
        seen: list[int] = []
        lane = bench.lane("cache", CacheErrorPolicy(on_error, 0))  # type: ignore[arg-type]
        result = await run_with(lane, bench.queue, lambda: bench.feed(60), lambda: take_all(bench.queue, "vault", seen))
        assert seen == list(range(60))
        assert isinstance(result.gave_up, StoreUnavailable)
        # The store is away: what it acknowledged was never flushed, so it counts as lacking, too.
        assert sorted(bench.dropped) == list(range(60))
        assert result.dropped == 60
        assert ("flush", "") not in bench.store.calls
        assert held(bench.queue) == 0

    run(scenario)


def test_a_cache_that_refuses_keeps_what_it_took_before() -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("put", 3, last=99, error=lambda: StoreRejected("disk full")))
        result = await run_with(bench.lane("cache", WARN), bench.queue, lambda: bench.feed(30, CACHE))
        assert str(result.gave_up) == "disk full"
        assert len(bench.durable) == result.packs > 0
        assert sorted(bench.acked + bench.dropped) == list(range(30))
        assert result.records == len(bench.acked)

    run(scenario)


def test_a_cache_that_cannot_flush_at_the_end_lacks_everything_since_the_last_flush() -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("flush"))
        result = await run_with(bench.lane("cache", WARN), bench.queue, lambda: bench.feed(7, CACHE))
        assert isinstance(result.gave_up, StoreUnavailable)
        assert sorted(bench.dropped) == list(range(7))
        assert held(bench.queue) == 0

    run(scenario)


def test_a_lane_given_up_while_it_waits_for_room_goes_on_draining_even_if_a_put_cannot_be_stopped() -> None:
    class Stubborn(StoreSink):
        """Its second put cannot be cancelled and ends when it likes: a thread in a write that hangs."""

        let_go = anyio.Event()
        fail = anyio.Event()

        async def put_pack(self, finished: FinishedPack) -> None:
            self.running += 1
            if self.running == 1:
                await self.fail.wait()
                raise StoreUnavailable("the cache is gone")
            with anyio.CancelScope(shield=True):
                await self.let_go.wait()

    async def scenario() -> None:
        bench = Bench(slots_max=4)
        sink = bench.sink = Stubborn(bench.store)
        seen: list[int] = []
        results: list[LaneResult] = []

        async def cache() -> None:
            results.append(await bench.lane("cache", WARN).run(bench.queue))

        async with anyio.create_task_group() as group:
            group.start_soon(cache)
            group.start_soon(take_all, bench.queue, "vault", seen)
            group.start_soon(bench.feed, 50)
            await settle()
            assert len(seen) == 2 * PACK_RECORDS + 4
            sink.fail.set()
            await settle()
            assert seen == list(range(50))
            assert results == []
            sink.let_go.set()
        assert results[0].gave_up is not None
        assert sorted(bench.dropped) == list(range(50))

    run(scenario)


def test_giving_up_stops_the_puts_that_run() -> None:
    async def scenario() -> None:
        plan = FaultPlan().fail("put", 2)
        plan.stall("put", 1, until=anyio.Event())
        bench = Bench(plan)
        result = await run_with(bench.lane("cache", WARN), bench.queue, lambda: bench.feed(8, CACHE))
        assert result.packs == 0
        assert bench.memory.volatile == {}
        assert sorted(bench.dropped) == list(range(8))

    run(scenario)


def test_under_fail_an_error_of_the_cache_ends_the_session() -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("put", 1))
        await bench.feed(8, CACHE)
        lane = bench.lane("cache", CacheErrorPolicy("fail", 0))
        with pytest.raises(StoreUnavailable):
            await lane.run(bench.queue)
        with pytest.raises(QueueAborted):
            await bench.queue.get("vault", 1)
        assert bench.dropped == []

    run(scenario)


def test_a_lane_serves_one_round_after_another() -> None:
    async def scenario() -> None:
        bench = Bench()
        lane = bench.lane()
        for first in (0, 10):
            queue = bench.new_queue()
            await bench.feed(4, VAULT, first, queue)
            result = await lane.run(queue)
            assert (result.packs, result.records) == (2, 4)
        assert bench.acked == [0, 1, 2, 3, 10, 11, 12, 13]

    run(scenario)


def test_a_lane_given_up_stays_so_for_the_session_and_calls_its_store_no_more() -> None:
    async def scenario() -> None:
        bench = Bench(FaultPlan().fail("put", 1, error=lambda: StoreRejected("disk full")))
        lane = bench.lane("cache", WARN)
        await bench.feed(4, CACHE)
        first = await lane.run(bench.queue)
        calls = list(bench.store.calls)
        queue = bench.new_queue()
        await bench.feed(4, CACHE, 10, queue)
        second = await lane.run(queue)
        assert second.gave_up is first.gave_up is not None
        assert bench.store.calls == calls
        assert bench.dropped[-4:] == [10, 11, 12, 13]

    run(scenario)


def test_a_slow_cache_is_skipped_under_skip_and_waited_for_under_wait() -> None:
    async def scenario(slow: SlowPolicy) -> tuple[list[int], list[int], list[int]]:
        go_on = anyio.Event()
        plan = FaultPlan()
        for call in range(1, 3):
            plan.stall("put", call, until=go_on)
        bench = Bench(plan, slots_max=4)
        seen: list[int] = []
        async with anyio.create_task_group() as group:
            group.start_soon(bench.lane("cache", WARN, slow=slow).run, bench.queue)
            group.start_soon(take_all, bench.queue, "vault", seen)
            group.start_soon(bench.feed, 14)
            await anyio.sleep(9.5)
            assert bench.dropped == []
            assert seen == list(range(10))
            await anyio.sleep(1)
            early = list(bench.dropped)
            go_on.set()
        assert seen == list(range(14))
        assert sorted(bench.acked + bench.dropped) == list(range(14))
        return early, bench.dropped, bench.acked

    skipped = run(lambda: scenario(SlowPolicy("skip", skip_after_s=10)))
    # Six records were in packs already; the four that waited for the cache alone were released, the rest came late
    # enough to be taken.
    assert skipped == ([6, 7, 8, 9], [6, 7, 8, 9], [0, 1, 2, 3, 4, 5, 10, 11, 12, 13])
    assert run(lambda: scenario(SlowPolicy("wait"))) == ([], [], list(range(14)))


def test_a_lane_that_is_cancelled_aborts_the_queue_and_nothing_is_put_afterwards() -> None:
    async def scenario() -> None:
        plan = FaultPlan()
        plan.stall("put", 2, until=anyio.Event())
        bench = Bench(plan)
        async with anyio.create_task_group() as group:
            group.start_soon(bench.lane().run, bench.queue)
            await bench.queue.put([slot_of(number, BOTH) for number in range(8)])
            await settle()
            group.cancel_scope.cancel()
        assert held(bench.queue) == 0
        assert bench.acked == [0, 1, 2]
        await settle()
        assert len(bench.memory.volatile) == 1

    run(scenario)


def test_a_bug_below_the_lane_is_neither_swallowed_nor_taken_for_an_error_of_the_store() -> None:
    class Broken(StoreSink):
        async def put_pack(self, finished: FinishedPack) -> None:
            raise ZeroDivisionError

    async def scenario() -> None:
        bench = Bench()
        bench.sink = Broken(bench.store)
        await bench.feed(4, CACHE)
        with pytest.raises(ExceptionGroup) as caught:
            await bench.lane("cache", WARN).run(bench.queue)
        assert caught.group_contains(ZeroDivisionError)
        with pytest.raises(QueueAborted):
            await bench.queue.get("vault", 1)

    run(scenario)


def test_packs_are_finished_in_worker_threads() -> None:
    threads: list[int] = []

    def sign(message: bytes) -> bytes:
        threads.append(threading.get_ident())
        return bytes(64)

    async def scenario() -> Sequence[int]:
        bench = Bench()
        lane = Lane(
            "vault",
            bench.sink,
            lambda: PackBuilder("data", KEYS, bytes(16), bytes(16), sign, 64 + 3 * 64),
            LanePolicy(pack_bytes=4 * MIB),
            LoopClock(),
        )
        await bench.feed(30, VAULT)
        await lane.run(bench.queue)
        return bench.sink.numbers

    assert sorted(anyio.run(scenario)) == list(range(30))
    assert len(threads) == 10
    assert threading.get_ident() not in threads


def test_packs_are_finished_one_at_a_time_because_finishing_copies_them() -> None:
    running = most = 0

    async def slowly(work: Callable[[], FinishedPack]) -> FinishedPack:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1)
        running -= 1
        return work()

    async def scenario() -> None:
        bench = Bench()
        policy = LanePolicy(pack_bytes=4 * MIB)
        lane = Lane("vault", bench.sink, new_pack(PACK_RECORDS), policy, LoopClock(), in_thread=slowly)
        await bench.feed(30, VAULT)
        await lane.run(bench.queue)
        assert sorted(bench.sink.numbers) == list(range(30))

    run(scenario)
    assert most == 1


class Stubborn(StoreSink):
    """From put number `stubborn_from` on, puts cannot be stopped and end when `let_go` is set: threads that hang."""

    def __init__(self, bench: Bench, stubborn_from: int) -> None:
        super().__init__(bench.store)
        self.stubborn_from, self.begun = stubborn_from, 0
        self.let_go = anyio.Event()

    async def put_pack(self, finished: FinishedPack) -> None:
        self.begun += 1
        if self.begun >= self.stubborn_from:
            with anyio.CancelScope(shield=True):
                await self.let_go.wait()
            return
        await super().put_pack(finished)


def test_a_flush_that_fails_frees_a_lane_all_of_whose_packs_hang() -> None:
    async def scenario() -> None:
        fail = anyio.Event()
        plan = FaultPlan()
        plan.stall("flush", 1, until=fail)
        plan.fail("flush", 1)
        bench = Bench(plan, slots_max=4)
        sink = bench.sink = Stubborn(bench, stubborn_from=2)
        seen: list[int] = []
        policy = LanePolicy(pack_bytes=64 * MIB, unflushed_records_max=PACK_RECORDS)
        async with anyio.create_task_group() as group:
            group.start_soon(bench.lane("cache", WARN, policy).run, bench.queue)
            group.start_soon(take_all, bench.queue, "vault", seen)
            group.start_soon(bench.feed, 50)
            await settle()
            assert len(seen) == 3 * PACK_RECORDS + 4
            fail.set()
            await settle()
            assert seen == list(range(50))
            sink.let_go.set()
        assert sorted(bench.dropped) == list(range(50))

    run(scenario)


def test_everyone_learns_of_the_vaults_error_before_its_last_put_ends() -> None:
    async def scenario() -> None:
        fail = anyio.Event()
        plan = FaultPlan()
        plan.stall("put", 1, until=fail)
        plan.fail("put", 1)
        bench = Bench(plan)
        sink = bench.sink = Stubborn(bench, stubborn_from=2)

        async def lane() -> None:
            with pytest.raises(StoreUnavailable):
                await bench.lane().run(bench.queue)

        await bench.queue.put([slot_of(number, VAULT) for number in range(30)])
        async with anyio.create_task_group() as group:
            group.start_soon(lane)
            await settle()
            assert sink.begun == 2
            fail.set()
            await settle()
            with pytest.raises(QueueAborted):
                await bench.queue.get("cache", 1)
            sink.let_go.set()

    run(scenario)


def test_the_reason_given_is_the_first_error() -> None:
    async def scenario() -> None:
        fail = anyio.Event()
        plan = FaultPlan()
        for call in (1, 2):
            plan.stall("put", call, until=fail)
            plan.fail("put", call, error=lambda call=call: StoreUnavailable(f"error {call}"))  # type: ignore[misc]
        bench = Bench(plan)
        async with anyio.create_task_group() as group:
            group.start_soon(bench.feed, 6, CACHE)
            lane = bench.lane("cache", WARN)
            group.start_soon(lane.run, bench.queue)
            await settle()
            fail.set()
        assert str(lane.gave_up) == "error 1"

    run(scenario)


def test_a_slot_is_skipped_when_it_is_due_and_not_a_whole_period_later() -> None:
    async def scenario() -> None:
        plan = FaultPlan()
        for call in (1, 2):
            plan.stall("put", call, until=anyio.Event())
        bench = Bench(plan)
        async with anyio.create_task_group() as group:
            group.start_soon(bench.lane("cache", WARN, slow=SlowPolicy("skip", 10)).run, bench.queue)
            await bench.queue.put([slot_of(number, CACHE) for number in range(2 * PACK_RECORDS)])
            await anyio.sleep(3)
            await bench.queue.put([slot_of(100, CACHE)])
            await anyio.sleep(9.9)
            assert bench.dropped == []
            await anyio.sleep(0.2)
            assert bench.dropped == [100]
            group.cancel_scope.cancel()

    run(scenario)


def test_every_error_a_store_may_raise_gives_the_cache_up() -> None:
    async def scenario(error: StoreError) -> None:
        bench = Bench(FaultPlan().fail("put", 1, error=lambda: error))
        await bench.feed(2, CACHE)
        assert (await bench.lane("cache", WARN).run(bench.queue)).gave_up is error

    for error in (StoreUnavailable("away"), StoreRejected("full"), StoreError("format too new")):
        run(lambda error=error: scenario(error))  # type: ignore[misc]
