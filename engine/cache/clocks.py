"""Clocks that many systems stamp by: which are believed, and whether what is old may go by them (DESIGN.md §5, Cache).

Pure functions of days (since 2020-01-01). Nobody's clock is proof; that most of them agree is.

A wrong clock makes what everybody needs look old. So trimming is refused

- while the clock is more than a day behind the newest own stamp, or behind the median of the others' newest;
- while it is more than 14 days ahead of every stamp: those of its own sessions since then confirm it once two of them
  have a whole day between them.

A system whose newest stamp lies more than a day ahead of that median, and of this clock, is ignored and reported: what
it says it saw would be protected for as long as its clock was wrong. The median is the lower one, so that of two others
one alone stops nobody, and is taken of those whose stamps protect anything still: systems that left the cache long ago
know nothing of the time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec

AHEAD_DAYS_MAX: Final = 14
BEHIND_DAYS_MAX: Final = 1
CONFIRMED_DAYS: Final = 2  # between the days of two stamps: so much that a whole day lies between them at any hour


class ClockVerdict(msgspec.Struct, frozen=True):
    """`refused`: why nothing may be trimmed, a sentence, or None. `ignored`: writers (16 bytes) not to be believed."""

    refused: str | None = None
    ignored: frozenset[bytes] = frozenset()


def median(days: Sequence[int]) -> int:
    """Return the middle one of `days`, the earlier of two."""
    return sorted(days)[(len(days) - 1) // 2]


def judge_clock(today: int, own_days: Collection[int], others: Mapping[bytes, int]) -> ClockVerdict:
    """Return whether trimming may trust that it is day `today`, and whose stamps it must not.

    Days count from 2020-01-01. `own_days`: those on which this system made stamps, as far as it knows; `others`: the
    day of the newest stamp of each other writer.
    """
    live = [day for day in others.values() if day >= today - AHEAD_DAYS_MAX]
    usual = median(live) if live else None
    limit = max(today, usual or 0) + BEHIND_DAYS_MAX
    ignored = frozenset(writer for writer, day in others.items() if day > limit)
    own = max(own_days, default=None)
    if own is not None and today < own - BEHIND_DAYS_MAX:
        return ClockVerdict(_behind(own - today, "this system's own newest stamp in the cache"), ignored)
    if usual is not None and today < usual - BEHIND_DAYS_MAX:
        return ClockVerdict(_behind(usual - today, "the stamps of the other systems in the cache"), ignored)
    if any(writer not in ignored for writer, day in others.items() if day >= today - AHEAD_DAYS_MAX):
        return ClockVerdict(None, ignored)
    recent = [day for day in own_days if day >= today - AHEAD_DAYS_MAX]
    if recent and max(recent) - min(recent) >= CONFIRMED_DAYS:
        return ClockVerdict(None, ignored)
    return ClockVerdict(
        f"this machine's clock is more than {AHEAD_DAYS_MAX} days ahead of every stamp in the cache, but for those of "
        "the last sessions here; nothing is trimmed until sessions with a whole day between them confirm it: check "
        "the clock",
        ignored,
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


def ignored(newest: Mapping[bytes, int], today: int) -> set[bytes]:
    """Return the other systems whose stamps do not count when this one stamps: more than a day ahead of the median.

    `newest`: of each other system the day of its newest stamp; `today`: by this system's clock, which counts as one.
    `judge_clock`, which lets packs go, asks for more: it is not ahead of this clock either, and those who left have no
    voice.
    """
    if not newest:
        return set()
    middle = median([*newest.values(), today])
    return {writer for writer, day in newest.items() if day > middle + BEHIND_DAYS_MAX}


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
