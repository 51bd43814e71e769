"""Large objects that go to the disk past the page cache: every length, a full disk, a power cut, no such disk."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio.to_thread
import pytest

from adapters.directio import DIRECT_ALIGNMENT, DIRECT_BYTES_MIN, NewFile
from adapters.stores.folder import FolderStore
from engine.errors import StoreRejected
from engine.rooms import Rooms
from tests.adapters.disks import cached_bytes, ext4_image, loop_device, mounted, tmpfs
from tests.contract.object_store import PACK, names

pytestmark = [pytest.mark.anyio, pytest.mark.root]
MARKER = b"M" * 56
MIB = 1 << 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def disk(where: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of its own; the file `image` beside it is what lies on that disk."""
    with loop_device(ext4_image(tmp_path / "image", 64 * MIB)) as device, mounted(device, where):
        yield where


def aligned(length: int) -> memoryview:
    room = Rooms(length).take()
    room[:] = secrets.token_bytes(length)
    return room


LENGTHS = [DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, 4 * MIB - 1, 4 * MIB, 4 * MIB + 1, 5 * MIB + DIRECT_ALIGNMENT]


@pytest.mark.parametrize("length", LENGTHS)
async def test_an_aligned_object_of_any_length_is_stored_past_the_cache(disk: Path, length: int) -> None:
    await FolderStore.create(disk, MARKER)
    store = FolderStore(disk, "me")
    data = aligned(length)
    await store.put(PACK, data)
    # The odd end of a file cannot go to the disk directly.
    assert cached_bytes(disk / PACK) <= DIRECT_ALIGNMENT
    assert await store.get(PACK) == data
    await store.put(PACK, data)  # the same again is no error
    with pytest.raises(StoreRejected, match="other content"):
        await store.put(PACK, bytes(length))


@pytest.mark.parametrize("skipped", [1, 512, 2048])
async def test_what_lies_askew_in_memory_is_stored_through_the_cache(disk: Path, skipped: int) -> None:
    await FolderStore.create(disk, MARKER)
    store = FolderStore(disk, "me")
    data = aligned(2 * MIB)[skipped:]
    await store.put(PACK, data)
    assert await store.get(PACK) == data


async def test_where_there_is_no_disk_below_the_cache_is_used(where: Path) -> None:
    with tmpfs(where, 8 * MIB):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me")
        data = aligned(2 * MIB + 5)
        await store.put(PACK, data)
        assert await store.get(PACK) == data


async def test_a_full_disk_refuses_a_large_object_and_keeps_nothing_of_it(disk: Path) -> None:
    await FolderStore.create(disk, MARKER)
    store = FolderStore(disk, "me")
    with pytest.raises(StoreRejected, match="no space left"):
        await store.put(PACK, aligned(100 * MIB))
    assert os.listdir(disk / "tmp") == []
    assert await names(store, "") == ["format"]
    await store.put(PACK, aligned(2 * MIB))


async def test_a_large_object_that_was_put_survives_a_power_cut(disk: Path, tmp_path: Path) -> None:
    await FolderStore.create(disk, MARKER)
    store = FolderStore(disk, "me")
    data = aligned(3 * MIB + 77)
    await store.put(PACK, data)

    def power_cut() -> Path:
        shutil.copyfile(tmp_path / "image", tmp_path / "later.img")
        device = stack.enter_context(loop_device(tmp_path / "later.img"))
        return stack.enter_context(mounted(device, tmp_path / "later"))

    with ExitStack() as stack:
        later = await anyio.to_thread.run_sync(power_cut)
        assert await FolderStore(later, "me").get(PACK) == data


def test_a_file_system_that_takes_no_direct_write_after_all_gets_the_rest_through_the_cache(disk: Path) -> None:
    data = aligned(2 * MIB)
    fd = os.open(disk / "new", os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        file = NewFile(fd, data)
        # A write that is askew on the disk is refused like one of a disk with larger sectors.
        os.lseek(fd, 100, os.SEEK_SET)
        assert file.write(data[:MIB]) == MIB
        assert file.write(data[MIB:]) == MIB
    finally:
        os.close(fd)
    assert (disk / "new").read_bytes()[100:] == data
