from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.config.units import SIZES, parse_duration, parse_size, show_duration, show_size


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
