"""The colours of a cache: the table of cases, its edges, and what holds for all."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.attempt import Attempt
from engine.cache.health import Colour, Health, Why, health_of, score_of

HOUR = 3_600_000
NOW = 1_800_000_000_000
BLOCKS = 10_000


def attempt_of(
    age_h: float, *, missing: int = 0, healed: int = 0, blocks: int = BLOCKS, completed: bool = True
) -> Attempt:
    """Return one that ended `age_h` hours ago."""
    ended_ms = NOW - round(age_h * HOUR)
    return Attempt(
        attempt="0" * 32, store="1" * 32, started_ms=ended_ms - HOUR, ended_ms=ended_ms, completed=completed,
        blocks=blocks, missing=missing, healed_since=healed,
    )  # fmt: skip


def told(
    *attempts: Attempt, enabled: bool = True, every_h: float = 24, first_h: float | None = 10_000, now_ms: int = NOW
) -> Health:
    """Ask for the health after `attempts`, oldest first; the first session ended `first_h` hours ago."""
    return health_of(
        enabled=enabled,
        every_s=every_h * 3600,
        now_ms=now_ms,
        first_session_ms=None if first_h is None else NOW - round(first_h * HOUR),
        last_completed=next((each for each in reversed(attempts) if each.completed), None),
        last_passed=next((each for each in reversed(attempts) if each.passed), None),
    )


MS_H = 1 / HOUR  # a millisecond in hours
UNFINISHED = attempt_of(0, completed=False)


@pytest.mark.parametrize(
    ("seen", "colour", "why", "concern"),
    [
        # gray: nothing was completed yet
        (told(first_h=None), "gray", "not_verified", False),
        (told(first_h=0), "gray", "not_verified", False),
        (told(first_h=24 - MS_H), "gray", "not_verified", False),
        (told(first_h=24), "gray", "not_verified", True),
        (told(first_h=10_000), "gray", "not_verified", True),
        (told(UNFINISHED, first_h=23), "gray", "not_verified", False),
        (told(UNFINISHED, first_h=25), "gray", "not_verified", True),
        (told(first_h=-1), "gray", "not_verified", False),
        (told(first_h=24, every_h=720), "gray", "not_verified", True),
        # gray: disabled, whatever is known
        (told(enabled=False, first_h=None), "gray", "disabled", False),
        (told(enabled=False, first_h=1000), "gray", "disabled", False),
        (told(attempt_of(1), enabled=False), "gray", "disabled", False),
        (told(attempt_of(1, missing=BLOCKS), enabled=False), "gray", "disabled", False),
        (told(attempt_of(9999), enabled=False), "gray", "disabled", False),
        # green, and the 1 % that is still a pass
        (told(attempt_of(0)), "green", "passed", False),
        (told(attempt_of(0), first_h=None), "green", "passed", False),
        (told(attempt_of(1, missing=100)), "green", "passed", False),
        (told(attempt_of(1, blocks=0)), "green", "passed", False),
        # red: more than 1 % missing
        (told(attempt_of(1, missing=101)), "red", "blocks_missing", False),
        (told(attempt_of(1, missing=BLOCKS)), "red", "blocks_missing", False),
        (told(attempt_of(9), attempt_of(1, missing=101)), "red", "blocks_missing", False),
        (told(attempt_of(9, missing=101), attempt_of(1)), "green", "passed", False),
        # ... and a failed one that is old is red for what it found
        (told(attempt_of(500, missing=101)), "red", "blocks_missing", False),
        # one that could not finish is no result
        (told(attempt_of(9), UNFINISHED), "green", "passed", False),
        (told(attempt_of(9, missing=101), UNFINISHED), "red", "blocks_missing", False),
        (told(attempt_of(100), UNFINISHED), "red", "not_passed_lately", False),
        # age: every + 48 h, every + 72 h, and not a millisecond before
        (told(attempt_of(72)), "green", "passed", False),
        (told(attempt_of(72 + MS_H)), "yellow", "not_passed_lately", False),
        (told(attempt_of(96)), "yellow", "not_passed_lately", False),
        (told(attempt_of(96 + MS_H)), "red", "not_passed_lately", False),
        (told(attempt_of(49), every_h=1), "green", "passed", False),
        (told(attempt_of(49 + MS_H), every_h=1), "yellow", "not_passed_lately", False),
        (told(attempt_of(73), every_h=1), "yellow", "not_passed_lately", False),
        (told(attempt_of(73 + MS_H), every_h=1), "red", "not_passed_lately", False),
        (told(attempt_of(768), every_h=720), "green", "passed", False),
        (told(attempt_of(768 + MS_H), every_h=720), "yellow", "not_passed_lately", False),
        (told(attempt_of(792 + MS_H), every_h=720), "red", "not_passed_lately", False),
        # healed: the 1 % test is that of the re-check, the age that of the last one that passed
        (told(attempt_of(30), attempt_of(1, missing=500, healed=400)), "green", "passed", False),
        (told(attempt_of(30), attempt_of(1, missing=500, healed=399)), "red", "blocks_missing", False),
        (told(attempt_of(80), attempt_of(1, missing=500, healed=500)), "yellow", "not_passed_lately", False),
        (told(attempt_of(97), attempt_of(1, missing=500, healed=500)), "red", "not_passed_lately", False),
        (told(attempt_of(80, missing=100, healed=100)), "yellow", "not_passed_lately", False),
        # none has passed yet: as old as the first session
        (told(attempt_of(1, missing=500, healed=500), first_h=72), "green", "passed", False),
        (told(attempt_of(1, missing=500, healed=500), first_h=73), "yellow", "not_passed_lately", False),
        (told(attempt_of(1, missing=500, healed=500), first_h=97), "red", "not_passed_lately", False),
        (told(attempt_of(1, missing=500, healed=500), first_h=None), "green", "passed", False),
        (told(attempt_of(97, missing=500, healed=500), first_h=None), "red", "not_passed_lately", False),
        # the clock was put back
        (told(attempt_of(-MS_H)), "green", "passed", False),
        (told(attempt_of(-24)), "green", "passed", False),
        (told(attempt_of(-24 - MS_H)), "yellow", "clock_put_back", False),
        (told(attempt_of(-10_000)), "yellow", "clock_put_back", False),
        (told(attempt_of(-10_000, missing=101)), "red", "blocks_missing", False),
        (told(attempt_of(-10_000), attempt_of(0)), "green", "passed", False),
        # ... or forward
        (told(attempt_of(0), now_ms=NOW + 10_000 * HOUR), "red", "not_passed_lately", False),
    ],
)
def test_the_colours_of_a_cache(seen: Health, colour: Colour, why: Why, concern: bool) -> None:
    assert (seen.colour, seen.why, seen.concern) == (colour, why, concern)


@pytest.mark.parametrize(
    ("blocks", "missing", "score"),
    [
        (0, 0, 100.0), (1, 0, 100.0), (1, 1, 0.0), (3, 1, 66.66), (10**9, 1, 99.99), (10**9, 10**9 - 1, 0.0),
        (10_000, 1, 99.99), (200, 1, 99.5), (5, 6, 0.0),
    ],
)  # fmt: skip
def test_the_score_is_the_share_of_blocks_present_rounded_down(blocks: int, missing: int, score: float) -> None:
    assert score_of(blocks, missing) == score


@pytest.mark.parametrize("enabled", [True, False])
def test_score_and_figures_are_those_of_the_last_completed_one_less_what_was_healed(enabled: bool) -> None:
    seen = told(attempt_of(9), attempt_of(1, missing=600, healed=500), UNFINISHED, enabled=enabled)
    assert (seen.score, seen.blocks, seen.missing) == (99.0, BLOCKS, 100)
    nothing = told(UNFINISHED, enabled=enabled)
    assert (nothing.score, nothing.blocks, nothing.missing) == (None, None, None)


ATTEMPTS = st.builds(
    attempt_of,
    st.floats(-2000, 2000),
    missing=st.integers(0, BLOCKS),
    healed=st.integers(0, BLOCKS),
    completed=st.booleans(),
)
RANK = {"green": 0, "yellow": 1, "red": 2}


@settings(max_examples=300, deadline=None)
@given(
    attempts=st.lists(ATTEMPTS, max_size=4),
    every_h=st.integers(1, 720),
    first_h=st.none() | st.floats(0, 2000),
    later_h=st.floats(0, 2000),
)
def test_with_time_alone_nothing_gets_better_but_a_clock_that_is_right_again(
    attempts: list[Attempt], every_h: int, first_h: float | None, later_h: float
) -> None:
    seen = told(*attempts, every_h=every_h, first_h=first_h)
    assert seen.colour in get_args(Colour)
    assert seen.why in get_args(Why)
    assert (seen.score is None) == (seen.why == "not_verified")
    if seen.score is not None:
        assert 0 <= seen.score <= 100
        assert (seen.score == 100) == (seen.missing == 0)
    later = told(*attempts, every_h=every_h, first_h=first_h, now_ms=NOW + round(later_h * HOUR))
    assert (later.score, later.blocks, later.missing) == (seen.score, seen.blocks, seen.missing)
    if seen.colour == "gray":
        assert later.colour == "gray"
        assert later.concern >= seen.concern
    elif seen.why != "clock_put_back":
        assert RANK[later.colour] >= RANK[seen.colour]
