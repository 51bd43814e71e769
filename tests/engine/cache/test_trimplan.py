"""What a plan of trimming touches, in which order, and what it never touches."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.trimplan import (
    PACK_COST,
    RECORD_COST,
    CachePacks,
    TrimPlan,
    classes_of,
    forecast_full,
    join_classes,
    needed_bytes,
    plan_trim,
    spare_bytes,
)
from engine.policy import TrimPolicy
from engine.ports import Room

TODAY = 2500
LAST = TODAY - 15  # of the day after that an hour may be less than 14 × 24 hours ago
MIB = 1 << 20
AMPLE = 1 << 50


@dataclass(frozen=True)
class Pack:
    """A pack for a plan: days and lengths of its records."""

    days: Sequence[int]
    lengths: Sequence[int]
    pinned: frozenset[int] = frozenset()
    deltas: bool = False
    floor: int = 0

    @property
    def size(self) -> int:
        return 64 + sum(self.lengths) + 26 * len(self.lengths) + 148

    def goes(self, cutoff: int) -> list[bool]:
        return [
            0 < max(day, self.floor) <= cutoff and day > 0 and at not in self.pinned for at, day in enumerate(self.days)
        ]


@dataclass
class World:
    packs: Sequence[Pack]
    free: int | None = AMPLE
    policy: TrimPolicy = field(default_factory=TrimPolicy)

    def device(self, needed: int) -> int:
        """Return how large the device is if `needed` bytes more have to be free on it."""
        assert self.free is not None
        return int((needed + self.free) / self.policy.min_free_share)

    def plan(self, needed: int | None) -> TrimPlan:
        parts = []
        for at, pack in enumerate(self.packs):
            parts.append(
                classes_of(
                    np.array([len(pack.days)]),
                    np.array(pack.days, np.uint16),
                    np.array(pack.lengths, np.uint32),
                    np.array([number in pack.pinned for number in range(len(pack.days))]),
                    np.array([pack.floor], np.uint16),
                    at,
                )
            )
        columns = CachePacks(
            np.array([pack.size for pack in self.packs], np.int64), np.array([pack.deltas for pack in self.packs], bool)
        )
        room = Room() if needed is None else Room(self.device(needed), self.free)
        return plan_trim(columns, join_classes(parts), self.policy, room, TODAY)

    def gone(self, plan: TrimPlan) -> set[tuple[int, int]]:
        """Return (pack, record) of all that goes when the steps are done."""
        gone = set()
        for step in plan.steps:
            for row in step.deleted.tolist():
                gone |= {(row, at) for at in range(len(self.packs[row].days))}
            for row in step.rewritten.tolist():
                goes = self.packs[row].goes(int(plan.cutoffs[row]))
                gone |= {(row, at) for at, going in enumerate(goes) if going}
        return gone


def even(*days: int, **more: object) -> Pack:
    """Return a pack of records of 1 MiB each."""
    return Pack(days, [MIB] * len(days), **more)  # type: ignore[arg-type]


def deleted(plan: TrimPlan) -> list[int]:
    return [row for step in plan.steps for row in step.deleted.tolist()]


def rewritten(plan: TrimPlan) -> list[int]:
    return [row for step in plan.steps for row in step.rewritten.tolist()]


@pytest.mark.parametrize(
    ("policy", "cache", "room", "needed"),
    [
        (TrimPolicy(), 900, Room(1000, 150), 0),
        (TrimPolicy(), 900, Room(1000, 149), 1),
        (TrimPolicy(), 900, Room(1000, 0), 150),
        (TrimPolicy(min_free_share=0.95), 900, Room(1000, 100), 850),
        (TrimPolicy(), 900, Room(), 0),
        (TrimPolicy(size_bytes_max=100 * MIB), 100 * MIB, Room(), 0),
        (TrimPolicy(size_bytes_max=100 * MIB), 100 * MIB + 1, Room(), 5 * MIB + 1),
        (TrimPolicy(size_bytes_max=100 * MIB), 101 * MIB, Room(1000 * MIB, 100 * MIB), 50 * MIB),
    ],
)
def test_the_greatest_of_the_thresholds_says_what_has_to_go(
    policy: TrimPolicy, cache: int, room: Room, needed: int
) -> None:
    assert max(0, needed_bytes(policy, cache, room)) == needed


@pytest.mark.parametrize(
    ("policy", "cache", "room", "spare"),
    [
        (TrimPolicy(), 500, Room(1000, 400), 240),
        (TrimPolicy(), 840, Room(1000, 160), 0),
        (TrimPolicy(), 900, Room(1000, 100), 0),
        (TrimPolicy(), 0, Room(), 0),
        (TrimPolicy(size_bytes_max=100 * MIB), 90 * MIB, Room(1000 * MIB, 400 * MIB), 5 * MIB),
        (TrimPolicy(size_bytes_max=100 * MIB), 95 * MIB, Room(1000 * MIB, 400 * MIB), 0),
        (TrimPolicy(size_bytes_max=100 * MIB), 99 * MIB, Room(1000 * MIB, 400 * MIB), 0),
        (TrimPolicy(size_bytes_max=100 * MIB), 10 * MIB, Room(1000 * MIB, 170 * MIB), 10 * MIB),
    ],
)
def test_what_may_come_back_keeps_away_from_what_would_have_to_go(
    policy: TrimPolicy, cache: int, room: Room, spare: int
) -> None:
    assert spare_bytes(policy, cache, room) == spare
    after = Room(room.device_bytes, None if room.free_bytes is None else room.free_bytes - spare)
    assert max(0, needed_bytes(policy, cache + spare, after)) == max(0, needed_bytes(policy, cache, room))


def test_nothing_goes_as_long_as_every_threshold_is_met() -> None:
    plan = World([even(10, 10), even(20, 20)]).plan(0)
    assert (plan.steps, plan.freed_bytes, plan.met) == ((), 0, True)
    assert not plan.cutoffs.any()


def test_whole_packs_go_the_oldest_first_and_no_more_than_are_needed() -> None:
    packs = [even(30, 30), even(10, 10), even(20, 20), even(10, 20, 20)]
    assert deleted(World(packs).plan(1)) == [1]
    plan = World(packs).plan(packs[0].size + 1)
    assert deleted(plan) == [1, 2]
    assert (rewritten(plan), plan.met) == ([], True)
    assert deleted(World(packs).plan(sum(pack.size for pack in packs))) == [1, 2, 3, 0]


@pytest.mark.parametrize("day", [LAST + 1, TODAY, TODAY + 500, 0])
def test_what_was_seen_of_late_or_never_is_left_whatever_is_needed(day: int) -> None:
    world = World([even(LAST, LAST), even(day, day)])
    plan = world.plan(AMPLE)
    assert deleted(plan) == [0]
    assert not plan.met
    assert plan.protected_bytes == 2 * MIB
    assert plan.unseen_bytes == (2 * MIB if day == 0 else 0)


def test_what_is_pinned_is_left_and_its_pack_rewritten() -> None:
    world = World([even(10, 10, 10, pinned=frozenset({1}))])
    plan = world.plan(AMPLE)
    assert world.gone(plan) == {(0, 0), (0, 2)}
    assert (plan.pinned_bytes, plan.protected_bytes) == (MIB, MIB)


def test_a_pack_is_rewritten_if_half_of_it_goes_and_later_if_an_eighth_does() -> None:
    half, less, sliver = even(10, TODAY), even(10, TODAY, TODAY), even(10, *[TODAY] * 8)
    world = World([sliver, less, half])
    assert rewritten(world.plan(1)) == [2]
    plan = world.plan(MIB)
    assert (sorted(rewritten(plan)), plan.met) == ([1, 2], True)
    plan = world.plan(AMPLE)
    assert (sorted(rewritten(plan)), plan.met) == ([1, 2], False)


def test_a_rewritten_pack_gives_less_than_what_goes_of_it() -> None:
    plan = World([even(10, 10, TODAY)]).plan(1)
    (step,) = plan.steps
    assert step.new_bytes == MIB + RECORD_COST + PACK_COST
    assert plan.freed_bytes == even(10, 10, TODAY).size - step.new_bytes


def test_packs_with_deltas_are_never_rewritten_and_their_sources_are_seen_when_they_are() -> None:
    world = World([even(10, 10, TODAY, deltas=True), even(10, 10, floor=TODAY), even(10, 10, floor=10)])
    plan = world.plan(AMPLE)
    assert (deleted(plan), rewritten(plan)) == ([2], [])


def test_what_is_too_old_goes_whatever_is_free() -> None:
    world = World([even(TODAY - 31, TODAY - 31), even(TODAY - 30, TODAY - 31), even(TODAY - 30, TODAY - 30)])
    world.policy = TrimPolicy(age_days_max=30)
    plan = world.plan(None)
    assert (deleted(plan), rewritten(plan)) == ([0], [1])
    assert world.gone(plan) == {(0, 0), (0, 1), (1, 1)}
    world.policy = TrimPolicy(age_days_max=14)
    assert world.plan(None).steps == ()


def test_a_day_before_anything_could_go_nothing_does() -> None:
    packs = CachePacks(np.array([100]), np.array([False]))
    classes = classes_of(
        np.array([1]), np.array([1], np.uint16), np.array([60], np.uint32), np.array([False]), np.array([0], np.uint16)
    )
    for today in (0, 1, 14):
        assert plan_trim(packs, classes, TrimPolicy(), Room(10_000, 0), today).steps == ()


def test_a_cache_that_is_empty_has_nothing_to_give() -> None:
    plan = World([]).plan(100)
    assert (plan.steps, plan.met) == ((), False)


def test_a_pack_of_which_nothing_is_known_is_left() -> None:
    packs = CachePacks(np.array([MIB, MIB]), np.array([False, False]))
    classes = classes_of(
        np.array([1]),
        np.array([1], np.uint16),
        np.array([60], np.uint32),
        np.array([False]),
        np.array([0], np.uint16),
        1,
    )
    for known in (classes, join_classes([])):
        plan = plan_trim(packs, known, TrimPolicy(), Room(10 * MIB, 0), TODAY)
        assert deleted(plan) == known.pack.tolist()
        assert rewritten(plan) == []


def test_rewriting_waits_until_what_goes_whole_has_made_room() -> None:
    world = World([even(5, 5, TODAY, TODAY), even(10, 10, 10)], free=0)
    plan = world.plan(4 * MIB)
    assert [step.deleted.size for step in plan.steps] == [1, 0]
    assert plan.met


def test_where_there_is_no_room_to_rewrite_what_is_younger_goes_whole() -> None:
    world = World([even(5, 5, TODAY, TODAY), even(10, 10), even(11, 11)], free=0)
    assert deleted(world.plan(2 * MIB)) == [1]
    world = World([even(5, 5, TODAY, TODAY)], free=0)
    plan = world.plan(MIB)
    assert (plan.steps, plan.met, plan.no_room.tolist()) == ((), False, [0])
    assert not plan.cutoffs.any()


def test_a_few_packs_are_rewritten_at_a_time() -> None:
    world = World([even(*[10] * 8, *[TODAY] * 8) for _ in range(100)])
    plan = world.plan(AMPLE)
    assert len(rewritten(plan)) == 100
    assert len(plan.steps) == 4
    assert max(step.new_bytes for step in plan.steps) <= 256 * MIB


# Properties.

lengths = st.integers(1, 8).map(lambda eighths: eighths * 8192 + 100)
days = st.one_of(st.integers(LAST - 6, LAST + 3), st.sampled_from([0, 1, TODAY, TODAY + 20]))


@st.composite
def packs_of(draw: st.DrawFn) -> Pack:
    count = draw(st.integers(1, 6))
    return Pack(
        draw(st.lists(days, min_size=count, max_size=count)),
        draw(st.lists(lengths, min_size=count, max_size=count)),
        draw(st.frozensets(st.integers(0, count - 1), max_size=2)),
        draw(st.integers(0, 9)) == 0,
        draw(st.sampled_from([0, 0, 0, LAST, TODAY])),
    )


caches = st.lists(packs_of(), min_size=1, max_size=8)
needs = st.integers(0, 3 * MIB)


@given(caches, needs, st.sampled_from([None, 15, 17, 40]), st.integers(0, MIB))
def test_nothing_protected_or_pinned_ever_goes(packs: list[Pack], needed: int, age: int | None, free: int) -> None:
    world = World(packs, free, TrimPolicy(age_days_max=age))
    plan = world.plan(needed)
    for row, at in world.gone(plan):
        pack = packs[row]
        assert 0 < pack.days[at] <= LAST
        assert max(pack.days[at], pack.floor) <= LAST
        assert at not in pack.pinned
    for row in rewritten(plan):
        assert not packs[row].deltas


@given(caches, needs, needs)
def test_a_stricter_threshold_takes_what_a_milder_one_does_and_more(packs: list[Pack], one: int, other: int) -> None:
    world = World(packs)
    milder, stricter = (world.plan(needed) for needed in sorted((one, other)))
    assert world.gone(milder) <= world.gone(stricter)


@given(caches, needs)
def test_the_threshold_is_met_whenever_what_is_unprotected_suffices(packs: list[Pack], needed: int) -> None:
    world = World(packs)
    plan = world.plan(needed)
    most = 0
    for pack in packs:
        goes = pack.goes(LAST)
        kept = [length for length, going in zip(pack.lengths, goes, strict=True) if not going]
        going = sum(pack.lengths) - sum(kept)
        gain = pack.size - sum(kept) - RECORD_COST * len(kept) - PACK_COST if kept else pack.size
        if not kept or (not pack.deltas and going * 8 >= sum(pack.lengths) and gain > 0):
            most += gain
    assert plan.met == (most >= plan.needed_bytes)
    assert plan.freed_bytes <= most


@given(caches, needs, st.integers(0, MIB), st.sampled_from([None, 15]))
def test_no_step_needs_more_than_is_free(packs: list[Pack], needed: int, free: int, age: int | None) -> None:
    world = World(packs, free, TrimPolicy(age_days_max=age))
    plan = world.plan(needed)
    left = free
    for step in plan.steps:
        assert step.new_bytes <= left
        left += step.freed_bytes
        assert left >= 0
    assert left - free == plan.freed_bytes
    touched = sorted(deleted(plan) + rewritten(plan))
    assert touched == sorted(set(touched)) == np.flatnonzero(plan.cutoffs).tolist()


@given(caches, needs)
def test_what_is_older_goes_before_what_is_younger(packs: list[Pack], needed: int) -> None:
    world = World(packs)
    plan = world.plan(needed)
    used = sorted({int(cutoff) for cutoff in plan.cutoffs[plan.cutoffs > 0]})
    if not used:
        return
    for row, pack in enumerate(packs):
        whole = max(
            max(day, pack.floor) if day and at not in pack.pinned else TODAY for at, day in enumerate(pack.days)
        )
        # All that is older than the youngest that went is gone: the day before the last was taken as a whole.
        if whole < used[-1]:
            assert row in deleted(plan)


@given(caches)
def test_classes_say_what_the_records_do(packs: list[Pack]) -> None:
    counts = np.array([len(pack.days) for pack in packs])
    chain = itertools.chain.from_iterable
    together = classes_of(
        counts,
        np.array(list(chain(pack.days for pack in packs)), np.uint16),
        np.array(list(chain(pack.lengths for pack in packs)), np.uint32),
        np.array(list(chain([at in pack.pinned for at in range(len(pack.days))] for pack in packs))),
        np.array([pack.floor for pack in packs], np.uint16),
    )
    for row, pack in enumerate(packs):
        mine = together.pack == row
        assert together.bytes_[mine].sum() == sum(pack.lengths)
        assert together.records[mine].sum() == len(pack.days)
        for cutoff in (1, LAST - 3, LAST):
            going = sum(length for length, goes in zip(pack.lengths, pack.goes(cutoff), strict=True) if goes)
            assert together.bytes_[mine & (together.day <= cutoff)].sum() == going


# The day the device is full.


@pytest.mark.parametrize(
    ("history", "free", "day"),
    [
        ([], 100, None),
        ([(1, 10)], 100, None),
        ([(1, 10), (2, 20)], 100, TODAY + 10),
        ([(1, 10), (2, 20)], 101, TODAY + 11),
        ([(1, 10), (2, 20)], 0, TODAY),
        ([(1, 10), (2, 10)], 100, None),
        ([(1, 20), (2, 10)], 100, None),
        ([(day, 10 * day) for day in range(20)] + [(20, 5000)], 100, TODAY + 10),  # one first backup
        ([(day, 10 * day) for day in range(18)] + [(18, 0), (19, 10)], 100, TODAY + 10),  # cleaned up two days ago
        ([(1, 10), (1, 999), (2, 20), (1, 10)], 100, TODAY + 10),
        ([(1, 10), (1001, 11)], 1000, None),
    ],
)
def test_the_day_a_device_is_full_is_told_from_how_the_cache_grew(
    history: list[tuple[int, int]], free: int, day: int | None
) -> None:
    assert forecast_full(history, free, TODAY) == day
