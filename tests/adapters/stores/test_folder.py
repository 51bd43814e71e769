"""What a folder store promises beyond the port: away is not empty, foreign files, leftovers, abandoned puts."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.stores.calls import Abandoned, Call
from adapters.stores.folder import FolderStore
from adapters.stores.folderfiles import FolderFiles
from engine.errors import ConfigError, ObjectMissing, StoreError, StoreRejected, StoreUnavailable
from tests.contract.object_store import PACK, names

pytestmark = pytest.mark.anyio
MARKER = b"M" * 56


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def store(root: Path) -> FolderStore:
    await FolderStore.create(root, MARKER)
    return FolderStore(root, "me")


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def put_files(folder: Path, names: list[str]) -> None:
    """Make empty files, and folders where a name ends with a slash."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).mkdir() if name.endswith("/") else (folder / name).touch()


async def fails_everywhere(store: FolderStore, match: str) -> None:
    with pytest.raises(StoreUnavailable, match=match):
        await store.probe()
    with pytest.raises(StoreUnavailable, match=match):
        await store.put(PACK, b"hello")
    with pytest.raises(StoreUnavailable, match=match):
        await store.get(PACK)
    with pytest.raises(StoreUnavailable, match=match):
        await store.stat(PACK)
    with pytest.raises(StoreUnavailable, match=match):
        await store.delete(PACK)
    with pytest.raises(StoreUnavailable, match=match):
        await names(store, "data/")
    with pytest.raises(StoreUnavailable, match=match):
        await store.flush()
    with pytest.raises(StoreUnavailable, match=match):
        await store.sweep()


async def test_a_folder_without_a_marker_is_away_and_stays_empty(tmp_path: Path) -> None:
    await fails_everywhere(FolderStore(tmp_path, "me"), "holds no Forebay store")
    assert tree(tmp_path) == []


async def test_a_folder_that_is_not_there_is_never_made(root: Path) -> None:
    await fails_everywhere(FolderStore(root, "me"), "is not there")
    assert tree(root.parent) == []


async def test_a_file_in_the_folders_place_is_away_too(root: Path) -> None:
    put_files(root.parent, [root.name])
    await fails_everywhere(FolderStore(root, "me"), "is not there")
    assert tree(root.parent) == [root.name]


async def test_a_store_that_loses_its_marker_in_mid_session_is_away(store: FolderStore, root: Path) -> None:
    await store.put(PACK, b"hello")
    os.remove(root / "format")
    before = tree(root)
    await fails_everywhere(store, "holds no Forebay store")
    assert tree(root) == before


async def test_another_store_in_the_same_place_is_refused(store: FolderStore, root: Path) -> None:
    await store.put(PACK, b"hello")
    os.rename(root, f"{root}-old")
    await FolderStore.create(root, b"N" * 56)
    before = tree(root)
    await fails_everywhere(store, "another store")
    assert tree(root) == before


async def test_the_same_store_mounted_anew_is_there_again(store: FolderStore, root: Path) -> None:
    await store.put(PACK, b"hello")
    shutil.copytree(root, f"{root}-copy")
    os.rename(root, f"{root}-old")
    with pytest.raises(StoreUnavailable):
        await store.probe()
    os.rename(f"{root}-copy", root)
    assert await store.get(PACK) == b"hello"
    await store.put("a/b", b"more")


async def test_a_flush_cannot_vouch_for_puts_from_before_a_new_mount(root: Path) -> None:
    await FolderStore.create(root, MARKER)
    store = FolderStore(root, "me", sync="flush")
    await store.put(PACK, b"hello")
    shutil.copytree(root, f"{root}-copy")
    os.rename(root, f"{root}-old")
    os.rename(f"{root}-copy", root)
    await store.put("a/b", b"more")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="mounted anew"):
            await store.flush()


