"""Writing what was opened in threads of its own: while batches are written, the next ones are opened.

Opening needs the interpreter between any two library calls, writing hardly ever: threads for each keep the processors
busy where threads that do both would mostly wait for each other. While one of two writers waits for the disk, the
other prepares what comes next.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Final, TypeAlias

from engine.block import Bytes
from engine.errors import RestoreError
from engine.ports import RestoreTarget

WAITING_MAX: Final = 2  # batches that may wait to be written: 12 MiB
WRITERS: Final = 2

# (offset, pieces that follow one another from there) each.
Runs: TypeAlias = Sequence[tuple[int, Sequence[Bytes]]]


class Writer:
    """Writes to `target`, batch after batch; from any thread, until it is closed."""

    def __init__(self, target: RestoreTarget) -> None:
        self._target = target
        self._changed = threading.Condition()
        self._waiting: deque[Runs] = deque()
        self._busy, self._closed = 0, False
        self._failure: BaseException | None = None
        self._threads: list[threading.Thread] = []

    def write(self, runs: Runs) -> None:
        """Have a batch written, soon; wait while too many wait already.

        Raises: RestoreError: an earlier batch could not be written.
        """
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < WAITING_MAX or self._failure is not None)
            self._check()
            assert not self._closed
            self._waiting.append(runs)
            if len(self._threads) < WRITERS:
                thread = threading.Thread(target=self._work, name="forebay writer", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

    def drain(self) -> None:
        """Return once everything is written. Raises: RestoreError: a batch could not be."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._waiting or self._busy) or self._failure is not None)
            self._check()

    def close(self) -> None:
        """End the threads; what waits is not written any more. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

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
            self._changed.notify_all()
