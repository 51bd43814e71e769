"""Writing what was opened in threads of its own: while batches are written, the next ones are opened.

Opening needs the interpreter between any two library calls, writing hardly ever: threads for each keep the processors
busy where threads that do both would mostly wait for each other. While one of two writers waits for the disk, the
other prepares what comes next.

What is written is gathered first, up to `GATHERED_BYTES`, and written in the order of the volume: blocks come as their
records lie, which is by day within each stretch, and long ranges are written several times as fast as short ones.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Final, TypeAlias

from engine.block import Bytes
from engine.errors import RestoreError
from engine.ports import RestoreTarget

GATHERED_BYTES: Final = 64 << 20
BATCH_BYTES: Final = 8 << 20  # written by one thread at a time
WAITING_MAX: Final = 8  # batches that may wait to be written
WRITERS: Final = 2

# (offset, pieces that follow one another from there) each.
Runs: TypeAlias = Sequence[tuple[int, Sequence[Bytes]]]


class Writer:
    """Writes to `target`, batch after batch; from any thread, until it is closed."""

    def __init__(self, target: RestoreTarget) -> None:
        self._target = target
        self._changed = threading.Condition()
        self._gathered: list[tuple[int, Sequence[Bytes]]] = []
        self._gathered_bytes = 0
        self._waiting: deque[Runs] = deque()
        self._busy, self._closed = 0, False
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def write(self, runs: Runs) -> None:
        """Have runs written, in time; wait while too much waits already.

        Raises: RestoreError: earlier ones could not be written.
        """
        with self._changed:
            self._check()
            assert not self._closed
            self._gathered += runs
            self._gathered_bytes += sum(len(piece) for _, pieces in runs for piece in pieces)
            full = self._take() if self._gathered_bytes >= GATHERED_BYTES else []
        self._pass_on(full)

    def drain(self) -> None:
        """Return once everything is written. Raises: RestoreError: something could not be."""
        with self._changed:
            self._check()
            rest = self._take()
        self._pass_on(rest)
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._busy) or self._failure is not None)
            self._check()

    def close(self) -> None:
        """End the threads; what waits is not written any more. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._gathered.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _take(self) -> list[tuple[int, Sequence[Bytes]]]:
        gathered, self._gathered, self._gathered_bytes = self._gathered, [], 0
        return gathered

    def _pass_on(self, gathered: list[tuple[int, Sequence[Bytes]]]) -> None:
        for batch in in_order(gathered):
            with self._changed:
                self._changed.wait_for(lambda: len(self._waiting) < WAITING_MAX or self._failure is not None)
                self._check()
                self._waiting.append(batch)
                if len(self._threads) < WRITERS:
                    thread = threading.Thread(target=self._work, name="forebay writer", daemon=True)
                    self._threads.append(thread)
                    thread.start()
                self._changed.notify_all()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while (runs := self._next()) is not None:
                for offset, pieces in runs:
                    self._target.write(offset, pieces)
                self._wrote()
                del runs  # what was written is not held while the next batch is waited for
        except RestoreError as error:
            self._fail(error)
        except BaseException as error:
            self._fail(error)
            raise

    def _next(self) -> Runs | None:
        """Wait for a batch; None: there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed)
            if not self._waiting:
                return None
            self._busy += 1
            self._changed.notify_all()
            return self._waiting.popleft()

    def _wrote(self) -> None:
        with self._changed:
            self._busy -= 1
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure, self._busy = error, self._busy - 1
            self._waiting.clear()
            self._gathered.clear()
            self._changed.notify_all()


def in_order(runs: list[tuple[int, Sequence[Bytes]]]) -> Iterator[Runs]:
    """Yield runs that do not overlap in ascending order, joined where they touch, in batches of about `BATCH_BYTES`."""
    batch: list[tuple[int, list[Bytes]]] = []
    held, stop = 0, -1
    for offset, pieces in sorted(runs, key=itemgetter(0)):
        for piece in pieces:
            if held >= BATCH_BYTES:
                yield batch
                batch, held, stop = [], 0, -1
            if offset != stop:
                batch.append((offset, []))
            batch[-1][1].append(piece)
            offset = stop = offset + len(piece)
            held += len(piece)
    if batch:
        yield batch
