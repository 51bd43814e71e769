"""What a report says, in the words of `status --json`: the same keys as a system's own status has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from adapters.cli.cachehealth import ratios_said
from adapters.cli.cacheroom import room_document
from adapters.cli.moments import iso
from adapters.cli.pointshealed import points_said
from engine.recovery.reports import colour_of, score_reported
from engine.reportbody import AttemptLine

if TYPE_CHECKING:
    from engine.reportbody import BacklogLine, ReportBody, SessionLine, VaultLine


def reported_cache(body: ReportBody, now_ms: int) -> dict[str, Any] | None:
    """Return what was reported of a cache; its colour as it is at `now_ms` of the reader's clock."""
    cache = body.cache
    if cache is None:
        return None
    colour = colour_of(cache, now_ms)
    last = cache.last_completed or AttemptLine(started=0)
    following = {"due": iso(cache.due), "chance": iso(cache.chance), "reason": cache.reason}
    return {
        "enabled": cache.enabled,
        "health": {
            "colour": colour,
            "why": cache.why if colour == cache.colour else "not_passed_lately",
            "concern": cache.concern,
            "score": score_reported(cache),
            "blocks": cache.blocks,
            "missing": cache.missing,
        },
        "last_attempt": _attempt(cache.last_attempt),
        "last_completed": _attempt(cache.last_completed),
        "last_passed": _attempt(cache.last_passed),
        "next": following if cache.enabled else None,
        **ratios_said(last.blocks, last.missing, cache.unique or 0, cache.sealed or 0),
        "room": room_document(cache.room),
    }


def reported_spool(backlog: BacklogLine | None) -> dict[str, Any] | None:
    """Return what was reported of a spool."""
    if backlog is None:
        return None
    if not backlog.there:
        return {"there": False}
    return {
        "there": True,
        "points": backlog.points,
        "oldest": iso(backlog.oldest),
        "used_bytes": backlog.used_bytes,
        "free_bytes": backlog.free_bytes,
    }


def reported_session(line: SessionLine) -> dict[str, Any]:
    """Return what was reported of a session; `problems` are the first of `problem_count`."""
    return {
        "started": iso(line.started),
        "seconds": line.duration / 1000,
        "point": line.point,
        "route": line.route,
        "exit_code": line.exit_code,
        "error": line.error,
        "problems": line.told,
        "problem_count": line.problems,
        "read_bytes": line.read_bytes,
        "vault_bytes": line.vault_bytes,
        "cache_bytes": line.cache_bytes,
    }


def reported_check(line: VaultLine | None) -> dict[str, Any] | None:
    """Return what was reported of the last verification of the vault."""
    if line is None:
        return None
    return {**msgspec.structs.asdict(line), "started": iso(line.started), "ended": iso(line.ended)}


def _attempt(line: AttemptLine | None) -> dict[str, Any] | None:
    if line is None:
        return None
    return {
        "started": iso(line.started),
        "ended": iso(line.ended),
        "completed": line.completed,
        "passed": line.passed,
        "blocks": line.blocks,
        "missing": line.missing,
        "healed_since": line.healed,
        "deep_packs": line.deep_packs,
        "deep_bytes": line.deep_bytes,
        "damaged_packs": line.damaged_packs,
        "damaged_bytes": line.damaged_bytes,
        "points": points_said(line.points),
        "error": line.error,
    }
