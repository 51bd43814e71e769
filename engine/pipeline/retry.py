"""The retry stage: the one owner of retry between a lane (or a reader) and a store.

Rules:
- Only StoreUnavailable is tried again. StoreRejected, StoreCorrupt, ObjectMissing and whatever is no StoreError
  pass at once: trying again does not help, or it is a bug.
- A call that moves nothing for `stall_s` has failed with StoreUnavailable (engine/liveness.py).
- Retries of a call are bounded by `retries_max`, those of all calls by `session_retries_max`, and none begins
  more than `retry_within_s` after the last success of a call of the same kind (writing: put, delete; reading:
  get, stat, list). Idle time does not count: the window opens again when a call begins while none is running.
- A store that asks to be asked less (StoreThrottled) is no failure until it lasts: such tries are bounded by
  `retry_within_s` alone, and the waits between them grow like others.
- A put whose acknowledgement was lost is simply put again: put is idempotent.
- `probe` is not retried: it asks whether the store is there *now*. `flush` is not retried either: after a failed
  flush nobody knows what it should have made durable, and a second one that succeeds would lie about it.
- A listing is tried again until its first row came; after that a failure passes, since rows come in no order
  and a second listing would repeat some.

The stage looks like the store behind it. A reconnect gate and a switch of route are stages of the same kind,
wrapped around this one.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, cast

import msgspec

from engine.block import Bytes
from engine.errors import StoreThrottled, StoreUnavailable
from engine.liveness import StallBound
from engine.policy import RetryPolicy
from engine.ports import Clock, ObjectInfo, ObjectStore
from engine.stage import barrier_of

T = TypeVar("T")


class FailedTry(msgspec.Struct, frozen=True):
    """A call that failed and will be tried again: for the log. `retry` counts from 1, `wait_s` is before it."""

    operation: str
    name: str
    retry: int
    wait_s: float
    error: StoreUnavailable


class _Window:
    """When calls of one kind last succeeded; idle time does not count."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running = 0
        self._since = 0.0

    def begin(self) -> None:
        if not self._running:
            self._since = self._clock.monotonic()
        self._running += 1

    def end(self) -> None:
        self._running -= 1

    def succeeded(self) -> None:
        self._since = self._clock.monotonic()

    def left_s(self, within_s: float) -> float:
        return self._since + within_s - self._clock.monotonic()


class RetryingStore:
    """An ObjectStore, and a Barrier if `inner` is one, that tries `inner` again by `policy`.

    One instance serves one store for one session: that is what `session_retries_max` counts over. `jitter` gives
    the random waits; `log` hears of every failure that will be tried again.
    """

    def __init__(
        self,
        inner: ObjectStore,
        policy: RetryPolicy,
        clock: Clock,
        jitter: random.Random,
        log: Callable[[FailedTry], None] | None = None,
    ) -> None:
        self._inner, self._policy, self._clock = inner, policy, clock
        self._jitter, self._log = jitter, log
        self._writes, self._reads = _Window(clock), _Window(clock)
        self._retries = 0

    @property
    def retries(self) -> int:
        """How many retries this session has used, all calls together."""
        return self._retries

    async def put(self, name: str, data: Bytes) -> None:
        """Store an object, see ObjectStore."""
        await self._call(self._writes, "put", name, lambda: self._inner.put(name, data))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        """Return a range of an object, see ObjectStore."""
        return await self._call(self._reads, "get", name, lambda: self._inner.get(name, offset, length))

    async def stat(self, name: str) -> int:
        """Return an object's size in bytes, see ObjectStore."""
        return await self._call(self._reads, "stat", name, lambda: self._inner.stat(name))

    async def delete(self, name: str) -> None:
        """Remove an object, see ObjectStore."""
        await self._call(self._writes, "delete", name, lambda: self._inner.delete(name))

    async def probe(self) -> None:
        """Return if the store is there, see ObjectStore; one try."""
        await self._once("probe", "", self._inner.probe, self._policy.stall_s)

    async def flush(self) -> None:
        """Return once everything put before is durable, see Barrier; one try."""
        barrier = barrier_of(self._inner)
        if barrier is not None:
            await self._once("flush", "", barrier, self._policy.flush_stall_s)

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Stream a listing, see ObjectStore; tried again until its first row came."""
        rows, info = await self._call(self._reads, "list", prefix, lambda: self._first_row(prefix, after))
        async with aclosing(rows):
            while info is not None:
                yield info
                info = await self._once("list", prefix, lambda: anext(rows, None), self._policy.stall_s)

    async def _first_row(self, prefix: str, after: str) -> tuple[AsyncGenerator[ObjectInfo], ObjectInfo | None]:
        # Every adapter's listing is an async generator; the port promises less, as a reader needs less.
        rows = cast("AsyncGenerator[ObjectInfo]", self._inner.list(prefix, after))
        return rows, await anext(rows, None)

    async def _call(self, window: _Window, operation: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        retry = throttled = 0
        window.begin()
        try:
            while True:
                try:
                    result = await self._once(operation, name, call, self._policy.stall_s)
                except StoreUnavailable as error:
                    retry += 1
                    throttled += isinstance(error, StoreThrottled)
                    await self._wait(window, FailedTry(operation, name, retry, 0.0, error), throttled)
                else:
                    window.succeeded()
                    return result
        finally:
            window.end()

    async def _once(self, operation: str, name: str, call: Callable[[], Awaitable[T]], stall_s: float) -> T:
        with StallBound(stall_s) as bound:
            return await call()
        assert bound.stalled
        what = f"{operation} of {name}" if name else operation
        raise StoreUnavailable(f"{what}: the store moved nothing for {stall_s:g} s; check that it is reachable")

    async def _wait(self, window: _Window, failed: FailedTry, throttled: int) -> None:
        """Wait before a retry; raise the failure if none is left. `throttled`: failures that do not count."""
        policy = self._policy
        left_s = window.left_s(policy.retry_within_s)
        counts = not isinstance(failed.error, StoreThrottled)
        spent = policy.session_retries_max is not None and self._retries >= policy.session_retries_max
        if left_s <= 0 or (counts and (failed.retry - throttled > policy.retries_max or spent)):
            raise failed.error
        self._retries += counts
        wait_s = min(self._jitter.uniform(0.0, policy.backoff_bound_s(failed.retry)), left_s)
        if self._log is not None:
            self._log(FailedTry(failed.operation, failed.name, failed.retry, wait_s, failed.error))
        await self._clock.sleep(wait_s)
