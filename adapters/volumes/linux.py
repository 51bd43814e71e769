"""Block devices of Linux: their size, and what the system says about who uses them."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapters.volumes.descriptor import DescriptorVolume, not_a_volume, open_source
from engine.errors import SourceGone

assert sys.platform == "linux"

_SYS_BLOCK: Final = Path("/sys/dev/block")
_MOUNTS: Final = Path("/proc/self/mountinfo")
_SWAPS: Final = Path("/proc/swaps")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


def open_device(name: str, path: Path) -> DescriptorVolume:
    """Open the block device `path` as the volume `name`; its size is the device's now.

    Raises: SourceGone if it cannot be opened or is no block device.
    """
    fd = open_source(name, path)
    try:
        if not stat.S_ISBLK(os.fstat(fd).st_mode):
            raise SourceGone(name, 0, 0, not_a_volume(path))
        return DescriptorVolume(name, fd, os.lseek(fd, 0, os.SEEK_END))
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
