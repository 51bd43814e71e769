"""Policies: how long, how often, how much. Frozen, units in the names, bounds checked when they are made.

A value out of bounds is the world's doing (a configuration), so it raises `ConfigError`; the configuration file's
own checks have the same bounds and name the key.
"""

from __future__ import annotations

import math
import random
from datetime import datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from engine.errors import ConfigError

MIB: Final = 1 << 20
HOUR_S: Final = 3600
DAY_S: Final = 86_400
DAY_MINUTES: Final = 24 * 60
TRIM_AGE_DAYS_MIN: Final = 15

OnError: TypeAlias = Literal["warn", "error", "fail"]
OnSlow: TypeAlias = Literal["wait", "skip"]


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value:g}; it must lie between {low:g} and {high:g}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; it must be one of: {', '.join(allowed)}")


class RetryPolicy(msgspec.Struct, frozen=True):
    """When a failed call to a store is tried again, and when the store counts as lost (DESIGN.md §3.2).

    `retries_max` per call, `session_retries_max` over all calls of a session (None: no such bound); no retry is
    begun `retry_within_s` after the last call that succeeded. `stall_s`: a call that moves nothing for so long
    has failed; `flush_stall_s` likewise for a flush. The wait before retry n (from 1) is random, evenly between
    0 and min(`backoff_max_s`, `backoff_s` * 2**(n-1)): "full jitter", so that many systems that lost the same
    store do not come back in step.
    """

    retries_max: int = 5
    retry_within_s: float = 60.0
    session_retries_max: int | None = None
    stall_s: float = 30.0
    flush_stall_s: float = 300.0
    backoff_s: float = 1.0
    backoff_max_s: float = 16.0

    def __post_init__(self) -> None:
        _within("retries_max", self.retries_max, 0, 1000)
        _within("retry_within", self.retry_within_s, 0, 86_400)
        if self.session_retries_max is not None:
            _within("retries_max of a session", self.session_retries_max, 0, 1000)
        _within("stall", self.stall_s, 0.001, 3600)
        _within("flush stall", self.flush_stall_s, 0.001, 3600)
        _within("backoff", self.backoff_s, 0, 60)
        _within("longest backoff", self.backoff_max_s, self.backoff_s, 3600)

    def backoff_bound_s(self, retry: int) -> float:
        """Return the upper bound in seconds of the wait before retry number `retry` (from 1)."""
        # The exponent is bounded before it is used: 2.0 ** 1024 overflows.
        return min(self.backoff_max_s, self.backoff_s * 2.0 ** min(retry - 1, 64))


class ReconnectPolicy(msgspec.Struct, frozen=True):
    """How long a session waits for a vault it lost (DESIGN.md §3.2): per loss, and altogether; 0: not at all.

    One prober asks: the wait before its try n (from 1) is random, between half and all of
    min(`backoff_max_s`, `backoff_s` * 2**(n-1)).
    """

    window_s: float = 0.0
    total_s: float = 7200.0
    backoff_s: float = 2.0
    backoff_max_s: float = 30.0

    def __post_init__(self) -> None:
        _within("reconnect_window", self.window_s, 0, 86_400)
        _within("reconnect_total", self.total_s, 0, 86_400)
        _within("backoff", self.backoff_s, 0.001, 60)
        _within("longest backoff", self.backoff_max_s, self.backoff_s, 3600)

    def wait_s(self, attempt: int, jitter: random.Random) -> float:
        """Return how long to wait before a try (from 1)."""
        bound_s = min(self.backoff_max_s, self.backoff_s * 2.0 ** min(attempt - 1, 64))
        return jitter.uniform(bound_s / 2, bound_s)


class CacheErrorPolicy(msgspec.Struct, frozen=True):
    """What errors of the cache cost (DESIGN.md §3.4): `retries_max` in a session, then `on_error`.

    "warn" and "error" give the cache lane up for the session and go on (they differ in the exit code), "fail"
    ends the session.
    """

    on_error: OnError = "warn"
    retries_max: int = 20

    def __post_init__(self) -> None:
        _one_of("on_error", self.on_error, get_args(OnError))
        _within("retries_max", self.retries_max, 0, 1000)

    @property
    def gives_up(self) -> bool:
        """Whether the session goes on without the cache."""
        return self.on_error != "fail"

    def retry(self) -> RetryPolicy:
        """Return the retry policy of the cache: the session's retries are the bound, not a window of time.

        The waits are short, so that a cache that is gone holds the vault lane up for less than two minutes.
        """
        return RetryPolicy(
            retries_max=self.retries_max,
            session_retries_max=self.retries_max,
            retry_within_s=86_400,
            backoff_s=0.25,
            backoff_max_s=4.0,
        )


class SlowPolicy(msgspec.Struct, frozen=True):
    """What a slow cache costs: "wait" for it, or "skip" the slots that waited `skip_after_s` for it alone."""

    on_slow: OnSlow = "wait"
    skip_after_s: float = 10.0

    def __post_init__(self) -> None:
        _one_of("on_slow", self.on_slow, get_args(OnSlow))
        _within("skip_after", self.skip_after_s, 0.1, 3600)


class QueuePolicy(msgspec.Struct, frozen=True):
    """The bound of the transmission queue; with the packs in flight of the lanes there are it stays below 350 MiB."""

    bytes_max: int = 64 * MIB

    def __post_init__(self) -> None:
        _within("queue size in MiB", self.bytes_max / MIB, 8, 222)


