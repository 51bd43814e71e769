"""Clocks that many systems stamp by: which of them are believed, and when nothing may be trimmed (DESIGN.md §5, Cache).

Pure functions of days (since 2020-01-01). Nobody's clock is proof; that most of them agree is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

AHEAD_MAX_DAYS: Final = 14
APART_MAX_DAYS: Final = 1


def median(days: Sequence[int]) -> int:
    """Return the middle one of `days`, the earlier of two."""
    return sorted(days)[(len(days) - 1) // 2]


def ignored(newest: Mapping[bytes, int], today: int) -> set[bytes]:
    """Return the other systems whose stamps do not count: more than a day ahead of the median.

    `newest`: of each other system the day of its newest stamp; `today`: by this system's clock, which counts as one.
    """
    if not newest:
        return set()
    middle = median([*newest.values(), today])
    return {writer for writer, day in newest.items() if day > middle + APART_MAX_DAYS}


def refusal(today: int, own: Sequence[int], others: Sequence[int]) -> str | None:
    """Return, in a sentence, why nothing may be trimmed by this clock; None: it may.

    `own`: days of own stamps, this session's included; `others`: the newest day of each other system that counts.
    """
    if not own:
        return "this system has not stamped anything yet"
    if today < max(own) - APART_MAX_DAYS:
        return f"the clock of this machine is {max(own) - today} days behind the stamps it wrote itself: put it right"
    if others and today < median(others) - APART_MAX_DAYS:
        return f"the clock of this machine is {median(others) - today} days behind those of the others: put it right"
    # Since when time has gone on in steps of less than that: what lies before says nothing of today.
    known = sorted({*own, *others, today})
    since = max((late for early, late in pairwise(known) if late - early > AHEAD_MAX_DAYS), default=0)
    if since and not any(day >= since for day in others) and len({day for day in own if day >= since}) < 2:
        return (
            f"the clock of this machine is more than {AHEAD_MAX_DAYS} days ahead of every stamp: if it is right, the "
            "next session on another day says so"
        )
    return None


def stamped_day(today: int, own: Sequence[int], others: Sequence[int]) -> tuple[int, int, str | None]:
    """Return the day to stamp with, the last day own older stamps are believed in, and what is wrong with the clock.

    Nothing that was seen is ever stamped as if it had been seen earlier; what a clock said that ran ahead is taken back
    once the others show that it did.
    """
    newest = max(own, default=0)
    if others and today < median(others) - APART_MAX_DAYS:
        day = max(median(others), newest)
        return day, day, f"the clock of this machine is {median(others) - today} days behind those of the others"
    if newest > today + APART_MAX_DAYS:
        if others:
            return today, today, None
        return newest, newest, f"the clock of this machine is {newest - today} days behind the stamps it wrote itself"
    return max(today, newest), max(today, newest), None
