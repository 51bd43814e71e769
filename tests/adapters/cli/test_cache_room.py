"""What `status` says of the room a cache takes: by the last trimming, and the last verification."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from adapters import main
from adapters.cli.cacheroom import room_document
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.cache.attempt import Attempt
from engine.cache.trimrecord import TrimRecord, TrimReport
from engine.reportbody import RoomLine
from tests.adapters.cli import hostile

NOW = 1_795_000_000_000
DAY = 2515  # 2026-11-20
KEPT = TrimReport(day=DAY, size_bytes=3 << 30, device_bytes=100 << 30, free_bytes=40 << 30, full_day=DAY + 100)


def note(place: hostile.Place, report: TrimReport, looked: TrimReport | None = None) -> None:
    """Have local state know of a trimming, and of a verification."""
    store = files.load(place.folder / "state" / "identity").cache
    assert store is not None
    attempt = Attempt(
        attempt="0" * 32, store=store.hex(), started_ms=NOW, ended_ms=NOW, completed=True, blocks=300, missing=0,
        unique=200, sealed_bytes=200 * 65_536 // 4, oldest_day=DAY - 50,
    )  # fmt: skip
    with StateDirectory.open(place.folder / "state") as state:
        state.trim_notes(store).put(TrimRecord(ended_ms=NOW, report=report, looked=looked))
        state.history.put_attempt(attempt)


def status(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str], str]:
    """Return what is said of the cache, the warnings, and the text."""
    arguments = ["--config", str(place.config), "status"]
    assert main.run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main.run(arguments) == 0
    return document["cache"], document["warnings"], capsys.readouterr().out


def test_size_free_ratios_oldest_block_and_forecast_are_told(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    note(place, KEPT)
    cache, warnings, text = status(place, capsys)
    assert (cache["deduplication"], cache["compression"]) == (1.5, 4.0)
    assert cache["room"] == {
        "day": "2026-11-20", "size_bytes": 3 << 30, "device_bytes": 100 << 30, "free_bytes": 40 << 30,
        "lacking_bytes": 0, "protected_bytes": 0, "refused": None, "oldest": "2026-10-01", "full": "2027-02-28",
    }  # fmt: skip
    assert "    size 3.00 GiB, 40.0 GiB of 100 GiB free, deduplicated 1.50 : 1, compressed 4.00 : 1\n" in text
    assert "    oldest block of this system last seen 2026-10-01\n" in text
    assert "    its device is full on 2027-02-28 if it goes on growing\n" in text
    assert warnings == []


def test_bounds_that_cannot_be_kept_are_a_warning_with_the_day_the_device_is_full(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = msgspec.structs.replace(KEPT, lacking_bytes=5 << 30, protected_bytes=2 << 30, looked=True)
    note(place, lacking, lacking)
    cache, (warning,), text = status(place, capsys)
    assert (cache["room"]["lacking_bytes"], cache["room"]["protected_bytes"]) == (5 << 30, 2 << 30)
    assert warning == (
        "cache: 5.00 GiB more would have to go than may: the rest is protected; its device is full on 2027-02-28 if it "
        "goes on growing; give it more room, or let fewer systems use it"
    )
    assert f"  warning: {warning}\n" in text


def test_a_clock_that_is_not_believed_is_told(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    note(place, msgspec.structs.replace(KEPT, lacking_bytes=1 << 20, refused="the clock is wrong"))
    cache, warnings, _ = status(place, capsys)
    assert cache["room"]["refused"] == "the clock is wrong"
    assert warnings == ["cache: 1.00 MiB more would have to go than may: the clock is wrong"]


def test_what_nobody_knows_is_left_out(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> None:
    cache, warnings, text = status(place, capsys)
    assert (cache["room"], cache["deduplication"], cache["compression"], warnings) == (None, None, None, [])
    assert "size" not in text
    store = files.load(place.folder / "state" / "identity").cache
    assert store is not None
    with StateDirectory.open(place.folder / "state") as state:
        state.trim_notes(store).put(TrimRecord(ended_ms=NOW, report=TrimReport(day=DAY, size_bytes=5)))
    cache, _, text = status(place, capsys)
    assert "    size 5 B\n" in text
    assert (cache["room"]["free_bytes"], cache["room"]["oldest"], cache["room"]["full"]) == (None, None, None)


def test_a_day_no_calendar_has_is_none() -> None:
    document = room_document(RoomLine(day=1 << 62, size=1, full=9_000_000))
    assert document is not None
    assert (document["day"], document["full"]) == (None, None)
