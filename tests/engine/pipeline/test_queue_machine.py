"""The queue against a model of its rules: any order of calls and cancellations, accounts compared after each."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import hypothesis.strategies as st
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.errors import StoreUnavailable
from engine.pipeline.queue import SLOT_BYTES, QueueAborted, Slot, TransmissionQueue
from tests.engine.pipeline.fakes_pipeline import LoopClock, VirtualLoop, id_of, numbers, record_of

LANES = ("vault", "cache", "third")
SIZES = (64, 100, 400)
# Enough steps for whatever a call sets off to come to rest; nothing in the queue takes more than a few.
REST_STEPS = 12


@dataclass
class ModelSlot:
    number: int
    nbytes: int
    lanes: set[str]
    since: float = 0.0


@dataclass
class ModelPut:
    task: asyncio.Task[None]
    slots: deque[ModelSlot]


@dataclass
class Model:
    """The rules again, without waiting: a line of producers and the open slots, oldest first."""

    bytes_max: int
    line: list[ModelPut] = field(default_factory=list)
    open: list[ModelSlot] = field(default_factory=list)

    @property
    def held(self) -> int:
        return sum(slot.nbytes for slot in self.open)

    def admit(self, now: float) -> None:
        while self.line:
            slots = self.line[0].slots
            while slots and self.held + slots[0].nbytes <= self.bytes_max:
                slots[0].since = now
                self.open.append(slots.popleft())
            if slots:
                return
            self.line.pop(0)

    def wanted_by(self, lane: str) -> list[ModelSlot]:
        return [slot for slot in self.open if lane in slot.lanes]

    def clear(self, slot: ModelSlot, lane: str, now: float) -> None:
        slot.lanes.discard(lane)
        if len(slot.lanes) == 1:
            slot.since = now
        if not slot.lanes:
            self.open.remove(slot)


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.runner = asyncio.Runner(loop_factory=lambda: self.loop)
        self.next_number = 0
        self.readers: dict[str, asyncio.Task[list[Slot]]] = {}
        self.aborted = False
        self.closed = False

    def teardown(self) -> None:
        for task in self.readers.values():
            task.cancel()
        for put in self.model.line:
            put.task.cancel()
        self.rest()
        self.runner.close()

    def rest(self) -> None:
        async def steps() -> None:
            for _ in range(REST_STEPS):
                await checkpoint()

        self.runner.run(steps())

    @initialize(slots_max=st.integers(2, 6))
    def begin(self, slots_max: int) -> None:
        self.model = Model(slots_max * (max(SIZES) + SLOT_BYTES) // 2)
        self.queue = TransmissionQueue(self.model.bytes_max, LANES, LoopClock(self.loop))

    @precondition(lambda self: not self.closed and not self.aborted)
    @rule(wishes=st.lists(st.tuples(st.sets(st.sampled_from(LANES)), st.sampled_from(SIZES)), max_size=6))
    def put(self, wishes: list[tuple[set[str], int]]) -> None:
        slots: list[Slot] = []
        models: deque[ModelSlot] = deque()
        for lanes, record_bytes in wishes:
            number = self.next_number
            self.next_number += 1
            slot = Slot(id_of(number), record_of(number, record_bytes), self.queue.mask(*lanes))
            slots.append(slot)
            if lanes:
                models.append(ModelSlot(number, slot.nbytes, set(lanes)))
        put = ModelPut(self.runner.get_loop().create_task(self.queue.put(slots)), models)
        self.rest()
        if models:
            self.model.line.append(put)
            self.model.admit(self.loop.now)
        assert put.task.done() == (put not in self.model.line)

    @precondition(lambda self: self.model.line)
    @rule(data=st.data())
    def cancel_a_put(self, data: st.DataObject) -> None:
        put = data.draw(st.sampled_from(self.model.line))
        put.task.cancel()
        self.rest()
        assert put.task.cancelled()
        self.model.line.remove(put)
        self.model.admit(self.loop.now)

    @precondition(lambda self: not self.aborted)
    @rule(lane=st.sampled_from(LANES), limit=st.integers(1, 5), data=st.data())
    def read(self, lane: str, limit: int, data: st.DataObject) -> None:
        if lane in self.readers:
            return
        task = self.runner.get_loop().create_task(self.queue.get(lane, limit))
        self.rest()
        wanted = self.model.wanted_by(lane)
        if not wanted and not (self.closed and not self.model.line):
            assert not task.done()
            self.readers[lane] = task
            return
        shown = task.result()
        assert numbers(shown) == [slot.number for slot in wanted[:limit]]
        assert all(slot.record == record_of(n, len(slot.record)) for n, slot in zip(numbers(shown), shown, strict=True))
        count = data.draw(st.integers(0, len(shown)))
        self.queue.took(lane, shown[:count])
        for slot in wanted[:count]:
            self.model.clear(slot, lane, self.loop.now)
        self.model.admit(self.loop.now)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def cancel_a_reader(self, data: st.DataObject) -> None:
        task = self.readers.pop(data.draw(st.sampled_from(sorted(self.readers))))
        task.cancel()
        self.rest()
        assert task.cancelled()

    @rule(seconds=st.integers(1, 5))
    def time_passes(self, seconds: int) -> None:
        self.loop.now += seconds

    @precondition(lambda self: not self.aborted)
    @rule(lane=st.sampled_from(LANES), older_than_s=st.integers(0, 8))
    def skip(self, lane: str, older_than_s: int) -> None:
        now = self.loop.now
        alone = [slot for slot in self.model.open if slot.lanes == {lane}]
        assert self.queue.alone_since(lane) == min((slot.since for slot in alone), default=None)
        due = [slot for slot in alone if now - slot.since >= older_than_s]
        assert self.queue.skip(lane, older_than_s) == [id_of(slot.number) for slot in due]
        for slot in due:
            self.model.clear(slot, lane, now)
        self.model.admit(now)

    @rule()
    def close(self) -> None:
        self.queue.close()
        self.closed = True

    @precondition(lambda self: self.next_number > 10)
    @rule()
    def abort(self) -> None:
        waiting: list[asyncio.Task[None] | asyncio.Task[list[Slot]]] = [put.task for put in self.model.line]
        waiting += self.readers.values()
        self.queue.abort(StoreUnavailable("gone"))
        self.rest()
        assert all(isinstance(task.exception(), QueueAborted) for task in waiting)
        self.model.line.clear()
        self.model.open.clear()
        self.readers.clear()
        self.aborted = True

    @invariant()
    def accounts_agree(self) -> None:
        if not hasattr(self, "queue"):
            return
        self.rest()
        fill = self.queue.fill
        assert fill.held_bytes == self.model.held <= self.model.bytes_max == fill.bytes_max
        assert fill.lane_bytes == {lane: sum(slot.nbytes for slot in self.model.wanted_by(lane)) for lane in LANES}
        assert fill.puts_waiting == len(self.model.line)
        assert all(not put.task.done() for put in self.model.line)
        for lane in [lane for lane, task in self.readers.items() if task.done()]:
            # Woken: there is something for the lane, or there never will be.
            shown = self.readers.pop(lane).result()
            assert numbers(shown) == [slot.number for slot in self.model.wanted_by(lane)][: len(shown)]
            assert shown or (self.closed and not self.model.line)
        for lane in self.readers:
            assert not self.model.wanted_by(lane), "a reader sleeps beside a slot it wants"
            assert not self.closed or self.model.line, "a reader sleeps at a drained queue"


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
