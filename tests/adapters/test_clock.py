from __future__ import annotations

import time

import anyio

from adapters.clock import SystemClock
from engine.ports import Clock


def test_the_clock_tells_milliseconds_and_never_goes_back() -> None:
    clock: Clock = SystemClock()
    before = time.time() * 1000
    assert before - 1 <= clock.now_ms() <= time.time() * 1000 + 1
    first = clock.monotonic()
    anyio.run(clock.sleep, 0)
    assert clock.monotonic() >= first
