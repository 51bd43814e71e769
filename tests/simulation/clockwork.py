"""What makes a run of the agent the same every time: virtual time, no threads, chance from one seed.

`install` changes the process it runs in for good, so simulations run in a process of their own (`run.py`), started
with a fixed PYTHONHASHSEED. Within it
- the event loop waits for nothing: when all tasks wait, its clock jumps to the next timer, so that stalls of 30 s and
  windows of hours pass at once; if there is no timer either, everybody waits for ever, and `Deadlock` is raised;
- hops to threads are made where they stand, with a few other tasks' turns before and after;
- random numbers nobody seeds, tokens and new keys come from `chance`;
- sets of tasks and cancel scopes have the same order every time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import secrets
import selectors
import warnings
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final, TypeVar

import anyio
import anyio._backends._asyncio as backend
import anyio.from_thread
import anyio.to_thread
import structlog
from anyio.lowlevel import checkpoint
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import engine.vault.founding
import engine.vault.slots
from adapters.stores.calls import Call, WatchedThreads
from engine.names import FragmentName, PackName, PointId
from engine.recovery.writer import Writer, in_order
from engine.vault import hpke

T = TypeVar("T")

EPOCH_MS: Final = 1_790_000_000_000
HOP_TURNS: Final = (0, 0, 0, 1, 2, 5)
chance: Final = random.Random(0)


class Deadlock(BaseException):
    """All tasks wait, and nothing will ever wake one."""


class _NoSelector(selectors.SelectSelector):
    """Never waits: time passes instead."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("every task waits, and no timer is set")
        if timeout > 0:
            self.loop.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while everybody waits."""

    def __init__(self) -> None:
        selector = _NoSelector()
        selector.loop = self
        self.now_s = 0.0
        super().__init__(selector)
        # The usual 1 ns is less than the step between two floats after half a year: a timer that is due never fired.
        self._clock_resolution = 1e-8
        self.set_task_factory(lambda loop, coro, **named: _Task(coro, loop=loop, **named))

    def time(self) -> float:
        return self.now_s


class VirtualClock:
    """A machine's Clock: the loop's time, and a wall clock that may be wrong by `skew_ms`."""

    def __init__(self) -> None:
        self.skew_ms = 0

    def now_ms(self) -> int:
        return EPOCH_MS + self.skew_ms + round(self.monotonic() * 1000)

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


_numbers = itertools.count()


class _Task(asyncio.Task[Any]):
    """A task whose place in a set is the same every time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.number = next(_numbers)
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self.number


class _Scope(backend.CancelScope):
    """A cancel scope whose place in a set is the same every time."""

    __slots__ = ("number",)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.number = next(_numbers)
        super().__init__(*arguments, **named)

    def __hash__(self) -> int:
        return self.number


class SeededRandom(random.Random):
    """`random.Random`, but without a seed it is seeded by `chance`."""

    def __init__(self, seed: Any = None) -> None:
        super().__init__(chance.getrandbits(64) if seed is None else seed)


class SeededSigningKey:
    """Stands in for the class of Ed25519 keys where new ones are made."""

    from_private_bytes = Ed25519PrivateKey.from_private_bytes

    @staticmethod
    def generate() -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(chance.randbytes(32))


async def _hop(
    function: Callable[..., T], *arguments: Any, limiter: anyio.CapacityLimiter | None = None, **_: Any
) -> T:
    """Stand in for `anyio.to_thread.run_sync`: other tasks get turns, but `function` runs here."""
    await checkpoint()
    if limiter is None:
        return await _shielded(function, arguments)
    async with limiter:
        return await _shielded(function, arguments)


async def _shielded(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    before, after = chance.choice(HOP_TURNS), chance.choice(HOP_TURNS)
    with anyio.CancelScope(shield=True):
        for _ in range(before):
            await checkpoint()
        result = function(*arguments)
        for _ in range(after):
            await checkpoint()
    return result


async def _watched(threads: WatchedThreads, stall_timeout_s: float, function: Callable[[Call], T]) -> T:
    return await _hop(function, Call())


def _write_now(writer: Writer, gathered: list[tuple[int, Any]]) -> None:
    for runs in in_order(gathered):
        for offset, pieces in runs:
            writer._target.write(offset, pieces)


def _seeded_recovery_key() -> tuple[bytes, bytes]:
    private = chance.randbytes(96)
    return private, hpke.public_of(private)


def put_in(owner: Any, **made: Any) -> None:
    """Put attributes into a module or class, in place of what it has, for good."""
    for name, value in made.items():
        assert hasattr(owner, name), f"{owner} has no {name}"
        setattr(owner, name, value)


def install() -> None:
    """Make this process one in which the same seed does the same."""
    put_in(anyio.to_thread, run_sync=_hop)
    put_in(anyio.from_thread, check_cancelled=lambda: None)
    put_in(WatchedThreads, run=_watched)
    put_in(backend, CancelScope=_Scope)
    put_in(secrets, token_bytes=lambda size=32: chance.randbytes(size))
    put_in(secrets, token_hex=lambda size=32: chance.randbytes(size).hex())
    put_in(random, Random=SeededRandom)
    put_in(os, cpu_count=lambda: 2)
    put_in(hpke, generate=_seeded_recovery_key)
    put_in(hpke, public_of=lru_cache(hpke.public_of))
    put_in(Writer, _pass_on=_write_now)
    for module in (engine.vault.founding, engine.vault.slots):
        put_in(module, Ed25519PrivateKey=SeededSigningKey)
    for names in (PackName, FragmentName, PointId):  # the hash of a struct goes by where its class lies in memory
        put_in(names, __hash__=lambda name: hash(str(name)))
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    warnings.simplefilter("ignore", ResourceWarning)


def begin(seed: int) -> None:
    """Begin anew, with the chance of a seed."""
    global _numbers
    _numbers = itertools.count()
    chance.seed(seed)


def run(main: Callable[[], Awaitable[T]]) -> T:
    """Run `main` in virtual time, from 0 s on."""
    return anyio.run(main, backend_options={"loop_factory": VirtualLoop})
