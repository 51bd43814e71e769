"""Whose clock is believed, case by case."""

from __future__ import annotations

import pytest

from engine.cache.clocks import ignored, median, refusal, stamped_day


@pytest.mark.parametrize(("days", "middle"), [([5], 5), ([5, 9], 5), ([9, 1, 5], 5), ([1, 2, 3, 100], 2)])
def test_the_median_is_the_earlier_of_two(days: list[int], middle: int) -> None:
    assert median(days) == middle


@pytest.mark.parametrize(
    ("newest", "today", "out"),
    [
        ({}, 100, ""),
        ({b"a": 100}, 100, ""),
        ({b"a": 101}, 100, ""),
        ({b"a": 102}, 100, "a"),
        ({b"a": 100, b"b": 100, b"c": 130}, 100, "c"),
        # One that has been silent for long is not what the others are measured by.
        ({b"a": 10, b"b": 100, b"c": 100}, 100, ""),
        # A clock that is behind does not silence the many.
        ({b"a": 100, b"b": 100, b"c": 100}, 10, ""),
        ({b"a": 100, b"b": 100, b"c": 102}, 10, "c"),
    ],
)
def test_who_runs_ahead_of_the_median_is_ignored(newest: dict[bytes, int], today: int, out: str) -> None:
    assert ignored(newest, today) == {each.encode() for each in out}


@pytest.mark.parametrize(
    ("today", "own", "others", "words"),
    [
        (100, [100], [], None),
        (100, [99, 100], [98, 100], None),
        (100, [], [100], "not stamped anything"),
        (100, [101], [], None),
        (100, [102], [], "2 days behind the stamps it wrote itself"),
        (100, [100], [101], None),
        (100, [100], [102], "2 days behind those of the others"),
        (100, [100], [99, 102, 103], "2 days behind those of the others"),
        (100, [100], [99, 99, 103], None),
        (114, [100, 114], [], None),
        (115, [100, 115], [], "ahead of every stamp"),
        (115, [100, 115], [100], "ahead of every stamp"),
        # Others have the same day, or a second session on another day: then it is so.
        (115, [100, 115], [115], None),
        (116, [100, 115, 116], [100], None),
        (116, [100, 116, 116], [100], "ahead of every stamp"),
        # A gap of long ago says nothing.
        (200, [100, 150, 160, 170, 180, 190, 200], [], None),
    ],
)
def test_when_nothing_may_be_trimmed(today: int, own: list[int], others: list[int], words: str | None) -> None:
    said = refusal(today, own, others)
    assert said is None if words is None else said is not None and words in said


@pytest.mark.parametrize(
    ("today", "own", "others", "day", "told"),
    [
        (100, [], [], 100, False),
        (100, [90], [100], 100, False),
        (100, [101], [], 101, False),
        # Alone nobody knows which of its two times is right: nothing is stamped as earlier than it may be.
        (100, [500], [], 500, True),
        # The others show that it ran ahead: what it said then is taken back.
        (100, [500], [100, 99], 100, False),
        # It is behind: what it sees now is seen now.
        (50, [90], [100, 101], 100, True),
        (50, [120], [100, 101], 120, True),
    ],
)
def test_the_day_that_is_stamped(today: int, own: list[int], others: list[int], day: int, told: bool) -> None:
    found, believed, problem = stamped_day(today, own, others)
    assert (found, believed, problem is not None) == (day, day, told)
