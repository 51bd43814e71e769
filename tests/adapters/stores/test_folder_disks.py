"""Folder stores on real disks: full, read-only, unmounted in mid-session, frozen, failing, out of power."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
import pytest

from adapters.stores.folder import FolderStore
from engine.errors import ObjectMissing, StoreRejected, StoreUnavailable
from engine.ports import Room
from tests.adapters.disks import ext4_image, failing_disk, loop_device, mounted, tmpfs, tool
from tests.contract.object_store import PACK, names

pytestmark = [pytest.mark.anyio, pytest.mark.root]
MARKER = b"M" * 56
MIB = 1 << 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


async def test_a_disk_unmounted_in_mid_session_is_away_and_its_mount_point_stays_empty(where: Path) -> None:
    with tmpfs(where, 8 * MIB):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me")
        await store.put(PACK, b"hello")
        tool("umount", where)
        for call in (store.put("a/b", b"x"), store.get(PACK), store.delete(PACK), store.probe(), store.flush()):
            with pytest.raises(StoreUnavailable, match="mount its disk"):
                await call
        with pytest.raises(StoreUnavailable, match="mount its disk"):
            await names(store, "")
        assert entries(where) == []


async def test_size_and_free_space_are_those_of_the_disk_it_lies_on(where: Path) -> None:
    with tmpfs(where, 8 * MIB):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me")
        before = await store.room()
        assert before.device_bytes == 8 * MIB
        assert before.free_bytes is not None
        await store.put(f"{PACK[:-1]}{MIB}", bytes(MIB))
        assert await store.room() == Room(8 * MIB, shutil.disk_usage(where).free)
        assert MIB <= before.free_bytes - shutil.disk_usage(where).free < 2 * MIB
    with pytest.raises(StoreUnavailable, match="mount its disk"):
        await store.room()


async def test_another_disk_in_its_place_is_refused_and_stays_as_it_is(where: Path, tmp_path: Path) -> None:
    with tmpfs(where, 8 * MIB):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me")
        await store.put(PACK, b"hello")
        with tmpfs(where, 8 * MIB):
            await FolderStore.create(where, b"N" * 56)
            with pytest.raises(StoreUnavailable, match="another store"):
                await store.put("a/b", b"x")
            assert entries(where) == ["format", "tmp"]
        assert await store.get(PACK) == b"hello"


async def test_a_disk_that_was_mounted_again_goes_on(where: Path, tmp_path: Path) -> None:
    with loop_device(ext4_image(tmp_path / "image")) as device:
        with mounted(device, where):
            await FolderStore.create(where, MARKER)
            store = FolderStore(where, "me")
            await store.put(PACK, b"hello")
        with pytest.raises(StoreUnavailable):
            await store.put("a/b", b"x")
        with mounted(device, where):
            await store.put("a/b", b"x")
            assert await names(store, "") == ["a/b", PACK, "format"]


@pytest.mark.parametrize("sync", ["put", "flush"])
async def test_a_full_disk_is_refused_and_harms_nothing(where: Path, sync: Literal["put", "flush"]) -> None:
    with tmpfs(where, 2 * MIB):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me", sync=sync)
        await store.put(PACK, b"h" * MIB)
        for _ in range(3):
            with pytest.raises(StoreRejected, match="no space left"):
                await store.put("a/b", bytes(2 * MIB))
        assert entries(where / "tmp") == []
        assert await names(store, "") == [PACK, "format"]
        await store.delete(PACK)
        await store.put("a/b", bytes(MIB))
        await store.flush()


async def test_a_read_only_disk_can_be_read(where: Path) -> None:
    with tmpfs(where, 2 * MIB):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me")
        await store.put(PACK, b"hello")
        tool("mount", "-o", "remount,ro", where)
        await store.probe()
        assert await store.get(PACK) == b"hello"
        for call in (store.put("a/b", b"x"), store.delete(PACK)):
            with pytest.raises(StoreRejected, match="read-only"):
                await call
        assert await store.sweep() == 0


async def test_no_right_is_a_sentence(where: Path) -> None:
    with tmpfs(where, 2 * MIB):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me")
        await store.put(PACK, b"hello")
        tool("chattr", "+i", where / PACK)
        try:
            with pytest.raises(StoreRejected, match="check the owner"):
                await store.delete(PACK)
        finally:
            tool("chattr", "-i", where / PACK)


@contextmanager
def frozen(where: Path) -> Iterator[None]:
    tool("fsfreeze", "--freeze", where)
    try:
        yield
    finally:
        tool("fsfreeze", "--unfreeze", where)


async def test_a_hung_disk_is_unavailable_in_time_and_a_late_put_leaves_nothing(where: Path, tmp_path: Path) -> None:
    with loop_device(ext4_image(tmp_path / "image")) as device, mounted(device, where):
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me", stall_timeout_s=0.2)
        await store.put("a/b", b"x")
        with frozen(where):
            with pytest.raises(StoreUnavailable, match=r"did not answer for 0\.2 s"):
                await store.put(PACK, bytes(MIB))
            with pytest.raises(StoreUnavailable, match=r"did not answer"):
                await store.delete("a/b")
            assert await store.get("a/b") == b"x"  # reading goes on
            with anyio.move_on_after(0.1) as scope:
                await store.put("a/c", bytes(MIB))
            assert scope.cancelled_caught
        # Everything the frozen calls began has ended once as many new ones as there are threads came through.
        with anyio.fail_after(30):
            while entries(where / "tmp"):
                await store.probe()
        with pytest.raises(ObjectMissing):
            await store.get(PACK)
        with pytest.raises(ObjectMissing):
            await store.get("a/c")
        await store.put(PACK, bytes(MIB))


def power_cut(image: Path, folder: Path, stack: ExitStack) -> Path:
    """Mount what stands on the disk at this instant: what a machine without power would wake up to."""
    later = folder / "later.img"
    shutil.copyfile(image, later)
    device = stack.enter_context(loop_device(later))
    return stack.enter_context(mounted(device, folder / "later"))


@pytest.mark.parametrize("sync", ["put", "flush"])
async def test_what_was_made_durable_survives_a_power_cut(
    where: Path, tmp_path: Path, sync: Literal["put", "flush"]
) -> None:
    image = ext4_image(tmp_path / "image")
    expected = {f"data/w{number % 3}/{number}": bytes([number]) * 100_000 for number in range(20)}
    with ExitStack() as stack:
        stack.enter_context(mounted(stack.enter_context(loop_device(image)), where))
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me", sync=sync)
        for name, data in expected.items():
            await store.put(name, data)
        if sync == "flush":
            await store.flush()
        after = FolderStore(await anyio.to_thread.run_sync(power_cut, image, tmp_path, stack), "me")
        assert await names(after, "data/") == sorted(expected)
        for name, data in expected.items():
            assert await after.get(name) == data


async def test_a_disk_that_fails_is_unavailable_and_a_failed_flush_stays_failed(where: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        disk, trigger = stack.enter_context(failing_disk(tmp_path, 32 * MIB))
        device = stack.enter_context(loop_device(disk))
        tool("mkfs.ext4", "-q", device)
        stack.enter_context(mounted(device, where, "-o", "errors=continue"))
        await FolderStore.create(where, MARKER)
        store = FolderStore(where, "me", sync="flush")
        await store.put(PACK, bytes(MIB))
        trigger.touch()
        try:
            with pytest.raises((StoreUnavailable, StoreRejected)):
                await store.flush()
        finally:
            trigger.unlink()
        with pytest.raises(StoreUnavailable, match="not all that was put became durable"):
            await store.flush()
