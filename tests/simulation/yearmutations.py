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
import engine.cache.trimrecord
import engine.cache.verification
import engine.indexmerge
import engine.pipeline.commit
import engine.removals
from engine.cache.lastseen import StampedDays
from engine.cache.listing import listed_keys
from engine.cache.orphans import OrphanSweep
from engine.cache.seen import SeenPacks
from engine.cache.stamping import Stamping
from engine.cache.trim import Trimmer
from engine.cache.verification import Verification
from engine.mirror import Mirror
from engine.packstore import PackStore
from engine.removal import REMOVALS_PREFIX
from tests.simulation import yearmember
from tests.simulation.clockwork import put_in
from tests.simulation.mutations import rewritten
from tests.simulation.yearcache import DAY_MS


def deduplication_not_stamped() -> None:
    """A session stamps what it wrote, and not what it found there."""
    seen_in = engine.cache.comparison.seen_in

    def written_only(states: Any, index: Any) -> Any:
        written = SeenPacks()
        own = [key for view in index.views() if view.own for key in view.keys[view.listed()].tolist()]
        for seen in seen_in(states, index).pieces():
            written.add(seen.take(np.flatnonzero(np.isin(seen.keys, np.array(own, np.uint64)))))
        return written

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
    put_in(engine.cache.stamping.OlderStamps, said=lambda older, believed, present: [])


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


def others_stamps_not_read() -> None:
    """Whoever trims goes by what it saw itself."""
    rewritten(
        StampedDays, "_read_heads",
        ("{name for each in listed.values() for name in each}", "{*listed.get(self._stamping.identity.system, [])}"),
    )  # fmt: skip


def first_stamp_counts() -> None:
    """Of what several systems saw, the day that is read first counts, not the latest."""
    rewritten(
        StampedDays, "_take_up",
        ("self._newest[rows] = np.maximum(", "self._newest[rows] = np.where(self._newest[rows] > 0, "),
        ("self._oldest[rows] = np.maximum(", "self._oldest[rows] = np.where(self._oldest[rows] > 0, "),
    )  # fmt: skip


def stamps_pile_up() -> None:
    """Stamps that newer ones stand for stay."""
    rewritten(Stamping, "renew", ("await self.objects.delete(str(name))", "pass"))


def verification_does_not_stamp() -> None:
    """A verification tells nobody what it saw."""

    async def nothing(_: Verification) -> None:
        return

    put_in(Verification, _stamp=nothing)


def due_too_late() -> None:
    """A verification begins an hour after it is due."""
    rewritten(engine.cache.due, "_chance", ("max(now_ms, due_ms)", "max(now_ms, due_ms + 3_600_000)"))


def never_forced() -> None:
    """A verification waits for the end of business hours, however long they last."""
    rewritten(engine.cache.due, "_chance", ("forced_ms = due_ms +", "forced_ms = due_ms + 10**9 +"))


def damage_forgotten() -> None:
    """What was found damaged counts as sound with the next verification."""
    rewritten(Verification, "_rely_on", ("known.damaged[np.isin(known.damaged, self._present)]", "known.damaged[:0]"))


def moved_packs_look_gone() -> None:
    """A verification that finds packs gone does not look what took their place."""

    async def once(packs: PackStore, gone: Any) -> Any:
        return await listed_keys(packs.objects)

    put_in(engine.cache.verification, listed_as_known=once)


def nothing_is_rewritten() -> None:
    """Packs of which something is needed stay whole."""
    planner = engine.cache.trimplan._Planner
    rewritten(planner, "_touched", ("~(rewritten | (self._newest <= day))", "self._newest > day"))


def plan_counts_missing_packs() -> None:
    """Packs that are gone are to make room."""
    rewritten(
        Trimmer, "_round",
        ("np.where(absent, 0, held.sizes)", "held.sizes"),
        ("classes.bytes_[absent[classes.pack]] = 0", "pass"),
    )  # fmt: skip


