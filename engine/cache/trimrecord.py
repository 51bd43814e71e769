"""What a trimming of a cache tells, and what of it is kept in `state_dir`; whoever reads it needs no numpy."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any, Final

import msgspec

GROWN_MAX: Final = 60  # days whose sizes are kept
ORPHANS_MAX: Final = 1 << 16  # packs no index lists that are kept in mind: 640 KiB

_ORPHAN: Final = struct.Struct("<QH")


class TrimReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one trimming did, and what it could not do.

    `day` since 2020-01-01. `size_bytes`: of the cache's packs, afterwards, of them `unlisted_bytes` in so many
    `unlisted` ones that no index lists, when they were looked for last; `device_bytes`, `free_bytes`: of the device
    it lies on, afterwards, None: unknown. `needed_bytes`: what had to go for the thresholds; `freed_bytes`: what went;
    `lacking_bytes`: what has to go still. `deleted`, `rewritten`: packs. `looked`: whether anything had to go, so that
    every record was looked at; only then are known: `protected_bytes` of records that must not go, of them
    `pinned_bytes` for the last known copies of what points need, and `unseen_bytes` nobody is known to have seen.
    `refused`: why nothing was to go, a sentence. `others_day`: of the newest stamp of other systems, 0: nobody looked,
    or there is none. `full_day`: when the device is full if the cache goes on growing; None: it does not, or nobody
    knows.
    """

    day: int
    size_bytes: int
    device_bytes: int | None = None
    free_bytes: int | None = None
    needed_bytes: int = 0
    freed_bytes: int = 0
    lacking_bytes: int = 0
    deleted: int = 0
    rewritten: int = 0
    looked: bool = False
    protected_bytes: int = 0
    pinned_bytes: int = 0
    unseen_bytes: int = 0
    refused: str | None = None
    unlisted: int = 0
    unlisted_bytes: int = 0
    others_day: int = 0
    full_day: int | None = None
    problems: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the thresholds of free space and size are met."""
        return self.lacking_bytes == 0


def document_of(report: TrimReport) -> dict[str, Any]:
    """Return what a trimming told, for machines: days as dates."""
    document = {name: getattr(report, name) for name in TrimReport.__struct_fields__ if not name.endswith("day")}
    return {
        **document,
        "met": report.met,
        "full_on": None if report.full_day is None else date_of(report.full_day).isoformat(),
        "problems": list(report.problems),
    }


def date_of(day: int) -> date:
    """Return the date of a day since 2020-01-01."""
    return date(2020, 1, 1) + timedelta(days=day)


class Orphans(msgspec.Struct, frozen=True):
    """Packs no index listed when this system looked for such last, on `day`: `packs`, `size_bytes` of them.

    `noted`: for each the first 8 bytes of its name, and the first day from which on no look found it listed.
    """

    day: int = 0
    packs: int = 0
    size_bytes: int = 0
    noted: bytes = b""

    @classmethod
    def of(cls, day: int, packs: int, size_bytes: int, since: Mapping[int, int]) -> Orphans:
        """Return what a look found; `since`: the first day by key."""
        return cls(day, packs, size_bytes, b"".join(_ORPHAN.pack(*each) for each in sorted(since.items())))

    def since(self) -> dict[int, int]:
        """Return the first day of each pack, by key."""
        return dict(_ORPHAN.iter_unpack(self.noted[: len(self.noted) // _ORPHAN.size * _ORPHAN.size]))


class TrimRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The last trimming of a cache that came to its end here: one is kept for each cache.

    `ended_ms` since 1970; `report`: what it told; `looked`: the newest one that looked at every record, if any: it says
    what is protected. `aged_day`: on which what is older than `max_age` went last, 0: never. `others_day` as last seen,
    and `stood_day`: since when it is that. `grown`: (day, bytes of the cache's packs), ascending, the last one of each
    of the newest 60 days with one: what `forecast_full` wants. `orphans`: as last looked for.
    """

    ended_ms: int
    report: TrimReport
    looked: TrimReport | None = None
    aged_day: int = 0
    others_day: int = 0
    stood_day: int = 0
    grown: tuple[tuple[int, int], ...] = ()
    orphans: Orphans = Orphans()


def noted(
    before: TrimRecord | None, report: TrimReport, ended_ms: int, *, aged: bool, orphans: Orphans | None = None
) -> TrimRecord:
    """Return the record after a trimming; `aged`: it was asked to let go of what is older than `max_age`, too."""
    grown = {**dict(before.grown if before else ()), report.day: report.size_bytes}
    # A clock that ran ahead and was put back: what it dated is not of the past.
    kept = sorted((day, size) for day, size in grown.items() if day <= report.day)[-GROWN_MAX:]
    others_day, stood_day = (before.others_day, before.stood_day) if before else (0, 0)
    if report.others_day:
        stood_day = min(stood_day, report.day) if report.others_day == others_day else report.day
        others_day = report.others_day
    return TrimRecord(
        ended_ms=ended_ms,
        report=report,
        looked=report if report.looked else before.looked if before else None,
        aged_day=report.day if aged and report.looked else before.aged_day if before else 0,
        others_day=others_day,
        stood_day=stood_day,
        grown=tuple(kept),
        orphans=orphans or (before.orphans if before else Orphans()),
    )
