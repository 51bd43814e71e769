"""A lane: takes the slots its sink lacks from the transmission queue, fills packs, and has them put.

Rules:
- A slot is taken once its record is in the open pack. A full pack is finished in a worker thread, one at a time
  (finishing copies it), and put in a task of its own.
- Packs in memory, the open one included, are at most `LanePolicy.packs_max`, puts at once at most `puts_max`.
  While no further pack may be opened the lane takes nothing: that is how a slow store reaches the queue.
- A put that returned is acknowledged, not durable. Only the sink's `flush` makes it so; the lane calls it at the
  end of every round, and in between so often that the ids it must remember until then are bounded.
- The vault's lane (no `CacheErrorPolicy`), or a cache's under on_error = "fail": the first StoreError that comes
  out of the sink, after the retry stage below it has done what it can, ends the lane and aborts the queue.
- The cache's lane under "warn" and "error" gives up instead, for the session: it stops its puts, throws away its
  packs, and goes on taking what comes, so that neither producers nor the vault's lane wait for it. Everything
  it took and did not make durable is reported by id: those are the blocks the cache lacks.
- on_slow = "skip": what waits in the queue for this lane alone for too long is released and reported likewise.
- A lane that ends otherwise than by draining the queue aborts it: nobody waits for a reader that is gone. By the
  time `run` has returned or raised, no task of it is left and no put of it can be acknowledged any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import msgspec
from anyio import CancelScope, CapacityLimiter, Event, Lock, create_task_group, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from engine.block import ID_BYTES
from engine.errors import StoreError, StoreRejected
from engine.pack import FinishedPack, PackBuilder
from engine.pipeline.queue import QueueAborted, Slot, TransmissionQueue
from engine.policy import CacheErrorPolicy, LanePolicy, SlowPolicy
from engine.ports import Clock

T = TypeVar("T")

# Slots taken between two awaits: one batch.
TAKE_SLOTS_MAX: Final = 64
# The skip timer looks at most this often per `skip_after`.
_SKIP_LOOKS: Final = 20

InThread: TypeAlias = Callable[[Callable[[], FinishedPack]], Awaitable[FinishedPack]]


class PackSink(Protocol):
    """Where a lane's packs go: a pack store over a stack of stages."""

    async def put_pack(self, finished: FinishedPack) -> None:
        """Put a pack; it is acknowledged once this has returned. Raises: StoreError."""
        ...

    async def flush(self) -> None:
        """Return once every acknowledged pack is durable. Raises: StoreError."""
        ...


class LaneResult(msgspec.Struct, frozen=True):
    """What one round of a lane did.

    `packs`, `records`, `bytes_put`: acknowledged; `dropped`: records reported as not delivered (acknowledged ones
    that no flush made durable among them); `gave_up`: why the lane has given up, in this or an earlier round.
    Everything acknowledged and not dropped is durable.
    """

    packs: int
    records: int
    bytes_put: int
    dropped: int
    gave_up: StoreError | None


async def _in_thread(work: Callable[[], FinishedPack]) -> FinishedPack:
    return await to_thread.run_sync(work)


def _nothing(_: object) -> None:
    return None


class Lane:
    """One sink's lane through a session: `run` it once for every round of the session, never two at once.

    `name` is the lane's in the queue; `new_pack` opens an empty pack; `on_ack` hears of every acknowledged pack,
    `on_drop` of the ids (16 bytes each) of records that were not delivered; both are called from the event loop
    and must be quick. `finish` makes a pack of what it was filled with, in a worker thread. `errors` is None for the
    vault.
    """

    def __init__(
        self,
        name: str,
        sink: PackSink,
        new_pack: Callable[[], PackBuilder],
        policy: LanePolicy,
        clock: Clock,
        *,
        errors: CacheErrorPolicy | None = None,
        slow: SlowPolicy | None = None,
        on_ack: Callable[[FinishedPack], None] = _nothing,
        on_drop: Callable[[list[bytes]], None] = _nothing,
        in_thread: InThread = _in_thread,
        finish: Callable[[PackBuilder], FinishedPack] = PackBuilder.finish,
    ) -> None:
        self.name, self.sink, self.new_pack, self.policy, self.clock = name, sink, new_pack, policy, clock
        self.gives_up = errors is not None and errors.gives_up
        self.skip_after_s = slow.skip_after_s if slow is not None and slow.on_slow == "skip" else None
        self.on_ack, self.on_drop = on_ack, on_drop
        self.in_thread, self.finish = in_thread, finish
        self.gave_up: StoreError | None = None

    async def run(self, queue: TransmissionQueue) -> LaneResult:
        """Take slots until `queue` is closed and drained, have everything put, and flush.

        Raises: StoreError (what ended the lane), QueueAborted (someone else aborted the queue).
        """
        try:
            return await _Round(self, queue).run()
        except BaseException as error:
            queue.abort(error)
            raise


class _Pack(msgspec.Struct):
    """A pack and the ids of its records, 16 bytes each: a builder that is thrown away does not tell them."""

    builder: PackBuilder
    ids: bytearray


