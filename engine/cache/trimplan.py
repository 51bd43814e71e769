"""What to trim off a cache (DESIGN.md §3.4, Trimming): pure, over columns, from when each record was last seen.

The rules. The oldest go first: days are gone through upwards, from the first on which anything was last seen, until
enough is freed or all that is left may have been seen less than 14 days ago; that is protected, and so is what is
pinned and what nobody is known to have seen ever (whoever trims stamps that, so that it is old one day). Up to such a
day

- a pack of which every record goes is deleted whole;
- one of which half or more goes, by the bytes of its records, is rewritten without them;
- where that does not free enough, packs go on being rewritten, those that give most first, down to an eighth: never
  are more than seven bytes moved to free one.

Packs that hold deltas are never rewritten, and a pack with sources of deltas counts as seen when those were: so both
stay together. A new pack has to lie there before the old ones go: rewriting is done in steps for each of which there is
room, after what is deleted whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import Mask
from engine.columns import Rows
from engine.distinct import distinct
from engine.policy import TrimPolicy
from engine.ports import Room

PROTECTED_DAYS: Final = 14
PINNED: Final = 0xFFFF  # instead of a day: greater than any, so that it never goes
UNSEEN: Final = 0xFFFE
DAY_MAX: Final = 0xFFFD
RECORD_COST: Final = 54  # bytes of footer and index fragment for a record that is kept
PACK_COST: Final = 1024  # header, trailers and table rows of a rewritten pack and of the objects that list it
DELETED_AT_ONCE: Final = 1024  # packs of one step
REWRITTEN_BYTES_MAX: Final = 256 << 20  # of new packs of one step
REWRITTEN_AT_ONCE: Final = 256
HALF: Final = 2
EIGHTH: Final = 8
FREE_MARGIN: Final = 0.01  # of the device, beyond `min_free`, is left to sessions
FORECAST_POINTS_MAX: Final = 60
FORECAST_DAYS_MAX: Final = 36_500
_ROUNDS_MAX: Final = 8

Ints: TypeAlias = npt.NDArray[np.int64]
Days: TypeAlias = npt.NDArray[np.uint16]  # since 2020-01-01; 0: never seen


class CachePacks(msgspec.Struct, frozen=True, eq=False):
    """The packs of a cache. `sizes` int64[p] bytes; `whole` bool[p]: it holds deltas, so it is not rewritten.

    `unlisted_bytes` of packs besides, of which nothing is known.
    """

    sizes: Ints
    whole: Mask
    unlisted_bytes: int = 0


class Classes(msgspec.Struct, frozen=True, eq=False):
    """Records that lie in one pack and were last seen on one day, together; ascending by (pack, day).

    `pack` int64[c], rows of `CachePacks`; `day` uint16[c], or PINNED or UNSEEN; `bytes_` and `records` int64[c].
    """

    pack: Ints
    day: Days
    bytes_: Ints
    records: Ints


class Step(msgspec.Struct, frozen=True, eq=False):
    """Packs that go together, rows of `CachePacks`: some whole, or some rewritten, for which `new_bytes` are needed."""

    deleted: Ints
    rewritten: Ints
    new_bytes: int
    freed_bytes: int


class TrimPlan(msgspec.Struct, frozen=True, eq=False):
    """What goes. `cutoffs` uint16[p]: of a pack that is touched, what was last seen on that day or before; else 0.

    `needed_bytes`: what the thresholds ask for; `freed_bytes`: what the steps give; `no_room`: rows of packs that would
    be rewritten if there were room for the new ones. Protected are bytes of records, pinned and unseen ones included.
    """

    cutoffs: Days
    steps: tuple[Step, ...]
    needed_bytes: int
    freed_bytes: int
    no_room: Ints
    protected_bytes: int
    pinned_bytes: int
    unseen_bytes: int

    @property
    def met(self) -> bool:
        """Whether the thresholds are met afterwards."""
        return self.freed_bytes >= self.needed_bytes


def classes_of(
    counts: Ints, days: Days, lengths: npt.NDArray[np.uint32], pinned: Mask, floors: Days, first_pack: int = 0
) -> Classes:
    """Return the classes of packs numbered from `first_pack` on, with `counts[i]` records each.

    `days`, `lengths` (bytes), `pinned`: a value for each record, pack after pack; `floors`: for each pack the newest
    day of a delta elsewhere that has a source in it, 0: there is none.
    """
    of = np.repeat(np.arange(len(counts)), counts)
    seen = np.where(days == 0, np.uint16(UNSEEN), np.maximum(np.minimum(days, np.uint16(DAY_MAX)), floors[of]))
    seen = np.where(pinned, np.uint16(PINNED), seen)
    joined = (of + first_pack) << 16 | seen
    values = distinct(joined)
    at = values.searchsorted(joined)
    bytes_ = np.bincount(at, lengths.astype(np.float64), len(values)).astype(np.int64)
    records = np.bincount(at, minlength=len(values)).astype(np.int64)
    return Classes(values >> 16, (values & 0xFFFF).astype(np.uint16), bytes_, records)


def classes_of_packs(packs: Ints | Rows, days: Days, bytes_: Ints, records: Ints, floors: Days) -> Classes:
    """Return the classes of packs of which all records were last seen on one day."""
    lengths = np.zeros(len(packs), np.uint32)
    found = classes_of(np.ones(len(packs), np.int64), days, lengths, np.zeros(len(packs), np.bool_), floors)
    return Classes(np.asarray(packs, np.int64), found.day, bytes_, records)


def join_classes(parts: Sequence[Classes]) -> Classes:
    """Return the classes of all parts, which follow each other."""
    return Classes(
        np.concatenate([np.empty(0, np.int64), *(part.pack for part in parts)]),
        np.concatenate([np.empty(0, np.uint16), *(part.day for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.bytes_ for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.records for part in parts)]),
    )


def needed_bytes(policy: TrimPolicy, cache_bytes: int, room: Room) -> int:
    """Return how many bytes have to go, by the thresholds of free space and of size."""
    needed = 0
    if room.device_bytes is not None and room.free_bytes is not None:
        needed = max(needed, math.ceil(policy.min_free_share * room.device_bytes) - room.free_bytes)
    if policy.size_bytes_max is not None and cache_bytes > policy.size_bytes_max:
        needed = max(needed, cache_bytes - policy.size_bytes_max * 95 // 100)
    return needed


def last_unprotected(today: int) -> int:
    """Return the last day all of which was 14 days ago or longer at any hour of day `today`."""
    return today - PROTECTED_DAYS - 1


def spare_bytes(policy: TrimPolicy, cache_bytes: int, room: Room) -> int:
    """Return how many bytes may come into a cache beside what sessions put, so that nothing has to go for them soon.

    Up to what it is trimmed to, and a hundredth of the device more than `min_free` stays free; of a device that cannot
    be asked, nothing.
    """
    if room.device_bytes is None or room.free_bytes is None:
        return 0
    spare = room.free_bytes - math.ceil((policy.min_free_share + FREE_MARGIN) * room.device_bytes)
    if policy.size_bytes_max is not None:
        spare = min(spare, policy.size_bytes_max * 95 // 100 - cache_bytes)
    return max(spare, 0)


def plan_trim(packs: CachePacks, classes: Classes, policy: TrimPolicy, room: Room, today: int) -> TrimPlan:
    """Return what to trim on day `today`; nothing of it was done yet."""
    needed = needed_bytes(policy, int(packs.sizes.sum()) + packs.unlisted_bytes, room)
    planner = _Planner(packs, classes, last=last_unprotected(today))
    aged = 0 if policy.age_days_in_force is None else today - policy.age_days_in_force - 1
    cutoffs = planner.cutoffs(needed, aged)
    steps, no_room = planner.steps(cutoffs, room.free_bytes)
    asked = needed
    for _ in range(_ROUNDS_MAX):
        # What there is no room for has to be freed elsewhere, of what is younger.
        more = needed + int(planner.gains(cutoffs)[no_room].sum())
        if _freed(steps) >= needed or more <= asked:
            break
        asked = more
        cutoffs = planner.cutoffs(asked, aged)
        steps, no_room = planner.steps(cutoffs, room.free_bytes)
    cutoffs[no_room] = 0
    day, bytes_ = classes.day, classes.bytes_
    return TrimPlan(
        cutoffs=cutoffs,
        steps=tuple(steps),
        needed_bytes=max(needed, 0),
        freed_bytes=_freed(steps),
        no_room=no_room,
        protected_bytes=int(bytes_[day > max(planner.last, 0)].sum()),
        pinned_bytes=int(bytes_[day == PINNED].sum()),
        unseen_bytes=int(bytes_[day == UNSEEN].sum()),
    )


def _freed(steps: Sequence[Step]) -> int:
    return sum(step.freed_bytes for step in steps)


class _Planner:
    def __init__(self, packs: CachePacks, classes: Classes, last: int) -> None:
        self._packs, self._classes, self.last = packs, classes, last
        count = len(packs.sizes)
        self._newest = np.zeros(count, np.uint16)
        np.maximum.at(self._newest, classes.pack, classes.day)
        self._newest[self._newest == 0] = UNSEEN  # of which nothing is known
        self._oldest = np.full(count, PINNED, np.uint16)
        np.minimum.at(self._oldest, classes.pack, classes.day)

    def cutoffs(self, needed: int, aged: int) -> Days:
        """Return for each pack the day up to which its records go; 0: it is not touched."""
        days = distinct(self._classes.day)
        days = days[days <= max(self.last, 0)]
        none = np.zeros(len(self._packs.sizes), np.uint16)
        if not days.size:
            return none
        base = int(days[: days.searchsorted(max(aged, 0), "right")].max(initial=0))
        chosen = self._touched(base, HALF)
        if self._total(chosen) >= needed:
            return chosen
        # The first day up to which enough goes; those before it go as a whole.
        low, high = int(days.searchsorted(base, "right")), len(days)
        while low < high:
            middle = (low + high) // 2
            if self._total(self._touched(int(days[middle]), HALF)) >= needed:
                high = middle
            else:
                low = middle + 1
        before = max(base, int(days[low - 1])) if low else base
        chosen = self._touched(before, HALF)
        further = self._touched(int(days[low]), HALF) if low < len(days) else self._touched(int(days[-1]), EIGHTH)
        return self._advance(chosen, further, needed)

    def gains(self, cutoffs: Days) -> Ints:
        """Return how many bytes each pack gives, int64[p]."""
        size = self._packs.sizes
        return np.where(cutoffs == 0, 0, np.where(self._newest <= cutoffs, size, size - self._new_bytes(cutoffs)))

    def steps(self, cutoffs: Days, free_bytes: int | None) -> tuple[list[Step], Ints]:
        """Return the steps, and the rows of those packs for whose rewriting there is never room."""
        whole = np.flatnonzero((cutoffs > 0) & (self._newest <= cutoffs))
        whole = whole[np.argsort(self._newest[whole], kind="stable")]
        none = np.empty(0, np.int64)
        steps = []
        for start in range(0, len(whole), DELETED_AT_ONCE):
            part = whole[start : start + DELETED_AT_ONCE]
            steps.append(Step(part, none, 0, int(self._packs.sizes[part].sum())))
        free = (1 << 62) if free_bytes is None else free_bytes + _freed(steps)
        rest = np.flatnonzero((cutoffs > 0) & (self._newest > cutoffs))
        rest = rest[np.argsort(self._oldest[rest], kind="stable")]
        new = self._new_bytes(cutoffs)
        while rest.size:
            # The first that fit into what is free, in their order; what did not fit gets its turn when more is.
            fits = rest[new[rest] <= min(free, REWRITTEN_BYTES_MAX)][:REWRITTEN_AT_ONCE]
            part = fits[np.cumsum(new[fits]) <= min(free, REWRITTEN_BYTES_MAX)]
            if not part.size:
                break
            size = int(new[part].sum())
            freed = int(self._packs.sizes[part].sum()) - size
            steps.append(Step(none, part, size, freed))
            free += freed
            rest = rest[~np.isin(rest, part)]
        return steps, rest

    def _touched(self, day: int, share: int) -> Days:
        """Return the cutoffs if all that was last seen on `day` or before goes, as far as the rules let it."""
        count = len(self._packs.sizes)
        cutoffs = np.full(count, day, np.uint16)
        if day <= 0:
            return cutoffs
        going = self._sum(self._classes.bytes_, self._classes.day <= day)
        of = self._sum(self._classes.bytes_, self._classes.day >= 0)
        rewritten = ~self._packs.whole & (going > 0) & (going * share >= of)
        rewritten &= self._packs.sizes > self._new_bytes(cutoffs)
        cutoffs[~(rewritten | (self._newest <= day))] = 0
        return cutoffs

    def _advance(self, chosen: Days, further: Days, needed: int) -> Days:
        """Let packs go on to `further`, one after the other, until enough is freed."""
        gains, to = self.gains(chosen), self.gains(further)
        more = to - gains
        rows = np.flatnonzero(more > 0)
        # What is deleted whole costs no writing; of the rest those that give most of themselves come first.
        share = more[rows] / self._packs.sizes[rows]
        rows = rows[np.lexsort((-share, self._newest[rows] > further[rows]))]
        reached = int(np.searchsorted(np.cumsum(more[rows]), needed - int(gains.sum()))) + 1
        advanced = chosen.copy()
        advanced[rows[:reached]] = further[rows[:reached]]
        return advanced

    def _total(self, cutoffs: Days) -> int:
        return int(self.gains(cutoffs).sum())

    def _new_bytes(self, cutoffs: Days) -> Ints:
        """Return what the rest of each pack takes at most once it is rewritten."""
        kept = self._classes.day > cutoffs[self._classes.pack]
        return self._sum(self._classes.bytes_, kept) + RECORD_COST * self._sum(self._classes.records, kept) + PACK_COST

    def _sum(self, values: Ints, which: Mask) -> Ints:
        sums = np.bincount(self._classes.pack[which], values[which].astype(np.float64), len(self._packs.sizes))
        return sums.astype(np.int64)


def forecast_full(history: Sequence[tuple[int, int]], free_bytes: int, today: int) -> int | None:
    """Return the day on which the device is full if the cache goes on growing as it did; None: it does not.

    `history`: (day, bytes of the cache), one a day. The slope is the median of those of all pairs (Theil–Sen), so that
    a day of cleaning up or of a first backup does not sway it. None, too, for what is a century away.
    """
    newest = sorted(dict(history).items())[-FORECAST_POINTS_MAX:]
    slopes = [(after - before) / (later - day) for (day, before), (later, after) in combinations(newest, 2)]
    slope = float(np.median(slopes)) if slopes else 0.0
    if slope <= 0 or free_bytes > slope * FORECAST_DAYS_MAX:
        return None
    return today + math.ceil(max(free_bytes, 0) / slope)
