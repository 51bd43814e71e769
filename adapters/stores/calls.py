"""Calls of the operating system that may hang: made in daemon threads, watched for progress, left behind if stuck.

A thread in a hung file system call cannot be cancelled. So every call runs in a thread of its own pool, reports
its progress through a `Call`, and the coroutine that waits gives up after a stated time without any: the thread
stays behind, and should it ever wake up it finds itself abandoned and undoes what it began. (A thread that waits for
a connection is ended by cutting that.) The threads are
daemons because neither asyncio's nor aiofiles' default pool lets the process end while one of them hangs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

import aiofiles.os
import anyio

from engine.errors import StoreUnavailable
from engine.liveness import moved

P = ParamSpec("P")
T = TypeVar("T")

IDLE_S: Final = 10.0
# How long a cancelled caller still waits for its thread to notice and clean up.
GRACE_S: Final = 1.0
BEAT_S: Final = 0.25  # how often progress is told on


class Abandoned(Exception):
    """Raised inside a worker thread whose caller has given up waiting; no caller ever sees it."""


class Call:
    """One call in a worker thread: the thread reports progress, the waiting side may abandon it."""

    __slots__ = ("_abandoned", "_cut", "_is_cut", "_last_s")

    def __init__(self) -> None:
        self._abandoned, self._last_s = False, time.monotonic()
        self._is_cut, self._cut = False, nothing

    @property
    def last_s(self) -> float:
        """When there was progress last, on the monotonic clock."""
        return self._last_s

    def progress(self) -> None:
        """Tell the waiting side that something was achieved. Raises: Abandoned."""
        if self._abandoned:
            raise Abandoned
        self._last_s = time.monotonic()

    def abandon(self) -> None:
        """Tell the thread, whenever it looks next, to undo what it began."""
        self._abandoned = True

    def waits_on(self, cut: Callable[[], None]) -> None:
        """Tell the waiting side how to end, from its thread, whatever this thread may hang in from now on."""
        self._cut = cut
        if self._is_cut:
            cut()

    def cut(self) -> None:
        """Abandon the call, and end what its thread hangs in if that can be ended."""
        self._abandoned = self._is_cut = True
        self._cut()


def nothing() -> None:
    """Do nothing: a system call cannot be ended from outside."""


class DaemonThreads(Executor):
    """At most `threads_max` daemon threads, started when needed, ended when idle; hung ones count."""

    def __init__(self, name: str, threads_max: int) -> None:
        if threads_max < 1:
            raise ValueError(f"threads_max must be at least 1, not {threads_max}")
        self._name, self._threads_max = name, threads_max
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._threads = self._waiting = 0

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` in a thread as soon as one is free."""
        future: Future[T] = Future()
        with self._changed:
            self._jobs.append((future, partial(fn, *args, **kwargs)))
            if len(self._jobs) > self._waiting and self._threads < self._threads_max:
                self._threads += 1
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
            else:
                self._changed.notify()
        return future

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """Wait for a job; None, the thread counted off, if none came while the thread was idle."""
        with self._changed:
            if not self._jobs:
                self._waiting += 1
                self._changed.wait_for(lambda: bool(self._jobs), IDLE_S)
                self._waiting -= 1
            if not self._jobs:
                self._threads -= 1
                return None
            return self._jobs.popleft()

    def _work(self) -> None:
        while (taken := self._next()) is not None:
            future, job = taken
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:
                    future.set_exception(error)
                    if not isinstance(error, Exception):
                        raise
            # An idle thread must not keep the last job's data and result alive.
            del taken, future, job


def _begin(call: Call, function: Callable[[Call], T]) -> T:
    call.progress()  # the time spent waiting for a free thread is not the call's
    return function(call)


class WatchedThreads:
    """Runs calls in daemon threads and gives each up after a time without progress."""

    def __init__(self, what: str, threads_max: int) -> None:
        self._what, self._threads = what, DaemonThreads(f"forebay {what}", threads_max)
        self._moved_s = 0.0  # when any call was last seen to get on

    async def run(self, stall_timeout_s: float, function: Callable[[Call], T]) -> T:
        """Return `function(call)`, run in a thread; its progress is told to the stall bounds around it.

        Raises: StoreUnavailable after `stall_timeout_s` without a `call.progress()`; what `function` raises.
        """
        call = Call()
        hop: Callable[..., Any] = aiofiles.os.wrap(_begin)
        task: asyncio.Task[T] = asyncio.ensure_future(hop(call, function, executor=self._threads))
        seen_s = call.last_s
        try:
            while not task.done():
                left_s = call.last_s + stall_timeout_s - time.monotonic()
                if left_s <= 0:
                    raise StoreUnavailable(
                        f"{self._what} did not answer for {stall_timeout_s:g} s: check the disk or network behind it"
                    )
                await asyncio.wait({task}, timeout=min(left_s, BEAT_S))
                if call.last_s > seen_s:
                    seen_s = self._moved_s = call.last_s
                    moved()
        except asyncio.CancelledError:
            call.abandon()
            with anyio.move_on_after(GRACE_S, shield=True):
                await asyncio.wait({task})
            raise
        finally:
            if not task.done():
                call.cut()
                task.cancel()  # its outcome is nobody's any more
            elif not task.cancelled():
                task.exception()  # seen, also when the caller was cancelled: asyncio must not report it
        try:
            return task.result()
        finally:
            # Its error's traceback holds this frame: a circle that would keep the data of a put that failed alive.
            del task, hop, function

    async def turn(self, free: anyio.Semaphore) -> None:
        """Acquire `free`, of which calls of these threads hold the rest; while they get on, waiting is no stall."""
        while True:
            seen_s = self._moved_s
            with anyio.move_on_after(BEAT_S) as beat:
                await free.acquire()
            if not beat.cancelled_caught:
                return
            if self._moved_s > seen_s:
                moved()
