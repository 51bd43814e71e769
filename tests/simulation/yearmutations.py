"""Small deliberate mistakes in what looks after a shared cache, each of which a simulated year must find.

`python -m tests.simulation.year --mutation NAME…` or `--mutation all`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

import engine.cache.clocks
import engine.cache.comparison
import engine.cache.due
import engine.cache.lastseen
import engine.cache.stamping
import engine.cache.trim
import engine.cache.trimming
import engine.cache.trimplan
import engine.cache.verification
import engine.indexmerge
import engine.pipeline.commit
import engine.removals
from engine.cache.trim import Trimmer
from engine.packstore import PackStore
from tests.simulation.clockwork import put_in
from tests.simulation.mutations import rewritten


def deduplication_not_stamped() -> None:
    """A session stamps what it wrote, and not what it found there."""
    seen_in = engine.cache.comparison.seen_in

    def written_only(states: Any, index: Any) -> Any:
        seen = seen_in(states, index)
        own = [key for view in index.views() if view.own for key in view.keys[view.listed()].tolist()]
        return seen.take(np.flatnonzero(np.isin(seen.keys, np.array(own, np.uint64))))

    put_in(engine.cache.stamping, seen_in=written_only)


def protected_for_ten_days() -> None:
    put_in(engine.cache.trimplan, PROTECTED_DAYS=10)


def protected_for_fourteen_dates() -> None:
    """What was seen late on the first of 14 days goes early on the last."""
    put_in(engine.cache.trimplan, PROTECTED_DAYS=13)


def planned_once() -> None:
    """What damaged packs do not give, nothing else does."""
    put_in(engine.cache.trim, ROUNDS_MAX=1, DAMAGED_MAX=1)


def fragments_never_merged() -> None:
    put_in(engine.indexmerge, FRAGMENTS_MAX=10**6)


def older_stamps_not_said_again() -> None:
    """The newest stamps of a system take the place of older ones without saying what those said."""
    put_in(engine.cache.stamping, _said=lambda head, details, believed, present: iter(()))


def heirs_lost() -> None:
    """Packs written anew say that nobody ever saw what is in them, and count as seen long ago."""
    put = Trimmer._put

    async def plain(trimmer: Trimmer, builder: Any) -> None:
        builder._days = [1] * len(builder._days)
        await put(trimmer, builder)

    put_in(Trimmer, _put=plain)


def deleted_before_it_is_put() -> None:
    """Packs that are rewritten go before what is kept of them is there."""
    rewritten(
        Trimmer,
        "_rewrite",
        ("    names = held.names(records.packs)\n", "    names = held.names(records.packs)\n"
         "        await self._cache.announce_removal(names)\n"),
    )  # fmt: skip


def pins_not_kept() -> None:
    async def none(*_: Any) -> Any:
        return np.empty((0, 2), np.uint64), []

    put_in(engine.cache.trimming, read_pins=none)


def clocks_not_judged() -> None:
    put_in(engine.cache.clocks, judge_clock=lambda today, *_: engine.cache.clocks.ClockVerdict(today, 0xFFFF))


def everything_looks_present() -> None:
    """A verification believes the index, and does not look whether packs are there."""
    put_in(engine.index.PackIndex, absent=lambda index, present: np.empty(0, np.uint64))


def bits_not_settled() -> None:
    """What a verification finds missing is not marked."""
    put_in(engine.cache.comparison, _set_missing=lambda state, pages, masks: None)


def business_hours_ignored() -> None:
    put_in(engine.cache.due, _free_from_ms=lambda hours, zone, at_ms, limit_ms: at_ms)


def removals_ignored() -> None:
    """What other systems removed is relied on as long as their fragments list it."""
    rewritten(PackStore, "refresh", ("refresh.problems += await self.removals.refresh()", "pass"))


def garbage_stays() -> None:
    """What was cut off when it was put stays, and everybody reads it again and again."""

    async def nothing(*_: Any) -> None:
        return

    put_in(engine.indexmerge.FragmentMerge, _sweep=nothing)
    put_in(engine.removals.Removals, _sweep=nothing)


# Each with the seed that is known to find it.
YEAR_MUTATIONS: Final[dict[str, tuple[int, Callable[[], None]]]] = {
    made.__name__: (first, made)
    for first, made in (
        (1, deduplication_not_stamped),
        (1, protected_for_ten_days),
        (1, protected_for_fourteen_dates),
        (21, planned_once),
        (1, fragments_never_merged),
        (1, older_stamps_not_said_again),
        (1, heirs_lost),
        (1, deleted_before_it_is_put),
        (1, pins_not_kept),
        (1, clocks_not_judged),
        (1, everything_looks_present),
        (1, bits_not_settled),
        (1, business_hours_ignored),
        (1, removals_ignored),
        (26, garbage_stays),
    )
}
