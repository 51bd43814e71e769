"""When the next verification of the cache may begin (DESIGN.md §3.4).

- The first one is due once a session with this cache has ended, each later one `every` after the start of the one
  before it, whether that was completed or not.
- One that is due begins at once. With `in_business_hours` false it waits while the business hours last, but no longer
  than `force_after` after it was due: between two starts lie `every` + `force_after` at most.
- While one runs or is paused none begins, and the running one is never stopped from here.
- Business hours are those of the clock on the wall: where it is put forward or back, they become shorter or longer.
- Where the last start lies in the future, the clock was put back, and nobody knows how long ago it was: one begins.

No clock, no state: the same question gets the same answer. Times are ms since 1970, UTC.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final, Literal, TypeAlias

import msgspec

from engine.cache.attempt import Attempt
from engine.policy import BusinessHours, VerifyPolicy

Reason: TypeAlias = Literal["due", "forced", "clock", "no_session", "not_due", "business_hours", "running"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MS: Final = timedelta(milliseconds=1)


class Chance(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a new verification may begin now, or when.

    `due_ms`: since when, or from when on, one is due. `next_ms`: the earliest time at which one may begin, now
    included, if none runs then. Both None: as long as no session has ended. `reason`: why it may begin ("due";
    "forced": it has waited as long as it must; "clock": it was put back) or why not.
    """

    may_start: bool
    due_ms: int | None
    next_ms: int | None
    reason: Reason


def next_chance(
    policy: VerifyPolicy,
    hours: BusinessHours,
    *,
    now_ms: int,
    zone: tzinfo,
    first_session_ms: int | None,
    last: Attempt | None,
) -> Chance:
    """Return when the next verification of a cache may begin.

    `zone`: that of the business hours, with its changes to and from daylight saving; `first_session_ms`: when the
    first session with this cache ended; `last`: the newest attempt at this cache.
    """
    since_ms = last.started_ms if last is not None else first_session_ms
    if since_ms is None:
        return Chance(may_start=False, due_ms=None, next_ms=None, reason="no_session")
    due_ms = since_ms if last is None else since_ms + round(policy.every_s * 1000)
    if since_ms > now_ms:
        chance = Chance(may_start=True, due_ms=now_ms, next_ms=now_ms, reason="clock")
    else:
        chance = _chance(policy, hours, now_ms, zone, due_ms)
    if last is not None and last.ended_ms is None:
        return msgspec.structs.replace(chance, may_start=False, reason="running")
    return chance


def _chance(policy: VerifyPolicy, hours: BusinessHours, now_ms: int, zone: tzinfo, due_ms: int) -> Chance:
    forced_ms = due_ms + round(policy.force_after_s * 1000)
    next_ms = max(now_ms, due_ms)
    if not policy.in_business_hours:
        next_ms = max(next_ms, _free_from_ms(hours, zone, next_ms, forced_ms))
    if next_ms <= now_ms:
        late = not policy.in_business_hours and bool(hours.left(_wall(now_ms, zone)))
        return Chance(may_start=True, due_ms=due_ms, next_ms=now_ms, reason="forced" if late else "due")
    reason: Reason = "not_due" if now_ms < due_ms else "business_hours"
    return Chance(may_start=False, due_ms=due_ms, next_ms=next_ms, reason=reason)


def _free_from_ms(hours: BusinessHours, zone: tzinfo, at_ms: int, limit_ms: int) -> int:
    """Return the first time from `at_ms` on that lies outside of business hours, or `limit_ms` if it comes first."""
    while at_ms < limit_ms:
        left = hours.left(_wall(at_ms, zone))
        if not left:
            return at_ms
        # Rounded up, so that the loop ends; only a zone a fraction of a millisecond off UTC would need it.
        until_ms = at_ms + -(-left // _MS)
        at_ms = _clock_change_ms(zone, at_ms, until_ms)
    return limit_ms


def _clock_change_ms(zone: tzinfo, from_ms: int, until_ms: int) -> int:
    """Return when the wall clock is moved between two times, or the later one if it is not."""
    offset = _wall(from_ms, zone).utcoffset()
    if _wall(until_ms, zone).utcoffset() == offset:
        return until_ms
    while until_ms - from_ms > 1:
        middle_ms = (from_ms + until_ms) // 2
        if _wall(middle_ms, zone).utcoffset() == offset:
            from_ms = middle_ms
        else:
            until_ms = middle_ms
    return until_ms


def _wall(at_ms: int, zone: tzinfo) -> datetime:
    return (_EPOCH + at_ms * _MS).astimezone(zone)
