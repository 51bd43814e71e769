"""What the store in a share promises beyond the contract, against a real server."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from smbprotocol.exceptions import SMBResponseException

from adapters.stores import smbmessages
from adapters.stores.smb import SmbStore
from adapters.stores.smbconnection import Login
from adapters.stores.smberrors import COLLISION
from adapters.stores.smbwire import Link
from engine.errors import ConfigError, ObjectMissing, StoreRejected, StoreUnavailable
from engine.ports import Room
from tests.adapters.disks import tmpfs, tool
from tests.samba import MARKER, Samba

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.services]

WRITER = "0" * 32
PACK = f"data/{WRITER}/{'ab' * 32}-5"
ROUNDS = 60  # races to one name; of as many renames Samba lets one or the other happen twice


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def root(samba: Samba, folder: str) -> Path:
    return samba.path(folder)


@pytest.fixture
async def store(samba: Samba, folder: str) -> AsyncIterator[SmbStore]:
    store = samba.store(folder)
    await store.create(MARKER)
    yield store
    store.close()


@pytest.fixture
async def link(samba: Samba) -> AsyncIterator[Link]:
    """Return somebody else's connection to the share."""
    link = Link(Login("127.0.0.1", samba.port, "share", samba.user, True))
    await anyio.to_thread.run_sync(link.open, samba.password, 15.0)
    yield link
    link.close()


async def names(store: SmbStore, prefix: str = "") -> list[str]:
    return sorted([info.name async for info in store.list(prefix)])


async def test_a_folder_without_marker_is_away_and_nothing_is_made_in_it(store: SmbStore, root: Path) -> None:
    await store.put(PACK, b"hello")
    (root / "format").rename(root / "elsewhere")
    for call in (store.probe(), store.put("a/b", b"x"), store.get(PACK), names(store)):
        with pytest.raises(StoreUnavailable, match="holds no Forebay store"):
            await call
    assert not (root / "a").exists()
    (root / "elsewhere").rename(root / "format")
    assert await store.get(PACK) == b"hello"


async def test_another_store_in_the_same_place_is_refused(samba: Samba, store: SmbStore, root: Path) -> None:
    await store.put(PACK, b"hello")
    os.rename(root, f"{root} aside")
    other = samba.store(root.name)
    await other.create(b"N" * 56)
    for call in (store.probe(), store.put(PACK, b"hello"), store.stat(PACK)):
        with pytest.raises(StoreUnavailable, match="holds another store than when it was opened"):
            await call
    assert not (root / "data").exists()
    other.close()


async def test_a_marker_written_anew_with_the_same_content_is_the_same_store(store: SmbStore, root: Path) -> None:
    await store.put(PACK, b"hello")
    (root / "format").unlink()
    (root / "format").write_bytes(MARKER)
    assert await store.get(PACK) == b"hello"


async def test_a_new_store_needs_an_empty_place_below_a_folder_that_is_there(samba: Samba, root: Path) -> None:
    async def refused(folder: str, match: str) -> None:
        store = samba.store(folder)
        with pytest.raises(ConfigError, match=match):
            await store.create(MARKER)
        store.close()

    name = root.name
    await refused(f"{name}/below", f"there is no folder '{name}' in the share")
    os.mkdir(root)
    (root / "somebody's").write_text("holiday")
    await refused(name, "is not empty and holds no Forebay store")
    await refused(f"{name}/somebody's", "is not a folder")
    (root / "somebody's").unlink()
    (root / "~init-0123").write_bytes(MARKER[:10])  # what an interrupted create left
    store = samba.store(name)
    assert await store.look() == "new"
    await store.create(MARKER)
    assert os.listdir(root) == ["format"]
    assert await store.look() == "store"
    await refused(name, "already holds a store")
    store.close()


async def test_of_racing_creates_one_wins(samba: Samba, folder: str) -> None:
    outcomes: list[str] = []

    async def create(number: int) -> None:
        store = samba.store(folder)
        try:
            await store.create(bytes([number]) * 56)
            outcomes.append("made")
        except (ConfigError, StoreUnavailable):
            outcomes.append("refused")
        store.close()

    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(create, number)
    assert outcomes.count("made") == 1
    assert len(samba.path(folder).joinpath("format").read_bytes()) == 56


@pytest.mark.parametrize(
    "name", ["", "a//b", "../a", "a/../b", "A/b", "a\\b", "~me-1", "a:b", "a/b.10", "con.txt", "a b"]
)
async def test_names_that_are_not_plain_are_refused(store: SmbStore, name: str) -> None:
    for call in (store.put(name, b"x"), store.get(name), store.stat(name), store.delete(name)):
        with pytest.raises(StoreRejected, match="no name an object may have"):
            await call


