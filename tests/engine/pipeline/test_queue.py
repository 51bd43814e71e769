"""The rules at the top of engine/pipeline/queue.py, one by one."""

from __future__ import annotations

import anyio
import pytest

from engine.errors import StoreUnavailable
from engine.pipeline.queue import SLOT_BYTES, QueueAborted, Slot, TransmissionQueue
from tests.engine.pipeline.fakes_pipeline import (
    LoopClock,
    bytes_for,
    held,
    id_of,
    number_of,
    numbers,
    run,
    settle,
    slot_of,
)

VAULT, CACHE, BOTH = 1, 2, 3


def two_lanes(bytes_max: int) -> TransmissionQueue:
    return TransmissionQueue(bytes_max, ("vault", "cache"), LoopClock())


async def take(queue: TransmissionQueue, lane: str, limit: int = 1000) -> list[int]:
    slots = await queue.get(lane, limit)
    queue.took(lane, slots)
    return numbers(slots)


def test_a_slot_is_freed_when_the_last_lane_took_it() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(4))
        await queue.put([slot_of(1, BOTH)])
        assert await take(queue, "cache") == [1]
        assert held(queue) == bytes_for(1)
        assert queue.fill.lane_bytes == {"vault": bytes_for(1), "cache": 0}
        assert await take(queue, "vault") == [1]
        assert held(queue) == 0

    run(scenario)


def test_a_slot_counts_for_more_than_its_record() -> None:
    assert slot_of(1, BOTH).nbytes == len(slot_of(1, BOTH).record) + SLOT_BYTES


def test_the_mask_names_the_lanes_in_order() -> None:
    async def scenario() -> None:
        queue = two_lanes(1000)
        assert queue.lanes == ("vault", "cache")
        assert (queue.mask("vault"), queue.mask("cache"), queue.mask("vault", "cache")) == (1, 2, 3)

    run(scenario)


def test_each_lane_sees_what_it_wants_in_order_and_only_that() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(9))
        await queue.put([slot_of(1, VAULT), slot_of(2, CACHE), slot_of(3, BOTH), slot_of(4, VAULT)])
        assert await take(queue, "vault") == [1, 3, 4]
        assert await take(queue, "cache") == [2, 3]

    run(scenario)


def test_get_shows_no_more_than_the_limit_and_shows_again_what_was_not_taken() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(9))
        await queue.put([slot_of(n, VAULT) for n in (1, 2, 3)])
        shown = await queue.get("vault", 2)
        assert numbers(shown) == [1, 2]
        queue.took("vault", shown[:1])
        assert numbers(await queue.get("vault", 2)) == [2, 3]

    run(scenario)


def test_a_slot_no_lane_wants_never_enters() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        await queue.put([slot_of(1, 0), slot_of(2, 0)])
        assert held(queue) == 0
        queue.close()
        assert await queue.get("vault", 1) == []

    run(scenario)


def test_a_batch_is_admitted_as_far_as_it_fits_and_the_rest_follows() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(2))
        async with anyio.create_task_group() as group:
            group.start_soon(queue.put, [slot_of(n, VAULT) for n in range(5)])
            await settle()
            assert held(queue) == bytes_for(2)
            assert queue.fill.puts_waiting == 1
            assert await take(queue, "vault", 1) == [0]
            assert held(queue) == bytes_for(2)
            assert await take(queue, "vault") == [1, 2]
            assert await take(queue, "vault") == [3, 4]
            await settle()
            assert queue.fill.puts_waiting == 0

    run(scenario)


def test_a_large_slot_at_the_head_is_not_passed_by_small_ones() -> None:
    async def scenario() -> None:
        queue = two_lanes(1000 + 3 * SLOT_BYTES)
        await queue.put([slot_of(1, VAULT, 200)])
        async with anyio.create_task_group() as group:
            group.start_soon(queue.put, [slot_of(2, VAULT, 1144)])
            await settle()
            group.start_soon(queue.put, [slot_of(3, VAULT)])
            await settle()
            assert held(queue) == 200 + SLOT_BYTES
            assert await take(queue, "vault") == [1]
            assert await take(queue, "vault") == [2, 3]

    run(scenario)


def test_producers_are_admitted_in_the_order_of_their_puts() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        async with anyio.create_task_group() as group:
            for first in (0, 10, 20):
                group.start_soon(queue.put, [slot_of(first + n, VAULT) for n in range(3)])
                await settle()
            assert [await take(queue, "vault") for _ in range(9)] == [[n] for n in (0, 1, 2, 10, 11, 12, 20, 21, 22)]

    run(scenario)


