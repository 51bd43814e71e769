"""What `status` and reports say of sessions that ended, from local history."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapters.cli import frame
from adapters.cli.moments import local

if TYPE_CHECKING:
    from engine.state import SessionRow


def session_said(row: SessionRow) -> dict[str, Any]:
    """Return what `status --json` says of a session."""
    report = json.loads(row.report)
    volumes = report.get("volumes", {})
    return {
        "session": row.session,
        "started": report.get("started"),
        "seconds": report.get("seconds"),
        "point": row.point,
        "route": row.route,
        "exit_code": row.exit_code,
        "error": report.get("error"),
        "problems": report.get("problems", []),
        "cache": report.get("cache"),
        "read_bytes": sum(volume["read_bytes"] for volume in volumes.values()),
        "vault_bytes": sum(volume["vault_bytes"] for volume in volumes.values()) + report.get("metadata_bytes", 0),
        "cache_bytes": sum(volume["cache_bytes"] for volume in volumes.values()),
    }


def session_lines(sessions: Sequence[dict[str, Any]]) -> list[str]:
    """Return what was said of sessions for people."""
    from adapters.cli.progress import bytes_text, time_text

    lines = []
    for session in sessions:
        started = "at an unknown time" if session["started"] is None else local(session["started"])
        far = "spool" if session["route"] == "FALLBACK" else "vault"
        lines.append(
            f"  {started:<19}  {_outcome(session):<22} {time_text(session['seconds']):>10}  "
            f"read {bytes_text(session['read_bytes'])}, {far} {bytes_text(session['vault_bytes'])}, "
            f"cache {bytes_text(session['cache_bytes'])}"
        )
        if session["error"]:
            lines.append(f"      {session['error']}")
        lines += [f"      - {problem}" for problem in session["problems"]]
    return lines


def _outcome(session: dict[str, Any]) -> str:
    if session["exit_code"] == frame.DONE:
        return "done"
    if session["exit_code"] == frame.SOMETHING_MISSING:
        return "done, with problems"
    if session["exit_code"] == frame.IN_SPOOL:
        return "done, in the spool"
    return f"failed (exit {session['exit_code']})"
