"""Block devices: real loop devices, partitions, read errors, and who uses them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.volumes.linux import device_use, open_device
from adapters.volumes.open import open_target, open_volume
from engine.errors import RestoreError, SourceError, SourceGone
from engine.pipeline.skips import read_with_skips
from engine.ports import VolumeReader
from tests.adapters.disks import ext4_image, failing_disk, loop_device, mounted, new_image, tool

pytestmark = pytest.mark.root
BLOCK = 65536
MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return new_image(tmp_path / "disk.img", 16 * MIB)


@pytest.fixture
def device(image: Path) -> Iterator[Path]:
    with loop_device(image) as found:
        yield found


def read(reader: VolumeReader, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    reader.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def restored(path: Path, size: int) -> bytes:
    reader = open_volume("restored", path)
    try:
        return read(reader, 0, size)
    finally:
        reader.close()


@pytest.mark.parametrize("size", [512, BLOCK - 512, BLOCK, 10 * BLOCK + 1536])
def test_every_byte_of_a_device_of_any_size_is_read(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    image = tmp_path / "disk.img"
    image.write_bytes(content)
    with loop_device(image, "--read-only") as device:
        reader = open_volume("disk", device)
        assert reader.size_bytes == size
        assert list(reader.data_extents(0, size)) == [(0, size)]
        assert list(reader.data_extents(size // 2, size * 2)) == [(size // 2, size - size // 2)]
        assert read(reader, 0, size) == content
        with pytest.raises(SourceError, match="'disk'"):
            read(reader, size - 1, 2)
        reader.close()


def test_a_file_is_no_device(image: Path) -> None:
    with pytest.raises(SourceGone, match="is no file: give"):
        open_device("disk", image)


@pytest.mark.parametrize("through", ["file", "device"])
def test_read_errors_name_volume_and_offset_and_can_be_skipped(tmp_path: Path, through: str) -> None:
    with failing_disk(tmp_path, 4 * MIB) as (disk, trigger):
        disk.write_bytes(b"d" * (4 * MIB))
        with loop_device(disk) as loop:
            reader = open_volume("disk", disk if through == "file" else loop)
            trigger.touch()
            with pytest.raises(SourceError, match=r"'disk': reading 65536 bytes at offset 131072 failed: Input/output"):
                read(reader, 2 * BLOCK, BLOCK)
            buffer = memoryview(bytearray(b"?" * 2 * BLOCK))
            assert read_with_skips(reader, 4 * BLOCK, buffer) == [(4 * BLOCK, 2 * BLOCK)]
            assert bytes(buffer) == bytes(2 * BLOCK)
            trigger.unlink()
            assert read(reader, 8 * BLOCK, BLOCK) == b"d" * BLOCK
            reader.close()


def test_an_unused_device_has_no_use(device: Path) -> None:
    assert device_use(os.stat(device).st_rdev) is None


def test_a_mounted_device_is_in_use_and_refused_as_a_target(tmp_path: Path) -> None:
    where = tmp_path / "a folder with spaces"
    with loop_device(ext4_image(tmp_path / "disk.img")) as device, mounted(device, where):
        assert device_use(os.stat(device).st_rdev) == f"it is mounted on {where}"
        with pytest.raises(RestoreError, match=r"is mounted on .*a folder with spaces.*: release it"):
            open_target(device, 100, overwrite=True)


def test_a_file_system_with_a_number_of_its_own_is_found_by_its_source(tmp_path: Path) -> None:
    image = new_image(tmp_path / "disk.img", 128 * MIB)
    tool("mkfs.btrfs", "-q", image)
    with loop_device(image) as device, mounted(device, tmp_path / "there"):
        assert device_use(os.stat(device).st_rdev) == f"it is mounted on {tmp_path / 'there'}"


def test_swap_is_in_use(device: Path) -> None:
    tool("mkswap", device)
    tool("swapon", device)
    try:
        assert device_use(os.stat(device).st_rdev) == "it is in use as swap"
    finally:
        tool("swapoff", device)


@pytest.fixture
def partitioned(tmp_path: Path) -> Iterator[tuple[Path, Path, Path]]:
    """Yield (disk, first partition, second partition), an ext4 file system on the first."""
    with loop_device(new_image(tmp_path / "disk.img", 64 * MIB), "--partscan") as disk:
        # Told to the kernel directly: it need not know how to read a partition table.
        tool("addpart", disk, "1", "2048", "65536")
        tool("addpart", disk, "2", "67584", "63488")
        first, second = Path(f"{disk}p1"), Path(f"{disk}p2")
        tool("mkfs.ext4", "-q", first)
        yield disk, first, second


def test_a_mounted_partition_keeps_its_disk_in_use_but_not_its_neighbour(
    partitioned: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    disk, first, second = partitioned
    with mounted(first, tmp_path / "there") as where:
        assert device_use(os.stat(disk).st_rdev) == f"its partition {first.name} is mounted on {where}"
        assert device_use(os.stat(first).st_rdev) == f"it is mounted on {where}"
        assert device_use(os.stat(second).st_rdev) is None
        with pytest.raises(RestoreError, match=r"partition .* is mounted"):
            open_target(disk, 100, overwrite=True)
        open_target(second, 100, overwrite=True).abandon()
    assert device_use(os.stat(disk).st_rdev) is None


def test_a_disk_that_is_used_as_a_whole_keeps_its_partitions_in_use(
    partitioned: tuple[Path, Path, Path],
) -> None:
    disk, first, _ = partitioned
    target = open_target(disk, 100, overwrite=True)
    with pytest.raises(RestoreError, match="in use by the system"):
        open_target(first, 100, overwrite=True)
    target.abandon()


def test_a_device_held_by_someone_is_refused(device: Path) -> None:
    first = open_target(device, 100, overwrite=True)
    with pytest.raises(RestoreError, match="is in use by the system: unmount"):
        open_target(device, 100, overwrite=True)
    first.abandon()
    open_target(device, 100, overwrite=True).abandon()


def test_a_device_is_overwritten_only_when_told_to(device: Path, image: Path) -> None:
    with pytest.raises(RestoreError, match="give --overwrite if all that is on it may be lost"):
        open_target(device, 100, overwrite=False)
    with pytest.raises(RestoreError, match=r"has 16777216 bytes and the volume 16777217: .*larger"):
        open_target(device, 16 * MIB + 1, overwrite=True)
    assert image.read_bytes() == bytes(16 * MIB)


def test_a_read_only_device_is_refused(image: Path) -> None:
    with loop_device(image, "--read-only") as device, pytest.raises(RestoreError, match="is read-only: make it"):
        open_target(device, 100, overwrite=True)


@pytest.mark.parametrize("size", [16 * MIB, 16 * MIB - 512, 5 * MIB + 777])
def test_a_restore_to_a_device_gives_the_exact_bytes_and_leaves_the_rest(device: Path, size: int) -> None:
    device.write_bytes(b"old" * (16 * MIB // 3) + b"x")
    target = open_target(device, size, overwrite=True)
    target.write(BLOCK, [b"new" * 20_000])
    target.zero(0, BLOCK)
    end = BLOCK + 60_000
    target.zero(end, size - end)
    target.write(4 * MIB, [b"late"])
    target.finish()
    target.abandon()
    expected = bytearray(size)
    expected[BLOCK:end] = b"new" * 20_000
    expected[4 * MIB : 4 * MIB + 4] = b"late"
    got = restored(device, 16 * MIB)
    assert got[:size] == bytes(expected)
    assert got[size:] == (b"old" * (16 * MIB // 3) + b"x")[size:]


@pytest.mark.parametrize(
    ("offset", "length"), [(1, 1), (0, 511), (511, 2), (100, 5000), (512, 512), (4096, 0), (7, BLOCK)]
)
def test_any_range_of_a_device_is_really_zeroed(device: Path, offset: int, length: int) -> None:
    device.write_bytes(b"x" * (16 * MIB))
    target = open_target(device, 16 * MIB, overwrite=True)
    target.zero(offset, length)
    target.finish()
    got = restored(device, 2 * BLOCK)
    assert got == b"x" * offset + bytes(length) + b"x" * (2 * BLOCK - offset - length)


def test_write_errors_of_a_device_are_sentences(tmp_path: Path) -> None:
    with failing_disk(tmp_path, 4 * MIB) as (disk, trigger), loop_device(disk) as device:
        target = open_target(device, 4 * MIB, overwrite=True)
        trigger.touch()
        target.write(0, [bytes(BLOCK)])
        with pytest.raises(RestoreError, match="could not be made durable: Input/output error"):
            target.finish()
        with pytest.raises(RestoreError, match=r"zeroing .* failed: Input/output error"):
            target.zero(0, MIB)
        trigger.unlink()
        target.abandon()
