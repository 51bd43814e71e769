"""The store in a share against a real server that refuses, fills up, freezes, dies and is cut off."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from adapters.clock import SystemClock
from adapters.stores.smb import SmbStore
from engine.errors import ObjectMissing, StoreError, StoreRejected, StoreUnavailable
from engine.pipeline.retry import RetryingStore
from engine.policy import RetryPolicy
from tests.chaos import proxy
from tests.samba import MARKER, Samba, free_port, new_folder, start

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.services]

PACK = f"data/{'0' * 32}/{'ab' * 32}-5"
STALL_S = 2.0  # what a server that answers needs never, and one that does not costs a test


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def folder() -> str:
    return uuid.uuid4().hex


@pytest.fixture(scope="module")
def server() -> Iterator[Samba]:
    """Return a server of this module's own, which may be frozen and killed."""
    samba = start(new_folder())
    yield samba
    samba.wipe()


@pytest.fixture
async def store(server: Samba, folder: str) -> AsyncIterator[SmbStore]:
    store = server.store(folder, connect_timeout_s=STALL_S, stall_timeout_s=STALL_S)
    await store.create(MARKER)
    yield store
    store.close()


def leftovers(samba: Samba, folder: str, share: str = "share") -> list[Path]:
    return [path for path in samba.path(folder, share).rglob("*") if path.name.startswith("~")]


async def names(store: SmbStore, prefix: str = "") -> list[str]:
    return sorted([info.name async for info in store.list(prefix)])


async def fails(store: SmbStore, expected: type[StoreError], match: str) -> None:
    """Check that a store that cannot be used says so for every call."""
    for call in (
        store.probe(), store.get(PACK), store.stat(PACK), store.put(PACK, b"x"), store.delete(PACK), names(store),
    ):  # fmt: skip
        with pytest.raises(expected, match=match) as caught:
            await call
        assert type(caught.value) is expected or issubclass(type(caught.value), expected)
        assert "smb://" in str(caught.value)
        assert "Backup-Pass-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("what", "expected", "match"),
    [
        ("password", StoreRejected, "does not know this user with this password: correct user and password"),
        ("user", StoreRejected, "does not know this user with this password"),
        ("domain", StoreRejected, "does not know this user with this password"),
        ("ticket", StoreRejected, "there is no way to log in: set password_file, or get a Kerberos ticket"),
        ("share", StoreRejected, "has no such share: correct its name"),
        ("name", StoreUnavailable, "name cannot be resolved"),
        ("port", StoreUnavailable, "refuses the connection: check that it is on"),
        ("folder", StoreUnavailable, "holds no Forebay store"),
    ],
)
async def test_what_is_configured_wrongly_is_told(
    samba: Samba, what: str, expected: type[StoreError], match: str
) -> None:
    store = {
        "password": lambda: samba.store("x", password="not this one"),
        "user": lambda: samba.store("x", user="nobody-knows"),
        "domain": lambda: samba.store("x", user=r"OFFICE\nobody"),
        "ticket": lambda: samba.store("x", password=""),
        "share": lambda: samba.store("x", "elsewhere"),
        "name": lambda: samba.store("x", server="no.such.host.invalid"),
        "port": lambda: samba.store("x", port=free_port()),
        "folder": lambda: samba.store("x"),
    }[what]()
    await fails(store, expected, match)
    store.close()
    assert not samba.path("x").exists()


@pytest.mark.parametrize("user", ["backup", r"SMBTEST\backup", "BACKUP"])
async def test_every_form_of_a_user_logs_in(samba: Samba, folder: str, user: str) -> None:
    store = samba.store(folder, user=user)
    await store.create(MARKER)
    await store.probe()
    store.close()


async def test_a_share_that_is_read_only_is_read_and_refuses_the_rest(samba: Samba, folder: str) -> None:
    first, reader = samba.store(folder), samba.store(folder, "readonly")
    await first.create(MARKER)
    await first.put(PACK, b"hello")
    assert await reader.get(PACK) == b"hello"
    assert await names(reader, "data/") == [PACK]
    for call in (reader.put("data/a", b"x"), reader.put(PACK, b"another"), reader.delete(PACK)):
        with pytest.raises(StoreRejected, match="not permitted to do that: give it the right"):
            await call
    assert "not permitted" in str(await reader.why_not_writable())
    assert await first.why_not_writable() is None
    assert await first.get(PACK) == b"hello"
    first.close()
    reader.close()


async def test_a_full_disk_is_refused_and_leaves_nothing_half_written(samba: Samba, folder: str) -> None:
    store = samba.store(folder, "small")
    await store.create(MARKER)
    await store.put("data/before", b"b" * 1000)
    with pytest.raises(StoreRejected, match="no space left on the share: free some"):
        await store.put(PACK, bytes(40 << 20))
    with pytest.raises(ObjectMissing):
        await store.stat(PACK)
    assert leftovers(samba, folder, "small") == []
    await store.put(PACK, b"small")
    assert await names(store, "data/") == [PACK, "data/before"]
    store.close()


