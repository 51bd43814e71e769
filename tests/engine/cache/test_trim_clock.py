"""Whether trimming trusts the clock: a table of what stamps say of the time."""

from __future__ import annotations

from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.clocks import judge_clock, own_days, unbroken_since

TODAY = 2500
B, C, D, E = (bytes([number]) * 16 for number in range(1, 5))


@pytest.mark.parametrize(
    ("own", "others", "refused", "ahead"),
    [
        # Everybody agrees, or nearly so.
        ([TODAY - 1, TODAY], {B: TODAY}, None, ""),
        ([TODAY - 1], {B: TODAY + 1}, None, ""),
        ([TODAY + 1], {B: TODAY}, None, ""),
        ([], {B: TODAY - 14}, None, ""),
        # Behind.
        ([TODAY + 2], {B: TODAY}, "own newest stamp", ""),
        ([TODAY], {B: TODAY + 2}, "2 days behind", "B"),
        ([TODAY], {B: TODAY + 2, C: TODAY + 3, D: TODAY}, "the other systems", "BC"),
        ([TODAY], {B: TODAY + 40, C: TODAY + 41, D: TODAY + 41, E: TODAY + 42}, "41 days behind", "E"),
        # One whose clock is ahead stops nobody, whoever else there is.
        ([TODAY], {B: TODAY + 40, C: TODAY}, None, "B"),
        ([TODAY], {B: TODAY + 40, C: TODAY, D: TODAY - 1}, None, "B"),
        ([TODAY], {B: TODAY + 1, C: TODAY - 5, D: TODAY - 6}, None, ""),
        # Those who left long ago know nothing of the time.
        ([TODAY - 3, TODAY], {B: TODAY - 400, C: TODAY - 400, D: TODAY}, None, ""),
        # Two days of its own are no answer to others, who may be at work 30 days behind.
        ([TODAY - 30, TODAY - 2, TODAY], {B: TODAY - 30}, "that others wrote", ""),
        ([TODAY - 2, TODAY], {C: TODAY + 5}, "days behind", "C"),
        # A cache that is new: nobody's clock is doubted.
        ([], {}, "known to be old", ""),
        ([TODAY], {}, "known to be old", ""),
        ([TODAY - 1, TODAY], {}, "known to be old", ""),
        # Ahead of every stamp.
        ([TODAY - 15, TODAY], {}, "14 days ahead", ""),
        ([TODAY - 15], {B: TODAY - 15}, "14 days ahead", ""),
        ([TODAY - 30, TODAY], {B: TODAY - 30}, "14 days ahead", ""),
        ([TODAY - 30, TODAY - 1, TODAY], {B: TODAY - 30}, "14 days ahead", ""),
        ([TODAY - 2, TODAY], {}, None, ""),
        ([TODAY - 30, TODAY - 15], {}, "14 days ahead", ""),
    ],
)
def test_the_clock_is_trusted_or_not(
    own: Collection[int], others: dict[bytes, int], refused: str | None, ahead: str
) -> None:
    verdict = judge_clock(TODAY, own, others)
    assert (verdict.refused is None) == (refused is None), verdict
    assert refused is None or refused in str(verdict.refused)
    names = {"B": B, "C": C, "D": D, "E": E}
    if refused is None:
        assert verdict.ahead == {names[name] for name in ahead}


@pytest.mark.parametrize(
    ("today", "own", "others", "words"),
    [
        (100, [99, 100], [98, 100], None),
        (100, [102], [], "2 days behind"),
        (100, [100], [101], None),
        (100, [100], [102], "2 days behind"),
        (100, [100], [99, 102, 103], "2 days behind"),
        (100, [100], [99, 99, 103], None),
        (114, [100, 114], [], None),
        (115, [100, 115], [], "ahead of every stamp"),
        (115, [100, 115], [100], "ahead of every stamp"),
        # Others have the same day: then it is so.
        (115, [100, 115], [115], None),
        (116, [100, 116, 116], [100], "ahead of every stamp"),
        # A gap of long ago says nothing.
        (200, [100, 150, 160, 170, 180, 190, 200], [], None),
    ],
)
def test_when_nothing_may_be_trimmed(today: int, own: list[int], others: list[int], words: str | None) -> None:
    said = judge_clock(today, own, dict(zip((B, C, D), others, strict=False))).refused
    assert said is None if words is None else said is not None and words in said


@pytest.mark.parametrize(
    ("others", "stood", "refused"),
    [
        ([TODAY - 30], (0, 0), True),
        # Nobody stamped anything for 14 days of this clock.
        ([TODAY - 30], (TODAY - 30, TODAY - 14), False),
        ([TODAY - 400, TODAY - 30], (TODAY - 30, TODAY - 14), False),
        ([TODAY - 30], (TODAY - 30, TODAY - 13), True),
        # They stamp on, days that are long over by this clock: whatever its own stamps reach back to, it runs ahead.
        ([TODAY - 30], (TODAY - 31, TODAY - 14), True),
        ([TODAY - 30, TODAY - 29], (TODAY - 30, TODAY - 14), True),
        ([], (TODAY - 30, TODAY - 1), False),
    ],
)
def test_others_that_are_silent_are_believed_to_be_once_that_is_seen(
    others: list[int], stood: tuple[int, int], refused: bool
) -> None:
    verdict = judge_clock(TODAY, [TODAY - 2, TODAY], dict(zip((B, C, D), others, strict=False)), stood)
    assert (verdict.refused is not None) == refused
    assert verdict.others_day == max(others, default=0)
    # One's own two days are needed all the same.
    assert judge_clock(TODAY, [TODAY], dict(zip((B, C, D), others, strict=False)), stood).refused is not None