@pytest.mark.parametrize("prefix", ["../", "*", "data/*", "DATA/", "data/?", 'da"', "~", "data\\"])
async def test_a_prefix_that_no_name_has_lists_nothing(store: SmbStore, prefix: str) -> None:
    await store.put("data/a", b"x")
    assert await names(store, prefix) == []


async def test_foreign_files_are_passed_over(store: SmbStore, root: Path) -> None:
    await store.put("data/a", b"x")
    for foreign in ("desktop.ini", "Thumbs.db", "data/.DS_Store", "data/~other-12", "data/A", "data/a.b"):
        (root / foreign).write_text("foreign")
    (root / "data/link").symlink_to("/etc/passwd")
    (root / "System Volume Information").mkdir()
    assert await names(store) == ["data/a", "format"]
    with pytest.raises((ObjectMissing, StoreRejected)):
        await store.get("data/link")


async def test_only_own_leftovers_are_swept(store: SmbStore, root: Path) -> None:
    await store.put(f"data/{WRITER}/a", b"x")
    mine = left_behind(root, "me", "me")
    others = left_behind(root, "other", "me2")
    assert await store.sweep() == len(mine)
    assert [path.exists() for path in mine] == [False] * len(mine)
    assert all(path.exists() for path in others)
    assert await names(store, "data/") == [f"data/{WRITER}/a"]


def temporary(root: Path) -> list[Path]:
    return list(root.rglob("~*"))


def left_behind(root: Path, owner: str, folder: str) -> list[Path]:
    """Leave temporary files of an owner behind, in every place one can be."""
    made = [root / f"~{owner}-00", root / "data" / f"~{owner}-01", root / "index" / folder / f"~{owner}-02"]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    return made


async def test_a_file_that_somebody_has_open_is_waited_for_and_then_given_up(
    samba: Samba, store: SmbStore, link: Link, folder: str
) -> None:
    await store.put(PACK, b"hello")
    await store.stat(PACK)  # behind the close that the put did not wait for
    held = link.create(f"{folder}/{PACK}", smbmessages.READ, smbmessages.PLAIN_FILE, sharing=0)
    hasty = samba.store(folder, busy_s=0.1)
    for call in (hasty.get(PACK), hasty.put(PACK, b"longer than before"), hasty.delete(PACK)):
        with pytest.raises(StoreUnavailable, match="in use by something else: try again later"):
            await call
    hasty.close()
    got: list[bytes] = []

    async def get() -> None:
        got.append(bytes(await store.get(PACK)))

    async with anyio.create_task_group() as group:
        group.start_soon(get)
        await anyio.to_thread.run_sync(link.close_handle, held)
    assert got == [b"hello"]


async def test_an_object_is_replaced_as_soon_as_its_readers_are_done(
    store: SmbStore, samba: Samba, link: Link, folder: str
) -> None:
    await store.put(PACK, b"cut of")
    held = link.create(f"{folder}/{PACK}", smbmessages.READ, smbmessages.PLAIN_FILE)
    async with anyio.create_task_group() as group:
        group.start_soon(store.put, PACK, b"hello")
        await anyio.to_thread.run_sync(link.close_handle, held)
    assert await store.get(PACK) == b"hello"


