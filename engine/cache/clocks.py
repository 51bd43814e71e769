"""Clocks that many systems stamp by: which are believed, and whether what is old may go by them (DESIGN.md §5, Cache).

Pure functions of days (since 2020-01-01). Nobody's clock is proof; that most of them agree is.

A wrong clock makes what everybody needs look old. So trimming is refused

- while the clock is more than a day behind the newest own stamp, or behind the median of the others' newest;
- while it is more than 14 days ahead of every stamp: those of its own sessions since then confirm it once two of them
  have a whole day between them. Where others stamped before, that is not enough: a clock that jumped ahead finds them
  all silent, too. Then theirs must have stood still for 14 days. (That its own stamps reach back to theirs says
  nothing: those that were stamped ahead do so once the others have come that far.)

A system whose newest stamp lies more than a day ahead of that median, and of this clock, is reported, and what it says
of days more than 14 ahead does not count: it would be protected for as long as its clock was wrong. The median is the
lower one, so that of two others one alone stops nobody, and is taken of those whose stamps protect anything still:
systems that left the cache long ago know nothing of the time.

A clock that goes back behind a stamp its own system wrote may be wrong now, or was then. It is wrong now where another
system has stamped that day, too, however many stamp seldom: then what is seen is stamped with that day.

A clock that runs ahead by less than 14 days is not refused, but does no harm: what is old is counted from the day that
half of the live others have reached with their stamps, if that is earlier than today. It costs those who stamp rarely
that what is old goes later, by 14 days at most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

AHEAD_DAYS_MAX: Final = 14
BEHIND_DAYS_MAX: Final = 1
CONFIRMED_DAYS: Final = 2  # between the days of two stamps: so much that a whole day lies between them at any hour

YOUNG: Final = (
    "the stamps in the cache begin with the last sessions here: nothing in it is known to be old, and nothing is "
    "trimmed before sessions with a whole day between them confirm this machine's clock"
)


class ClockVerdict(msgspec.Struct, frozen=True):
    """`refused`: why nothing may be trimmed, a sentence, or None. `day`: from which what is old is counted.

    `believed`: the last day of which stamps may speak; `ahead`: writers (16 bytes) whose clocks run ahead;
    `others_day`: of the newest stamp of the others, but for those, 0: there is none.
    """

    day: int
    believed: int
    others_day: int = 0
    refused: str | None = None
    ahead: frozenset[bytes] = frozenset()


def median(days: Sequence[int]) -> int:
    """Return the middle one of `days`, the earlier of two."""
    return sorted(days)[(len(days) - 1) // 2]


def judge_clock(
    today: int, own_days: Collection[int], others: Mapping[bytes, int], stood: tuple[int, int] = (0, 0)
) -> ClockVerdict:
    """Return whether trimming may trust that it is day `today`, from which day it counts, and what stamps may say.

    Days count from 2020-01-01. `own_days`: those on which this system made stamps, as far as it knows; `others`: the
    day of the newest stamp of each other writer. `stood`: (`others_day`, the day since which it was known to be that).
    """
    live = sorted(day for day in others.values() if day >= today - AHEAD_DAYS_MAX)
    usual = median(live) if live else None
    limit = max(today, usual or 0) + BEHIND_DAYS_MAX
    live = [day for day in live if day <= limit]
    # Of two the later one: one that sleeps holds nobody up.
    reached = min(today, live[len(live) // 2]) if live else today
    ahead = frozenset(writer for writer, day in others.items() if day > limit)
    # Where this clock runs behind, all others seem ahead.
    believed = max(today, usual or 0) + AHEAD_DAYS_MAX
    newest = max((day for day in others.values() if day <= limit), default=0)
    stood_still = stood[0] == newest and today - stood[1] >= AHEAD_DAYS_MAX
    refused = _refusal(today, own_days, usual)
    if refused is None and not live:
        if not newest and all(day >= today - AHEAD_DAYS_MAX for day in own_days):
            refused = None if _confirmed(today, own_days) else YOUNG
        else:
            refused = _unconfirmed(today, own_days, alone=not newest or stood_still)
    return ClockVerdict(reached, believed, newest, refused, ahead)


def _refusal(today: int, own_days: Collection[int], usual: int | None) -> str | None:
    own = max(own_days, default=None)
    if own is not None and today < own - BEHIND_DAYS_MAX:
        return _behind(own - today, "this system's own newest stamp in the cache")
    if usual is not None and today < usual - BEHIND_DAYS_MAX:
        return _behind(usual - today, "the stamps of the other systems in the cache")
    return None


def _confirmed(today: int, own_days: Collection[int]) -> bool:
    recent = [day for day in own_days if day >= today - AHEAD_DAYS_MAX]
    return bool(recent) and max(recent) - min(recent) >= CONFIRMED_DAYS


def _unconfirmed(today: int, own_days: Collection[int], *, alone: bool) -> str | None:
    if _confirmed(today, own_days):
        if alone:
            return None
        return (
            f"this machine's clock is more than {AHEAD_DAYS_MAX} days ahead of every stamp in the cache that others "
            f"wrote; nothing is trimmed until they stamp such days, too, or have stamped nothing for {AHEAD_DAYS_MAX} "
            "days: check the clock"
        )
    return (
        f"this machine's clock is more than {AHEAD_DAYS_MAX} days ahead of every stamp in the cache, but for those of "
        "the last sessions here; nothing is trimmed until sessions with a whole day between them confirm it: check "
        "the clock"
    )


def unbroken_since(day: int, known: Iterable[tuple[int, int]]) -> int:
    """Return since when a system's stamps follow each other, for one of `day`, with no more than 14 days between.

    0: since this one. `known`: (day, what this returned for it) of its stamps before. So that two days are enough to
    see that a clock has not jumped, although the newest stamps take the place of all older ones.
    """
    before = [start or each for each, start in known if day - AHEAD_DAYS_MAX <= each <= day]
    since = min(before, default=day)
    return since if since < day else 0


def own_days(today: int, known: Iterable[tuple[int, int]]) -> list[int]:
    """Return days for `judge_clock`, out of what own stamps there are say; `known` as in `unbroken_since`."""
    found = []
    for day, since in known:
        found.append(day)
        if since and day >= today - AHEAD_DAYS_MAX:
            found.append(max(since, today - AHEAD_DAYS_MAX))
    return found


def _behind(days: int, what: str) -> str:
    return f"this machine's clock is {days} days behind {what}; nothing is trimmed until it is set right"


def voices(newest: Mapping[bytes, int], today: int, own: Sequence[int]) -> list[int]:
    """Return the days of the other systems that tell a system that stamps what day it is.

    `newest`: of each other system the day of its newest stamp; `today`: by this system's clock; `own`: the days of its
    own stamps. Who left long ago knows nothing of the time: heard are those who stamped within 14 days of this system's
    newest stamp or, if that lies too far ahead of everybody, of its clock; of them, who runs ahead is not.
    """
    for at in sorted({max([today, *own]), today}, reverse=True):
        live = {writer: day for writer, day in newest.items() if day >= at - AHEAD_DAYS_MAX}
        ahead = ignored(live, today)
        if heard := [day for writer, day in live.items() if writer not in ahead]:
            return heard
    return []


def ignored(newest: Mapping[bytes, int], today: int) -> set[bytes]:
    """Return the other systems whose stamps do not count when this one stamps.

    Those more than a day ahead of the median, and of this clock. `newest`: of each other system the day of its newest
    stamp; `today`: by this system's clock, which counts as one.
    """
    if not newest:
        return set()
    limit = max(today, median([*newest.values(), today])) + BEHIND_DAYS_MAX
    return {writer for writer, day in newest.items() if day > limit}


def stamped_day(today: int, own: Sequence[int], others: Sequence[int]) -> tuple[int, int, str | None]:
    """Return the day to stamp with, the last day own older stamps are believed in, and what is wrong with the clock.

    Nothing that was seen is ever stamped as if it had been seen earlier; what a clock said that ran ahead is taken back
    once the others show that it did.
    """
    newest = max(own, default=0)
    if others and today < median(others) - BEHIND_DAYS_MAX:
        day = max(median(others), newest)
        return day, day, f"the clock of this machine is {median(others) - today} days behind those of the others"
    if newest > today + BEHIND_DAYS_MAX:
        if others:
            return today, today, None
        return newest, newest, f"the clock of this machine is {newest - today} days behind the stamps it wrote itself"
    return max(today, newest), max(today, newest), None


def borne_out(today: int, own: Sequence[int], newest: Iterable[int]) -> int:
    """Return the day of this system's newest stamp, if it is later than its clock, and that rather is wrong; or today.

    A clock that has gone back, or one that was put right: who stamps seldom, cannot tell. But where another system has
    stamped that day, too, or a later one, it was no dream. `newest`: of each other system the day of its newest stamp.
    No more than 14 days count: what is stamped further ahead protects nothing.
    """
    last = max(own, default=0)
    if not today + BEHIND_DAYS_MAX < last <= today + AHEAD_DAYS_MAX:
        return today
    if any(last - BEHIND_DAYS_MAX <= day <= today + AHEAD_DAYS_MAX for day in newest):
        return last
    return today
