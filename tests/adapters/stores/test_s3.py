"""The S3 store beyond the contract: what it asks of a server, and what it makes of one that gives less."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import pytest

from adapters.stores.s3 import S3Store
from adapters.stores.s3body import PIECE_BYTES, PutBody
from adapters.stores.s3client import S3Connection
from engine.errors import ObjectMissing, StoreRejected, StoreThrottled, StoreUnavailable
from engine.liveness import StallBound
from engine.names import PackName
from tests.s3front import S3Front
from tests.s3stores import opened, plain_client, settings
from tests.servers import BUCKET, S3Server

pytestmark = [pytest.mark.anyio, pytest.mark.services]

PACK = str(PackName("data", bytes(16), bytes(32), 5))
ROOT = f"root/{'00' * 16}/{'1' * 16}-{'2' * 16}"
MARKER = b"F" * 56


@pytest.fixture
async def front(s3_server: S3Server) -> AsyncIterator[S3Front]:
    async with S3Front(s3_server) as front:
        yield front


@pytest.fixture
async def store(s3_server: S3Server, front: S3Front, tmp_path: Path) -> AsyncIterator[S3Store]:
    async with opened(settings(s3_server, tmp_path, endpoint_url=front.url)) as store:
        await store.put("format", MARKER)
        yield store


def connection_of(store: S3Store) -> S3Connection:
    return store._connection


async def test_a_put_is_one_request_once_the_server_is_known(store: S3Store, front: S3Front) -> None:
    await store.put(ROOT, b"first")
    front.requests.clear()
    await store.put(PACK, b"hello")
    assert [method for method, _ in front.requests] == ["PUT"]


async def test_without_tls_the_body_is_signed_by_the_digest_there_is_and_not_hashed_again(
    store: S3Store, front: S3Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(body: PutBody, length: int = -1) -> memoryview:
        raise AssertionError("hashed again")

    monkeypatch.setattr(PutBody, "read", read)
    for content in (b"hello", b"", bytes(PIECE_BYTES + 1)):
        await store.put(str(PackName("data", bytes(16), bytes(32), len(content))), content)
        assert front.headers["x-amz-content-sha256"] == sha256(content).hexdigest()
        assert front.headers["x-amz-checksum-sha256"] == b64encode(sha256(content).digest()).decode()


async def test_whether_the_server_honours_conditions_is_asked_once_and_changes_nothing(
    store: S3Store, front: S3Front
) -> None:
    front.requests.clear()
    await store.put(PACK, b"hello")
    await store.put(ROOT, b"root")
    asked = [path for method, path in front.requests if method == "PUT" and path.endswith("/format")]
    assert len(asked) == 1
    assert connection_of(store).conditional is True
    assert await store.get("format") == MARKER


@pytest.mark.parametrize("conditions", ["ignored", "refused"])
async def test_a_server_without_conditions_is_found_out_and_keeps_the_contract(
    store: S3Store, front: S3Front, conditions: str
) -> None:
    front.conditions = conditions
    assert await store.try_put() is False
    assert await store.get("format") == MARKER
    for name in (PACK, ROOT):
        await store.put(name, b"hello")
        await store.put(name, b"hello")
        with pytest.raises(StoreRejected, match="exists with other content"):
            await store.put(name, b"hallo")
        assert await store.get(name) == b"hello"
        await store.put(name, b"longer")
        assert await store.get(name) == b"longer"


async def test_a_store_is_founded_on_a_server_that_refuses_conditions(
    s3_server: S3Server, front: S3Front, tmp_path: Path
) -> None:
    front.conditions = "refused"
    async with opened(settings(s3_server, tmp_path, endpoint_url=front.url)) as store:
        await store.put("format", MARKER)
        assert await store.get("format") == MARKER
        assert connection_of(store).conditional is False


async def test_without_conditions_an_object_whose_name_does_not_tell_its_content_is_read_back(
    store: S3Store, front: S3Front
) -> None:
    front.conditions = "ignored"
    await store.try_put()
    front.requests.clear()
    await store.put(PACK, b"hello")
    assert "GET" not in [method for method, path in front.requests if path.endswith(PACK)][2:]
    await store.put(ROOT, b"root")
    assert [method for method, path in front.requests if path.endswith(ROOT)][-1] == "GET"


async def test_where_the_server_shows_no_checksum_the_object_is_read_back(store: S3Store, front: S3Front) -> None:
    await store.try_put()
    front.checksums = False
    front.requests.clear()
    await store.put(PACK, b"hello")
    assert [method for method, _ in front.requests] == ["PUT", "GET"]
    await store.put(PACK, b"hello")
    with pytest.raises(StoreRejected, match="exists with other content"):
        await store.put(PACK, b"hallo")


async def test_a_put_whose_answer_was_lost_is_acknowledged_the_next_time(store: S3Store, front: S3Front) -> None:
    await store.try_put()
    front.requests.clear()
    front.drop_answers = 1
    with suppress(StoreUnavailable):
        await store.put(PACK, b"hello")  # on a connection that had been used before the library asks again by itself
    assert front.drop_answers == 0
    await store.put(PACK, b"hello")
    assert await store.get(PACK) == b"hello"


@pytest.mark.parametrize(
    ("offset", "length", "expected"), [(0, 3, b"012"), (4, None, b"456789"), (7, 9, b"789"), (12, 2, b"")]
)
async def test_a_server_that_knows_no_ranges_gives_the_same_bytes(
    store: S3Store, front: S3Front, offset: int, length: int | None, expected: bytes
) -> None:
    await store.put(PACK, b"0123456789")
    front.ranges = False
    assert await store.get(PACK, offset, length) == expected


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (429, "TooManyRequests"), (429, "")])
async def test_being_asked_to_slow_down_halves_the_puts_and_is_said_in_a_word_of_its_own(
    store: S3Store, front: S3Front, refusal: tuple[int, str]
) -> None:
    await store.try_put()
    rounds = connection_of(store).limit.rounds
    before = rounds.limit
    front.refusals = [refusal]
    with pytest.raises(StoreThrottled, match="slow down"):
        await store.put(PACK, b"hello")
    assert rounds.limit == before // 2
    await store.put(PACK, b"hello")


async def test_a_server_that_asks_to_slow_down_is_there(store: S3Store, front: S3Front) -> None:
    front.refusals = [(503, "SlowDown")]
    await store.probe()
    front.refusals = [(503, "ServiceUnavailable")]
    with pytest.raises(StoreUnavailable):
        await store.probe()


async def test_a_login_page_is_no_s3_server(store: S3Store, front: S3Front) -> None:
    front.login_page = True
    calls = (store.probe, lambda: store.get(PACK), lambda: store.stat(PACK), lambda: rows(store), lambda: put(store))
    for call in calls:
        with pytest.raises(StoreUnavailable, match="no S3 server"):
            await call()


async def put(store: S3Store) -> None:
    await store.put(PACK, b"hello")


async def rows(store: S3Store) -> list[str]:
    return [info.name async for info in store.list("data/")]


async def test_a_prefix_without_a_marker_is_no_store(s3_server: S3Server, tmp_path: Path) -> None:
    async with opened(settings(s3_server, tmp_path)) as store:
        with pytest.raises(StoreUnavailable, match="holds no Forebay store"):
            await store.probe()
        with pytest.raises(ObjectMissing):
            await store.try_put()


async def test_foreign_names_are_no_objects_and_stay_out_of_listings(store: S3Store, s3_server: S3Server) -> None:
    await store.put(PACK, b"hello")
    async with plain_client(s3_server) as client:
        for key in ("data/Foreign.txt", "data/a b", f"{PACK}.tmp"):
            prefix = connection_of(store).settings.prefix
            await client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=b"x")
    assert await rows(store) == [PACK]
    for name in ("../x", "data/../x", "/x", "data//x", "Data/x"):
        with pytest.raises(StoreRejected, match="no name an object may have"):
            await store.put(name, b"x")


async def test_a_listing_starts_where_it_is_told(store: S3Store) -> None:
    names = [str(PackName("data", bytes(16), bytes([number]) * 32, 5)) for number in range(5)]
    for name in names:
        await store.put(name, b"hello")
    assert [info.name async for info in store.list("data/", names[2])] == names[3:]


async def test_the_storage_class_goes_with_every_put(s3_server: S3Server, tmp_path: Path) -> None:
    async with opened(settings(s3_server, tmp_path, storage_class="STANDARD_IA")) as store:
        await store.put("format", MARKER)
        await store.put(PACK, b"hello")
        async with plain_client(s3_server) as client:
            found = await client.head_object(Bucket=BUCKET, Key=f"{connection_of(store).settings.prefix}/{PACK}")
    assert found["StorageClass"] == "STANDARD_IA"


async def test_puts_that_wait_for_their_turn_are_no_stalled_ones(store: S3Store, front: S3Front) -> None:
    limit = connection_of(store).limit
    limit.rounds.limit = 1
    await store.try_put()
    with StallBound(60) as waiting:
        async with limit.place(1), anyio.create_task_group() as group:
            group.start_soon(store.put, PACK, b"hello")
            await anyio.wait_all_tasks_blocked()
            assert PACK not in str(front.requests)
            group.cancel_scope.cancel()
    assert not waiting.stalled
    await store.put(PACK, b"hello")


async def test_errors_name_the_bucket_and_the_object_and_no_secret(s3_server: S3Server, tmp_path: Path) -> None:
    for key, told in (("secret_key", "secret key is wrong"), ("access_key", "does not know the access key")):
        wrong: dict[str, Any] = {"access_key": s3_server.access_key, "secret_key": s3_server.secret_key}
        wrong[key] = "verysecretvalue"
        path = tmp_path / f"wrong-{key}"
        path.touch(mode=0o600)
        path.write_text(
            f"[default]\naws_access_key_id={wrong['access_key']}\naws_secret_access_key={wrong['secret_key']}\n"
        )
        async with opened(settings(s3_server, tmp_path, credentials_file=path)) as store:
            for call in (store.probe, lambda: store.put(PACK, b"x"), lambda: store.stat(PACK), lambda: rows(store)):
                with pytest.raises(StoreRejected, match=told) as caught:
                    await call()
                assert f"s3://{BUCKET}/" in str(caught.value)
                assert "verysecretvalue" not in str(caught.value)


async def test_only_a_large_put_waits_for_leave_to_send(store: S3Store, front: S3Front) -> None:
    await store.put("data/small", bytes(PIECE_BYTES))
    assert "expect" not in front.headers
    await store.put("data/large", bytes(PIECE_BYTES + 1))
    assert front.headers["expect"] == "100-continue"