@pytest.mark.parametrize("size", [5, 200_000], ids=["one request", "several"])
async def test_a_temporary_file_that_lost_bytes_never_becomes_an_object(
    store: SmbStore, root: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    real, was_cut = Link.reopen_later, list[Path]()

    def lossy(self: Link, name: str) -> Callable[[], smbmessages.Handle]:
        self.close_handle(real(self, name)())  # what was written is on the disk by now
        for path in root.rglob("~me-*"):
            with path.open("r+b") as file:
                file.truncate(3)
            was_cut.append(path)
        return real(self, name)

    monkeypatch.setattr(Link, "reopen_later", lossy)
    with pytest.raises(StoreUnavailable, match=f"has 3 of {size} bytes after it was written"):
        await store.put(PACK, bytes(size))
    monkeypatch.undo()
    assert was_cut
    assert await names(store, "data/") == []
    assert temporary(root) == []


@pytest.mark.parametrize("late", ["make_folder_later", "write_new_later", "rename_later"])
async def test_a_server_that_does_a_later_thing_first_costs_round_trips_and_nothing_else(
    store: SmbStore, root: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    begin, begun = getattr(Link, late), list[str]()

    def begun_at_the_end(self: Link, *words: Any, **more: Any) -> Callable[[], Any]:
        begun.append(late)
        return lambda: begin(self, *words, **more)()

    monkeypatch.setattr(Link, late, begun_at_the_end)
    for name in (PACK, f"root/{WRITER}/{1:016x}-{0:016x}"):
        await store.put(name, b"hello")
        await store.put(name, b"hello")
        assert await store.get(name) == b"hello"
    assert begun
    assert temporary(root) == []  # the last get came behind what was not waited for


async def test_of_two_machines_that_put_one_root_at_the_same_moment_one_learns_that_it_came_second(
    samba: Samba, store: SmbStore, root: Path, folder: str
) -> None:
    twin = samba.store(folder, owner="twin")
    for number in range(ROUNDS):
        name, won = f"root/{WRITER}/{number:016x}-{0:016x}", list[bytes]()

        async def put(one: SmbStore, data: bytes, name: str = name, won: list[bytes] = won) -> None:
            with suppress(StoreRejected):
                await one.put(name, data)
                won.append(data)

        async with anyio.create_task_group() as group:
            group.start_soon(put, store, b"one")
            group.start_soon(put, twin, b"two")
        assert won == [bytes(await store.get(name))]
        await store.put(name, won[0])
    twin.close()
    store.close()
    assert await names(store, "root/") == sorted(f"root/{WRITER}/{number:016x}-{0:016x}" for number in range(ROUNDS))
    await store.sweep()
    assert temporary(root) == []


async def test_where_files_cannot_have_two_names_a_root_is_renamed(
    store: SmbStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smbmessages, "FILE_LINK_INFORMATION", 18)  # which nobody can set
    name = f"root/{WRITER}/{1:016x}-{0:016x}"
    await store.put(name, b"hello")
    await store.put(name, b"hello")
    with pytest.raises(StoreRejected, match="exists with other content"):
        await store.put(name, b"world")
    assert await store.get(name) == b"hello"
    assert temporary(root) == []


async def test_a_link_is_not_made_over_a_file_that_came_meanwhile(store: SmbStore, link: Link, folder: str) -> None:
    await store.put("data/there", b"first")
    link.write_new_later(f"{folder}/data/~x", b"second")()
    file = link.reopen_later(f"{folder}/data/~x")()
    with pytest.raises(SMBResponseException) as caught:
        link.rename_later(file, f"{folder}/data/there", replace=False, keep=True)()
    assert caught.value.status == COLLISION
    link.rename_later(file, f"{folder}/data/here", replace=False, keep=True)()
    link.close_handle(file)
    link.remove_later(f"{folder}/data/~x")()
    assert [await store.get(name) for name in ("data/there", "data/here")] == [b"first", b"second"]


async def test_a_password_is_asked_for_at_each_login(samba: Samba, folder: str) -> None:
    passwords = iter(["an old one", samba.password])
    login = Login("127.0.0.1", samba.port, "share", samba.user, True)
    store = SmbStore(login, folder, "me", lambda: next(passwords), "share smb://nas/x")
    with pytest.raises(StoreRejected, match="correct user and password"):
        await store.create(MARKER)
    await store.create(MARKER)
    await store.probe()
    store.close()


@pytest.mark.parametrize("owner", ["", "a-b", "x" * 65, "é"])
def test_an_owner_is_plain(samba: Samba, owner: str) -> None:
    with pytest.raises(ValueError, match="an owner is 1 to 64 letters and digits"):
        samba.store("x", owner=owner)


def test_timeouts_are_greater_than_nothing(samba: Samba) -> None:
    with pytest.raises(ValueError, match="timeouts must be greater"):
        samba.store("x", stall_timeout_s=0)


async def test_a_store_tells_the_size_and_the_free_space_of_its_device(store: SmbStore, root: Path) -> None:
    aside = root.with_name(f"{root.name}-aside")
    os.rename(root, aside)
    with tmpfs(root, 8 << 20):
        os.chmod(root, 0o777)
        shutil.copytree(aside, root, dirs_exist_ok=True)
        shutil.chown(root / "format", user=os.stat(aside).st_uid)
        before = await store.room()
        assert before.device_bytes == 8 << 20
        assert before.free_bytes is not None
        await store.put(PACK.replace("-5", f"-{1 << 20}"), bytes(1 << 20))
        after = await store.room()
        assert after.free_bytes is not None
        assert 1 << 20 <= before.free_bytes - after.free_bytes < 2 << 20
        tool("umount", "-l", root)  # the server may have it open still
    with pytest.raises(StoreUnavailable):
        await store.room()


async def test_a_server_that_does_not_tell_the_size_of_a_device_is_no_broken_one(
    store: SmbStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real server is asked for something it does not know."""
    request = smbmessages.room

    def other() -> Any:
        message = request()
        message["file_info_class"] = smbmessages.FILE_RENAME_INFORMATION
        return message

    monkeypatch.setattr(smbmessages, "room", other)
    assert await store.room() == Room()
