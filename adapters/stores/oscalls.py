"""Writing files past the page cache, where the system can: what one system alone knows of files, for folder stores."""

from __future__ import annotations

import errno
import os
import sys
from typing import Final

import numpy as np

if sys.platform == "linux":
    import fcntl

DIRECT_ALIGNMENT: Final = 4096  # of address, offset and length: a multiple of every usual sector size
DIRECT_BYTES_MIN: Final = 1 << 20  # less is not worth waiting for the disk
_NOT_DIRECT: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


class NewFile:
    """The new file `fd`, open for writing, into which `view` is written from front to back.

    Packs are read again after days, if ever: in the page cache they cost a copy, fresh pages, and those that others
    have a use for. So large ones go to the disk directly where they lie aligned, on file systems over one block
    device: those over networks or several disks have caches of their own to keep.
    """

    def __init__(self, fd: int, view: memoryview) -> None:
        self._fd = fd
        self._direct = _go_direct(fd, view)

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


def _go_direct(fd: int, view: memoryview) -> bool:
    if sys.platform == "linux":
        address = np.frombuffer(view, np.uint8).__array_interface__["data"][0] if len(view) else 0
        if len(view) < DIRECT_BYTES_MIN or address % DIRECT_ALIGNMENT or os.major(os.fstat(fd).st_dev) == 0:
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
