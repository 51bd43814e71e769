"""The upload window is in local time of day, from a minute on until before another, past midnight too."""

from __future__ import annotations

from datetime import datetime

import pytest

from adapters.compose import outside


def at(hour: int, minute: int) -> int:
    return int(datetime(2026, 5, 4, hour, minute).astimezone().timestamp() * 1000)


def test_no_window_is_always() -> None:
    assert outside(None, at(3, 0)) is None


@pytest.mark.parametrize(
    ("window", "hour", "minute", "inside"),
    [
        ((20 * 60, 22 * 60), 19, 59, False),
        ((20 * 60, 22 * 60), 20, 0, True),
        ((20 * 60, 22 * 60), 21, 59, True),
        ((20 * 60, 22 * 60), 22, 0, False),
        ((20 * 60, 6 * 60), 19, 59, False),
        ((20 * 60, 6 * 60), 20, 0, True),
        ((20 * 60, 6 * 60), 23, 59, True),
        ((20 * 60, 6 * 60), 0, 0, True),
        ((20 * 60, 6 * 60), 5, 59, True),
        ((20 * 60, 6 * 60), 6, 0, False),
    ],
)
def test_a_window_may_cross_midnight(window: tuple[int, int], hour: int, minute: int, inside: bool) -> None:
    sentence = outside(window, at(hour, minute))
    assert (sentence is None) is inside
    if sentence is not None:
        assert f"from 20:00 to {window[1] // 60:02}:00" in sentence
