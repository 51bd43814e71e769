"""What networks and servers do to an S3 store, tried against a real server: the right word, and a sentence."""

from __future__ import annotations

import datetime
import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.auth
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from adapters.stores.s3 import S3Store
from adapters.stores.s3body import PIECE_BYTES
from engine.errors import ObjectMissing, StoreRejected, StoreUnavailable
from tests.adapters.disks import tool
from tests.s3stores import opened, settings, write_keys
from tests.servers import S3Server, chaos_proxy, make_bucket, start_s3, stop_s3

pytestmark = [pytest.mark.anyio, pytest.mark.services]

NAME = "data/object-1"
LARGE = bytes(range(256)) * (8 << 12)  # 8 MiB: more than what systems and proxies hold on the way
SHORT_S = 0.4  # how long a call may move nothing, here


@pytest.fixture
async def proxy(s3_server: S3Server) -> AsyncIterator[Any]:
    proxy = chaos_proxy("127.0.0.1", s3_server.port)
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def store(s3_server: S3Server, proxy: Any, tmp_path: Path) -> AsyncIterator[S3Store]:
    through = settings(s3_server, tmp_path, endpoint_url=f"http://127.0.0.1:{proxy.port}")
    async with opened(through) as store:
        await store.put("format", b"F" * 56)
        await store.try_put()
        yield store


def impatient(store: S3Store, stall_timeout_s: float = SHORT_S) -> S3Store:
    """Return the store, which gives up soon from now on."""
    store._settings = msgspec.structs.replace(store._settings, stall_timeout_s=stall_timeout_s, connect_timeout_s=5.0)
    return store


async def listed(store: S3Store) -> list[str]:
    return [info.name async for info in store.list("data/")]


Call = Callable[[S3Store], Awaitable[object]]
CALLS: dict[str, Call] = {
    "put": lambda store: store.put(NAME, b"hello"),
    "get": lambda store: store.get(NAME),
    "stat": lambda store: store.stat(NAME),
    "delete": lambda store: store.delete(NAME),
    "list": listed,
    "probe": lambda store: store.probe(),
    "try_put": lambda store: store.try_put(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


@pytest.mark.parametrize("how", ["reset", "fin"])
async def test_a_put_that_is_cut_leaves_nothing_and_can_be_put_again(store: S3Store, proxy: Any, how: str) -> None:
    proxy.kill_all()
    proxy.cut_after, proxy.cut_dir, proxy.cut_how = 3_000_000, "up", how
    with pytest.raises(StoreUnavailable, match=NAME):
        await store.put(NAME, LARGE)
    proxy.cut_after = None
    with pytest.raises(ObjectMissing):
        await store.stat(NAME)
    await store.put(NAME, LARGE)
    assert await store.get(NAME) == LARGE


@pytest.mark.parametrize("how", ["reset", "fin"])
async def test_a_get_that_is_cut_is_an_error_and_no_short_object(store: S3Store, proxy: Any, how: str) -> None:
    await store.put(NAME, LARGE)
    proxy.kill_all()
    proxy.cut_after, proxy.cut_dir, proxy.cut_how = 3_000_000, "down", how
    for offset, length in ((0, None), (1, None), (5, len(LARGE) - 10)):
        with pytest.raises(StoreUnavailable, match=NAME):
            await store.get(NAME, offset, length)
    proxy.cut_after = None
    assert await store.get(NAME) == LARGE


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_put_that_stalls_ends(store: S3Store, proxy: Any, direction: str) -> None:
    proxy.kill_all()
    proxy.cut_after, proxy.cut_dir, proxy.cut_how = 3_000_000 if direction == "up" else 10, direction, "stall"
    with pytest.raises(StoreUnavailable):
        await impatient(store).put(NAME, LARGE)
    proxy.kill_all()
    proxy.cut_after = None
    await impatient(store, 30.0).put(NAME, LARGE)
    assert await store.get(NAME) == LARGE


async def test_a_get_that_stalls_ends(store: S3Store, proxy: Any) -> None:
    await store.put(NAME, LARGE)
    proxy.kill_all()
    proxy.cut_after, proxy.cut_dir, proxy.cut_how = 3_000_000, "down", "stall"
    with pytest.raises(StoreUnavailable, match=r"moved nothing for 0\.4 s"):
        await impatient(store).get(NAME)


def connections_to(port: int) -> int:
    """Return how many connections to a port of the loopback this process has open."""
    links = (each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink())
    own = {str(link)[len("socket:[") : -1] for link in links if str(link).startswith("socket:[")}
    rows = [row.split() for row in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[2].rpartition(":")[2], 16) == port and row[9] in own for row in rows)


@pytest.mark.parametrize(
    ("direction", "secure"), [("up", False), ("down", False), ("up", True)], ids=["up", "down", "up over https"]
)
async def test_puts_that_stalled_and_were_given_up_leave_no_connection_open(
    s3_server: S3Server, tmp_path: Path, direction: str, secure: bool
) -> None:
    proxy = chaos_proxy("127.0.0.1", s3_server.port_https if secure else s3_server.port)
    await proxy.start()
    url = f"http{'s' * secure}://127.0.0.1:{proxy.port}"
    ca_file = Path(s3_server.ca_file) if secure else None
    async with opened(settings(s3_server, tmp_path, endpoint_url=url, ca_file=ca_file)) as store:
        await store.put("format", b"F" * 56)
        await store.try_put()
        proxy.kill_all()
        proxy.cut_after = 3_000_000 if direction == "up" else 10
        proxy.cut_dir, proxy.cut_how = direction, "stall"
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await impatient(store).put(NAME, LARGE)
        assert proxy.cuts == 2
        for _ in range(3):  # what ends is taken apart one turn later
            await checkpoint()
        assert connections_to(proxy.port) == 0
    await proxy.stop()


async def test_a_put_tells_of_every_piece_it_has_sent(store: S3Store, proxy: Any) -> None:
    limit = store._limit
    before = limit.moves
    await store.put(NAME, LARGE)
    assert limit.moves - before >= len(LARGE) // PIECE_BYTES


@every_call
async def test_a_server_that_takes_connections_and_says_nothing_is_unavailable(
    store: S3Store, proxy: Any, call: Call
) -> None:
    proxy.mode = "blackhole"
    proxy.kill_all()
    store._settings = msgspec.structs.replace(store._settings, stall_timeout_s=SHORT_S, connect_timeout_s=SHORT_S)
    with pytest.raises(StoreUnavailable):
        await call(store)


@every_call
async def test_a_server_that_is_not_there_is_unavailable(store: S3Store, proxy: Any, call: Call) -> None:
    await proxy.stop()
    with pytest.raises(StoreUnavailable, match=r"cannot be reached|was cut"):
        await call(store)


@every_call
async def test_a_name_nobody_knows_is_unavailable(s3_server: S3Server, tmp_path: Path, call: Call) -> None:
    to = settings(s3_server, tmp_path, endpoint_url="http://vault.invalid:9000")
    async with opened(to) as store:
        with pytest.raises(StoreUnavailable, match="name is not known"):
            await call(store)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EAFNOSUPPORT, errno.ENETUNREACH])
