"""Large ranges past the page cache: the same bytes as any other way, and the usual way where there is no such disk."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from adapters.directio import DIRECT_ALIGNMENT, DIRECT_BYTES_MIN, ROOM_BYTES, LargeWrites, read_large
from adapters.stores.folder import FolderStore
from adapters.volumes.writing import TargetWriter
from engine.block import BLOCK_BYTES
from tests.adapters.disks import cached_bytes, ext4_image, loop_device, mounted, tmpfs
from tests.contract.object_store import PACK

pytestmark = pytest.mark.root
MIB = 1 << 20
SIZE = 20 * MIB + 777


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def disk(where: Path, tmp_path: Path) -> Iterator[Path]:
    with loop_device(ext4_image(tmp_path / "image", 96 * MIB)) as device, mounted(device, where):
        yield where


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def uncached(path: Path, content: bytes | bytearray) -> None:
    with opened(path, os.O_WRONLY | os.O_CREAT) as fd:
        os.write(fd, content)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert cached_bytes(path) == 0


def cut(content: bytes, lengths: Sequence[int]) -> list[bytes]:
    pieces: list[bytes] = []
    for length in lengths:
        pieces.append(content[:length])
        content = content[length:]
    return pieces


BLOCKS = [BLOCK_BYTES] * 32
WRITES = [
    (0, BLOCKS),
    (3 * BLOCK_BYTES, [*BLOCKS, 5000]),  # the last block of a volume may be short
    (DIRECT_ALIGNMENT, [BLOCK_BYTES] * 16),
    (0, [ROOM_BYTES - 1, 2, 3 * BLOCK_BYTES, 1]),  # pieces across the end of what is written at once
    (BLOCK_BYTES, [BLOCK_BYTES] * 200),
]


@pytest.mark.parametrize(("offset", "lengths"), WRITES)
def test_a_large_range_is_written_past_the_cache(disk: Path, offset: int, lengths: list[int]) -> None:
    content = secrets.token_bytes(sum(lengths))
    path = disk / "target"
    with opened(path, os.O_RDWR | os.O_CREAT) as fd:
        os.truncate(path, SIZE)
        writer = TargetWriter(fd)
        writer.write(offset, cut(content, lengths))
        assert cached_bytes(path) <= DIRECT_ALIGNMENT  # the odd end cannot go to the disk directly
        assert os.pread(fd, len(content), offset) == content
        assert os.fstat(fd).st_size == SIZE
        writer.close()
        writer.close()
        # Whoever writes on does so through the cache.
        writer.write(offset, [b"later" * BLOCK_BYTES])
        assert os.pread(fd, 5 * BLOCK_BYTES, offset) == b"later" * BLOCK_BYTES


@pytest.mark.parametrize(("offset", "length"), [(512, 2 * MIB), (0, DIRECT_BYTES_MIN - 1), (0, 0)])
def test_what_is_small_or_lies_askew_is_left_to_the_usual_way(disk: Path, offset: int, length: int) -> None:
    content = secrets.token_bytes(length)
    with opened(disk / "target", os.O_RDWR | os.O_CREAT) as fd:
        with closing(LargeWrites(fd)) as large, closing(TargetWriter(fd)) as writer:
            assert large.write(offset, [content]) == 0
            writer.write(offset, [content])
        assert os.pread(fd, length, offset) == content


def test_both_ways_may_be_mixed_in_one_file(disk: Path) -> None:
    model = bytearray(SIZE)
    with opened(disk / "target", os.O_RDWR | os.O_CREAT) as fd:
        os.truncate(disk / "target", SIZE)
        with closing(TargetWriter(fd)) as writer:
            for number in range(60):
                offset = secrets.randbelow(SIZE // BLOCK_BYTES - 40) * BLOCK_BYTES
                pieces = [bytes([number + 1]) * BLOCK_BYTES] * (1 + secrets.randbelow(40))
                writer.write(offset, pieces)
                model[offset : offset + len(pieces) * BLOCK_BYTES] = b"".join(pieces)
        assert os.pread(fd, SIZE, 0) == model


def test_where_there_is_no_disk_below_the_cache_is_used(where: Path) -> None:
    content = secrets.token_bytes(3 * MIB)
    with tmpfs(where, 8 * MIB), opened(where / "target", os.O_RDWR | os.O_CREAT) as fd:
        with closing(LargeWrites(fd)) as large, closing(TargetWriter(fd)) as writer:
            assert large.write(0, [content]) == 0
            writer.write(0, [content])
        assert os.pread(fd, len(content), 0) == content
        assert read_large(fd, 0, 2 * MIB, lambda: None) is None


def test_a_full_disk_is_an_error_not_a_reason_to_try_otherwise(disk: Path) -> None:
    with opened(disk / "target", os.O_RDWR | os.O_CREAT) as fd:
        with closing(LargeWrites(fd)) as large, pytest.raises(OSError, match="space") as caught:
            large.write(0, [bytes(BLOCK_BYTES)] * 2000)
        assert caught.value.errno == errno.ENOSPC


READS = [
    (0, DIRECT_BYTES_MIN), (1, DIRECT_BYTES_MIN), (4095, 5 * MIB + 1), (MIB, 9 * MIB), (0, SIZE), (777, SIZE - 777),
    (SIZE - MIB, MIB), (SIZE - MIB, 3 * MIB), (15 * MIB + 5, 64 * MIB),
]  # fmt: skip


@pytest.mark.parametrize(("offset", "length"), READS)
def test_a_large_range_is_read_past_the_cache(disk: Path, offset: int, length: int) -> None:
    content = secrets.token_bytes(SIZE)
    uncached(disk / "file", content)
    steps: list[None] = []
    with opened(disk / "file", os.O_RDONLY) as fd:
        found = read_large(fd, offset, length, lambda: steps.append(None))
        assert found is not None
        assert bytes(found) == content[offset : offset + length]
        assert cached_bytes(disk / "file") == 0
        assert steps
        assert os.pread(fd, 100, 3) == content[3:103]  # the descriptor is as it was


def test_a_small_range_is_left_to_the_usual_way(disk: Path) -> None:
    uncached(disk / "file", secrets.token_bytes(4 * MIB))
    with opened(disk / "file", os.O_RDONLY) as fd:
        assert read_large(fd, 0, DIRECT_BYTES_MIN - 1, lambda: None) is None


def test_what_was_just_written_through_the_cache_is_what_is_read(disk: Path) -> None:
    content = bytearray(secrets.token_bytes(4 * MIB))
    uncached(disk / "file", content)
    with opened(disk / "file", os.O_RDWR) as fd:
        os.pwrite(fd, b"dirty" * 1000, 2 * MIB)
        content[2 * MIB : 2 * MIB + 5000] = b"dirty" * 1000
        found = read_large(fd, 0, 4 * MIB, lambda: None)
        assert found is not None
        assert bytes(found) == content


@pytest.mark.anyio
async def test_a_store_gives_large_ranges_past_the_cache(disk: Path) -> None:
    await FolderStore.create(disk, b"M" * 56)
    store = FolderStore(disk, "me")
    data = secrets.token_bytes(6 * MIB + 5)
    await store.put(PACK, data)
    with opened(disk / PACK, os.O_RDONLY) as fd:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert await store.get(PACK, 100, 2 * MIB) == data[100 : 100 + 2 * MIB]
    assert await store.get(PACK) == data
    assert cached_bytes(disk / PACK) == 0
    assert await store.get(PACK, 5 * MIB, 8 * MIB) == data[5 * MIB :]