class LanePolicy(msgspec.Struct, frozen=True):
    """The bounds of one lane: size of its packs, and bytes of packs in flight, the open one included.

    `unflushed_records_max`: records acknowledged but not flushed, whose ids must be remembered (16 bytes each)
    and which one failed flush can cost: 4 MiB of ids, at most 16 GiB of blocks.
    """

    pack_bytes: int = 16 * MIB
    in_flight_bytes_max: int = 128 * MIB
    puts_bound: int = 16
    unflushed_records_max: int = 1 << 18

    def __post_init__(self) -> None:
        _within("pack_size in MiB", self.pack_bytes / MIB, 4, 64)
        _within("packs in flight in MiB", self.in_flight_bytes_max / MIB, self.pack_bytes / MIB, 128)
        _within("puts at once", self.puts_bound, 1, 16)
        _within("records between two flushes", self.unflushed_records_max, 1, 1 << 20)

    @property
    def packs_max(self) -> int:
        """How many packs may be in memory at once: open, waiting to be put, or being put."""
        return self.in_flight_bytes_max // self.pack_bytes

    @property
    def puts_max(self) -> int:
        """How many puts may run at once."""
        return min(self.puts_bound, self.packs_max)


class LockPolicy(msgspec.Struct, frozen=True):
    """How long what is put into a vault is locked: a restore point for `lock_s`, what it needs for twice that.

    So an object is locked anew when half its time is left at the latest, and everything a new point needs is then
    locked for as long as the point. Locks end at the beginning of a day (UTC, counted from 1970-01-01).
    """

    lock_s: float

    def __post_init__(self) -> None:
        _within("lock in days", self.lock_s / DAY_S, 1, 3650)

    def point_day(self, now_s: float) -> int:
        """Return the day a point made at `now_s` (seconds since 1970) is locked until."""
        return math.ceil((now_s + self.lock_s) / DAY_S)

    def early_day(self, now_s: float) -> int:
        """Return the day before which a lock that ends may be extended already, so that not all are due at once."""
        return math.ceil((now_s + 1.5 * self.lock_s) / DAY_S)

    def needed_day(self, now_s: float) -> int:
        """Return the day what points need is locked until, if it is put or locked anew at `now_s`."""
        return math.ceil((now_s + 2 * self.lock_s) / DAY_S)


class BusinessHours(msgspec.Struct, frozen=True):
    """When people work, by the clock on their wall (`[schedule] business_hours`).

    `days`: 0 is Monday. Each begins `start_minute` minutes after its midnight and ends before `end_minute`; an end
    before the start is one on the next day.
    """

    days: frozenset[int] = frozenset(range(5))
    start_minute: int = 8 * 60
    end_minute: int = 18 * 60

    def __post_init__(self) -> None:
        if not self.days or not self.days <= frozenset(range(7)):
            raise ConfigError("business hours need at least one day of the week")
        _within("start of the business hours in minutes", self.start_minute, 0, DAY_MINUTES - 1)
        _within("end of the business hours in minutes", self.end_minute, 1, DAY_MINUTES)
        if self.start_minute == self.end_minute:
            raise ConfigError("business hours end when they begin")

    def left(self, wall: datetime) -> timedelta:
        """Return how long they go on from the time `wall` on, if nobody moves the clock; nothing outside of them."""
        before = timedelta(hours=wall.hour, minutes=wall.minute, seconds=wall.second, microseconds=wall.microsecond)
        start, end = timedelta(minutes=self.start_minute), timedelta(minutes=self.end_minute)
        if start < end:
            ends = [(wall.weekday(), start, end)]
        else:
            ends = [(wall.weekday(), start, end + timedelta(days=1)), ((wall.weekday() - 1) % 7, timedelta(), end)]
        return max(
            (until - before for day, since, until in ends if day in self.days and since <= before < until),
            default=timedelta(),
        )


class VerifyPolicy(msgspec.Struct, frozen=True):
    """When the cache is verified (DESIGN.md §3.4): `every_s` from start to start, and how much of it is read.

    With `in_business_hours` False a new one waits for the end of the business hours, but no longer than
    `force_after_s` after it was due. `read_share`: of the packs, by size, what deep verification reads each time.
    """

    every_s: float = 24 * HOUR_S
    in_business_hours: bool = True
    force_after_s: float = 27 * HOUR_S
    read_share: float = 0.05

    def __post_init__(self) -> None:
        _within("every in hours", self.every_s / HOUR_S, 1, 720)
        _within("force_after in hours", self.force_after_s / HOUR_S, 1, 720)
        _within("read", self.read_share, 0, 1)


class TrimPolicy(msgspec.Struct, frozen=True):
    """How much a cache may hold (DESIGN.md §3.4): `min_free_share` of its device stays free, always.

    `size_bytes_max`: beyond it, it is trimmed to 95 % of that. `age_days_max`: what nobody saw for longer goes in any
    case. None: off.
    """

    min_free_share: float = 0.15
    size_bytes_max: int | None = None
    age_days_max: int | None = None

    def __post_init__(self) -> None:
        _within("min_free in percent", self.min_free_share * 100, 1, 95)
        if self.size_bytes_max is not None:
            _within("max_size in MiB", self.size_bytes_max / MIB, 64, 1 << 40)
        if self.age_days_max is not None:
            _within("max_age in days", self.age_days_max, 0, 36_500)

    @property
    def age_days_in_force(self) -> int | None:
        """The age at which anything goes, or None: a bound below that of what is protected is off."""
        return self.age_days_max if self.age_days_max is not None and self.age_days_max >= TRIM_AGE_DAYS_MIN else None

    @property
    def warning(self) -> str | None:
        """What is wrong with it, a sentence: the one bad bound that is not refused."""
        if self.age_days_max is None or self.age_days_in_force is not None:
            return None
        return (
            f"max_age is {self.age_days_max} days and is off: it must be at least {TRIM_AGE_DAYS_MIN} days, for what "
            "any system saw less than 14 days ago is never trimmed"
        )
