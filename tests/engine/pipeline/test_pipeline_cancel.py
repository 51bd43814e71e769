"""Cancelling at every await: a small session is run once to count its steps, then once for each step, cancelled there.

A step of the loop is where every task that could go on has gone on, so that cancelling before each step in turn
meets every await any task is ever suspended at.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
import pytest

from engine.block import Bytes
from engine.errors import StoreRejected, StoreUnavailable
from engine.pipeline.lane import Lane
from engine.pipeline.queue import QueueAborted, TransmissionQueue
from engine.pipeline.retry import RetryingStore
from engine.pipeline.transmit import first_cause
from engine.policy import MIB, CacheErrorPolicy, LanePolicy, RetryPolicy, SlowPolicy
from tests.engine.pipeline.fakes_pipeline import (
    LoopClock,
    StoreSink,
    at_once,
    bytes_for,
    new_pack,
    number_of,
    run,
    slot_of,
)
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

BOTH = 3
PRODUCERS = 2
SLOTS = 11
PARTICIPANTS = ("session", "producer", "vault", "cache")
ROOT = "root"


class SlowStore(MemoryStore):
    """Every put takes twice `half_s`, before and after it is there, and is seen to begin and end."""

    def __init__(self, half_s: float) -> None:
        super().__init__(barrier=True)
        self.half_s = half_s
        self.running = 0

    async def put(self, name: str, data: Bytes) -> None:
        self.running += 1
        try:
            await anyio.sleep(self.half_s)
            await super().put(name, data)
            await anyio.sleep(self.half_s)
        finally:
            self.running -= 1


@dataclass
class Session:
    """Two producers, both lanes with a failure each to retry, and a root at the end: what a real one does."""

    scopes: dict[str, list[anyio.CancelScope]] = field(default_factory=dict)
    stores: list[SlowStore] = field(default_factory=lambda: [SlowStore(0.1), SlowStore(1)])
    dropped: list[int] = field(default_factory=list)
    put: set[int] = field(default_factory=set)
    admitted: set[int] = field(default_factory=set)
    drained: set[str] = field(default_factory=set)
    committed: bool = False

    def cancel(self, participant: str) -> None:
        for scope in self.scopes.get(participant, ()):
            scope.cancel()

    def lane(self, name: str, index: int, clock: LoopClock) -> Lane:
        faulty = FaultyStore(self.stores[index], FaultPlan().fail("put", 2).lose_acknowledgement("put", 4))
        policy = RetryPolicy() if index == 0 else CacheErrorPolicy().retry()
        self.sinks.append(StoreSink(RetryingStore(faulty, policy, clock, random.Random(index))))
        return Lane(
            name,
            self.sinks[-1],
            new_pack(3),
            LanePolicy(64 * MIB, unflushed_records_max=5),
            clock,
            errors=None if index == 0 else CacheErrorPolicy(),
            slow=None if index == 0 else SlowPolicy("skip", 0.3),
            on_drop=lambda ids: self.dropped.extend(map(number_of, ids)),
            in_thread=at_once,
        )

    async def _guarded(self, participant: str, work: Callable[[], object]) -> None:
        with anyio.CancelScope() as scope:
            self.scopes.setdefault(participant, []).append(scope)
            await work()  # type: ignore[misc]

    async def _produce(self, first: int) -> None:
        for number in range(first, first + SLOTS, 4):
            slots = [slot_of(n, BOTH) for n in range(number, min(number + 4, first + SLOTS))]
            self.put.update(number_of(slot.id) for slot in slots)
            await self.queue.put(slots)
            self.admitted.update(number_of(slot.id) for slot in slots)

    async def _lane(self, lane: Lane) -> None:
        await lane.run(self.queue)
        self.drained.add(lane.name)

    async def _produce_all(self) -> None:
        async with anyio.create_task_group() as producers:
            for index in range(PRODUCERS):
                producers.start_soon(self._guarded, "producer", lambda first=index * SLOTS: self._produce(first))
        self.queue.close()

    async def run(self) -> None:
        clock = LoopClock()
        self.queue = TransmissionQueue(bytes_for(5), ("vault", "cache"), clock)
        self.sinks: list[StoreSink] = []
        lanes = [self.lane("vault", 0, clock), self.lane("cache", 1, clock)]
        try:
            with self.queue:
                await self._guarded("session", lambda: self._rounds(lanes))
        except* QueueAborted:
            pass
        await self._nothing_goes_on()

    async def _rounds(self, lanes: list[Lane]) -> None:
        try:
            async with anyio.create_task_group() as group:
                for lane in lanes:
                    group.start_soon(self._guarded, lane.name, lambda lane=lane: self._lane(lane))
                group.start_soon(self._produce_all)
            if self.drained == {"vault", "cache"}:
                await self.stores[0].put(ROOT, b"root")
                self.committed = True
        finally:
            if not self.committed:
                self.queue.abort(StoreUnavailable("the session did not commit"))

    async def _nothing_goes_on(self) -> None:
        assert [store.running for store in self.stores] == [0, 0]
        assert asyncio.all_tasks() == {asyncio.current_task()}
        before = [store.volatile | store.objects for store in self.stores]
        await anyio.sleep(100)
        assert before == [store.volatile | store.objects for store in self.stores], "something was put after the end"


def run_and_cancel(participant: str | None, at: int) -> tuple[Session, int]:
    """Run a session, cancelling a participant before step `at`; return it and how many steps it took."""
    session = Session()
    steps = 0

    def before_step(step: int) -> None:
        nonlocal steps
        steps = step
        if step == at and participant is not None:
            session.cancel(participant)

    run(session.run, before_step=before_step)
    return session, steps


def numbers_durable(session: Session, index: int) -> list[int]:
    sink, store = session.sinks[index], session.stores[index]
    sink.acknowledged = [pack for pack in sink.acknowledged if str(pack.name) in store.objects]
    return sorted(sink.numbers)


def test_left_alone_the_session_delivers_everything_and_commits() -> None:
    session, steps = run_and_cancel(None, 0)
    everything = list(range(PRODUCERS * SLOTS))
    assert session.committed
    assert numbers_durable(session, 0) == everything
    assert sorted(numbers_durable(session, 1) + session.dropped) == everything
    assert session.dropped, "the scenario is meant to skip some"
    assert steps > 60, "the scenario is meant to have many awaits"


@pytest.mark.parametrize("participant", PARTICIPANTS)
def test_cancelling_at_every_await_leaves_no_open_slot_and_no_committed_point(participant: str) -> None:
    _, steps = run_and_cancel(None, 0)
    cancelled = 0
    for at in range(1, steps + 1):
        session, _ = run_and_cancel(participant, at)
        where = f"{participant} cancelled before step {at}"
        assert session.queue.fill.held_bytes == 0, where
        assert session.queue.fill.puts_waiting == 0, where
        assert not any(session.queue.fill.lane_bytes.values()), where
        if ROOT in session.stores[0].volatile | session.stores[0].objects:
            # Committed, or cancelled between the store's having the root and its saying so. Either way everything
            # that was admitted had been made durable before.
            assert session.drained == {"vault", "cache"}, where
            vault, cache = numbers_durable(session, 0), numbers_durable(session, 1)
            assert session.admitted <= set(vault) <= session.put, where
            assert sorted(cache + session.dropped) == vault, where
            assert len(set(vault)) == len(vault), where
        else:
            cancelled += 1
            assert not session.committed, where
            assert session.drained != {"vault", "cache"} or participant == "session", where
    if participant != "producer":
        assert cancelled > steps // 2


def test_what_ended_the_queue_is_the_cause_also_if_nobody_was_left_to_raise_it() -> None:
    lost = StoreUnavailable("the vault was lost")
    consequence = QueueAborted(QueueAborted(lost))
    assert first_cause(BaseExceptionGroup("", [consequence, BaseExceptionGroup("", [QueueAborted(lost)])])) is lost
    assert first_cause(BaseExceptionGroup("", [consequence, StoreRejected("no right")])).args == ("no right",)
