"""What a command tells vault and cache at its end: the report of how this system stands now."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio.to_thread

from adapters.cli.backlog import spool_said
from adapters.cli.cachehealth import room_of, standing_document, standing_of, standing_warnings
from adapters.cli.cacheroom import room_document
from adapters.cli.lastsessions import session_said
from adapters.clock import SystemClock
from adapters.state import owed
from adapters.version import VERSION
from engine.errors import ForebayError
from engine.events import EventLog
from engine.reportbody import (
    PROBLEMS_MAX,
    SESSIONS_MAX,
    SHORT_MAX,
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
    clipped,
)
from engine.reporting import Reporter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from adapters.cli.cachehealth import Standing
    from adapters.config import Config
    from adapters.state.directory import StateDirectory
    from engine.cache.attempt import Attempt, PointsHealed
    from engine.ports import ObjectStore
    from engine.state import SessionRow
    from engine.vault.check import VaultCheck
    from engine.vault.formatobject import StoreKind
    from engine.vault.identity import Identity

_HISTORY_MAX = 1000  # sessions among which the last one that made a point is looked for


def reporter_of(identity: Identity, vault: ObjectStore | None, cache: ObjectStore | None) -> Reporter:
    """Return what brings the reports of this system to the stores that are there."""
    stores: dict[StoreKind, ObjectStore] = {}
    if vault is not None and not identity.vault_pending:
        stores["vault"] = vault
    if cache is not None and identity.cache is not None:
        stores["cache"] = cache
    return Reporter(identity, stores)


async def tell(
    config: Config, identity: Identity, state: StateDirectory, reporter: Reporter, away: Sequence[StoreKind] = ()
) -> None:
    """Put a report of how things stand; what keeps it from that costs a log line.

    `away`: stores that are known not to be there. Where the vault does not get it, that is noted for whoever reaches it
    next.
    """
    try:
        now_ms = SystemClock().now_ms()
        body = await anyio.to_thread.run_sync(partial(report_body, config, identity, state, now_ms))
        there = await reporter.put(body, state.incarnation, away)
        await anyio.to_thread.run_sync(owed.note, config.system.state_dir, "vault" not in there)
    except (ForebayError, OSError) as error:
        EventLog("report").warning("report_not_written", error=str(error))


async def tell_alone(config: Config, identity: Identity) -> None:
    """Put a report where nothing is open and nobody holds the lock; see `tell`."""
    from adapters.compose import report_stores
    from adapters.state.directory import StateDirectory

    try:
        with StateDirectory.open(config.system.state_dir, lock=False) as state:
            await tell(config, identity, state, reporter_of(identity, *report_stores(config, identity)))
    except ForebayError as error:
        EventLog("report").warning("report_not_written", error=str(error))


def report_body(config: Config, identity: Identity, state: StateDirectory, now_ms: int) -> ReportBody:
    """Return what a report says now. Raises: StateCorrupt, SessionAborted."""
    history, newest = state.history, state.newest()
    rows = history.last(SESSIONS_MAX)
    made = next((row for row in rows if row.point is not None), None)
    if made is None and len(rows) == SESSIONS_MAX:
        made = next((row for row in history.last(_HISTORY_MAX) if row.point is not None), None)
    spool, warnings = spool_said(config, identity)
    cache = None
    if (settings := config.cache) is not None:
        standing = standing_of(config, settings, identity.cache, history, now_ms)
        room = room_of(state, identity.cache, standing)
        said = {**standing_document(standing, enabled=settings.enabled), "room": room_document(room)}
        warnings += standing_warnings(said)
        cache = _cache_line(standing, room, enabled=settings.enabled)
    return ReportBody(
        time=now_ms,
        version=VERSION,
        name=identity.name,
        point=f"{newest.order:016x}-{newest.incarnation.hex()}" if newest is not None else None,
        point_time=newest.order if newest is not None else None,
        success=made.ended_ms if made is not None else None,
        sessions=[_session_line(row) for row in rows],
        cache=cache,
        backlog=_backlog_line(spool),
        checked=_vault_line(next(iter(history.vault_checks(identity.vault, 1)), None)),
        warnings=[clipped(warning) for warning in warnings[:WARNINGS_MAX]],
    )


def _session_line(row: SessionRow) -> SessionLine:
    said = session_said(row)
    return SessionLine(
        started=row.started_ms,
        duration=max(0, row.ended_ms - row.started_ms),
        route=clipped(row.route, WORD_MAX),
        exit_code=row.exit_code,
        point=row.point,
        read_bytes=said["read_bytes"],
        vault_bytes=said["vault_bytes"],
        cache_bytes=said["cache_bytes"],
        error=clipped(said["error"]) if said["error"] else None,
        problems=len(said["problems"]),
        told=[clipped(problem) for problem in said["problems"][:PROBLEMS_MAX]],
    )


def _cache_line(standing: Standing, room: RoomLine | None, *, enabled: bool) -> CacheLine:
    health, chance, completed = standing.health, standing.chance, standing.last_completed
    yellow, red = standing.turns_ms or (None, None)
    return CacheLine(
        enabled=enabled,
        colour=health.colour,
        why=health.why,
        concern=health.concern,
        yellow=yellow,
        red=red,
        blocks=health.blocks,
        missing=health.missing,
        unique=completed.unique if completed is not None and completed.unique else None,
        sealed=completed.sealed_bytes if completed is not None and completed.sealed_bytes else None,
        room=room,
        last_attempt=_attempt_line(standing.last_attempt),
        last_completed=_attempt_line(standing.last_completed),
        last_passed=_attempt_line(standing.last_passed),
        due=chance.due_ms if enabled else None,
        chance=chance.next_ms if enabled else None,
        reason=chance.reason,
    )


def _attempt_line(attempt: Attempt | None) -> AttemptLine | None:
    if attempt is None:
        return None
    return AttemptLine(
        started=attempt.started_ms,
        ended=attempt.ended_ms,
        completed=attempt.completed,
        passed=attempt.passed,
        blocks=attempt.blocks,
        missing=attempt.missing,
        healed=attempt.healed_since,
        deep_packs=attempt.deep_packs,
        deep_bytes=attempt.deep_bytes,
        damaged_packs=attempt.damaged_packs,
        damaged_bytes=attempt.damaged_bytes,
        points=_points_line(attempt.points),
        error=clipped(attempt.error) if attempt.error else None,
    )


def _points_line(healed: PointsHealed | None) -> PointsLine | None:
    if healed is None:
        return None
    return PointsLine(
        completed=healed.completed,
        points=healed.points,
        missing=healed.missing,
        healed=healed.healed,
        no_room=healed.no_room,
        put_bytes=healed.put_bytes,
        read_bytes=healed.read_bytes,
        error=clipped(healed.error, SHORT_MAX) if healed.error else None,
    )


def _vault_line(check: VaultCheck | None) -> VaultLine | None:
    if check is None:
        return None
    return VaultLine(
        started=check.started_ms,
        ended=check.ended_ms,
        completed=check.completed,
        passed=check.passed,
        points=check.points,
        incomplete=check.incomplete,
        packs=check.packs,
        bytes=check.bytes,
        missing_packs=check.missing_packs,
        damaged_packs=check.damaged_packs,
        read_packs=check.read_packs,
        read_bytes=check.read_bytes,
        error=clipped(check.error) if check.error else None,
    )


def _backlog_line(spool: Mapping[str, Any] | None) -> BacklogLine | None:
    if spool is None:
        return None
    if not spool["there"]:
        return BacklogLine(there=False)
    oldest = spool["oldest"]
    return BacklogLine(
        there=True,
        points=spool["points"],
        oldest=round(datetime.fromisoformat(oldest).timestamp() * 1000) if oldest is not None else None,
        used_bytes=spool["used_bytes"],
        free_bytes=spool["free_bytes"],
    )