class _Round:
    """The state of one `Lane.run`."""

    def __init__(self, lane: Lane, queue: TransmissionQueue) -> None:
        self._lane, self._queue = lane, queue
        self._group = create_task_group()
        self._skipping = CancelScope()
        self._puts = CapacityLimiter(lane.policy.puts_max)
        self._finishing = Lock()
        self._calls: set[CancelScope] = set()
        self._open: _Pack | None = None
        self._packs_held = 0
        self._room_made = Event()
        self._unflushed = bytearray()
        self._failure: StoreError | QueueAborted | None = None
        self._packs = self._records = self._bytes_put = self._dropped = 0

    async def run(self) -> LaneResult:
        async with self._group:
            if self._lane.skip_after_s is not None:
                self._group.start_soon(self._skip_slow, self._lane.skip_after_s)
            await self._take_all()
        if self._failure is not None:
            raise self._failure
        await self._settle()
        return LaneResult(self._packs, self._records, self._bytes_put, self._dropped, self._lane.gave_up)

    async def _take_all(self) -> None:
        try:
            while True:
                if self._open is None:
                    await self._room()
                slots = await self._queue.get(self._lane.name, TAKE_SLOTS_MAX)
                if not slots:
                    break
                self._queue.took(self._lane.name, slots[: self._take(slots)])
        except QueueAborted as error:
            self._fail(error)
            return
        self._skipping.cancel()
        if self._open is not None:
            self._seal(self._open)

    async def _room(self) -> None:
        """Wait until another pack may be opened, or none will be any more."""
        while self._packs_held >= self._lane.policy.packs_max and self._lane.gave_up is None:
            self._room_made = Event()
            await self._room_made.wait()

    def _take(self, slots: list[Slot]) -> int:
        """Put records into the open pack until it is full; return how many slots that took."""
        if self._lane.gave_up is not None:
            self._drop([slot.id for slot in slots])
            return len(slots)
        if self._open is None:
            self._open = _Pack(self._lane.new_pack(), bytearray())
            self._packs_held += 1
        pack = self._open
        for taken, slot in enumerate(slots):
            if not pack.builder.room(len(slot.record)):
                self._seal(pack)
                return taken
            pack.builder.add(slot.record, slot.packs)
            pack.ids += slot.id
        return len(slots)

    def _seal(self, pack: _Pack) -> None:
        self._open = None
        self._group.start_soon(self._deliver, pack)

    async def _deliver(self, pack: _Pack) -> None:
        """Have one pack put, or know why it was not; then make room."""
        finished: FinishedPack | None = None
        try:
            if self._lane.gave_up is None:
                finished = await self._stoppable(self._put(pack.builder))
        except StoreError as error:
            self._end(error)
        finally:
            self._packs_held -= 1
            self._room_made.set()
        if self._failure is not None:
            return
        if finished is None:
            self._drop(_split(pack.ids))
            return
        self._packs += 1
        self._records += len(finished.ids)
        self._bytes_put += len(finished.data)
        self._unflushed += pack.ids
        self._lane.on_ack(finished)
        del finished, pack  # its memory is counted no longer, so nothing may hold it through a flush
        unflushed_bytes_max = self._lane.policy.unflushed_records_max * ID_BYTES
        if len(self._unflushed) >= unflushed_bytes_max and self._lane.gave_up is None:
            await self._flush()

    async def _stoppable(self, call: Coroutine[Any, Any, T]) -> T | None:
        """Await a call to the sink that giving up stops; None: it was stopped."""
        with CancelScope() as scope:
            self._calls.add(scope)
            try:
                return await call
            finally:
                self._calls.discard(scope)
        return None

    async def _put(self, builder: PackBuilder) -> FinishedPack:
        async with self._puts:
            async with self._finishing:
                finished = await self._lane.in_thread(partial(self._lane.finish, builder))
            # The lane may have been given up while this task was already due to run: then no put begins.
            await checkpoint_if_cancelled()
            await self._lane.sink.put_pack(finished)
        return finished

    async def _flush(self) -> None:
        """Make durable what is acknowledged now; what is not, stays on the list."""
        flushing, self._unflushed = self._unflushed, bytearray()
        flushed: bool | None = None
        try:
            flushed = await self._stoppable(self._barrier())
        except StoreError as error:
            self._end(error)
        if not flushed:
            self._unflushed = flushing + self._unflushed

    async def _barrier(self) -> bool:
        await self._lane.sink.flush()
        return True

    async def _settle(self) -> None:
        """End the round: flush, and report what no flush made durable."""
        reason = self._lane.gave_up
        # A store that refuses still answers, and what it took before is worth a flush; one that is away is not.
        if reason is None or (isinstance(reason, StoreRejected) and self._unflushed):
            await self._flush()
        if self._failure is not None:
            raise self._failure
        if self._unflushed:
            self._drop(_split(self._unflushed))

    def _end(self, error: StoreError) -> None:
        """Give the lane up, or end the session, as the policy says."""
        if not self._lane.gives_up:
            self._fail(error)
            return
        if self._lane.gave_up is not None:
            return
        self._lane.gave_up = error
        for scope in self._calls:
            scope.cancel()
        if self._open is not None:
            self._drop(_split(self._open.ids))
            self._open = None
            self._packs_held -= 1
        self._room_made.set()

    def _fail(self, error: StoreError | QueueAborted) -> None:
        if self._failure is None:
            self._failure = error
        self._queue.abort(error)
        self._group.cancel_scope.cancel()

    def _drop(self, ids: list[bytes]) -> None:
        if ids:
            self._dropped += len(ids)
            self._lane.on_drop(ids)

    async def _skip_slow(self, skip_after_s: float) -> None:
        """Release what waits for this lane alone for too long; nothing is looked at before it can be due."""
        clock, name = self._lane.clock, self._lane.name
        with self._skipping:
            while True:
                since_s = self._queue.alone_since(name)
                wait_s = skip_after_s if since_s is None else since_s + skip_after_s - clock.monotonic()
                await clock.sleep(max(wait_s, skip_after_s / _SKIP_LOOKS))
                try:
                    self._drop(self._queue.skip(name, skip_after_s))
                except QueueAborted as error:
                    self._fail(error)
                    return


def _split(ids: bytearray) -> list[bytes]:
    return [bytes(ids[at : at + ID_BYTES]) for at in range(0, len(ids), ID_BYTES)]