async def test_a_network_the_machine_forbids_or_lacks_is_unavailable(
    s3_server: S3Server, tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(address: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("adapters.stores.s3client.make_socket", forbidden)
    async with opened(settings(s3_server, tmp_path)) as store:
        with pytest.raises(StoreUnavailable, match="the server cannot be reached"):
            await store.probe()


@every_call
async def test_a_missing_bucket_refuses(s3_server: S3Server, tmp_path: Path, call: Call) -> None:
    async with opened(settings(s3_server, tmp_path, bucket="not-there")) as store:
        with pytest.raises(StoreRejected, match="there is no such bucket"):
            await call(store)


async def test_who_may_only_read_may_not_put(s3_server: S3Server, tmp_path: Path) -> None:
    whole = settings(s3_server, tmp_path)
    async with opened(whole) as store:
        await store.put("format", b"F" * 56)
    keys = write_keys(tmp_path / "read-only", s3_server.ro_access_key, s3_server.ro_secret_key)
    async with opened(msgspec.structs.replace(whole, credentials_file=keys)) as reader:
        await reader.probe()
        assert await reader.get("format") == b"F" * 56
        for call in (CALLS["put"], CALLS["try_put"], CALLS["delete"]):
            with pytest.raises(StoreRejected, match="not permitted"):
                await call(reader)


@every_call
async def test_a_wrong_clock_is_told_as_one(
    s3_server: S3Server, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = settings(s3_server, tmp_path)
    async with opened(to) as store:
        await store.put("format", b"F" * 56)
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now - datetime.timedelta(hours=2))
    async with opened(to) as store:
        with pytest.raises(StoreRejected, match="the clock of this machine or of the server is wrong"):
            await call(store)


@every_call
async def test_a_certificate_nobody_trusts_refuses(s3_server: S3Server, tmp_path: Path, call: Call) -> None:
    async with opened(settings(s3_server, tmp_path, endpoint_url=s3_server.endpoint_https)) as store:
        with pytest.raises(StoreRejected, match=r"certificate is not trusted: .* \[vault\] ca_file"):
            await call(store)


async def test_a_certificate_of_ones_own_is_trusted_for_its_name_only(s3_server: S3Server, tmp_path: Path) -> None:
    secure = settings(s3_server, tmp_path, endpoint_url=s3_server.endpoint_https, ca_file=Path(s3_server.ca_file))
    async with opened(secure) as store:
        await store.put("format", b"F" * 56)
        await store.put(NAME, LARGE)
        assert await store.get(NAME) == LARGE
    proxy = chaos_proxy("127.0.0.1", s3_server.port_https)
    proxy.listen = "127.0.0.2"
    await proxy.start()
    other = f"https://127.0.0.2:{proxy.port}"
    try:
        async with opened(msgspec.structs.replace(secure, endpoint_url=other)) as store:
            with pytest.raises(StoreRejected, match="certificate is not trusted"):
                await store.probe()
    finally:
        await proxy.stop()


async def test_a_certificate_file_that_is_not_there_is_named(s3_server: S3Server, tmp_path: Path) -> None:
    async with opened(settings(s3_server, tmp_path, ca_file=tmp_path / "ca.pem")) as store:
        with pytest.raises(StoreRejected, match=r"ca\.pem cannot be read"):
            await store.probe()
    (tmp_path / "ca.pem").write_text("no certificate")
    secure = settings(s3_server, tmp_path, ca_file=tmp_path / "ca.pem", endpoint_url=s3_server.endpoint_https)
    async with opened(secure) as store:
        with pytest.raises(StoreRejected, match=r"ca\.pem holds no certificate"):
            await store.probe()


async def test_http_to_an_https_port_and_the_other_way_round(s3_server: S3Server, tmp_path: Path) -> None:
    wrong = s3_server.endpoint_https.replace("https", "http")
    async with opened(settings(s3_server, tmp_path, endpoint_url=wrong)) as store:
        with pytest.raises((StoreUnavailable, StoreRejected), match=r"endpoint_url|refuses"):
            await store.probe()
    wrong = s3_server.endpoint.replace("http", "https")
    async with opened(settings(s3_server, tmp_path, endpoint_url=wrong)) as store:
        with pytest.raises(StoreUnavailable, match="no secure connection could be made"):
            await store.probe()


async def test_a_server_killed_in_the_middle_of_a_put_has_it_whole_or_not_and_takes_it_again(
    tmp_path: Path,
) -> None:
    server = start_s3(tmp_path / "own")
    try:
        make_bucket(server)
        proxy = chaos_proxy("127.0.0.1", server.port)
        await proxy.start()
        async with opened(settings(server, tmp_path, endpoint_url=f"http://127.0.0.1:{proxy.port}")) as store:
            await store.put("format", b"F" * 56)
            await store.put("data/before", LARGE)
            proxy.kill_all()
            proxy.cut_after, proxy.cut_dir, proxy.cut_how = 3_000_000, "up", "stall"
            with pytest.raises(StoreUnavailable):
                await impatient(store).put(NAME, LARGE)
            stop_s3(tmp_path / "own")
            proxy.cut_after = None
            proxy.kill_all()
            with pytest.raises(StoreUnavailable):
                await impatient(store, 30.0).put(NAME, LARGE)
            start_s3(tmp_path / "own", server.port)
            await store.put(NAME, LARGE)
            assert await store.get(NAME) == LARGE
            assert await store.get("data/before") == LARGE
        await proxy.stop()
    finally:
        stop_s3(tmp_path / "own")


async def test_a_connection_that_died_while_it_was_idle_costs_at_most_an_error_that_passes(
    store: S3Store, proxy: Any
) -> None:
    for number in range(3):
        proxy.kill_all()
        try:
            await store.put(f"data/{number}", LARGE)
        except StoreUnavailable:
            await store.put(f"data/{number}", LARGE)
        assert await store.get(f"data/{number}") == LARGE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 160 MiB; a server that was killed may hold it for a moment longer."""
    where = tmp_path / "small"
    where.mkdir()
    tool("mount", "-t", "tmpfs", "-o", f"size={160 << 20}", "tmpfs", where)
    yield where
    tool("umount", "--lazy", where)


@pytest.mark.root
async def test_a_server_whose_disk_is_full_keeps_what_it_has(small_disk: Path, tmp_path: Path) -> None:
    server = start_s3(small_disk / "server")
    try:
        make_bucket(server)
        async with opened(settings(server, tmp_path)) as store:
            await store.put("format", b"F" * 56)
            await store.put(NAME, LARGE)
            with pytest.raises(StoreUnavailable, match="the server could not do it now"):
                await fill(store)
            assert await store.get(NAME) == LARGE
    finally:
        stop_s3(small_disk / "server")


async def fill(store: S3Store) -> None:
    for number in range(100):
        await store.put(f"data/{number}", os.urandom(len(LARGE)))
