"""Whether the clock of this machine may be trusted with what is old (DESIGN.md §5, Cache): pure, over stamps' days.

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

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

AHEAD_DAYS_MAX: Final = 14
BEHIND_DAYS_MAX: Final = 1
CONFIRMED_DAYS: Final = 2  # between the days of two stamps: so much that a whole day lies between them at any hour


class ClockVerdict(msgspec.Struct, frozen=True):
    """`refused`: why nothing may be trimmed, a sentence, or None. `ignored`: writers (16 bytes) not to be believed."""

    refused: str | None = None
    ignored: frozenset[bytes] = frozenset()


def judge_clock(today: int, own_days: Collection[int], others: Mapping[bytes, int]) -> ClockVerdict:
    """Return whether trimming may trust that it is day `today`, and whose stamps it must not.

    Days count from 2020-01-01. `own_days`: those on which this system made stamps, as far as it knows; `others`: the
    day of the newest stamp of each other writer.
    """
    live = sorted(day for day in others.values() if day >= today - AHEAD_DAYS_MAX)
    usual = live[(len(live) - 1) // 2] if live else None
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


def _behind(days: int, what: str) -> str:
    return f"this machine's clock is {days} days behind {what}; nothing is trimmed until it is set right"
