"""Devices under mounted file systems: what is on the disk is read, not what the page cache remembers of it."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.volumes.linux import open_device
from tests.adapters.disks import ext4_image, loop_device, mounted, new_image, tool

pytestmark = pytest.mark.root
BLOCK = 65536
MIB = 1 << 20


@contextmanager
def frozen(where: Path) -> Iterator[None]:
    tool("fsfreeze", "--freeze", where)
    try:
        yield
    finally:
        tool("fsfreeze", "--unfreeze", where)


def content(device: Path) -> bytes:
    reader = open_device("disk", device)
    try:
        buffer = bytearray(reader.size_bytes)
        reader.read_into(0, memoryview(buffer))
        return bytes(buffer)
    finally:
        reader.close()


@pytest.mark.parametrize("block_bytes", [1024, 4096])
def test_changes_of_a_mounted_file_system_are_seen_once_it_is_frozen(tmp_path: Path, block_bytes: int) -> None:
    image, chooser = ext4_image(tmp_path / "disk.img", 24 * MIB), random.Random(1)
    tool("mkfs.ext4", "-q", "-F", "-b", str(block_bytes), image)
    with loop_device(image) as device, mounted(device, tmp_path / "there") as where:
        for day in range(4):
            for number in range(400):
                if day == 0 or chooser.random() < 0.5:
                    with (where / f"{number}").open("r+b" if day else "wb") as file:
                        file.write(chooser.randbytes(chooser.choice([500, 3000, 9000])))
            with frozen(where):
                assert content(device) == image.read_bytes(), f"day {day}"


def test_any_range_is_read_into_any_buffer(tmp_path: Path) -> None:
    size = 5 * MIB + 1536
    image, chooser = new_image(tmp_path / "disk.img", size), random.Random(2)
    data = chooser.randbytes(size)
    image.write_bytes(data)
    with loop_device(image) as device:
        reader = open_device("disk", device)
        room = mmap.mmap(-1, 4 * MIB)
        for _ in range(300):
            step = chooser.choice([1, 512, 4096, BLOCK])
            offset = chooser.randrange(0, size) // step * step
            length = min(chooser.choice([1, 511, 4096, BLOCK, 3 * MIB]), size - offset)
            start = chooser.choice([0, 0, 16, 4095])
            view = memoryview(room)[start : start + length]
            reader.read_into(offset, view)
            assert bytes(view) == data[offset : offset + length]
            view.release()
        reader.close()
