"""How many puts run at once: as many as make it faster, fewer when the server asks to slow down.

Rules:
- It begins with `START` and stays between `LEAST` and `MOST`.
- Rates are compared over rounds of as many puts as may run at once, while somebody waits for a place: only then is
  it the limit that decides. A round with a higher limit that is not at least `GAIN` faster is taken back, and the
  next try comes after `REST` rounds.
- A throttled put halves the limit; puts that were on their way together halve it once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import anyio

from engine.liveness import moved

START: Final = 4
LEAST: Final = 1
MOST: Final = 16
STEP: Final = 2
GAIN: Final = 1.08
REST: Final = 8
LOOK_S: Final = 1.0  # how often one who waits for a place looks whether those before him get on


class Rounds:
    """The decision alone: fed with puts that ended, it says how many may run."""

    def __init__(self) -> None:
        self.limit = START
        self._began_s: float | None = None
        self._puts = self._bytes = 0
        self._rate: float | None = None  # of the last round
        self._tried = False  # that round had a higher limit than the one before
        self._rest = 0
        self._halved_s = -1.0

    def ended(self, size: int, now_s: float, *, contended: bool) -> None:
        """Take a put of `size` bytes that worked; `contended`: somebody waits for a place."""
        if self._began_s is None or not contended:
            self._restart(now_s)
            return
        self._puts += 1
        self._bytes += size
        if self._puts < self.limit or now_s <= self._began_s:
            return
        rate = self._bytes / (now_s - self._began_s)
        self._restart(now_s)
        if self._tried and self._rate is not None and rate < self._rate * GAIN:
            self._tried = False
            self.limit, self._rest, self._rate = max(LEAST, self.limit - STEP), REST, None
        elif self._rest:
            self._rest -= 1
            self._rate, self._tried = rate, False
        elif self.limit < MOST:
            self._rate, self._tried = rate, True
            self.limit = min(MOST, self.limit + STEP)
        else:
            self._rate, self._tried = rate, False

    def throttled(self, began_s: float, now_s: float) -> None:
        """Take a put that began at `began_s` and was told to slow down."""
        if began_s <= self._halved_s:
            return
        self.limit, self._halved_s = max(LEAST, self.limit // 2), now_s
        self._rest, self._rate, self._tried = REST, None, False
        self._began_s = None

    def _restart(self, now_s: float) -> None:
        self._began_s, self._puts, self._bytes = now_s, 0, 0


class PutLimit:
    """Gives places to puts, first come, first served."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.rounds = Rounds()
        self._now = now
        self._running = 0
        self._waiting: deque[anyio.Event] = deque()
        self.moves = 0  # pieces that puts have sent

    def moved(self) -> None:
        """Tell that a put moved bytes: those who wait for a place wait for something that gets on."""
        self.moves += 1
        moved()

    @asynccontextmanager
    async def place(self, size: int) -> AsyncIterator[None]:
        """Hold a place for a put of `size` bytes."""
        await self._acquire()
        try:
            yield
            self.rounds.ended(size, self._now(), contended=bool(self._waiting))
        finally:
            self._running -= 1
            self._admit()

    def throttled(self, began_s: float) -> None:
        """Take a put that was told to slow down; `began_s` is when it began, by the clock of this limit."""
        self.rounds.throttled(began_s, self._now())

    def now(self) -> float:
        """Return the time by the clock of this limit, in seconds."""
        return self._now()

    async def _acquire(self) -> None:
        if self._running < self.rounds.limit and not self._waiting:
            self._running += 1
            return
        turn = anyio.Event()
        self._waiting.append(turn)
        seen = self.moves
        try:
            while not turn.is_set():
                with anyio.move_on_after(LOOK_S):
                    await turn.wait()
                if seen != self.moves:
                    seen = self.moves
                    moved()
        except BaseException:
            if turn.is_set():
                self._running -= 1
                self._admit()
            else:
                self._waiting.remove(turn)
            raise

    def _admit(self) -> None:
        while self._waiting and self._running < self.rounds.limit:
            self._running += 1
            self._waiting.popleft().set()
