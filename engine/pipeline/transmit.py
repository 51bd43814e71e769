"""One round of a session: producers fill the transmission queue, both lanes empty it, all flushed at its end.

Hops in flight are bounded. Each takes the volume's next works until it has half a batch of sealed records, or a batch
of blocks to be sealed, or has done enough, so that it holds less than two and a half batches of them; it gives its
place up only when the queue has taken them. Works are taken in order; their batches may finish in any.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

import anyio
import anyio.from_thread
import anyio.to_thread
import msgspec

from engine.block import BATCH_BLOCKS, BATCH_BYTES
from engine.errors import ForebayError
from engine.pipeline.candidates import Work
from engine.pipeline.lane import Lane, LaneResult
from engine.pipeline.producer import Batch, Look, Producer
from engine.pipeline.queue import QueueAborted, Slot, TransmissionQueue
from engine.pipeline.volume import VolumeRun
from engine.ports import Clock

VAULT: Final = "vault"
CACHE: Final = "cache"
# Where nothing changed a hop costs as much as comparing ten blocks.
HOP_WORKS_MAX: Final = 16
HOP_BYTES: Final = BATCH_BYTES // 2
# Of a work with more blocks to act on nothing is kept for later: then copying costs more than it saves.
KEPT_BLOCKS_MAX: Final = BATCH_BLOCKS // 2


class Transmitter(msgspec.Struct):
    """The lanes of a session and the bounds of its rounds; `workers` batches are made at once."""

    lanes: Sequence[Lane]
    queue_bytes: int
    workers: int
    clock: Clock
    queue: TransmissionQueue | None = None

    async def round(self, volumes: Sequence[tuple[VolumeRun, Iterator[Work]]]) -> dict[str, LaneResult]:
        """Do all `works`, deliver and flush everything; return each lane's result by name.

        Raises: SourceError, StoreError (what ended a lane), StateCorrupt, SessionAborted.
        """
        results: dict[str, LaneResult] = {}
        names = tuple(lane.name for lane in self.lanes)
        queue = TransmissionQueue(self.queue_bytes, names, self.clock)
        self.queue = queue

        async def empty(lane: Lane) -> None:
            results[lane.name] = await lane.run(queue)

        try:
            with queue:
                async with anyio.create_task_group() as lanes:
                    for lane in self.lanes:
                        lanes.start_soon(empty, lane)
                    await self._produce(queue, volumes)
                    queue.close()
        except BaseExceptionGroup as group:
            raise first_cause(group) from group
        return results

    async def _produce(self, queue: TransmissionQueue, volumes: Sequence[tuple[VolumeRun, Iterator[Work]]]) -> None:
        """Have every volume's works done, as many hops at once as there are workers, and one to come."""
        in_flight = anyio.Semaphore(self.workers + 1)
        threads = anyio.CapacityLimiter(self.workers)

        async def put(run: VolumeRun, batch: Batch) -> None:
            run.took(batch)
            await queue.put([Slot(each.id, each.record, each.lanes, each.packs) for each in batch.parcels])

        async def pump(run: VolumeRun, hops: _Hops) -> None:
            while not hops.done:
                async with in_flight:
                    batches = await anyio.to_thread.run_sync(hops.make, limiter=threads)
                    while batches:
                        await put(run, batches.popleft())
                run.position = max(run.position, hops.position)

        async def volume(run: VolumeRun, works: Iterator[Work]) -> None:
            started = self.clock.monotonic()
            hops = _Hops(run.producer, works)
            async with anyio.create_task_group() as pumps:
                for _ in range(self.workers + 1):
                    pumps.start_soon(pump, run, hops)
            run.position = run.reader.size_bytes
            run.report.seconds = round(run.report.seconds + self.clock.monotonic() - started, 3)

        async with anyio.create_task_group() as producers:
            for run, works in volumes:
                producers.start_soon(volume, run, works)


class _Hops:
    """The works of one volume, done by several worker threads."""

    def __init__(self, producer: Producer, works: Iterator[Work]) -> None:
        self._producer, self._works = producer, works
        self._lock = threading.Lock()
        self.done = False
        self.position = 0  # bytes of the volume that were taken up so far

    def make(self) -> deque[Batch]:
        """Do one hop (*sync*, in a worker thread): the next works, none if there are no more.

        What few blocks of several works have to be acted on are kept and acted on together. Raises: SourceError,
        StateCorrupt, SessionAborted.
        """
        batches: deque[Batch] = deque()
        kept: list[Look] = []
        sealed_bytes = 0
        for _ in range(HOP_WORKS_MAX):
            work = self._next()
            if work is None:
                break
            look = self._producer.look(work)
            if len(look) > KEPT_BLOCKS_MAX:
                batches.append(self._producer.make([look]))
                sealed_bytes += sum([len(parcel.record) for parcel in batches[-1].parcels])
            else:
                look.keep()
                kept.append(look)
            # Unreadable ranges are told at once: on a dying disk every further one costs seconds.
            if sealed_bytes >= HOP_BYTES or sum(map(len, kept)) > 2 * KEPT_BLOCKS_MAX or look.unreadable:
                break
            anyio.from_thread.check_cancelled()
        if kept:
            batches.append(self._producer.make(kept))
        return batches

    def _next(self) -> Work | None:
        with self._lock:
            work = next(self._works, None)
            if work is None:
                self.done = True
            else:
                self.position = (int(work.pages[-1]) + 1) * BATCH_BYTES
            return work


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error a group is about: no mere consequence of the queue's abort; several bugs stay a group."""
    leaves: list[BaseException] = []

    def collect(error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                collect(inner)
        else:
            leaves.append(error)

    collect(group)
    causes = [leaf for leaf in leaves if not isinstance(leaf, QueueAborted)]
    if not causes:
        # Who aborted the queue may have been cancelled by those who noticed, before it could raise itself.
        cause = leaves[0]
        while isinstance(cause, QueueAborted) and isinstance(cause.error, Exception):
            cause = cause.error
        return cause
    unexpected = [leaf for leaf in causes if not isinstance(leaf, ForebayError)]
    if len(unexpected) > 1:
        return group
    return unexpected[0] if unexpected else causes[0]
