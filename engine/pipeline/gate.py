"""The reconnect gate: what all calls to the vault go through, so that a loss is one event and not one per worker.

Rules (DESIGN.md §3.2):
- A call that is StoreUnavailable after all its retries means the vault is lost. The first to find out opens the
  window; whoever comes meanwhile, and every call that fails meanwhile, waits for its end. Nobody else asks the vault.
- Within the window one prober asks whether the vault is back, with backoff and jitter. Back: everybody who waited
  makes their call again, which every operation of a store allows. Not back at its end, or no window at all: all of
  them, and all who come later, get `VaultLost`.
- A vault that comes back and refuses ends the window at once. A call that is refused otherwise raises `VaultRefused`:
  waiting does not help.
- Windows count per loss, and their sum per session is bounded: a vault that comes and goes does not hold a session
  up for ever. One that answers the prober and then fails the same kind of call again, with none that worked in
  between, was never back: its window goes on from where it began.
- A listing that breaks off waits like the rest and is begun again; rows its reader had are not given twice. What is
  remembered for that is bounded: a longer listing that breaks off raises once the vault is back.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Final, TypeVar, cast

import anyio
import msgspec

from engine.block import Bytes
from engine.errors import StoreError, StoreRejected, StoreUnavailable
from engine.events import EventLog
from engine.pipeline.route import Event, Means, RouteKeeper
from engine.policy import ReconnectPolicy
from engine.ports import Clock, ObjectInfo, ObjectStore
from engine.stage import Stage, barrier_of

T = TypeVar("T")

log = EventLog("gate")

ROWS_KEPT_MAX: Final = 1 << 16  # names of a listing that are remembered: some 8 MiB


class VaultLost(StoreUnavailable):
    """The vault was lost and did not come back in time: this session uses it no more."""


class VaultRefused(StoreRejected):
    """The vault answers and refuses: this session uses it no more, and only the user can change that."""


class Outage(msgspec.Struct, frozen=True):
    """A vault that is waited for: since and until when (ms since 1970 UTC), and what the loss was."""

    since_ms: int
    until_ms: int
    reason: str


class ReconnectGate:
    """The gate of one session. `probe` asks whether the vault is there, one try; `route` hears what follows.

    `spool`: there is one to fall back to; set it before the first loss. `outage` may be watched: it is set while the
    vault is waited for.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]],
        policy: ReconnectPolicy,
        clock: Clock,
        jitter: random.Random,
        route: RouteKeeper,
        *,
        spool: bool = False,
    ) -> None:
        self._probe, self._policy, self._clock, self._jitter = probe, policy, clock, jitter
        self._route, self.spool = route, spool
        self._window: anyio.CancelScope | None = None
        self._waited_s = 0.0  # in windows that have ended
        self._lost_s: float | None = None  # when the last loss began, and what has worked since it ended
        self._worked: set[str] = set()
        self._reconnecting = anyio.Lock()
        self._losses = 0  # ended: by each of them everybody who had failed before it was told
        self._gone: StoreUnavailable | None = None
        self.outage: Outage | None = None

    @property
    def losses(self) -> int:
        """How many losses are over: to be read before a call, and given to `lost` if it fails."""
        return self._losses

    def shut(self, reason: StoreError) -> None:
        """Let nobody through any more, whoever waits included: the session uses the vault no longer."""
        if self._gone is None:
            self._gone = VaultLost(str(reason))
        if self._window is not None:
            self._window.cancel()

    async def passable(self) -> None:
        """Return once the vault may be asked. Raises: VaultLost."""
        if self.outage is not None:
            async with self._reconnecting:
                pass
        if self._gone is not None:
            raise VaultLost(str(self._gone)) from self._gone

    def worked(self, kind: str) -> None:
        """Take note that a call of this kind ("read" or "write") did what it should."""
        self._worked.add(kind)

    async def lost(self, error: StoreUnavailable, losses: int, kind: str = "read") -> None:
        """Take note that a call of `kind` failed that began after `losses`; return once the vault is back.

        Raises: VaultLost.
        """
        async with self._reconnecting:
            if self._gone is None and losses == self._losses:
                try:
                    await self._reconnect(error, kind)
                finally:
                    self.outage = None
                self._losses += 1
        await self.passable()

    async def _reconnect(self, error: StoreUnavailable, kind: str) -> None:
        began_s, now_ms = self._clock.monotonic(), self._clock.now_ms()
        if self._lost_s is None or kind in self._worked:
            self._lost_s = began_s
        self._worked.clear()
        left_s = self._lost_s + self._policy.window_s - began_s
        window_s = min(left_s, self._policy.total_s - self._waited_s)
        if self._route.route == "VAULT":
            self._route.on(Event.LOST, Means(window=window_s > 0, spool=self.spool))
        elif window_s <= 0:  # one who waited was cancelled, and this is the next in line
            self._route.on(Event.CLOSED, Means(window=False, spool=self.spool))
        if window_s <= 0:
            self._end(error, f"the vault was lost: {error}")
            return
        self.outage = Outage(now_ms, now_ms + round(window_s * 1000), str(error))
        log.warning("vault_lost", component="vault", error=str(error), window_s=window_s, then=self.then)
        event, answer = Event.CLOSED, None
        try:
            with anyio.CancelScope() as self._window:
                event, answer = await self._try_until(began_s + window_s)
        finally:
            self._window = None
            self._waited_s += self._clock.monotonic() - began_s
        if self._gone is not None:
            return  # it was shut meanwhile
        self._route.on(event, Means(window=False, spool=self.spool))
        if event is Event.REFUSED:
            self._end(error, f"the vault was lost, and refuses since it is back: {answer}")
        elif event is Event.CLOSED:
            self._end(error, f"the vault was lost and did not come back within {window_s:g} s: {answer}")
        else:
            log.info("vault_back", component="vault", after_s=round(self._clock.monotonic() - began_s, 1))

    async def _try_until(self, end_s: float) -> tuple[Event, StoreError | None]:
        """Probe until the vault is back, refuses, or it is `end_s`; return which, and what it said last."""
        tries = 0
        while True:
            tries += 1
            left_s = end_s - self._clock.monotonic()
            await self._clock.sleep(max(0.0, min(left_s, self._policy.wait_s(tries, self._jitter))))
            try:
                await self._probe()
            except StoreRejected as error:
                return Event.REFUSED, error
            except StoreUnavailable as error:
                if self._clock.monotonic() >= end_s:
                    return Event.CLOSED, error
                log.info("vault_still_away", component="vault", error=str(error), tries=tries)
            else:
                return Event.BACK, None

    @property
    def then(self) -> str:
        """What happens if the vault does not come back in time."""
        return "the session goes on into the spool" if self.spool else "the session fails"

    def _end(self, error: StoreUnavailable, sentence: str) -> None:
        self._gone = VaultLost(sentence)
        self._gone.__cause__ = error
        log.error("vault_given_up", component="vault", error=sentence, then=self.then)


