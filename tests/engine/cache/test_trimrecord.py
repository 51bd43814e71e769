"""What is kept of trimmings from one to the next."""

from __future__ import annotations

import msgspec

from engine.cache.trimrecord import Orphans, TrimRecord, TrimReport, noted


def report(day: int, others_day: int = 0) -> TrimReport:
    return TrimReport(day=day, size_bytes=1, others_day=others_day)


def test_since_when_the_others_stamps_stand_still_is_kept_until_they_move() -> None:
    record: TrimRecord | None = None
    found = []
    # Nobody looks on days 101 and 104; the clock jumps ahead, and is put back.
    for day, others in ((100, 90), (101, 0), (102, 90), (103, 95), (104, 0), (600, 95), (601, 104), (105, 104)):
        record = noted(record, report(day, others), day, aged=False)
        found.append((record.others_day, record.stood_day))
    assert found == [(90, 100), (90, 100), (90, 100), (95, 103), (95, 103), (95, 103), (104, 601), (104, 105)]


def test_a_record_of_before_packs_that_nobody_lists_were_looked_for_is_read() -> None:
    older = {"ended_ms": 1, "report": {"day": 100, "size_bytes": 1}, "aged_day": 99, "grown": [(100, 1)]}
    record = msgspec.msgpack.decode(msgspec.msgpack.encode(older), type=TrimRecord)
    assert (record.aged_day, record.grown, record.orphans, record.report.unlisted) == (99, ((100, 1),), Orphans(), 0)
