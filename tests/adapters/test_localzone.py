"""Local time through the operating system is that of the zone it is set to, in every hour of a year."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo

import pytest

from adapters.localzone import LocalZone
from tests.engine.cache.zones import zone_of

RULES = ["UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT,M3.2.0,M11.1.0", "LHST-10:30LHDT-11,M10.1.0,M4.1.0"]
HALF_HOURS = 366 * 48


@pytest.fixture(params=RULES)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tzinfo]:
    """Set this process to a zone and return the same zone by a way of its own."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield zone_of(request.param)
    time.tzset()


def test_every_half_hour_of_a_year_is_told_as_the_zone_has_it(zone: tzinfo) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(HALF_HOURS):
        moment = begin + timedelta(minutes=30 * number)
        told, expected = moment.astimezone(LocalZone()), moment.astimezone(zone)
        assert (told.replace(tzinfo=None), told.fold) == (expected.replace(tzinfo=None), expected.fold)
        assert (told.utcoffset(), told.tzname()) == (expected.utcoffset(), expected.tzname())
        assert told.astimezone(UTC) == moment


def test_a_time_of_day_has_no_offset_and_no_day_has_a_share_of_daylight_saving() -> None:
    assert (LocalZone().utcoffset(None), LocalZone().tzname(None), LocalZone().dst(datetime.now(UTC))) == (None,) * 3