@pytest.mark.parametrize("slots_max", [1, 2, 7, 31])
@pytest.mark.parametrize(("slow", "fast"), [("vault", "cache"), ("cache", "vault")])
def test_a_lane_that_stands_still_stalls_the_other_at_exactly_the_bound(slots_max: int, slow: str, fast: str) -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(slots_max))
        seen: list[int] = []

        async def fast_lane() -> None:
            while got := await take(queue, fast, 5):
                seen.extend(got)

        async with anyio.create_task_group() as group:
            group.start_soon(fast_lane)
            for number in range(40):
                group.start_soon(queue.put, [slot_of(number, BOTH)])
            await settle()
            assert seen == list(range(slots_max))
            assert held(queue) == bytes_for(slots_max)
            for more in range(1, 4):
                assert len(await take(queue, slow, 1)) == 1
                await settle()
                assert seen == list(range(slots_max + more))
            group.cancel_scope.cancel()

    run(scenario)


def test_the_bound_is_exact_to_the_byte() -> None:
    async def scenario(bytes_max: int) -> bool:
        queue = two_lanes(bytes_max)
        with anyio.move_on_after(1):
            await queue.put([slot_of(1, BOTH, 100), slot_of(2, BOTH, 300)])
            return True
        return False

    exact = 100 + 300 + 2 * SLOT_BYTES
    assert run(lambda: scenario(exact))
    assert not run(lambda: scenario(exact - 1))


def test_what_only_the_fast_lane_wants_passes_the_slow_lane_while_there_is_room() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(3))
        await queue.put([slot_of(1, BOTH), slot_of(2, BOTH)])
        assert await take(queue, "vault") == [1, 2]
        for number in range(10, 20):
            await queue.put([slot_of(number, VAULT)])
            assert await take(queue, "vault") == [number]
        assert held(queue) == bytes_for(2)

    run(scenario)


def test_a_reader_waits_until_there_is_something_for_its_lane() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(9))
        got: list[int] = []

        async def reader() -> None:
            got.extend(await take(queue, "cache"))

        async with anyio.create_task_group() as group:
            group.start_soon(reader)
            await settle()
            await queue.put([slot_of(1, VAULT)])
            await settle()
            assert got == []
            await queue.put([slot_of(2, CACHE)])
        assert got == [2]

    run(scenario)


def test_a_closed_queue_is_drained_by_each_lane_and_then_gives_nothing() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(9))
        await queue.put([slot_of(1, BOTH)])
        queue.close()
        queue.close()
        assert await take(queue, "vault") == [1]
        assert await queue.get("vault", 1) == []
        assert await take(queue, "cache") == [1]
        assert await queue.get("cache", 1) == []

    run(scenario)


def test_closing_wakes_the_readers_that_wait() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(9))
        got: list[list[Slot]] = []

        async def reader(lane: str) -> None:
            got.append(await queue.get(lane, 1))

        async with anyio.create_task_group() as group:
            group.start_soon(reader, "vault")
            group.start_soon(reader, "cache")
            await settle()
            queue.close()
        assert got == [[], []]

    run(scenario)


def test_what_waits_to_be_put_at_the_close_is_still_delivered() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        async with anyio.create_task_group() as group:
            group.start_soon(queue.put, [slot_of(n, CACHE) for n in range(3)])
            await settle()
            queue.close()
            assert [await take(queue, "cache") for _ in range(4)] == [[0], [1], [2], []]
            assert await take(queue, "vault") == []

    run(scenario)


def test_a_reader_waits_at_a_closed_queue_for_what_still_waits_to_be_put() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        got: list[int] = []

        async def reader() -> None:
            got.extend(await take(queue, "vault"))

        async with anyio.create_task_group() as group:
            group.start_soon(queue.put, [slot_of(1, CACHE), slot_of(2, VAULT)])
            await settle()
            queue.close()
            group.start_soon(reader)
            await settle()
            assert await take(queue, "cache") == [1]
        assert got == [2]

    run(scenario)


def test_a_put_cancelled_after_the_close_lets_the_readers_end() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        got: list[int] = []

        async def reader() -> None:
            got.extend(await take(queue, "vault"))

        async with anyio.create_task_group() as producers:
            producers.start_soon(queue.put, [slot_of(1, CACHE), slot_of(2, VAULT)])
            await settle()
            queue.close()
            async with anyio.create_task_group() as readers:
                readers.start_soon(reader)
                await settle()
                producers.cancel_scope.cancel()
        assert got == []

    run(scenario)


def test_abort_wakes_everyone_drops_everything_and_every_later_call_raises() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        reason = StoreUnavailable("the vault is gone")
        raised: list[BaseException] = []

        async def expect_abort(call: object) -> None:
            with pytest.raises(QueueAborted) as caught:
                await call  # type: ignore[misc]
            raised.append(caught.value.error)

        async with anyio.create_task_group() as group:
            group.start_soon(expect_abort, queue.put([slot_of(1, VAULT), slot_of(2, VAULT)]))
            group.start_soon(expect_abort, queue.put([slot_of(3, VAULT)]))
            group.start_soon(expect_abort, queue.get("cache", 1))
            await settle()
            queue.abort(reason)
            queue.abort(StoreUnavailable("a later reason"))
            assert held(queue) == 0
        assert raised == [reason] * 3
        assert queue.fill.lane_bytes == {"vault": 0, "cache": 0}
        assert queue.fill.puts_waiting == 0
        await expect_abort(queue.put([slot_of(4, VAULT)]))
        await expect_abort(queue.get("vault", 1))
        with pytest.raises(QueueAborted, match="the vault is gone"):
            queue.took("vault", [])
        with pytest.raises(QueueAborted):
            queue.skip("vault", 0)

    run(scenario)


