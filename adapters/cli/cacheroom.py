"""What room a cache takes, how much is left, and until when: as local state and reports have it, and for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from engine.reportbody import RoomLine, clipped

if TYPE_CHECKING:
    from engine.cache.trimrecord import TrimRecord

_DAY_0: Final = datetime(2020, 1, 1, tzinfo=UTC)


def room_line(record: TrimRecord | None, oldest_day: int) -> RoomLine | None:
    """Return what the last trimming of a cache found, None: there was none. `oldest_day` 0: not known."""
    if record is None:
        return None
    last, looked = record.report, record.looked or record.report
    return RoomLine(
        day=last.day,
        size=last.size_bytes,
        device=last.device_bytes,
        free=last.free_bytes,
        lacking=last.lacking_bytes,
        protected=looked.protected_bytes,
        refused=clipped(last.refused) if last.refused else None,
        oldest=oldest_day or None,
        full=last.full_day,
    )


def room_document(room: RoomLine | None) -> dict[str, Any] | None:
    """Return what `status --json` says of it."""
    if room is None:
        return None
    return {
        "day": _day(room.day),
        "size_bytes": room.size,
        "device_bytes": room.device,
        "free_bytes": room.free,
        "lacking_bytes": room.lacking,
        "protected_bytes": room.protected,
        "refused": room.refused,
        "oldest": _day(room.oldest),
        "full": _day(room.full),
    }


def room_warnings(document: dict[str, Any]) -> list[str]:
    """Return what is to be warned of in the `room` of what is said of a cache."""
    from adapters.cli.progress import bytes_text

    room = document["room"]
    if room is None or not room["lacking_bytes"]:
        return []
    lacking = f"cache: {bytes_text(room['lacking_bytes'])} more would have to go than may"
    if room["refused"] is not None:
        return [f"{lacking}: {room['refused']}"]
    full = f"; its device is full on {room['full']} if it goes on growing" if room["full"] is not None else ""
    return [f"{lacking}: the rest is protected{full}; give it more room, or let fewer systems use it"]


def room_lines(document: dict[str, Any]) -> list[str]:
    """Return the same for people, with what deduplication and compression do, to stand below the cache's path."""
    from adapters.cli.progress import bytes_text

    ratios = {"deduplicated": document["deduplication"], "compressed": document["compression"]}
    said = [f"{word} {ratio:.2f} : 1" for word, ratio in ratios.items() if ratio is not None]
    room = document["room"]
    if room is None:
        return [f"    {', '.join(said)}"] if said else []
    free = []
    if room["free_bytes"] is not None:
        device = f" of {bytes_text(room['device_bytes'])}" if room["device_bytes"] is not None else ""
        free = [f"{bytes_text(room['free_bytes'])}{device} free"]
    size = f"size {bytes_text(room['size_bytes'])}"
    lines = [f"    {', '.join([size, *free, *said])}"]
    if room["oldest"] is not None:
        lines.append(f"    oldest block of this system last seen {room['oldest']}")
    if room["full"] is not None and not room["lacking_bytes"]:
        lines.append(f"    its device is full on {room['full']} if it goes on growing")
    return lines


def _day(day: int | None) -> str | None:
    """Return a day since 2020-01-01 as a date; None for None, and for a day no calendar has."""
    try:
        return None if day is None else f"{_DAY_0 + timedelta(days=day):%Y-%m-%d}"
    except OverflowError:
        return None
