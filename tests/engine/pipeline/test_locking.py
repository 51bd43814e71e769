"""Which locks are extended when: never too late, and never all at once."""

from __future__ import annotations

import numpy as np
import pytest

from engine.pipeline.locking import EXTENDED_MAX, choose
from engine.policy import DAY_S, LockPolicy

NOON_S = DAY_S * 20_000 + DAY_S / 2


def at(day: float) -> float:
    return NOON_S + day * DAY_S


@pytest.mark.parametrize("lock_days", [1, 2, 7, 30, 365])
def test_whatever_the_days_between_sessions_a_point_s_packs_are_locked_as_long_as_it(lock_days: int) -> None:
    policy = LockPolicy(lock_days * DAY_S)
    chance = np.random.default_rng(lock_days)
    days = np.full(500, policy.needed_day(at(0)))
    now = 0.0
    for _ in range(100):
        now += float(chance.uniform(0.1, lock_days))
        chosen, must = choose(days, policy, at(now), share=True)
        assert must <= len(chosen)
        days[chosen] = policy.needed_day(at(now))
        assert days.min() >= policy.point_day(at(now))


def test_what_was_put_on_one_day_is_locked_anew_on_many() -> None:
    policy = LockPolicy(30 * DAY_S)
    packs, sessions = 160_000, 6
    days = np.full(packs, policy.needed_day(at(0)))
    counts = []
    for day in range(1, 121):
        whole = True
        for session in range(sessions):
            chosen, must = choose(days, policy, at(day + session / 100), share=whole)
            assert must == 0
            days[chosen] = policy.needed_day(at(day))
            counts.append(len(chosen))
            whole = False
    assert sum(counts[: 30 * sessions]) == packs, "each once in the first 30 days, and that on 15 of them"
    assert sum(count > 0 for count in counts[: 30 * sessions]) == 15
    assert sum(counts) < packs * 120 / 15
    assert max(counts) <= packs / 15 + 1


def test_what_nothing_is_known_of_comes_first_and_is_bounded() -> None:
    policy = LockPolicy(30 * DAY_S)
    days = np.zeros(30_000, np.int64)
    days[:5000] = policy.point_day(at(0)) - 1
    chosen, must = choose(days, policy, at(0), share=True)
    assert (len(chosen), must) == (EXTENDED_MAX, 30_000)
    assert not days[chosen].any()


def test_a_lock_that_lasts_long_enough_is_left_alone() -> None:
    policy = LockPolicy(30 * DAY_S)
    days = np.full(1000, policy.early_day(at(0)))
    assert len(choose(days, policy, at(0), share=True)[0]) == 0