def fragments_fetched_again() -> None:
    """What of the index lies here is not known when it is opened."""
    load = Mirror.load

    def forgotten(mirror: Mirror) -> None:
        if not mirror._loaded:
            for file in mirror._files.names():
                if not file.startswith(REMOVALS_PREFIX):
                    mirror._files.remove(file)
        load(mirror)

    put_in(Mirror, load=forgotten)


def pins_looked_at_once() -> None:
    """What is pinned while a cache is trimmed may go."""
    rewritten(Trimmer, "_carry_out", ("await self._pins_came()", "False"))


def damaged_stamps_passed_over() -> None:
    """A stamp that cannot be read stops nobody from trimming what only it may have named."""
    rewritten(StampedDays, "_read", ("if self._last < name.day <= self._believed:", "if False:"))


def counted_from_any_day() -> None:
    """What is old is counted from today, also by a clock that runs ahead of all others."""
    # Ahead by more trimming is refused: that clocks are wrong by just so much, and where it matters, comes up seldom.
    put_in(yearmember, SKEWS_MS=(4 * DAY_MS, 8 * DAY_MS, 12 * DAY_MS))
    rewritten(
        engine.cache.clocks, "judge_clock", ("min(today, live[len(live) // 2]) if live else today", "today")
    )  # fmt: skip


def acknowledgements_pile_up() -> None:
    """What is listed in a fragment stays in the log of what is not."""
    rewritten(
        PackStore,
        "_rewrite_log",
        ("rewrite(self._acks, packs, durable)", "[self._acks.append(pack.encode()) for pack in packs]"),
    )


def checks_pile_up() -> None:
    """What a system told of packs it has read stays beside what it tells now."""
    rewritten(engine.cache.verification, "tell_checks", ("await objects.delete(str(each))", "pass"))


def read_packs_pile_up() -> None:
    """Of packs that are gone, it is remembered when they were read."""
    rewritten(
        engine.cache.verification, "with_read",
        ("checked.keys[np.isin(checked.keys, present)], read", "checked.keys, read"),
    )  # fmt: skip


def sizes_pile_up() -> None:
    put_in(engine.cache.trimrecord, GROWN_MAX=10**6)


def mirror_never_merged() -> None:
    """The files of the index on a system's own disk stay as many as there are fragments."""
    put_in(Mirror, compact=lambda mirror: None)


def garbage_stays() -> None:
    """What was cut off when it was put stays, and everybody reads it again and again."""

    async def nothing(*_: Any) -> None:
        return

    put_in(engine.indexmerge.FragmentMerge, _sweep=nothing)
    put_in(engine.removals.Removals, _sweep=nothing)


def unlisted_packs_stay() -> None:
    """What was put and is listed by nobody takes room for ever."""

    async def nothing(*_: Any) -> None:
        return

    put_in(OrphanSweep, run=nothing)


# Each with a seed that found it. What comes of a seed changes with what the agent does: `--seeds` tries others, too.
YEAR_MUTATIONS: Final[dict[str, tuple[int, Callable[[], None]]]] = {
    made.__name__: (first, made)
    for first, made in (
        (1, deduplication_not_stamped),
        (1, protected_for_ten_days),
        (6, protected_for_fourteen_dates),
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
        (1, unlisted_packs_stay),
        (20, garbage_stays),
        (1, others_stamps_not_read),
        (1, first_stamp_counts),
        (1, stamps_pile_up),
        (1, verification_does_not_stamp),
        (1, due_too_late),
        (1, never_forced),
        (1, damage_forgotten),
        (3, moved_packs_look_gone),
        (1, nothing_is_rewritten),
        (3, plan_counts_missing_packs),
        (1, fragments_fetched_again),
        (1, pins_looked_at_once),
        (1, acknowledgements_pile_up),
        (1, checks_pile_up),
        (2, read_packs_pile_up),
        (26, sizes_pile_up),
        (1, mirror_never_merged),
        (26, damaged_stamps_passed_over),
        (5, counted_from_any_day),
    )
}