class GatedStore(Stage):
    """The vault of a session behind a gate, above its retries; `probe` goes past it, since it asks about now."""

    def __init__(self, inner: ObjectStore, gate: ReconnectGate) -> None:
        super().__init__(inner)
        self._gate = gate

    async def put(self, name: str, data: Bytes) -> None:
        """Store an object, see ObjectStore."""
        await self._through(lambda: self._inner.put(name, data), "write")

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        """Return a range of an object, see ObjectStore."""
        return await self._through(lambda: self._inner.get(name, offset, length))

    async def stat(self, name: str) -> int:
        """Return an object's size in bytes, see ObjectStore."""
        return await self._through(lambda: self._inner.stat(name))

    async def delete(self, name: str) -> None:
        """Remove an object, see ObjectStore."""
        await self._through(lambda: self._inner.delete(name), "write")

    async def flush(self) -> None:
        """Return once everything put before is durable, see Barrier."""
        barrier = barrier_of(self._inner)
        if barrier is not None:
            await self._through(barrier, "write")

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Stream a listing, see ObjectStore; one that broke off is begun again behind the gate."""
        given: set[int] = set()
        forgot = False
        while True:
            await self._gate.passable()
            losses = self._gate.losses
            try:
                rows = cast("AsyncGenerator[ObjectInfo]", self._inner.list(prefix, after))
                async with aclosing(rows):
                    async for info in rows:
                        key = hash(info.name)
                        if key in given:
                            continue
                        forgot = len(given) == ROWS_KEPT_MAX
                        if not forgot:
                            given.add(key)
                        yield info
                return
            except StoreRejected as error:
                raise VaultRefused(str(error)) from error
            except StoreUnavailable as error:
                await self._gate.lost(error, losses)
                if forgot:
                    raise

    async def _through(self, call: Callable[[], Awaitable[T]], kind: str = "read") -> T:
        while True:
            await self._gate.passable()
            losses = self._gate.losses
            try:
                result = await call()
            except StoreRejected as error:
                raise VaultRefused(str(error)) from error
            except StoreUnavailable as error:
                await self._gate.lost(error, losses, kind)
            else:
                self._gate.worked(kind)
                return result