@given(
    st.integers(20, 5000),
    st.lists(st.integers(0, 5100), max_size=4),
    st.dictionaries(st.sampled_from([B, C, D, E]), st.integers(0, 5100)),
)
def test_what_is_trusted_is_not_behind_and_somebody_else_or_two_sessions_confirm_it(
    today: int, own: list[int], others: dict[bytes, int]
) -> None:
    verdict = judge_clock(today, own, others)
    if verdict.refused is None:
        assert all(day <= today + 1 for day in own)
        confirmed = any(today - 14 <= day <= today + 1 for day in others.values())
        recent = [day for day in own if day >= today - 14]
        assert confirmed or max(recent) - min(recent) >= 2
    for writer in verdict.ahead:
        assert others[writer] > today + 1
    assert verdict.believed >= today + 14


@given(st.integers(20, 5000), st.sets(st.integers(0, 13)), st.integers(0, 5000))
def test_a_liar_among_two_others_stops_nobody(today: int, since: set[int], lie: int) -> None:
    verdict = judge_clock(today, [today - days for days in since], {B: today, C: lie})
    assert verdict.refused is None
    assert (C in verdict.ahead) == (lie > today + 1)
    # Nor does it hold up what is old, or make anything look older.
    assert verdict.day == today


@pytest.mark.parametrize(
    ("others", "day"),
    [
        ([], TODAY),
        # Nobody stamps later than this clock says.
        ([TODAY, TODAY + 1], TODAY),
        ([TODAY - 1], TODAY - 1),
        # It runs ahead of all who stamp every day.
        ([TODAY - 9, TODAY - 10, TODAY - 9], TODAY - 9),
        ([TODAY - 13, TODAY - 12], TODAY - 12),
        # Another one runs as far ahead: that is no half of three.
        ([TODAY, TODAY - 9, TODAY - 9, TODAY - 10], TODAY - 9),
        # Those who sleep do not hold up the others, nor do those who left, nor whoever is far ahead.
        ([TODAY, TODAY - 9], TODAY),
        ([TODAY, TODAY, TODAY - 3, TODAY - 14], TODAY),
        ([TODAY - 1, TODAY - 15, TODAY - 20], TODAY - 1),
        ([TODAY - 1, TODAY + 40], TODAY - 1),
        ([TODAY - 15], TODAY),
    ],
)
def test_what_is_old_is_counted_from_a_day_that_half_of_the_others_reached(others: list[int], day: int) -> None:
    stood = (max(others, default=0), TODAY - 14)
    verdict = judge_clock(TODAY, [TODAY - 2, TODAY], dict(zip((B, C, D, E), others, strict=False)), stood)
    assert (verdict.day, verdict.refused) == (day, None)


@given(st.integers(100, 5000), st.integers(0, 13), st.lists(st.integers(0, 14), min_size=1, max_size=4))
def test_a_clock_that_runs_ahead_counts_from_no_day_to_come(true: int, ahead: int, since: list[int]) -> None:
    others = {name: true - days for name, days in zip((B, C, D, E), since, strict=False)}
    live = any(day >= true + ahead - 14 for day in others.values())
    assert judge_clock(true + ahead, [true + ahead], others).day <= (true if live else true + ahead)


@pytest.mark.parametrize(
    ("stamped", "today", "refused"),
    [
        # Every day, each stamp in the place of the one before: that two days lie between is seen all the same.
        (range(100, 102), 101, True),
        (range(100, 103), 102, False),
        (range(100, 400), 399, False),
        (range(100, 400), 400, False),
        (range(100, 400, 13), 400, False),
        (range(100, 400, 14), 400, False),
        # A clock that jumped ahead, until two days of its own confirm it.
        ([*range(100, 130), 300], 300, True),
        ([*range(100, 130), 300, 301], 301, True),
        ([*range(100, 130), 300, 301, 302], 302, False),
        ([*range(100, 130)], 300, True),
        # One that was put back, and says so: it begins anew.
        ([*range(100, 130), 300, 131], 131, True),
        ([*range(100, 130), 300, 131, 132, 133], 133, False),
    ],
)
def test_one_stamp_in_the_place_of_all_before_tells_as_much_of_the_clock(
    stamped: list[int], today: int, refused: bool
) -> None:
    newest = (0, 0)
    for day in stamped:
        newest = (day, unbroken_since(day, [newest]))
    assert (judge_clock(today, own_days(today, [newest]), {}).refused is not None) == refused
