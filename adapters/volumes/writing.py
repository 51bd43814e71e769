"""Writing at positions of a restore target: large ranges past the page cache, the rest through it, soon out of it."""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

from adapters.directio import LargeWrites
from engine.block import Bytes

ZERO_BYTES: Final = 1 << 20
# Blocks in one write. For a larger one Linux takes page cache in larger pieces, which are free memory less often: in a
# virtual machine that gives its free memory back, a block then costs 12 to 90 µs instead of 14 to 17.
PIECES_MAX: Final = 2
BEHIND_BYTES: Final = 32 << 20
BEHIND_SPAN: Final = 16  # times what was written: the system looks at everything between
_ZEROS: Final = memoryview(bytes(ZERO_BYTES))


class TargetWriter:
    """Writes to the descriptor `fd` of a target, from any thread; `lock` guards its position.

    Through the page cache one thread writes at a time: a file system lets no two do so in one file, and threads that
    wait for their turn in a lock of ours do not burn the processor as they do in the file system's.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self.lock = fd, threading.Lock()
        self._large, self._behind = LargeWrites(fd), WriteBehind(fd)

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """Write all of `pieces`, one after the other, from `offset` on. Raises: OSError."""
        done = self._large.write(offset, pieces)
        rest = deque(memoryview(piece) for piece in pieces)
        _skip(rest, done)
        if rest:
            with self.lock:
                self._behind.wrote(offset + done, self._write(offset + done, rest))

    def close(self) -> None:
        """Release what was opened beside `fd`; safe to call twice."""
        self._large.close()

    def zeros(self, offset: int, length: int) -> None:
        """Write `length` zeros at `offset`. Raises: OSError."""
        for start in range(offset, offset + length, ZERO_BYTES):
            self.write(start, [_ZEROS[: min(ZERO_BYTES, offset + length - start)]])

    def _write(self, offset: int, rest: deque[memoryview]) -> int:
        first = offset
        if sys.platform == "win32":
            os.lseek(self._fd, offset, os.SEEK_SET)
        while rest:
            if sys.platform == "win32":
                done = os.write(self._fd, rest[0])
            else:
                done = os.pwritev(self._fd, list(islice(rest, PIECES_MAX)), offset)
            offset += done
            _skip(rest, done)
        return offset - first


class WriteBehind:
    """Has the system write out what was written while more is written, so that the end has little to wait for.

    Left alone Linux begins when a tenth of the memory is dirty: a restore of 2 GiB then spent a third of its time in
    the last fsync. That one still is what makes the data durable; elsewhere this does nothing.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._first, self._stop, self._bytes = sys.maxsize, 0, 0

    def wrote(self, offset: int, length: int) -> None:
        """Take note of what was written."""
        self._first, self._stop = min(self._first, offset), max(self._stop, offset + length)
        self._bytes += length
        span = self._stop - self._first
        if self._bytes < BEHIND_BYTES or span > self._bytes * BEHIND_SPAN:
            return
        first = self._first
        self._first, self._stop, self._bytes = sys.maxsize, 0, 0
        if sys.platform == "linux":
            with suppress(OSError):  # a hint
                # What is dirty is not forgotten but written out.
                os.posix_fadvise(self._fd, first, span, os.POSIX_FADV_DONTNEED)


def _skip(rest: deque[memoryview], done: int) -> None:
    """Drop the first `done` bytes."""
    while rest and done >= len(rest[0]):
        done -= len(rest.popleft())
    if done:
        rest[0] = rest[0][done:]
