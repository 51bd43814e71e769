"""Object Lock against the real server: what is locked stays, and a bucket that cannot lock is refused."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from botocore.exceptions import ClientError

from adapters.stores.s3 import S3Store
from adapters.stores.s3lock import S3Locks
from engine.errors import ConfigError, ObjectMissing, StoreRejected
from engine.names import PackName
from engine.policy import DAY_S
from tests.s3stores import opened, plain_client, settings, write_keys
from tests.servers import S3Server, make_bucket

pytestmark = [pytest.mark.anyio, pytest.mark.services]

PACK = str(PackName("data", bytes(16), bytes(32), 5))
ROOT = f"root/{'00' * 16}/{'1' * 16}-{'2' * 16}"
MARKER = b"F" * 56
LOCKED = f"forebay-locked-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def locked(s3_server: S3Server) -> S3Server:
    """Make the bucket that can lock."""
    make_bucket(s3_server, LOCKED, lock=True)
    return s3_server


@pytest.fixture(params=["governance", "compliance"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(locked: S3Server, tmp_path: Path) -> AsyncIterator[S3Store]:
    to = settings(locked, tmp_path, bucket=LOCKED, lock_s=30.0 * DAY_S)
    async with opened(to) as store:
        await store.put("format", MARKER)
        yield store


def key_of(store: S3Store, name: str) -> str:
    return f"{store._connection.settings.prefix}/{name}"


def days_left(until: datetime) -> float:
    return (until - datetime.now(UTC)) / timedelta(days=1)


async def lock_of(server: S3Server, store: S3Store, name: str) -> tuple[str, float]:
    """Return the mode an object is locked in, and for how many days from now."""
    async with plain_client(server) as client:
        found = await client.head_object(Bucket=LOCKED, Key=key_of(store, name))
    return found["ObjectLockMode"], days_left(found["ObjectLockRetainUntilDate"])


async def test_what_is_put_can_neither_be_deleted_nor_overwritten(locked: S3Server, tmp_path: Path, mode: str) -> None:
    to = settings(locked, tmp_path, bucket=LOCKED, lock_s=30.0 * DAY_S, lock_mode=mode)
    async with opened(to) as store, plain_client(locked) as client:
        await store.put("format", MARKER)
        await store.put(PACK, b"hello")
        at = {"Bucket": LOCKED, "Key": key_of(store, PACK)}
        version = (await client.head_object(**at))["VersionId"]
        with pytest.raises(ClientError, match="AccessDenied"):
            await client.delete_object(**at, VersionId=version)
        if mode == "compliance":
            with pytest.raises(ClientError, match="AccessDenied"):
                await client.delete_object(**at, VersionId=version, BypassGovernanceRetention=True)
        with pytest.raises(StoreRejected, match="exists with other content"):
            await store.put(PACK, b"hallo")
        await client.put_object(**at, Body=b"other")  # whoever may do more than an agent hides it, and no more
        await client.delete_object(**at)
        kept = await client.get_object(**at, VersionId=version)
        assert await kept["Body"].read() == b"hello"
        with pytest.raises(ClientError, match="AccessDenied"):
            await client.put_object_retention(
                **at, VersionId=version,
                Retention={"Mode": mode.upper(), "RetainUntilDate": datetime.now(UTC) + timedelta(days=1)},
            )  # fmt: skip


async def test_a_point_is_locked_for_its_time_and_what_it_needs_for_twice_that(
    locked: S3Server, store: S3Store
) -> None:
    await store.put(PACK, b"hello")
    await store.put(ROOT, b"root")
    assert (await lock_of(locked, store, ROOT))[0] == "GOVERNANCE"
    assert (await lock_of(locked, store, ROOT))[1] == pytest.approx(30.5, abs=0.51)
    assert (await lock_of(locked, store, PACK))[1] == pytest.approx(60.5, abs=0.51)
    assert (await lock_of(locked, store, "format"))[1] == pytest.approx(60.5, abs=0.51)


async def test_a_lock_is_extended_and_never_made_shorter(locked: S3Server, store: S3Store, tmp_path: Path) -> None:
    await store.put(PACK, b"hello")
    longer = msgspec.structs.replace(store._connection.settings, lock_s=90.0 * DAY_S)
    async with opened(longer) as other:
        locks = S3Locks(other._connection)
        await locks.check_lock()
        await locks.extend_lock(PACK)
    assert (await lock_of(locked, store, PACK))[1] == pytest.approx(180.5, abs=0.51)
    locks = S3Locks(store._connection)
    await locks.check_lock()  # the format object is locked for longer, too
    await locks.extend_lock(PACK)
    assert (await lock_of(locked, store, PACK))[1] == pytest.approx(180.5, abs=0.51)
    with pytest.raises(ObjectMissing):
        await locks.extend_lock(ROOT)


async def test_governance_is_not_taken_for_compliance(store: S3Store) -> None:
    await store.put(PACK, b"hello")
    firm = msgspec.structs.replace(store._connection.settings, lock_mode="compliance", lock_s=1.0 * DAY_S)
    async with opened(firm) as other:
        with pytest.raises(StoreRejected, match=r"the same \[vault\] lock and lock_mode"):
            await S3Locks(other._connection).check_lock()


async def test_a_bucket_without_object_lock_is_refused_and_nothing_is_put(s3_server: S3Server, tmp_path: Path) -> None:
    to = settings(s3_server, tmp_path, lock_s=30.0 * DAY_S)
    told = "the bucket has no Object Lock: make a bucket with Object Lock enabled"
    async with opened(to) as store:
        with pytest.raises(StoreRejected, match=told):
            await S3Locks(store._connection).check_lock()
        with pytest.raises(StoreRejected, match=told):
            await store.create(MARKER)
        assert await store.look() == "new"
        assert told in str(await store.why_not_writable())


@pytest.mark.parametrize(("years", "words"), [(40, "14600 days, 0:00:0. ahead of"), (-40, "behind the server's")])
async def test_a_wrong_clock_locks_nothing(store: S3Store, years: int, words: str) -> None:
    locks = S3Locks(store._connection, lambda: time.time() + years * 365 * DAY_S)
    with pytest.raises(StoreRejected, match=words):
        await locks.check_lock()
    with pytest.raises(ConfigError):
        S3Locks(_without_bounds(store))


def _without_bounds(store: S3Store) -> Any:
    connection = store._connection
    connection.settings = msgspec.structs.replace(connection.settings, lock_s=4000.0 * DAY_S)
    return connection


async def test_a_clock_that_is_set_in_the_middle_of_a_session_changes_no_lock(locked: S3Server, store: S3Store) -> None:
    await store.put(ROOT, b"root")
    locks = S3Locks(store._connection, lambda: 0.0)
    await locks.extend_lock(ROOT)
    assert (await lock_of(locked, store, ROOT))[1] == pytest.approx(30.5, abs=0.51)


async def test_without_the_right_to_lock_it_is_said_which_one_is_missing(
    locked: S3Server, store: S3Store, tmp_path: Path
) -> None:
    await store.put(PACK, b"hello")
    user = {"AWS": "arn:aws:iam::000000000000:user/readonly"}
    prefix = store._connection.settings.prefix
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": user,
                "Action": ["s3:PutObject", "s3:GetObject"],
                "Resource": f"arn:aws:s3:::{LOCKED}/{prefix}/*",
            }
        ],
    }
    async with plain_client(locked) as client:
        await client.put_bucket_policy(Bucket=LOCKED, Policy=json.dumps(policy))
    keys = write_keys(tmp_path / "agent", locked.ro_access_key, locked.ro_secret_key)
    agent = msgspec.structs.replace(store._connection.settings, credentials_file=keys, lock_s=60.0 * DAY_S)
    async with opened(agent) as other:
        with pytest.raises(StoreRejected, match="give the access key the right s3:PutObjectRetention"):
            await S3Locks(other._connection).check_lock()


async def test_a_pack_that_was_put_before_is_locked_as_if_it_were_put_now(
    locked: S3Server, store: S3Store, tmp_path: Path
) -> None:
    unlocked = msgspec.structs.replace(store._connection.settings, lock_s=None)
    async with opened(unlocked) as other:
        await other.put(PACK, b"hello")
    await store.put(PACK, b"hello")
    assert (await lock_of(locked, store, PACK))[1] == pytest.approx(60.5, abs=0.51)


async def test_at_midnight_a_system_whose_clock_is_ahead_costs_nobody_a_session(
    locked: S3Server, store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hidden(client: Any, at: dict[str, str], mode: str) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC)  # what an agent sees that may do no more than put retention

    monkeypatch.setattr(S3Locks, "_locked_until", staticmethod(hidden))
    connection = store._connection
    ahead = S3Locks(connection)
    await ahead.check_lock()
    assert connection.clock_ahead_s is not None
    connection.clock_ahead_s += DAY_S
    await ahead.extend_lock("format")
    await S3Locks(connection).check_lock()
    connection.clock_ahead_s += 3 * DAY_S
    await ahead.extend_lock("format")
    with pytest.raises(StoreRejected, match="may not be locked until"):
        await S3Locks(connection).check_lock()
