"""One round of a session: producers fill the transmission queue, both lanes empty it, all flushed at its end.

Hops in flight are bounded: each holds at most one batch of sealed records, and gives its place up only when the
queue has taken them. A volume's works are taken in order; their batches may finish in any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import anyio
import anyio.to_thread

from engine.block import BATCH_BYTES
from engine.errors import ForebayError
from engine.pipeline.candidates import Work
from engine.pipeline.lane import Lane, LaneResult
from engine.pipeline.queue import QueueAborted, Slot, TransmissionQueue
from engine.pipeline.volume import VolumeRun
from engine.ports import Clock

VAULT: Final = "vault"
CACHE: Final = "cache"
WORKS_AT_ONCE: Final = 32  # fetched in one hop: for scattered hints a work is a block or two


@dataclass(slots=True)
class Transmitter:
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
        in_flight = anyio.Semaphore(self.workers + 1)
        threads = anyio.CapacityLimiter(self.workers)

        async def one(run: VolumeRun, work: Work) -> None:
            try:
                batch = await anyio.to_thread.run_sync(run.producer.make, work, limiter=threads)
                run.took(batch)
                run.position = max(run.position, (int(work.pages[-1]) + 1) * BATCH_BYTES)
                await queue.put([Slot(each.id, each.record, each.lanes, each.packs) for each in batch.parcels])
            finally:
                in_flight.release()

        async def volume(run: VolumeRun, works: Iterator[Work]) -> None:
            started = self.clock.monotonic()
            async with anyio.create_task_group() as group:
                while found := await anyio.to_thread.run_sync(list, islice(works, WORKS_AT_ONCE)):
                    for work in found:
                        await in_flight.acquire()
                        group.start_soon(one, run, work)
            run.position = run.reader.size_bytes
            run.report.seconds = round(run.report.seconds + self.clock.monotonic() - started, 3)

        async with anyio.create_task_group() as producers:
            for run, works in volumes:
                producers.start_soon(volume, run, works)


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
        return leaves[0]
    unexpected = [leaf for leaf in causes if not isinstance(leaf, ForebayError)]
    if len(unexpected) > 1:
        return group
    return unexpected[0] if unexpected else causes[0]