async def test_a_flush_with_nothing_new_succeeds_and_forgets_deleted_objects(root: Path) -> None:
    await FolderStore.create(root, MARKER)
    store = FolderStore(root, "me", sync="flush")
    await store.flush()
    await store.put(PACK, b"hello")
    await store.put("a/b", b"more")
    await store.delete("a/b")
    await store.flush()
    await store.flush()
    assert await names(store, "") == [PACK, "format"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        ".",
        "..",
        "../a",
        "a/../b",
        "a/.b",
        "A",
        "a_b",
        "a b",
        "a.txt",
        "a.1/b",
        "a.0",
        "a\\b",
        "c:a",
        "a\0",
        "ä",
        "tmp/x",
        "a/" * 8 + "b",
        "a" * 121,
        "a\n",
    ],
)
async def test_names_that_are_not_plain_are_refused(store: FolderStore, root: Path, name: str) -> None:
    before = tree(root.parent)
    for call in (store.put(name, b"x"), store.get(name), store.stat(name), store.delete(name)):
        with pytest.raises(StoreRejected, match="is no name"):
            await call
    assert tree(root.parent) == before


@pytest.mark.parametrize(
    "prefix", ["..", "../", "../x", "../store/", "/", "/etc/", "tmp/", "tmp", "a//", "./", "A/", "\0/", "a/../../"]
)
async def test_a_prefix_that_leads_elsewhere_lists_nothing(store: FolderStore, root: Path, prefix: str) -> None:
    (root.parent / "x").touch()
    (root / "tmp" / "me-1").touch()
    assert await names(store, prefix) == []


