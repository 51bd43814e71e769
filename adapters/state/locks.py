"""Locks on files that the system gives up when their holder dies: `flock` on Linux, the library filelock on Windows.

There is no soft lock where a file system has none: that would outlive a killed process. filelock itself does the same
on Linux, but costs each start of the program 11 ms, a twentieth of what one with little to do takes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

if sys.platform == "win32":
    import filelock

    class _Lock:
        def __init__(self, path: Path) -> None:
            self._lock = filelock.FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)

        def take(self) -> bool:
            try:
                self._lock.acquire(blocking=False)
            except filelock.Timeout:
                return False
            return True

        def give(self) -> None:
            self._lock.release()

else:

    class _Lock:
        def __init__(self, path: Path) -> None:
            self._path = path
            self._descriptor: int | None = None

        def take(self) -> bool:
            import fcntl

            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return False
                raise
            self._descriptor = descriptor
            return True

        def give(self) -> None:
            import fcntl

            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
                os.close(self._descriptor)
                self._descriptor = None


class FileLock:
    """A lock on the file at `path`, which is made if need be (mode 0600) and stays; in a `with` it is released."""

    def __init__(self, path: Path) -> None:
        self._lock = _Lock(path)

    def acquire(self) -> bool:
        """Take the lock; False: somebody holds it, in this process or another one. Raises: OSError."""
        return self._lock.take()

    def release(self) -> None:
        """Give the lock back; nothing happens without it."""
        self._lock.give()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
