"""What the pipeline's tests share: an event loop in virtual time and chosen order, slots, packs, sinks."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

from engine.pack import FinishedPack, PackBuilder
from engine.pipeline.queue import SLOT_BYTES, Slot, TransmissionQueue
from engine.ports import ObjectStore
from engine.stage import barrier_of
from engine.subkeys import DomainKeys

T = TypeVar("T")

HEADER_BYTES = 40
RECORD_BYTES_SMALLEST = 64
KEYS = DomainKeys.of(bytes(16), bytes(32))


class Deadlock(BaseException):
    """Every task waits and no timer runs: nothing can ever happen again."""


class _VirtualSelector(selectors.DefaultSelector):  # type: ignore[misc,unused-ignore]
    """Waits for nothing: time jumps to the next timer."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock
        self.loop.now += max(timeout, 0.0)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when all tasks wait for it.

    `order`: shuffles the tasks that are ready, in each step. `steps` counts the steps of the loop (every task that
    is ready runs once in a step); `before_step` is called with the number of each, from 1.
    """

    def __init__(self, order: random.Random | None = None, before_step: Callable[[int], None] | None = None) -> None:
        selector = _VirtualSelector()
        selector.loop = self
        self.now = 0.0
        self.steps = 0
        self._order, self._before_step = order, before_step
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        self.steps += 1
        if self._before_step is not None:
            self._before_step(self.steps)
        if self._order is not None:
            ready = list(self._ready)  # type: ignore[attr-defined]
            self._order.shuffle(ready)
            self._ready.clear()  # type: ignore[attr-defined]
            self._ready.extend(ready)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(
    scenario: Callable[[], Awaitable[T]],
    seed: int | None = None,
    before_step: Callable[[int], None] | None = None,
) -> T:
    """Run a scenario in virtual time; tasks in the order they became ready, or in one `seed` chooses."""
    loop = VirtualLoop(None if seed is None else random.Random(seed), before_step)
    return anyio.run(scenario, backend_options={"loop_factory": lambda: loop})


async def settle() -> None:
    """Return once every other task waits for something that only the caller, or time, can bring."""
    await anyio.wait_all_tasks_blocked()


class LoopClock:
    """A Clock over a loop's (virtual) time, the running one's by default."""

    def __init__(self, loop: VirtualLoop | None = None) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return round(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return anyio.current_time() if self._loop is None else self._loop.now

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def id_of(number: int) -> bytes:
    return number.to_bytes(16, "little")


def record_of(number: int, record_bytes: int = RECORD_BYTES_SMALLEST) -> bytes:
    """Return a record of exactly this length that tells its number in its header and its body."""
    assert record_bytes >= RECORD_BYTES_SMALLEST
    header = id_of(number) + bytes(HEADER_BYTES - 16)
    return header + random.Random(number).randbytes(record_bytes - HEADER_BYTES)


def slot_of(number: int, lanes: int, record_bytes: int = RECORD_BYTES_SMALLEST) -> Slot:
    return Slot(id_of(number), record_of(number, record_bytes), lanes)


def number_of(slot_id: bytes) -> int:
    return int.from_bytes(slot_id, "little")


def numbers(slots: Iterable[Slot]) -> list[int]:
    return [number_of(slot.id) for slot in slots]


def bytes_for(slots: int, record_bytes: int = RECORD_BYTES_SMALLEST) -> int:
    """Return the bound under which exactly so many slots with such records are open at once."""
    return slots * (record_bytes + SLOT_BYTES)


def held(queue: TransmissionQueue) -> int:
    return queue.fill.held_bytes


def new_pack(records: int = 3, record_bytes: int = RECORD_BYTES_SMALLEST) -> Callable[[], PackBuilder]:
    """Return what opens packs that are full with so many records."""
    pack_bytes = 64 + records * record_bytes
    return lambda: PackBuilder("data", KEYS, bytes(16), bytes(16), lambda message: bytes(64), pack_bytes)


async def at_once(work: Callable[[], FinishedPack]) -> FinishedPack:
    """Finish a pack without a thread, so that the order of things is the test's alone."""
    await anyio.lowlevel.checkpoint()
    return work()


def numbers_in(finished: FinishedPack) -> list[int]:
    """Return the numbers in a pack, checking that each id stands over the record with its number."""
    found = []
    for position, (offset, length) in enumerate(zip(finished.offsets, finished.lengths, strict=True)):
        number = number_of(finished.ids[position].tobytes())
        record = finished.data[int(offset) : int(offset) + int(length)]
        assert record == record_of(number, len(record)), f"the record under number {number} is another's"
        found.append(number)
    return found


class StoreSink:
    """A PackSink over an object store, as a pack store is one; remembers what was acknowledged."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.acknowledged: list[FinishedPack] = []
        self.flushes = 0
        self.flushed = 0  # packs of `acknowledged` that a flush followed
        self.running = 0
        self.running_most = 0
        self.before_put: Callable[[], None] = lambda: None

    async def put_pack(self, finished: FinishedPack) -> None:
        self.before_put()
        self.running += 1
        self.running_most = max(self.running_most, self.running)
        try:
            await self.store.put(str(finished.name), finished.data)
        finally:
            self.running -= 1
        self.acknowledged.append(finished)

    async def flush(self) -> None:
        covered = len(self.acknowledged)
        barrier = barrier_of(self.store)
        if barrier is not None:
            await barrier()
        self.flushes += 1
        self.flushed = covered

    @property
    def numbers(self) -> list[int]:
        """The numbers of all records acknowledged."""
        return [number for pack in self.acknowledged for number in numbers_in(pack)]