@pytest.mark.parametrize("encrypt", [True, False])
async def test_a_share_that_requires_encryption_gets_it(samba: Samba, folder: str, encrypt: bool) -> None:
    store = samba.store(folder, "enc", encrypt=encrypt)
    await store.create(MARKER)
    await store.put(PACK, b"hello")
    assert await store.get(PACK) == b"hello"
    store.close()


async def test_a_server_that_cannot_encrypt_is_refused_unless_that_is_switched_off() -> None:
    samba = start(new_folder(), encrypt="off")
    try:
        with pytest.raises(StoreRejected, match=r"cannot encrypt: .*or set smb_encrypt = false"):
            await samba.store("f").create(MARKER)
        assert not samba.path("f").exists()
        store = samba.store("f", encrypt=False)
        await store.create(MARKER)
        await store.put(PACK, b"hello")
        assert await store.get(PACK) == b"hello"
        store.close()
    finally:
        samba.wipe()


async def until_written(samba: Samba, folder: str, size: int) -> None:
    """Return once a temporary file has `size` bytes on the server's disk."""
    while not any(path.stat().st_size >= size for path in leftovers(samba, folder)):
        await anyio.lowlevel.checkpoint()


async def test_a_server_killed_in_the_middle_of_a_put_leaves_no_object(
    server: Samba, store: SmbStore, folder: str
) -> None:
    await store.put("data/before", b"before")
    failed: list[StoreError] = []

    async def put() -> None:
        try:
            for number in range(1000):
                await store.put(f"data/a-{number}", bytes(200 << 20))
        except StoreError as error:
            failed.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(put)
        await until_written(server, folder, 1 << 20)
        await anyio.to_thread.run_sync(server.kill)
    assert [type(error) is StoreRejected for error in failed] == [False]
    await anyio.to_thread.run_sync(server.start_again)
    whole = [info for info in [row async for row in store.list("data/a-")] if info.size != 200 << 20]
    assert whole == []
    left = leftovers(server, folder)
    assert len(left) <= 1
    assert await store.get("data/before") == b"before"
    assert await store.sweep() == len(left)
    assert leftovers(server, folder) == []
    await store.put(PACK, b"again")


async def test_a_frozen_server_is_given_up_by_every_call_and_its_threads_end(
    server: Samba, store: SmbStore, folder: str
) -> None:
    await store.put(PACK, b"hello")
    server.freeze()
    try:
        outcomes: list[str] = []

        async def try_(name: str, awaited: object) -> None:
            with pytest.raises(StoreUnavailable, match=r"did not answer for 2 s|the server does not answer"):
                await awaited  # type: ignore[misc]
            outcomes.append(name)

        async with anyio.create_task_group() as group:
            group.start_soon(try_, "probe", store.probe())
            group.start_soon(try_, "get", store.get(PACK))
            group.start_soon(try_, "put", store.put("data/large", bytes(64 << 20)))
            group.start_soon(try_, "list", names(store))
        assert sorted(outcomes) == ["get", "list", "probe", "put"]
        for thread in threading.enumerate():
            if thread.name.startswith("Thread-") or "_process_message_thread" in thread.name:
                thread.join(30)
                assert not thread.is_alive()
    finally:
        server.thaw()
    assert await store.get(PACK) == b"hello"
    await store.put("data/large", bytes(1 << 20))


async def test_a_server_that_freezes_while_much_is_sent_is_given_up(
    server: Samba, store: SmbStore, folder: str
) -> None:
    async with anyio.create_task_group() as group:

        async def put() -> None:
            for number in range(1000):
                await store.put(f"data/a-{number}", bytes(200 << 20))

        async def put_until_it_fails() -> None:
            with pytest.raises(StoreUnavailable, match="did not answer for 2 s"):
                await put()

        group.start_soon(put_until_it_fails)
        await until_written(server, folder, 1 << 20)
        server.freeze()
    server.thaw()
    await store.put(PACK, b"hello")
    assert [info.size async for info in store.list("data/a-") if info.size != 200 << 20] == []


EXITING = """
import sys, anyio
from adapters.clock import SystemClock
from adapters.stores.smb import SmbStore
from adapters.stores.smbconnection import Login
from engine.errors import StoreUnavailable
def store(timeout_s):
    return SmbStore(Login("127.0.0.1", int(sys.argv[1]), "share", "backup", True), sys.argv[2], "me",
        lambda: "Backup-Pass-1", "share", connect_timeout_s=timeout_s, stall_timeout_s=timeout_s)
async def main():
    used = store(2.0)
    await used.probe()
    print("ready", flush=True)
    sys.stdin.readline()
    for each in (used, store(1.0)):
        try:
            await each.probe()
        except StoreUnavailable as error:
            print(error, flush=True)
anyio.run(main)
"""


