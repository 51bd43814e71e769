"""Time zones from a rule of POSIX, so that no test depends on the zone files of the machine it runs on."""

from __future__ import annotations

import io
import struct
import zoneinfo
from datetime import UTC, datetime, tzinfo


def zone_of(rule: str) -> zoneinfo.ZoneInfo:
    """Return the zone of a rule such as "CET-1CEST,M3.5.0,M10.5.0/3" (RFC 8536: a file that has but its footer)."""
    block = b"TZif2" + bytes(15) + struct.pack(">6I", 0, 0, 0, 0, 1, 4) + struct.pack(">lBB", 0, 0, 0) + b"UTC\0"
    return zoneinfo.ZoneInfo.from_file(io.BytesIO(block * 2 + f"\n{rule}\n".encode()), key=rule)


BERLIN = zone_of("CET-1CEST,M3.5.0,M10.5.0/3")  # last Sunday of March 2:00 to 3:00, of October 3:00 to 2:00
NEW_YORK = zone_of("EST5EDT,M3.2.0,M11.1.0")
LORD_HOWE = zone_of("LHST-10:30LHDT-11,M10.1.0,M4.1.0")  # half an hour
HAVANA = zone_of("CST5CDT,M3.2.0/0,M11.1.0/1")  # at midnight


def ms(text: str, zone: tzinfo = BERLIN) -> int:
    """Return "2026-03-29 01:30" by the wall clock of a zone in ms since 1970; one with a Z at its end is in UTC.

    Of a time that comes twice a trailing ~ means the second one.
    """
    if text.endswith("Z"):
        return round(datetime.fromisoformat(text[:-1]).replace(tzinfo=UTC).timestamp() * 1000)
    wall = datetime.fromisoformat(text.removesuffix("~")).replace(tzinfo=zone, fold=int(text.endswith("~")))
    return round(wall.timestamp() * 1000)
