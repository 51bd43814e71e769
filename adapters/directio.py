"""Files past the page cache, where the system can: what one system alone knows of files, for stores and volumes.

Packs and volumes are written once and read after days, if ever: in the page cache they cost a copy, fresh memory, and
what others have a use for. So large pieces go to the disk directly where they lie aligned, on file systems over one
block device: those over networks or several disks have caches of their own to keep. Whatever cannot go that way goes
the usual one, and both may be mixed: the system keeps them coherent.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.block import Bytes

if sys.platform == "linux":
    import fcntl

DIRECT_ALIGNMENT: Final = 4096  # of address, offset and length: a multiple of every usual sector size
DIRECT_BYTES_MIN: Final = 1 << 20  # less is not worth waiting for the disk
STEP_BYTES: Final = 4 << 20  # read or written between two reports of progress
ROOM_BYTES: Final = 8 << 20  # written at once at most
_NOT_DIRECT: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)

Room: TypeAlias = npt.NDArray[np.uint8]


class NewFile:
    """The new file `fd`, open for writing, into which `view` is written from front to back."""

    def __init__(self, fd: int, view: memoryview) -> None:
        self._fd = fd
        address = np.frombuffer(view, np.uint8).__array_interface__["data"][0] if len(view) else 0
        self._direct = len(view) >= DIRECT_BYTES_MIN and not address % DIRECT_ALIGNMENT and _go_direct(fd)

    def write(self, view: memoryview) -> int:
        """Write the next bytes, or some of them; return how many. Raises: OSError."""
        if self._direct:
            whole = len(view) - len(view) % DIRECT_ALIGNMENT
            try:
                if whole:
                    return os.write(self._fd, view[:whole])
            except OSError as error:
                # Larger sectors, or a file system that promised too much.
                if error.errno not in _NOT_DIRECT:
                    raise
            self._direct = False
            _go_cached(self._fd)
        return os.write(self._fd, view)


class LargeWrites:
    """Large ranges of the file or device that `fd` leads to, written directly, from any number of threads."""

    def __init__(self, fd: int) -> None:
        self._fd = _opened_direct(fd)
        self._rooms: deque[Room] = deque()

    def write(self, offset: int, pieces: Sequence[Bytes]) -> int:
        """Write as much of `pieces`, one after the other from `offset` on, as can go directly; return how many bytes.

        The rest is to be written in the usual way. Raises: OSError.
        """
        if self._fd < 0 or offset % DIRECT_ALIGNMENT or sum(map(len, pieces)) < DIRECT_BYTES_MIN:
            return 0
        room = self._rooms.popleft() if self._rooms else _aligned(ROOM_BYTES)
        try:
            return self._write_all(offset, pieces, room)
        except OSError as error:
            # Larger sectors, or a file system that promised too much.
            if error.errno not in _NOT_DIRECT:
                raise
            return 0
        finally:
            self._rooms.append(room)

    def close(self) -> None:
        """Release what was opened; safe to call twice, and while nothing is written."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write_all(self, offset: int, pieces: Sequence[Bytes], room: Room) -> int:
        done = filled = 0
        view = room.data
        for piece in pieces:
            left = memoryview(piece)
            while len(left):
                part = left[: ROOM_BYTES - filled]
                view[filled : filled + len(part)] = part
                filled, left = filled + len(part), left[len(part) :]
                if filled == ROOM_BYTES:
                    self._write(offset + done, room)
                    done, filled = done + filled, 0
        whole = filled - filled % DIRECT_ALIGNMENT
        self._write(offset + done, room[:whole])
        return done + whole

    def _write(self, offset: int, room: Room) -> None:
        if sys.platform == "linux":
            done = 0
            while done < len(room):
                done += os.pwrite(self._fd, room[done:].data, offset + done)


def read_large(fd: int, offset: int, length: int, progress: Callable[[], None]) -> memoryview | None:
    """Return `length` bytes from `offset` of a file, fewer only where it ends, or None: read them in the usual way.

    `progress` is called after every step. Raises: OSError.
    """
    if sys.platform == "linux":
        if length < DIRECT_BYTES_MIN or not _go_direct(fd):
            return None
        first = offset - offset % DIRECT_ALIGNMENT
        wanted = -(-(offset + length) // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT - first
        room = _aligned(wanted).data
        done = 0
        try:
            while done < wanted:
                count = os.preadv(fd, [room[done : done + STEP_BYTES]], first + done)
                progress()
                done += count
                if count % DIRECT_ALIGNMENT or not count:
                    break  # the file's end
        except OSError as error:
            if error.errno not in _NOT_DIRECT:
                raise
            return None
        finally:
            _go_cached(fd)
        return room[offset - first : min(done, offset - first + length)]
    else:  # noqa: RET505 - for the type checker, which sees one platform only
        return None


def _aligned(length: int) -> Room:
    room = np.empty(length + DIRECT_ALIGNMENT, np.uint8)
    start = -int(room.__array_interface__["data"][0]) % DIRECT_ALIGNMENT
    return room[start : start + length]


def _is_direct(fd: int) -> bool:
    """Tell whether `fd` is one block device, or a file on one."""
    if sys.platform == "linux":
        found = os.fstat(fd)
        return stat.S_ISBLK(found.st_mode) or os.major(found.st_dev) != 0
    else:  # noqa: RET505 - for the type checker, which sees one platform only
        return False


def _opened_direct(fd: int) -> int:
    """Open what `fd` leads to once more, to be written directly; -1: that cannot be."""
    if sys.platform == "linux":
        with suppress(OSError):
            if _is_direct(fd):
                return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT)
    return -1


def _go_direct(fd: int) -> bool:
    if sys.platform == "linux":
        if not _is_direct(fd):
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
        except OSError:
            return False
        return True
    else:  # noqa: RET505 - for the type checker, which sees one platform only
        return False


def _go_cached(fd: int) -> None:
    if sys.platform == "linux":
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT)
