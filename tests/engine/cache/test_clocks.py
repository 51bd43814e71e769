"""Whose clock is believed, case by case."""

from __future__ import annotations

import pytest

from engine.cache.clocks import borne_out, ignored, median, stamped_day, voices


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
        # Who stamps every day is not ahead of those who do once a week.
        ({b"a": 100, b"b": 94, b"c": 90, b"d": 87}, 100, ""),
    ],
)
def test_who_runs_ahead_of_the_median_is_ignored(newest: dict[bytes, int], today: int, out: str) -> None:
    assert ignored(newest, today) == {each.encode() for each in out}


@pytest.mark.parametrize(
    ("newest", "today", "own", "heard"),
    [
        ([], 100, [100], []),
        ([100, 99], 100, [99], [99, 100]),
        # Those who left, or sleep, know nothing of the time.
        ([100, 60, 50, 40], 100, [99], [100]),
        ([60, 50, 40], 100, [99], []),
        ([86], 100, [], [86]),
        ([85], 100, [], []),
        # Its own clock fell back: who stamps as it did before is heard, and not who left when that says it is now.
        ([100, 98, 99, 60, 61], 60, [99], [98, 99]),
        ([60, 61, 62], 60, [99], [60, 61]),
        # It ran ahead itself, alone, and with another one.
        ([100, 99], 100, [500], [99, 100]),
        ([100, 99, 495], 100, [500], [99, 100]),
        # Who is ahead is not heard.
        ([100, 130], 100, [100], [100]),
    ],
)
def test_who_tells_a_system_what_day_it_is(newest: list[int], today: int, own: list[int], heard: list[int]) -> None:
    others = {bytes([number]): day for number, day in enumerate(newest)}
    assert sorted(voices(others, today, own)) == heard


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


@pytest.mark.parametrize(
    ("today", "own", "newest", "day"),
    [
        (100, [], [], 100),
        (100, [103], [], 100),
        # Another one was there, too: the clock has gone back, whatever those say who stamp seldom.
        (100, [90, 103], [95, 96, 97, 102], 103),
        (100, [103], [95, 110], 103),
        (100, [103], [95, 101], 100),
        # A day is nothing.
        (100, [101], [101], 100),
        # What is stamped so far ahead protects nothing, whoever else did.
        (100, [114], [114], 114),
        (100, [115], [115], 100),
        (100, [600], [600, 600], 100),
        (100, [103], [600], 100),
    ],
)
def test_a_stamp_another_system_bears_out_is_believed_rather_than_the_clock(
    today: int, own: list[int], newest: list[int], day: int
) -> None:
    assert borne_out(today, own, newest) == day