def test_a_frozen_server_does_not_keep_the_process_from_its_end(server: Samba, folder: str) -> None:
    store = server.store(folder)
    anyio.run(store.create, MARKER)
    store.close()
    process = subprocess.Popen(
        [sys.executable, "-c", EXITING, str(server.port), folder],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    server.freeze()
    try:
        told, complaints = process.communicate("\n", timeout=60)
    finally:
        server.thaw()
    assert (process.returncode, complaints) == (0, "")
    assert told.count("not answer") == 2


@pytest.mark.parametrize("how", ["reset", "fin"])
@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_connection_cut_in_mid_object_is_a_loss_and_the_next_call_makes_another(
    server: Samba, store: SmbStore, folder: str, how: str, direction: str
) -> None:
    data = bytes(range(256)) * (1 << 14)
    await store.put("data/standing", data)
    async with proxy(server.port) as chaos:
        through = server.store(folder, port=chaos.port)
        chaos.cut_after, chaos.cut_dir, chaos.cut_how, chaos.cut_times = 1 << 20, direction, how, 1
        with pytest.raises(StoreUnavailable, match="ended the connection"):
            await (through.put(PACK, data) if direction == "up" else through.get("data/standing"))
        assert chaos.cuts == 1
        assert await names(store, "data/") == ["data/standing"]
        await through.put(PACK, data)
        assert await through.get(PACK) == data
        through.close()


async def test_a_stalled_connection_is_given_up_and_the_next_call_makes_another(
    server: Samba, store: SmbStore, folder: str
) -> None:
    await store.put("data/standing", bytes(4 << 20))
    async with proxy(server.port) as chaos:
        through = server.store(folder, port=chaos.port, stall_timeout_s=STALL_S)
        chaos.cut_after, chaos.cut_how, chaos.cut_times = 1 << 20, "stall", 1
        with pytest.raises(StoreUnavailable, match="did not answer for 2 s"):
            await through.get("data/standing")
        assert await through.get("data/standing") == bytes(4 << 20)
        through.close()


async def test_a_thin_line_is_no_stall_for_those_who_send_nor_for_those_who_wait(
    server: Samba, store: SmbStore, folder: str
) -> None:
    async with proxy(server.port) as chaos:
        chaos.rate = 8 << 20
        through = server.store(folder, port=chaos.port)
        # Each put takes a second alone, the last of them begins after three: more than a call may go without progress.
        patient = RetryingStore(through, RetryPolicy(retries_max=0, stall_s=2.5), SystemClock(), random.Random())
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(patient.put, f"data/a-{number}", bytes(8 << 20))
        assert len(await names(store, "data/")) == 8
        through.close()


async def test_a_line_that_takes_longer_for_an_object_than_a_call_may_go_without_progress_carries_it(
    server: Samba, store: SmbStore, folder: str
) -> None:
    data = bytes(range(256)) * (3 << 10)  # a request could carry all of it
    await store.put("data/standing", data)
    async with proxy(server.port) as chaos:
        up, down = (server.store(folder, port=chaos.port, stall_timeout_s=STALL_S) for _ in range(2))
        await up.probe()
        await down.probe()
        chaos.rate = 250_000  # three seconds for an object
        async with anyio.create_task_group() as group:
            group.start_soon(up.put, PACK, data)
            assert await down.get("data/standing") == data
        assert await store.get(PACK) == data
        up.close()
        down.close()


async def test_a_connection_that_died_while_it_idled_is_replaced_without_a_word(
    server: Samba, store: SmbStore, folder: str
) -> None:
    async with proxy(server.port) as chaos:
        through = server.store(folder, port=chaos.port)
        await through.put(PACK, b"hello")
        chaos.kill_all()
        assert await through.get(PACK) == b"hello"
        chaos.kill_all()
        assert await names(through, "data/") == [PACK]
        chaos.kill_all()
        await through.probe()
        through.close()


@pytest.mark.parametrize("mode", ["refuse", "reset", "blackhole"])
async def test_a_server_that_takes_connections_and_nothing_else_is_unavailable(
    server: Samba, folder: str, mode: str
) -> None:
    async with proxy(server.port) as chaos:
        chaos.mode = mode
        through = server.store(folder, port=chaos.port, connect_timeout_s=1.0, stall_timeout_s=1.0)
        for call in (through.probe, lambda: through.put(PACK, b"x")):
            with pytest.raises(StoreUnavailable):
                await call()
        through.close()


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0\0\0\x04junk", b"\0" * 100, b""])
async def test_a_server_that_speaks_something_else_is_unavailable(samba: Samba, answer: bytes) -> None:
    async def speak(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(answer)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, speak)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        store = samba.store("x", port=port, connect_timeout_s=1.0, stall_timeout_s=1.0)
        with pytest.raises(StoreUnavailable):
            await store.probe()
        group.cancel_scope.cancel()
