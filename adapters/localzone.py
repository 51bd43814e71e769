"""The time zone of this machine, with its changes to and from daylight saving."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo


class LocalZone(tzinfo):
    """What the operating system says of local time, asked anew for each moment.

    `datetime.astimezone()` alone gives an offset that knows of no other time of the year.
    """

    def utcoffset(self, wall: datetime | None) -> timedelta | None:
        """Return how far a local time is ahead of UTC; of one that comes twice, `fold` tells which is meant."""
        return None if wall is None else wall.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, wall: datetime | None) -> timedelta | None:
        """Return None: how much of the offset is daylight saving is not known."""
        return None

    def tzname(self, wall: datetime | None) -> str | None:
        """Return the zone's name at a local time."""
        return None if wall is None else wall.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, moment: datetime) -> datetime:
        """Return the local time of a moment in UTC (that carries this zone, as `astimezone` has it)."""
        local = moment.replace(tzinfo=UTC).astimezone()
        wall = local.replace(tzinfo=self, fold=0)
        return wall if wall.utcoffset() == local.utcoffset() else wall.replace(fold=1)
