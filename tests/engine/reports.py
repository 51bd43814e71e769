"""A report with something in every field, and one as long as a report can be."""

from __future__ import annotations

from engine.reportbody import (
    PROBLEMS_MAX,
    SESSIONS_MAX,
    SHORT_MAX,
    TEXT_MAX,
    WARNINGS_MAX,
    WORD_MAX,
    AttemptLine,
    BacklogLine,
    CacheLine,
    PointsLine,
    ReportBody,
    RoomLine,
    SessionLine,
    VaultLine,
)

NOW = 1_795_000_000_000
HOUR = 3_600_000
LARGEST = (1 << 63) - 1


def attempt(time: int, error: str | None = None) -> AttemptLine:
    return AttemptLine(
        started=time - 2 * HOUR, ended=time - 2 * HOUR + 60_000, completed=True, passed=True, blocks=20_000, missing=6,
        healed=1, deep_packs=3, deep_bytes=48 << 20, damaged_packs=1, damaged_bytes=16 << 20, error=error,
        points=PointsLine(
            completed=True, points=9, missing=81, healed=80, no_room=1, put_bytes=5 << 20, read_bytes=64 << 20,
            error="none",
        ),
    )  # fmt: skip


def body(time: int = NOW, *, name: str = "web-01", exit_code: int = 0, colour: str = "green") -> ReportBody:
    return ReportBody(
        time=time,
        version="0.1.0",
        name=name,
        point="000001a1f0b2c3d4-0123456789abcdef",
        point_time=time - HOUR,
        success=time - HOUR + 9000,
        sessions=[
            SessionLine(
                started=time - HOUR, duration=9000, route="VAULT", exit_code=exit_code,
                point="000001a1f0b2c3d4-0123456789abcdef", read_bytes=1 << 30, vault_bytes=5 << 20, cache_bytes=6 << 20,
            ),
            SessionLine(
                started=time - 5 * HOUR, duration=61_000, route="ABORTED", exit_code=1, error="the vault is away",
                problems=4, told=["first", "second", "third"],
            ),
        ],
        cache=CacheLine(
            enabled=True, colour=colour, why="passed", yellow=time + 70 * HOUR, red=time + 94 * HOUR, blocks=20_000,
            missing=5, unique=15_000, sealed=400_000_000,
            room=RoomLine(
                day=2515, size=1 << 40, device=4 << 40, free=1 << 40, lacking=7, protected=9, refused="no clock",
                oldest=2450, full=2800,
            ),
            last_attempt=attempt(time, error="none"), last_completed=attempt(time), last_passed=attempt(time),
            due=time + 22 * HOUR, chance=time + 23 * HOUR, reason="not_due",
        ),
        backlog=BacklogLine(there=True, points=2, oldest=time - 9 * HOUR, used_bytes=1 << 30, free_bytes=3 << 30),
        checked=VaultLine(
            started=time - 3 * HOUR, ended=time - 3 * HOUR + 5000, completed=True, passed=True, points=9, incomplete=1,
            packs=400, bytes=6 << 30, missing_packs=2, damaged_packs=3, read_packs=20, read_bytes=300 << 20,
            error="none",
        ),
        warnings=["spool: it is nearly full"],
    )  # fmt: skip


def longest() -> ReportBody:
    """Return a report all of whose parts are as long as they may be."""
    text, word, n = "\U0001f32a" * TEXT_MAX, "\U0001f32a" * WORD_MAX, LARGEST
    session = SessionLine(
        started=n, duration=n, route=word, exit_code=n, point=word, read_bytes=n, vault_bytes=n, cache_bytes=n,
        error=text, problems=n, told=[text] * PROBLEMS_MAX,
    )  # fmt: skip
    points = PointsLine(points=n, missing=n, healed=n, no_room=n, put_bytes=n, read_bytes=n, error=text[:SHORT_MAX])
    known = AttemptLine(
        started=n, ended=n, blocks=n, missing=n, healed=n, deep_packs=n, deep_bytes=n, damaged_packs=n, damaged_bytes=n,
        points=points, error=text,
    )  # fmt: skip
    room = RoomLine(
        day=n, size=n, device=n, free=n, lacking=n, protected=n, refused=text, oldest=n, full=n
    )  # fmt: skip
    cache = CacheLine(
        enabled=True, colour=word, why=word, yellow=n, red=n, blocks=n, missing=n, unique=n, sealed=n, room=room,
        last_attempt=known, last_completed=known, last_passed=known, due=n, chance=n, reason=word,
    )  # fmt: skip
    checked = VaultLine(
        started=n, ended=n, points=n, incomplete=n, packs=n, bytes=n, missing_packs=n, damaged_packs=n, read_packs=n,
        read_bytes=n, error=text,
    )  # fmt: skip
    return ReportBody(
        time=n, version=word, name="\U0001f32a" * 255, point=word, point_time=n, success=n,
        sessions=[session] * SESSIONS_MAX, cache=cache,
        backlog=BacklogLine(there=True, points=n, oldest=n, used_bytes=n, free_bytes=n), checked=checked,
        warnings=[text] * WARNINGS_MAX,
    )  # fmt: skip
