"""`forebay status --all` and `--system`: how other systems stand, by the reports they left in vault and cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from adapters.cli import frame
from adapters.cli.moments import iso, span
from adapters.cli.recovering import Opener, Request, problem_lines
from adapters.cli.reported import reported_cache, reported_check, reported_session, reported_spool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.recovery.reports import Standing

_COLOURS: Final = {
    "unreadable": "red",
    "failed": "red",
    "red": "red",
    "silent": "yellow",
    "unknown": "yellow",
    "problems": "yellow",
    "yellow": "yellow",
    "waiting": "yellow",
    "gray": "bright_black",
    "green": "green",
    "done": "green",
}
_HEAD: Final = ["SYSTEM", "STATE", "SCORE", "LAST POINT", "WAITING", "NEXT CHECK", "CACHE", "REPORTED"]


async def show(context: frame.Context, request: Request, system: str | None, last: int) -> int:
    """Show the systems of a domain, or the one called `system`; return the exit code.

    Raises: ConfigError, StoreError.
    """
    from adapters.clock import SystemClock
    from engine.recovery.reports import Reports, worst_first

    recovery = await Opener(context, request).open(own=False)
    wanted = recovery.access.systems if system is None else [recovery.access.named(system)]
    now_ms = SystemClock().now_ms()
    standings = worst_first(await Reports(recovery.places).read(wanted), now_ms)
    problems = [*recovery.problems.listed(), *(problem for one in standings for problem in one.problems)]
    aside = any(recovery.places.is_aside(name) for name in ("vault", "spool", "cache"))
    code = frame.SOMETHING_MISSING if aside or any(one.problems for one in standings) else frame.DONE
    systems = [_document(one, now_ms, last) for one in standings]
    text = "\n".join([*(_table(systems) if system is None else _details(systems[0])), *problem_lines(problems)])
    context.emit({"systems": systems, "problems": problems, "exit_code": code}, text)
    return code


def _document(standing: Standing, now_ms: int, last: int) -> dict[str, Any]:
    """Return what `--json` says of a system; what only its report could tell is null without one."""
    from engine.recovery.reports import point_ms

    body = standing.report.body if standing.report is not None else None
    made_ms, root = point_ms(standing), standing.newest_root
    # Of two clocks only this difference is ever taken; what is older than the report is told by its writer's alone.
    age_ms = now_ms - body.time if body is not None else 0
    point_age_ms = None
    if made_ms is not None:
        point_age_ms = max(0, body.time - made_ms) + max(0, age_ms) if body is not None else max(0, now_ms - made_ms)
    return {
        "system": standing.access.name,
        "system_id": standing.access.system.hex(),
        "state": standing.state(now_ms),
        "reported": iso(body.time) if body is not None else None,
        "report_age_seconds": age_ms / 1000 if body is not None else None,
        "where": standing.where,
        "version": body.version if body is not None else None,
        "newest_point": body.point if body is not None else str(root) if root is not None else None,
        "newest_point_time": iso(made_ms),
        "newest_point_age_seconds": point_age_ms / 1000 if point_age_ms is not None else None,
        "last_success": iso(body.success) if body is not None else None,
        "cache": reported_cache(body, now_ms) if body is not None else None,
        "spool": reported_spool(body.backlog) if body is not None else None,
        "vault_check": reported_check(body.checked) if body is not None else None,
        "sessions": [reported_session(line) for line in body.sessions[:last]] if body is not None else [],
        "warnings": body.warnings if body is not None else [],
        "problems": standing.problems,
    }


def _shown(state: str, width: int = 0) -> str:
    from click import style

    padded = state.ljust(width)
    return style(padded, fg=_COLOURS[state], bold=True) if _coloured() else padded


def _table(systems: Sequence[dict[str, Any]]) -> list[str]:
    if not systems:
        return ["There is no system yet: 'forebay init' enrols one."]
    rows = [_HEAD, *map(_row, systems)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if row is not _HEAD:
            cells[1] = _shown(row[1], widths[1])
        lines.append("  ".join(cells).rstrip())
    return lines


def _row(system: dict[str, Any]) -> list[str]:
    from adapters.cli.progress import bytes_text

    cache = system["cache"]
    health = cache["health"] if cache is not None else None
    room = cache["room"] if cache is not None else None
    return [
        system["system"],
        system["state"],
        f"{health['score']:g} %" if health is not None and health["score"] is not None else "-",
        _ago(system["newest_point_age_seconds"]) or "none",
        _waiting(system["spool"]),
        _next_check(system),
        "-" if cache is None else bytes_text(room["size_bytes"]) if room is not None else "?",
        _reported(system),
    ]


def _waiting(spool: dict[str, Any] | None) -> str:
    if spool is None or not spool["there"] or not spool["points"]:
        return "-"
    return "1 point" if spool["points"] == 1 else f"{spool['points']} points"


def _ago(seconds: float | None) -> str | None:
    return None if seconds is None else f"{span(seconds)} ago"


def _reported(system: dict[str, Any]) -> str:
    age_s = system["report_age_seconds"]
    if age_s is None:
        return "never"
    # By whose clock nobody knows.
    return f"{span(age_s)} ago" if age_s > -60 else f"{span(age_s)} ahead of this clock"


def _next_check(system: dict[str, Any]) -> str:
    """Return when the cache is verified next, counted from the report on, by its writer's clock."""
    from datetime import datetime

    cache = system["cache"]
    following = cache["next"] if cache is not None else None
    if following is None or following["due"] is None or system["reported"] is None:
        return "-"
    left = datetime.fromisoformat(following["due"]) - datetime.fromisoformat(system["reported"])
    left_s = left.total_seconds() - max(0.0, system["report_age_seconds"])
    return f"in {span(left_s)}" if left_s > 0 else f"due for {span(left_s)}"


def _details(system: dict[str, Any]) -> list[str]:
    from adapters.cli.backlog import spool_lines
    from adapters.cli.cachehealth import standing_lines
    from adapters.cli.lastsessions import session_lines
    from adapters.cli.vaultcheck import check_line

    lines = [f"System {system['system']} ({system['system_id']}): {_shown(system['state'])}"]
    age = _ago(system["newest_point_age_seconds"])
    point = f"{system['newest_point']}, {age}" if system["newest_point"] is not None else "none yet"
    if system["report_age_seconds"] is None:
        return [*lines, "  it has left no report", f"  newest restore point: {point}"]
    cache = system["cache"]
    lines += [f"  reported {_reported(system)}, by version {system['version']}", "  vault:"]
    lines.append(check_line(system["vault_check"]))
    lines += ["  cache: none"] if cache is None else ["  cache:", *standing_lines(cache, colours=_coloured())]
    lines += [*spool_lines(system["spool"]), f"  newest restore point: {point}"]
    lines += [f"  warning: {warning}" for warning in system["warnings"]]
    if system["sessions"]:
        lines += ["Last sessions, newest first:", *session_lines(system["sessions"])]
    return lines


def _coloured() -> bool:
    return "NO_COLOR" not in os.environ
