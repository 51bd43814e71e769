"""Sizes, durations, shares, times and days as people write them: "64 MiB", "10 min", "5%", "20:00-06:00", "mon-fri"."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

MIB: Final = 1 << 20
TIB: Final = 1 << 40

SIZES: Final = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
DURATIONS: Final = {
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}
_WINDOW: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9]) ?- ?([01][0-9]|2[0-3]):([0-5][0-9])", re.ASCII)
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00", re.ASCII)
DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_PERCENT: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?) ?%", re.ASCII)
_QUANTITY: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)", re.ASCII)


def parse_size(text: str) -> int:
    """Return the bytes that `text` ("64 MiB") says.

    Raises: ValueError, when it is not a number with a unit of `SIZES`, or no whole number of bytes.
    """
    number, unit = _split(text)
    scale = _unit(unit, {name: Decimal(value) for name, value in SIZES.items()})
    size = number * scale
    if size != int(size):
        raise ValueError(f"{text!r} is no whole number of bytes")
    return int(size)


def parse_duration(text: str) -> float:
    """Return the seconds that `text` ("10 min") says.

    Raises: ValueError, when it is not a number with a unit of `DURATIONS`.
    """
    number, unit = _split(text)
    return float(number * _unit(unit, DURATIONS))


def parse_window(text: str) -> tuple[int, int]:
    """Return the minutes of the day at which the window `text` ("20:00-06:00") begins and ends.

    Raises: ValueError, when it is no two times of a day, or twice the same.
    """
    match = _WINDOW.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no window such as 20:00-06:00")
    start, end = (int(match[hour]) * 60 + int(match[hour + 1]) for hour in (1, 3))
    if start == end:
        raise ValueError("it ends when it begins: leave it out for the whole day")
    return start, end


def parse_percent(text: str) -> float:
    """Return the share that `text` ("5%") says, 1.0 for all.

    Raises: ValueError, when it is no percentage.
    """
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no percentage such as 5%")
    return float(Decimal(match[1]) / 100)


def parse_time(text: str) -> int:
    """Return the minutes from midnight to the time of day `text` ("18:00", up to "24:00").

    Raises: ValueError, when it is no time of a day.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no time of day such as 18:00")
    return 24 * 60 if match[1] is None else int(match[1]) * 60 + int(match[2])


def parse_days(text: str) -> frozenset[int]:
    """Return the days of the week, 0 for Monday, that `text` ("mon-fri", "mon,wed,sat-sun") names.

    Raises: ValueError, when it names none, or one that is unknown.
    """
    days: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = (name.strip() for name in part.partition("-"))
        start, end = _day(first), _day(last if dash else first)
        days.update((start + offset) % 7 for offset in range((end - start) % 7 + 1))
    return frozenset(days)


def _day(name: str) -> int:
    try:
        return DAYS.index(name)
    except ValueError:
        raise ValueError(f"{name!r} is no day of the week (days: {', '.join(DAYS)})") from None


def show_size(size: int) -> str:
    """Return `size` bytes in the largest binary unit that leaves it exact ("64 MiB")."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % SIZES[name] == 0:
            return f"{size // SIZES[name]} {name}"
    return f"{size} B"


def show_percent(share: float) -> str:
    """Return a share as a percentage ("5%")."""
    return f"{share * 100:.3f}".rstrip("0").rstrip(".") + "%"


def show_duration(seconds: float) -> str:
    """Return `seconds` in the largest unit that leaves a whole number ("10 min"); a minute stays "60 s"."""
    for name, scale, least in (("d", 86400, 2), ("h", 3600, 1), ("min", 60, 2)):
        if seconds >= scale * least and seconds % scale == 0:
            return f"{int(seconds // scale)} {name}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + " s"


def _split(text: str) -> tuple[Decimal, str]:
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a number with a unit")
    return Decimal(match[1]), match[2]


def _unit(name: str, units: dict[str, Decimal]) -> Decimal:
    try:
        return units[name]
    except KeyError:
        raise ValueError(f"unit {name!r} is unknown (units: {', '.join(units)})") from None
