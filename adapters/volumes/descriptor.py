"""What image files and devices have in common: an open descriptor, read at positions from any thread."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from engine.errors import SourceError, SourceGone

if sys.platform == "win32":
    OPEN_FLAGS: Final = os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT
else:
    OPEN_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK  # a FIFO must not hang the open

# What a file system, or a device, says that cannot tell data from holes.
_NO_SEEK_DATA: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})
# Not a bad sector: the whole volume is not there any more.
_GONE: Final = frozenset({errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN, errno.EBADF})
_SHRUNK: Final = "the volume ends before: it has shrunk"


class DescriptorVolume:
    """A VolumeReader over the descriptor `fd`, which it owns; `name` is the configured name, `size_bytes` its size."""

    def __init__(self, name: str, fd: int, size_bytes: int) -> None:
        self._name, self._fd, self._size_bytes = name, fd, size_bytes
        self._lock = threading.Lock()  # guards the descriptor's position
        if sys.platform == "linux":
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def name(self) -> str:
        """The configured name."""
        return self._name

    @property
    def size_bytes(self) -> int:
        """The size when it was opened."""
        return self._size_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `VolumeReader.read_into`. Raises: SourceError, SourceGone when the volume has shrunk or vanished."""
        done = 0
        while done < len(buffer):
            try:
                count = self._read_some(offset + done, buffer[done:])
            except OSError as error:
                raise self._failed(error, offset + done, len(buffer) - done) from error
            if count == 0:
                raise SourceGone(self._name, offset + done, len(buffer) - done, _SHRUNK)
            done += count

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if sys.platform == "win32":
            with self._lock:  # no positional reads here: seek and read belong together
                os.lseek(self._fd, offset, os.SEEK_SET)
                data = os.read(self._fd, len(buffer))
            buffer[: len(data)] = data
            return len(data)
        else:  # noqa: RET505 - for the type checker, which sees one platform only
            return os.preadv(self._fd, [buffer], offset)

    def data_extents(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `VolumeReader.data_extents`; where the system knows no holes, the whole range may hold data."""
        stop = min(stop, self._size_bytes)
        position = start
        while position < stop:
            try:
                with self._lock:
                    data, hole = next_data(self._fd, position, stop)
                    size_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            except OSError as error:
                raise self._failed(error, position, stop - position) from error
            if size_bytes < stop:  # past its end a file has no data either, and that must not pass for zeros
                raise SourceGone(self._name, size_bytes, stop - size_bytes, _SHRUNK)
            if data < hole:
                yield data, hole - data
            position = max(hole, position + 1)

    def _failed(self, error: OSError, offset: int, length: int) -> SourceError:
        kind = SourceGone if error.errno in _GONE else SourceError
        return kind(self._name, offset, length, error.strerror or str(error))

    def close(self) -> None:
        """Release the volume; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def next_data(fd: int, start: int, stop: int) -> tuple[int, int]:
    """Return where data begins and ends, from `start` on and below `stop`; (stop, stop) if only a hole is left.

    Moves the descriptor's position. Where the system cannot tell, all is data. Raises: OSError.
    """
    if sys.platform == "win32":
        return start, stop
    else:  # noqa: RET505 - for the type checker, which sees one platform only
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
            hole = os.lseek(fd, data, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return stop, stop
            if error.errno in _NO_SEEK_DATA:
                return start, stop
            raise
        return min(data, stop), min(hole, stop)


def open_source(name: str, path: Path) -> int:
    """Open the file or device of the volume `name` for reading and return its descriptor.

    Raises: SourceGone, in words that say what to do.
    """
    try:
        return os.open(path, OPEN_FLAGS)
    except FileNotFoundError as error:
        reason = f"{path} does not exist: check the volume's path in the configuration"
        raise SourceGone(name, 0, 0, reason) from error
    except PermissionError as error:
        reason = not_a_volume(path) if path.is_dir() else f"no right to read {path}: run as a user who may"
        raise SourceGone(name, 0, 0, reason) from error
    except OSError as error:
        raise SourceGone(name, 0, 0, f"{path} cannot be opened: {error.strerror}") from error


def not_a_volume(path: Path) -> str:
    """Say that `path` is neither file nor device."""
    what = "a folder" if path.is_dir() else "no file"
    return f"{path} is {what}: give a block device or an image file as the volume's path"
