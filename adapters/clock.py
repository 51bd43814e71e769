"""The Clock port on the machine's own clocks."""

from __future__ import annotations

import time

import anyio


class SystemClock:
    """The wall clock, the monotonic clock and the event loop's sleep."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970-01-01 UTC."""
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await anyio.sleep(seconds)