def test_leaving_the_with_block_by_an_error_aborts() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        await queue.put([slot_of(1, VAULT)])
        with pytest.raises(KeyError), queue:
            raise KeyError
        assert held(queue) == 0
        with pytest.raises(QueueAborted):
            await queue.get("vault", 1)

    run(scenario)


def test_a_put_that_is_cancelled_leaves_the_line_and_lets_the_next_through() -> None:
    async def scenario() -> None:
        queue = two_lanes(2000)
        await queue.put([slot_of(1, VAULT, 1000)])
        async with anyio.create_task_group() as group:
            with anyio.move_on_after(1):
                group.start_soon(queue.put, [slot_of(3, VAULT)])
                # Too large for what is left, and, once cancelled, no longer in the way of the other.
                await queue.put([slot_of(2, VAULT, 1700)])
        assert await take(queue, "vault") == [1, 3]
        assert held(queue) == 0

    run(scenario)


def test_a_put_that_is_cancelled_keeps_what_was_admitted() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(2))
        with anyio.move_on_after(1):
            await queue.put([slot_of(n, BOTH) for n in range(5)])
        assert queue.fill.puts_waiting == 0
        assert await take(queue, "vault") == [0, 1]
        assert await take(queue, "cache") == [0, 1]
        assert held(queue) == 0

    run(scenario)


def test_a_reader_that_is_cancelled_loses_nothing_and_another_may_follow() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(2))
        with anyio.move_on_after(1):
            await queue.get("vault", 1)
        await queue.put([slot_of(1, VAULT)])
        assert numbers(await queue.get("vault", 1)) == [1]
        with anyio.CancelScope() as scope:
            scope.cancel()
            await queue.get("vault", 1)
        assert await take(queue, "vault") == [1]

    run(scenario)


def test_skip_releases_what_waited_for_this_lane_alone_long_enough_and_nothing_else() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(9))
        await queue.put([slot_of(1, CACHE), slot_of(2, BOTH), slot_of(3, BOTH), slot_of(4, VAULT)])
        await anyio.sleep(4)
        shown = await queue.get("vault", 1)
        queue.took("vault", shown)  # 2 waits for the cache alone from now on, 3 for both
        await queue.put([slot_of(5, CACHE)])
        await anyio.sleep(6)
        assert queue.alone_since("cache") == 0
        assert [number_of(gone) for gone in queue.skip("cache", 10)] == [1]
        assert queue.alone_since("cache") == 4
        await anyio.sleep(4)
        assert [number_of(gone) for gone in queue.skip("cache", 10)] == [2, 5]
        assert queue.alone_since("cache") is None
        await anyio.sleep(100)
        assert queue.skip("cache", 10) == []
        assert await take(queue, "vault") == [3, 4]
        assert await take(queue, "cache") == [3]
        assert held(queue) == 0

    run(scenario)


def test_skip_makes_room_for_those_who_wait() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(1))
        async with anyio.create_task_group() as group:
            group.start_soon(queue.put, [slot_of(1, CACHE), slot_of(2, VAULT)])
            await settle()
            assert queue.skip("cache", 0) == [id_of(1)]
            assert await take(queue, "vault") == [2]

    run(scenario)


def test_bugs_of_callers_are_caught_by_assertions() -> None:
    async def scenario() -> None:
        queue = two_lanes(bytes_for(2))
        with pytest.raises(AssertionError, match="larger than the queue"):
            await queue.put([slot_of(1, VAULT, 4000)])
        with pytest.raises(AssertionError, match="does not have"):
            await queue.put([slot_of(1, 4)])
        await queue.put([slot_of(1, VAULT), slot_of(2, VAULT)])
        shown = await queue.get("vault", 2)
        with pytest.raises(AssertionError, match="out of order"):
            queue.took("vault", shown[1:])
        queue.took("vault", shown)
        with pytest.raises(AssertionError, match="not waiting"):
            queue.took("vault", shown)
        async with anyio.create_task_group() as group:
            group.start_soon(queue.get, "vault", 1)
            await settle()
            with pytest.raises(AssertionError, match="one reader"):
                await queue.get("vault", 1)
            group.cancel_scope.cancel()
        queue.close()
        with pytest.raises(AssertionError, match="after close"):
            await queue.put([slot_of(1, VAULT)])

    run(scenario)