def litter(root: Path, folder: Path) -> None:
    for name in (
        "Thumbs.db",
        "readme.txt",
        "a_b",
        "UPPER",
        "name with space",
        b"\xff\xfe".decode(errors="surrogateescape"),
    ):
        (folder / name).write_bytes(b"foreign")
    for name in ("lost+found", "System Volume Information", "empty"):
        (folder / name).mkdir()
    (folder / "lost+found" / "inside").touch()
    (folder / "to-nowhere").symlink_to("nothing")
    (folder / "to-itself").symlink_to("to-itself")
    (folder / "round-and-round").symlink_to(folder)
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(folder, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
    (root / "tmp" / "other-1").touch()


async def test_foreign_files_are_passed_over(store: FolderStore, root: Path) -> None:
    await store.put("data/aa/1", b"1")
    for folder in (root, root / "data", root / "data" / "aa"):
        litter(root, folder)
    found = await names(store, "")
    ours = {"data/aa/1", "format"}
    assert ours <= set(found)
    # Through a link that leads back an object has further names; it is never more than that.
    assert {name for name in found if "round-and-round" not in name} == ours


async def test_what_is_no_file_is_no_object_and_hangs_nothing(store: FolderStore, root: Path) -> None:
    await store.put("data/aa/1", b"1")
    os.mkfifo(root / "data" / "fifo")
    for name in ("data/aa", "data/fifo"):
        for call in (store.get(name), store.stat(name)):
            with pytest.raises(ObjectMissing):
                await call
        with pytest.raises(StoreRejected, match="remove what has its name"):
            await store.put(name, b"x")
    with pytest.raises(StoreRejected, match="in the way"):
        await store.delete("data/aa")
    with pytest.raises(StoreRejected, match="in the way"):
        await store.put("data/aa/1/2", b"x")
    assert tree(root / "tmp") == []


async def test_only_own_leftovers_are_swept(store: FolderStore, root: Path) -> None:
    for name in ("me-1", "me-2", "you-1", "me2-1", "init-1"):
        (root / "tmp" / name).touch()
    assert await store.sweep() == 2
    assert tree(root / "tmp") == ["init-1", "me2-1", "you-1"]
    shutil.rmtree(root / "tmp")
    assert await store.sweep() == 0


async def test_a_removed_folder_for_temporary_files_is_made_again(store: FolderStore, root: Path) -> None:
    os.rmdir(root / "tmp")
    await store.put(PACK, b"hello")
    assert await store.get(PACK) == b"hello"


class DyingCall(Call):
    """A call that is abandoned after `reports` reports of progress."""

    __slots__ = ("reports",)

    def __init__(self, reports: int) -> None:
        super().__init__()
        self.reports = reports

    def progress(self) -> None:
        if self.reports == 0:
            self.abandon()
        self.reports -= 1
        super().progress()


@pytest.mark.parametrize("standing", [b"", b"of another size"])
async def test_a_put_abandoned_anywhere_leaves_the_old_or_the_new_and_no_leftover(
    store: FolderStore, root: Path, standing: bytes
) -> None:
    data = bytes(range(256)) * (70 << 12)  # 70 MiB: several steps of writing and syncing
    files, abandoned = FolderFiles(root, "me", durable_put=True), 0
    for reports in range(100):
        await store.delete(PACK)
        if standing:
            await store.put(PACK, standing)
        try:
            files.put(DyingCall(reports), PACK, data)
        except Abandoned:
            abandoned += 1
        else:
            break
        assert tree(root / "tmp") == []
        sizes = [info.size async for info in store.list("data/")]
        assert sizes in ([len(standing)] if standing else [], [len(data)])
    assert abandoned > 18
    assert await store.get(PACK) == data


async def test_create_makes_a_store_of_a_new_or_an_empty_folder(root: Path) -> None:
    await FolderStore.create(root, MARKER)
    assert await FolderStore(root, "me").get("format") == MARKER
    empty = root.with_name("disk")
    os.makedirs(empty / "lost+found")
    await FolderStore.create(empty, MARKER)
    assert await FolderStore(empty, "me").get("format") == MARKER


async def test_create_goes_on_from_where_another_was_interrupted(root: Path) -> None:
    os.makedirs(root / "tmp")
    (root / "tmp" / "init-0011").write_bytes(b"half")
    await FolderStore.create(root, MARKER)
    assert tree(root) == ["format", "tmp"]


@pytest.mark.parametrize(
    ("standing", "match"),
    [
        (["format"], "already holds a store"),
        (["photo.jpg"], "is not empty"),
        (["tmp/", "tmp/somebody-elses"], "is not empty"),
        (["data"], "is not empty"),
    ],
)
async def test_create_refuses_a_folder_with_something_in_it(root: Path, standing: list[str], match: str) -> None:
    put_files(root, standing)
    with pytest.raises(ConfigError, match=match):
        await FolderStore.create(root, MARKER)
    assert tree(root) == sorted(name.rstrip("/") for name in standing)


async def test_create_refuses_a_path_whose_parent_is_not_there_or_that_is_a_file(root: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await FolderStore.create(root / "below", MARKER)
    assert tree(root.parent) == []
    put_files(root.parent, [root.name])
    with pytest.raises(ConfigError, match="not a folder"):
        await FolderStore.create(root, MARKER)


@pytest.mark.parametrize("owner", ["", "a-b", "../x", "a/b", "a" * 65, "ä"])
def test_an_owner_that_cannot_stand_in_a_name_is_a_bug(root: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="owner"):
        FolderStore(root, owner)


WRITER = """
import asyncio, sys
from pathlib import Path
from adapters.stores.folder import FolderStore
async def main():
    store = FolderStore(Path(sys.argv[1]), "me", sync=sys.argv[2])
    number = int(sys.argv[3])
    while True:
        data = number.to_bytes(4, "big") * 50_000
        await asyncio.gather(*(store.put(f"data/w{number % 7}/{number}-{i}", data) for i in range(4)))
        print(number, flush=True)
        number += 1
asyncio.run(main())
"""


def write_until_killed(root: Path, sync: str, first: int, killed_after: int) -> int:
    """Return the last number acknowledged by a process that puts four objects at once, killed after some numbers."""
    command = [sys.executable, "-c", WRITER, str(root), sync, str(first)]
    acknowledged = first - 1
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged = int(line)
            if acknowledged == first + killed_after:
                writer.kill()
    return acknowledged


@pytest.mark.parametrize("sync", ["put", "flush"])
async def test_whatever_is_visible_after_a_kill_is_whole(store: FolderStore, root: Path, sync: str) -> None:
    acknowledged = -1
    for killed_after in (0, 3, 7, 1, 12, 5):
        acknowledged = write_until_killed(root, sync, acknowledged + 1, killed_after)
        for number in range(acknowledged + 1):
            for part in range(4):
                assert await store.stat(f"data/w{number % 7}/{number}-{part}") == 200_000
        async for info in store.list("data/"):
            number = int(info.name.split("/")[2].partition("-")[0])
            assert await store.get(info.name) == number.to_bytes(4, "big") * 50_000
        await store.sweep()
        assert tree(root / "tmp") == []


async def test_errors_are_store_errors_only(store: FolderStore) -> None:
    """A name too long for the system, within what names may be, is an answer, not a crash."""
    long = "/".join(["a" * 120] * 3)
    try:
        await store.put(long, b"x")
        assert await store.get(long) == b"x"
    except StoreError:
        pass
