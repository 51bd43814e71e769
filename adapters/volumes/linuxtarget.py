"""Block devices as restore targets: refused while anything uses them, held exclusively until the end."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from adapters.volumes import linux
from adapters.volumes.targets import restoring
from adapters.volumes.writing import TargetWriter
from engine.block import Bytes
from engine.errors import RestoreError

if sys.platform == "linux":
    import fcntl

assert sys.platform == "linux"

# From linux/fs.h. BLKDISCARD would not do: what a discarded range reads as is up to the device.
_BLKZEROOUT: Final = 0x127F
_BLKSSZGET: Final = 0x1268
_BLKROGET: Final = 0x125E
_ZEROOUT_BYTES: Final = 256 << 20  # zeroed by one call, so that a slow disk can still be interrupted
_NO_ZEROOUT: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL})


class DeviceTarget:
    """A RestoreTarget: the block device `path`, of which the first `size_bytes` are written; the rest stays.

    Raises: RestoreError without `overwrite`, if it is too small, read-only, mounted or used in any other way.
    """

    def __init__(self, path: Path, size_bytes: int, overwrite: bool) -> None:
        self._path, self._size_bytes = path, size_bytes
        self._fd = -1
        if not overwrite:
            raise RestoreError(f"{path} is a device: give --overwrite if all that is on it may be lost")
        with restoring(f"{path} cannot be opened for writing"):
            found = os.stat(path)
            if not stat.S_ISBLK(found.st_mode):
                raise RestoreError(f"{path} is not a block device: choose another path")
            use = linux.device_use(found.st_rdev)
            if use is not None:
                raise RestoreError(f"{path} is in use ({use}): release it, then restore again")
            self._fd = self._open()
            self._writer = TargetWriter(self._fd)
        try:
            self._check_device()
        except BaseException:
            self.abandon()
            raise

    def _open(self) -> int:
        try:
            return os.open(self._path, os.O_RDWR | os.O_EXCL)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise RestoreError(f"{self._path} is in use by the system: unmount or release it first") from error
            raise

    def _check_device(self) -> None:
        with restoring(f"{self._path} does not tell its size"):
            device_bytes = os.lseek(self._fd, 0, os.SEEK_END)
            self._sector_bytes = self._number(_BLKSSZGET)
            read_only = self._number(_BLKROGET)
        if read_only:  # the system says so at the first write only
            raise RestoreError(f"{self._path} is read-only: make it writable, or restore to another device")
        if device_bytes < self._size_bytes:
            raise RestoreError(
                f"{self._path} has {device_bytes} bytes and the volume {self._size_bytes}: restore to a larger device"
            )

    def _number(self, request: int) -> int:
        (number,) = struct.unpack("i", fcntl.ioctl(self._fd, request, bytes(4)))
        return int(number)

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """See `RestoreTarget.write`."""
        length = sum(map(len, pieces))
        self._check_range(offset, length)
        with restoring(f"writing {length} bytes at offset {offset} of {self._path} failed"):
            self._writer.write(offset, pieces)

    def zero(self, offset: int, length: int) -> None:
        """See `RestoreTarget.zero`; from any thread. Whole sectors are left to the device where it can."""
        self._check_range(offset, length)
        stop = offset + length
        first = min(stop, -(-offset // self._sector_bytes) * self._sector_bytes)
        last = max(first, stop // self._sector_bytes * self._sector_bytes)
        with restoring(f"zeroing {length} bytes at offset {offset} of {self._path} failed"):
            self._writer.zeros(offset, first - offset)
            for start in range(first, last, _ZEROOUT_BYTES):
                self._zero_sectors(start, min(_ZEROOUT_BYTES, last - start))
            self._writer.zeros(last, stop - last)

    def _zero_sectors(self, offset: int, length: int) -> None:
        try:
            fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("QQ", offset, length))
        except OSError as error:
            if error.errno not in _NO_ZEROOUT:
                raise
            self._writer.zeros(offset, length)

    def begun(self) -> bytes:
        """See `RestoreTarget.begun`: a device has no room for anything but the volume."""
        return b""

    def keep(self, progress: bytes) -> None:
        """See `RestoreTarget.keep`: nothing is kept."""

    def restart(self) -> None:
        """See `RestoreTarget.restart`: nothing was begun."""

    def _check_range(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self._size_bytes, (offset, length, self._size_bytes)

    def finish(self) -> None:
        """See `RestoreTarget.finish`."""
        with restoring(f"what was written to {self._path} could not be made durable"):
            os.fsync(self._fd)
            self.abandon()

    def abandon(self) -> None:
        """Release the device; what was written stays: a device has no former state to go back to."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._writer.close()
            os.close(fd)
