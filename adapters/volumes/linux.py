"""Block devices of Linux: read past the page cache; their size; and what the system says about who uses them."""

from __future__ import annotations

import errno
import mmap
import os
import re
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from adapters.volumes.descriptor import DescriptorVolume, not_a_volume, open_source
from engine.errors import SourceGone

if sys.platform == "linux":
    import fcntl

assert sys.platform == "linux"

_SYS_BLOCK: Final = Path("/sys/dev/block")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SWAPS: Final = Path("/proc/swaps")
_DIRECT_ALIGNMENT: Final = 4096  # of address, offset and length: a multiple of every usual sector size
_BOUNCE_BYTES: Final = 1 << 20
_NAMED_BYTES: Final = 1 << 16  # how closely an error names the place that cannot be read
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class DeviceVolume(DescriptorVolume):
    """A VolumeReader over a block device that reads what is on the disk (see `DescriptorVolume`).

    What a device's page cache holds goes stale: a mounted file system writes its data past it, and as long as it is
    mounted nothing drops the cache. Read through it, a later session of a frozen volume would see what an earlier
    one had read.
    """

    def __init__(self, name: str, fd: int, size_bytes: int) -> None:
        super().__init__(name, fd, size_bytes)
        self._direct = _go_direct(fd)
        self._bounces = threading.local()

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        if self._direct:
            try:
                return self._read_direct(offset, buffer)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    if len(buffer) <= _NAMED_BYTES:
                        raise
                    # A direct read fails whole. Halved, it leads to the bad place in few reads that fail.
                    half = len(buffer) // 2 // _NAMED_BYTES * _NAMED_BYTES
                    return self._read_some(offset, buffer[: max(half, _NAMED_BYTES)])
            # Sectors of more than the alignment, or a driver that takes no direct reads after all.
            fcntl.fcntl(self._fd, fcntl.F_SETFL, fcntl.fcntl(self._fd, fcntl.F_GETFL) & ~os.O_DIRECT)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            self._direct = False
        return super()._read_some(offset, buffer)

    def _read_direct(self, offset: int, buffer: memoryview) -> int:
        if not (offset | len(buffer) | _address(buffer)) % _DIRECT_ALIGNMENT:
            return os.preadv(self._fd, [buffer], offset)
        skipped = offset % _DIRECT_ALIGNMENT
        wanted = min(len(buffer), _BOUNCE_BYTES - skipped)
        bounce = self._bounce()
        aligned = -(-(skipped + wanted) // _DIRECT_ALIGNMENT) * _DIRECT_ALIGNMENT
        count = os.preadv(self._fd, [bounce[:aligned]], offset - skipped)
        count = max(0, min(count - skipped, wanted))
        buffer[:count] = bounce[skipped : skipped + count]
        return count

    def _bounce(self) -> memoryview:
        bounce: memoryview | None = getattr(self._bounces, "view", None)
        if bounce is None:
            bounce = self._bounces.view = memoryview(mmap.mmap(-1, _BOUNCE_BYTES))
        return bounce


def _go_direct(fd: int) -> bool:
    """Let reads of a device bypass its page cache; False where it cannot, which is then dropped once."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return False
    return True


def _address(buffer: memoryview) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address


def open_device(name: str, path: Path) -> DeviceVolume:
    """Open the block device `path` as the volume `name`; its size is the device's now.

    Raises: SourceGone if it cannot be opened or is no block device.
    """
    fd = open_source(name, path)
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise SourceGone(name, 0, 0, not_a_volume(path))
        return DeviceVolume(name, fd, os.lseek(fd, 0, os.SEEK_END))
    except BaseException:
        os.close(fd)
        raise


def device_use(device: int) -> str | None:
    """Say how the block device with the number `device` is used, itself, its partitions or its whole disk.

    Mounted (also as one of several names of a file system), swap, or held by another device (LVM, RAID, dm-crypt).
    None: nothing that this mount namespace and /sys know of; opening it with O_EXCL tells the rest.
    """
    mounts = list(_mounts())
    swaps = _swaps()
    for number, called in _relatives(device):
        for mounted, where in mounts:
            if mounted == number:
                return f"{called} is mounted on {where}"
        if number in swaps:
            return f"{called} is in use as swap"
        holders = _children(_SYS_BLOCK / _number(number) / "holders")
        if holders:
            return f"{called} is used by {', '.join(sorted(holder.name for holder in holders))}"
    return None


def _relatives(device: int) -> Iterator[tuple[int, str]]:
    """Yield the device, its partitions and the whole disk it is a partition of, with what to call them."""
    folder = (_SYS_BLOCK / _number(device)).resolve()
    yield device, "it"
    for child in _children(folder):
        if (child / "partition").exists():
            yield _read_number(child), f"its partition {child.name}"
    if (folder / "partition").exists():
        yield _read_number(folder.parent), f"its whole disk {folder.parent.name}"


def _number(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _read_number(folder: Path) -> int:
    """Return the number in the file `dev` of a device's folder under /sys; -1 if it is just going."""
    try:
        major, _, minor = (folder / "dev").read_text("ascii").strip().partition(":")
    except OSError:
        return -1
    return os.makedev(int(major), int(minor))


def _children(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []  # no such folder: nothing of the kind


def _mounts() -> Iterator[tuple[int, str]]:
    """Yield (device number, mount point) of every mounted file system."""
    for line in _MOUNTS.read_text("utf-8", "surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")[1]
        major, _, minor = fields[2].partition(":")
        where = _unescaped(fields[4])
        yield os.makedev(int(major), int(minor)), where
        # File systems such as btrfs have a number of their own and name their device only here.
        number = _device_number(_unescaped(source))
        if number is not None:
            yield number, where


def _swaps() -> set[int]:
    try:
        lines = _SWAPS.read_text("utf-8", "surrogateescape").splitlines()[1:]
    except OSError:
        return set()
    numbers = {_device_number(_unescaped(line.split()[0])) for line in lines if line.strip()}
    return {number for number in numbers if number is not None}


def _device_number(source: str) -> int | None:
    if not source.startswith("/"):
        return None
    try:
        found = os.stat(source)
    except OSError:
        return None
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else None


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
