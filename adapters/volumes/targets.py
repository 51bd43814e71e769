"""Files as restore targets: written sparse beside their final name, which they get only when all is there."""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

from adapters.volumes.descriptor import next_data
from adapters.volumes.sparse import make_hole
from engine.block import Bytes
from engine.errors import RestoreError

if sys.platform != "win32":
    import fcntl

PARTIAL_SUFFIX: Final = ".forebay-partial"
ZERO_BYTES: Final = 1 << 20
# Blocks in one write. For a larger one Linux takes page cache in larger pieces, which are free memory less often: in a
# virtual machine that gives its free memory back, a block then costs 12 to 90 µs instead of 14 to 17.
PIECES_MAX: Final = 2
BEHIND_BYTES: Final = 32 << 20
BEHIND_SPAN: Final = 16  # times what was written: the system looks at everything between
_OPEN_TRIES_MAX: Final = 4
_ZEROS: Final = memoryview(bytes(ZERO_BYTES))

if sys.platform == "win32":
    _ERROR_SHARING_VIOLATION: Final = 32
    _PARTIAL_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT
else:
    _PARTIAL_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class FileTarget:
    """A RestoreTarget: the new file `path` of `size_bytes`.

    It grows as `path` + ".forebay-partial" and gets its name at `finish`; until then a file that `path` leads to
    stays as it is. A partial file that a killed restore left is written anew, one that is being written is refused.

    Raises: RestoreError if `path` exists and `overwrite` is not given, is no file, or cannot be made.
    """

    def __init__(self, path: Path, size_bytes: int, overwrite: bool) -> None:
        self._path, self._size_bytes, self._overwrite = path, size_bytes, overwrite
        with restoring(f"{path} cannot be looked at"):
            self._check_path()
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._lock = threading.Lock()  # guards the descriptor's position and the mark
        self._written_to = 0  # beyond it nothing but holes
        self._fd = -1
        with restoring(f"{self._partial} cannot be made"):
            self._fd = self._open_partial()
            self._behind = WriteBehind(self._fd)
            try:
                make_hole(self._fd, size_bytes)
            except OSError:
                self.abandon()
                raise

    def _check_path(self) -> None:
        path = self._path
        if path.is_dir():
            raise RestoreError(f"{path} is a folder: name a file in it, such as {path / 'volume.img'}")
        if not path.parent.is_dir():
            raise RestoreError(f"folder {path.parent} does not exist: make it, or choose another path")
        if os.path.lexists(path):
            if not self._overwrite:
                raise RestoreError(f"{path} exists: choose another path, or give --overwrite to replace it")
            if path.exists() and not path.is_file():
                raise RestoreError(f"{path} is neither a file nor a block device: choose another path")

    def _open_partial(self) -> int:
        taken = RestoreError(f"{self._partial} is being written by another restore: wait for its end")
        if sys.platform == "win32":
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self._partial)
            except PermissionError as error:
                if error.winerror == _ERROR_SHARING_VIOLATION:
                    raise taken from error
                raise
            return os.open(self._partial, _PARTIAL_FLAGS)
        else:  # noqa: RET505 - for the type checker, which sees one platform only
            for _ in range(_OPEN_TRIES_MAX):
                fd = os.open(self._partial, _PARTIAL_FLAGS, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_ours(fd):
                        os.fchmod(fd, 0o600)
                        return fd
                except OSError as error:
                    os.close(fd)
                    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                        raise taken from error
                    raise
                os.close(fd)
            raise taken

    def _is_ours(self, fd: int) -> bool:
        """Tell whether the locked `fd` is what the partial file's name leads to, and nobody else's; else free the name.

        Another restore may have given the file its name before the lock was had; and a name in a folder that others
        write to may be one more name of any file, or a file they opened before.
        """
        found = os.fstat(fd)
        try:
            named = os.lstat(self._partial)
        except FileNotFoundError:
            return False
        if (named.st_dev, named.st_ino) != (found.st_dev, found.st_ino):
            return False
        mine = sys.platform == "win32" or found.st_uid == os.geteuid()
        if mine and stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return True
        os.unlink(self._partial)
        return False

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """See `RestoreTarget.write`."""
        length = sum(map(len, pieces))
        self._check_range(offset, length)
        with self._lock:
            self._written_to = max(self._written_to, offset + length)
        with restoring(f"writing {length} bytes at offset {offset} of {self._partial} failed"):
            write_fully(self._fd, self._lock, offset, pieces)
        self._behind.wrote(offset, length)

    def zero(self, offset: int, length: int) -> None:
        """See `RestoreTarget.zero`: a range nothing was written to stays a hole. From any thread."""
        self._check_range(offset, length)
        with restoring(f"zeroing {length} bytes at offset {offset} of {self._partial} failed"):
            while length > 0:
                with self._lock:
                    stop = min(offset + length, self._written_to)
                    data, hole = next_data(self._fd, offset, stop) if offset < stop else (stop, stop)
                if data >= stop:
                    return
                write_zeros(self._fd, self._lock, data, hole - data)
                offset, length = hole, offset + length - hole

    def _check_range(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self._size_bytes, (offset, length, self._size_bytes)

    def finish(self) -> None:
        """See `RestoreTarget.finish`."""
        with restoring(f"{self._partial} could not be finished as {self._path}"):
            os.fsync(self._fd)
            if sys.platform == "win32":
                self._close()  # an open file is not renamed there
            # Elsewhere the lock is held until the name is another: nobody may begin to write to this file.
            try:
                if self._overwrite:
                    os.replace(self._partial, self._path)
                else:
                    self._name_new()
            finally:
                self._close()
            sync_parent(self._path)

    def _name_new(self) -> None:
        try:
            if sys.platform == "win32":
                os.rename(self._partial, self._path)
            else:
                os.link(self._partial, self._path)  # unlike a rename it fails if the name exists
                os.unlink(self._partial)
        except FileExistsError as error:
            raise RestoreError(
                f"{self._path} came to exist during the restore; all data is in {self._partial}: rename it"
            ) from error
        except OSError:
            if os.path.lexists(self._path) or not os.path.lexists(self._partial):
                raise
            os.rename(self._partial, self._path)  # a file system without links

    def abandon(self) -> None:
        """See `RestoreTarget.abandon`; after `finish` it does nothing."""
        if self._fd >= 0:
            self._close()
            with suppress(OSError):
                os.unlink(self._partial)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class WriteBehind:
    """Has the system write out what was written while more is written, so that the end has little to wait for.

    Left alone Linux begins when a tenth of the memory is dirty: a restore of 2 GiB then spent a third of its time in
    the last fsync. That one still is what makes the data durable; elsewhere this does nothing.
    """

    def __init__(self, fd: int) -> None:
        self._fd, self._lock = fd, threading.Lock()
        self._first, self._stop, self._bytes = sys.maxsize, 0, 0

    def wrote(self, offset: int, length: int) -> None:
        """Take note of what was written, from any thread."""
        with self._lock:
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


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Raise RestoreError with the system's own words for any OSError."""
    try:
        yield
    except OSError as error:
        raise RestoreError(f"{what}: {error.strerror or error}") from error


def write_fully(fd: int, lock: threading.Lock, offset: int, pieces: Sequence[Bytes]) -> None:
    """Write all of `pieces`, one after the other, from `offset` on. Raises: OSError.

    One thread at a time: a file system lets no two write to one file, and threads that wait for their turn in a lock
    of ours do not burn the processor as they do in the file system's.
    """
    rest = deque(memoryview(piece) for piece in pieces)
    with lock:
        if sys.platform == "win32":
            os.lseek(fd, offset, os.SEEK_SET)
        while rest:
            if sys.platform == "win32":
                done = os.write(fd, rest[0])
            else:
                done = os.pwritev(fd, list(islice(rest, PIECES_MAX)), offset)
            offset += done
            while rest and done >= len(rest[0]):
                done -= len(rest.popleft())
            if done:
                rest[0] = rest[0][done:]


def write_zeros(fd: int, lock: threading.Lock, offset: int, length: int) -> None:
    """Write `length` zeros at `offset`. Raises: OSError."""
    for start in range(offset, offset + length, ZERO_BYTES):
        write_fully(fd, lock, start, [_ZEROS[: min(ZERO_BYTES, offset + length - start)]])


def sync_parent(path: Path) -> None:
    """Make the entry of `path` in its folder durable; Windows does so by itself. Raises: OSError."""
    if sys.platform != "win32":
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
