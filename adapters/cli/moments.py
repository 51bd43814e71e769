"""Moments as documents and people have them; local history may hold such as no calendar has."""

from __future__ import annotations

from datetime import UTC, datetime


def iso(ms: int | None) -> str | None:
    """Return milliseconds since 1970 UTC as RFC 3339; None for None, and for a time no calendar has."""
    try:
        when = None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return None if when is None else when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def local(moment: str) -> str:
    """Return a moment of a document for people: the date and time of day where this machine is."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S}"


def span(seconds: float) -> str:
    """Return a length of time for people in one unit, rounded down ("40 s", "12 min", "3 h", "12 d")."""
    whole = int(abs(seconds))
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if whole >= (2 * size if unit == "d" else size):
            return f"{whole // size} {unit}"
    return f"{whole} s"
