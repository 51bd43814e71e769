from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.config.units import (
    SIZES,
    parse_days,
    parse_duration,
    parse_percent,
    parse_size,
    parse_time,
    parse_window,
    show_duration,
    show_percent,
    show_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64 MiB", 64 << 20), ("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("0 B", 0), (" 1 TiB ", 1 << 40)],
)
def test_a_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["64", "MiB", "-1 MiB", "1e3 MiB", "64 mib", "64 Mbit", "1.5 B", "٣ MiB", "1  MiB", ""]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"number with a unit|is unknown|whole number of bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("15 s", 15.0), ("10 min", 600.0), ("500 ms", 0.5), ("2 h", 7200.0), ("30 d", 2592000.0)]
)
def test_a_duration_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["15", "15 sec", "15 m", "s", "15 %"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"number with a unit|is unknown"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("20:00-06:00", (1200, 360)), ("00:00 - 23:59", (0, 1439)), (" 09:05-17:30 ", (545, 1050))],
)
def test_a_window_is_two_times_of_a_day(text: str, minutes: tuple[int, int]) -> None:
    assert parse_window(text) == minutes


@pytest.mark.parametrize(
    "text", ["", "20:00", "8:00-9:00", "24:00-06:00", "20:60-06:00", "20:00-06:00x", "٢0:00-06:00"]
)
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no window such as 20:00-06:00"):
        parse_window(text)


def test_a_window_without_length_is_refused() -> None:
    with pytest.raises(ValueError, match="leave it out for the whole day"):
        parse_window("06:00-06:00")


@pytest.mark.parametrize(("text", "minutes"), [("00:00", 0), (" 08:05 ", 485), ("23:59", 1439), ("24:00", 1440)])
def test_a_time_of_day_is_read_in_minutes(text: str, minutes: int) -> None:
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "8:00", "24:01", "08:60", "0800", "08:00-09:00", "٢0:00"])
def test_what_is_no_time_of_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time of day such as 18:00"):
        parse_time(text)


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("mon-fri", {0, 1, 2, 3, 4}), ("sun", {6}), ("Mon, Wed , sat - sun", {0, 2, 5, 6}), ("fri-mon", {4, 5, 6, 0}),
        ("mon-sun", set(range(7))), ("tue-mon", set(range(7))), ("mon,mon-tue", {0, 1}),
    ],
)  # fmt: skip
def test_days_are_a_list_of_days_and_ranges(text: str, days: set[int]) -> None:
    assert parse_days(text) == days


@pytest.mark.parametrize("text", ["", "mon-", "-fri", "mon fri", "monday", "mon,,tue", "mon--fri", "1-5"])
def test_what_is_no_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no day of the week \(days: mon, tue, wed, thu, fri, sat, sun\)"):
        parse_days(text)


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 0.05), (" 100 % ", 1.0), ("0%", 0.0), ("0.125%", 0.00125), ("999%", 9.99)]
)
def test_a_percentage_is_a_share(text: str, share: float) -> None:
    assert parse_percent(text) == share
    assert parse_percent(show_percent(share)) == share


@pytest.mark.parametrize("text", ["", "5", "%", "-5%", "5 percent", "1e1%", "0.0001%", "1000%", "٥%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no percentage such as 5%"):
        parse_percent(text)


@given(st.integers(0, 1 << 48))
def test_a_size_shown_reads_back_the_same(size: int) -> None:
    assert parse_size(show_size(size)) == size


@given(st.integers(0, 10**7))
def test_a_duration_shown_reads_back_the_same(seconds: int) -> None:
    assert parse_duration(show_duration(float(seconds))) == seconds


@given(st.text(max_size=20))
def test_any_text_is_a_size_or_refused_with_a_sentence(text: str) -> None:
    try:
        size = parse_size(text)
    except ValueError as error:
        size = len(str(error)) - 1
    assert size >= 0


def test_units_are_listed_when_one_is_unknown() -> None:
    with pytest.raises(ValueError, match=", ".join(SIZES)):
        parse_size("5 PiB")
