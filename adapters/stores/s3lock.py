"""Object Lock: what is put is locked for a time, in which nobody can delete it or put other bytes in its place.

Locks end by a clock that was compared with the server's before anything was locked: one that is wrong would lock until
a time that is over, or for decades. From then on what counts is how much time went by, not what the clock says.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from botocore.exceptions import ClientError

from adapters.stores.s3client import S3Connection, bound
from adapters.stores.s3errors import code_of
from engine.errors import ObjectMissing, StoreRejected, StoreUnavailable
from engine.names import FORMAT, PackName
from engine.policy import DAY_S, LockPolicy

CLOCKS_APART_S: Final = 3600
# What servers say of a bucket without Object Lock, and those that do not know it.
NO_LOCK: Final = frozenset({"ObjectLockConfigurationNotFoundError", "InvalidRequest", "InvalidArgument"})
UNKNOWN: Final = frozenset({405, 501})
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class S3Locks:
    """A `Retention` over a bucket; `now` gives seconds since 1970."""

    def __init__(self, connection: S3Connection, now: Callable[[], float] = time.time) -> None:
        self._connection, self._settings, self._now = connection, connection.settings, now
        lock_s = connection.settings.lock_s
        self._policy = LockPolicy(lock_s) if lock_s is not None else None
        self._prefix = f"{self._settings.prefix}/" if self._settings.prefix else ""

    async def check_lock(self) -> None:
        """See `Retention.check_lock`; locks the format object anew, if there is one. Nothing without `lock_s`."""
        if self._policy is not None:
            await self._watched(self._check)

    async def extend_lock(self, name: str) -> None:
        """See `Retention.extend_lock`."""
        await self._watched(lambda: self._extend(name))

    async def renew(self, name: str) -> None:
        """Lock a pack that a put found there as the put would have; what other objects' locks end is noted nowhere."""
        if self._policy is not None and PackName.parse(name) is not None:
            await self._extend(name)

    async def options(self, name: str) -> dict[str, Any]:
        """Return what goes with the put of an object. Raises: as `check_lock`, which comes first."""
        if self._policy is None:
            return {}
        async with self._connection.locking:
            if self._connection.clock_ahead_s is None:
                await self._check()
        return {"ObjectLockMode": self._settings.lock_mode.upper(), "ObjectLockRetainUntilDate": self._until(name)}

    async def _watched(self, call: Callable[[], Awaitable[None]]) -> None:
        with bound(self._settings.stall_timeout_s):
            await call()
            return
        raise StoreUnavailable(
            f"{self._settings.where}: nothing moved for {self._settings.stall_timeout_s:g} s: check that the server "
            "can be reached"
        )

    async def _check(self) -> None:
        async with self._connection.client() as client:
            try:
                answer = await client.get_object_lock_configuration(Bucket=self._settings.bucket)
                if answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") != "Enabled":
                    raise self._no_lock()
            except ClientError as error:
                code, status = code_of(error)
                if code in NO_LOCK or status in UNKNOWN:
                    raise self._no_lock() from error
                if code != "AccessDenied":  # who may do no more than a backup needs is not told: the locking itself is
                    raise
                answer = error.response
        self._compare(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
        try:
            await self._extend(FORMAT)
        except ObjectMissing:
            return  # a new store: its first put tells

    def _compare(self, headers: Mapping[str, str]) -> None:
        """Set the clock that locks go by. Raises: StoreRejected (this machine's and the server's differ)."""
        now_s = self._now()
        try:
            apart_s = now_s - parsedate_to_datetime(headers.get("date", "")).timestamp()
        except ValueError:
            apart_s = 0.0  # a server that does not tell
        if abs(apart_s) > CLOCKS_APART_S:
            how = "ahead of" if apart_s > 0 else "behind"
            raise StoreRejected(
                f"{self._settings.where}: the clock of this machine is {timedelta(seconds=round(abs(apart_s)))} {how} "
                "the server's, and locks would end at a wrong time: set it right"
            )
        self._connection.clock_ahead_s = now_s - time.monotonic()

    def _until(self, name: str) -> datetime:
        assert self._policy is not None
        assert self._connection.clock_ahead_s is not None
        now_s = self._connection.clock_ahead_s + time.monotonic()
        is_point = name.startswith(("root/", "note/"))
        day = self._policy.point_day(now_s) if is_point else self._policy.needed_day(now_s)
        return _EPOCH + timedelta(seconds=day * DAY_S)

    async def _extend(self, name: str) -> None:
        until, mode = self._until(name), self._settings.lock_mode.upper()
        at = {"Bucket": self._settings.bucket, "Key": self._prefix + name}
        async with self._connection.client(name) as client:
            try:
                await self._retain(client, at, until)
            except ClientError as error:
                code, status = code_of(error)
                if code in NO_LOCK or status in UNKNOWN:
                    raise self._no_lock() from error
                if code != "AccessDenied":
                    raise
                # Nobody may shorten a lock: what another system locked for longer is refused in the same words.
                if await self._locked_until(client, at, mode) < until and not await self._day_after(client, at, until):
                    raise StoreRejected(
                        f"{self._settings.where}, object {name}: it may not be locked until {until:%Y-%m-%d}: give the "
                        "access key the right s3:PutObjectRetention, and all systems of a vault the same [vault] lock "
                        "and lock_mode"
                    ) from error

    async def _retain(self, client: Any, at: dict[str, str], until: datetime) -> None:
        mode = self._settings.lock_mode.upper()
        await client.put_object_retention(**at, Retention={"Mode": mode, "RetainUntilDate": until})

    async def _day_after(self, client: Any, at: dict[str, str], until: datetime) -> bool:
        """Lock a day longer: at midnight a system whose clock is ahead may have been first. False: refused, too."""
        try:
            await self._retain(client, at, until + timedelta(days=1))
        except ClientError:
            return False
        return True

    @staticmethod
    async def _locked_until(client: Any, at: dict[str, str], mode: str) -> datetime:
        """Return until when an object is locked, if that can be seen; governance is no lock where compliance is."""
        try:
            found = await client.head_object(**at)
        except ClientError:
            return _EPOCH
        until = found.get("ObjectLockRetainUntilDate")
        firm = found.get("ObjectLockMode") in (mode, "COMPLIANCE")
        return until if firm and isinstance(until, datetime) else _EPOCH

    def _no_lock(self) -> StoreRejected:
        return StoreRejected(
            f"{self._settings.where}: [vault] lock is set, and the bucket has no Object Lock: make a bucket with "
            "Object Lock enabled (it cannot always be switched on later), or remove the setting"
        )
