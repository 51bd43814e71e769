"""`forebay status`: the last sessions and how things stand; reads what is near only, and answers at once."""

from __future__ import annotations

import json
import os
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from adapters.cli import frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapters.config import Config
    from engine.state import CacheHistory, SessionRow
    from engine.vault.identity import Identity


@click.command(epilog=frame.examples("forebay status", "forebay status --last 50 --json"))
@click.option("--last", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many sessions to show.")
@frame.pass_context
def command(context: frame.Context, last: int) -> int:
    """Show the last sessions, the newest restore point, what waits in the spool and what is configured.

    Of the cache it tells how well it is: green, yellow, red, or gray where nobody can know, by its verifications.
    Reads what lies on this machine only: whether vault and cache can be reached is what check-config tells. Exit code 1
    if the last session failed or was cut off.
    """
    from adapters.cli.cachehealth import standing_warnings
    from adapters.cli.vaultcheck import check_document
    from adapters.state import identity as files
    from adapters.state.directory import StateDirectory, running_process
    from adapters.state.history import SESSIONS_MAX

    config = context.config_as_written()
    identity = files.load(config.system.identity_file)
    with StateDirectory.open(config.system.state_dir, lock=False) as state:
        begun = [session.hex() for session in state.open_sessions()]
        # Only where sessions may have been cut off is it asked for each whether it ended.
        rows = list(state.history.last(SESSIONS_MAX if begun else last))
        newest = state.newest()
        cache = _cache(config, identity, state.history)
        checked = check_document(state.history, identity.vault)
        ended = {row.session for row in rows}
        cut_off = [session for session in begun if session not in ended]
    running = running_process(config.system.state_dir)
    if running is not None:
        cut_off = cut_off[:-1]  # the last that began
    failed = bool(cut_off) or (bool(rows) and rows[0].exit_code in (frame.FAILED, frame.USAGE))
    spool, warnings = _spool(config, identity)
    warnings += standing_warnings(cache) if cache is not None else []
    document: dict[str, Any] = {
        "system": identity.name,
        "system_id": identity.system.hex(),
        "vault": config.vault.url,
        "vault_pending": identity.vault_pending,
        "vault_check": checked,
        "cache": cache,
        "spool": spool,
        "volumes": [volume.name for volume in config.volumes],
        "newest_point": f"{newest.order:016x}-{newest.incarnation.hex()}" if newest is not None else None,
        "running": running,
        "cut_off": cut_off,
        "fallback": _fallback(rows),
        "sessions": [_session(row) for row in rows[:last]],
        "warnings": warnings,
        "exit_code": frame.FAILED if failed else frame.DONE,
    }
    context.emit(document, _text(document))
    return frame.FAILED if failed else frame.DONE


def _cache(config: Config, identity: Identity, history: CacheHistory) -> dict[str, Any] | None:
    from adapters.cli.cachehealth import standing_document, standing_of

    cache = config.cache
    if cache is None:
        return None
    standing = standing_of(config, cache, identity.cache, history, time.time_ns() // 1_000_000)
    said = standing_document(standing, enabled=cache.enabled)
    return {"path": str(cache.place), "enabled": cache.enabled, **said}


def _spool(config: Config, identity: Identity) -> tuple[dict[str, Any] | None, list[str]]:
    """Return what is to be said of the spool, and warnings about it."""
    from adapters.cli.backlog import backlog_of

    if config.spool is None:
        return None, []
    try:
        backlog = backlog_of(config.spool, identity.system)
    except OSError as error:
        return _absent(config), [f"spool: {config.spool.path} cannot be read: {error.strerror or error}"]
    if backlog is None:
        return _absent(config), [
            f"spool: {config.spool.path} holds no Forebay store: mount its disk, or run 'forebay init'"
        ]
    warnings = [warning] if (warning := backlog.warning(config.spool)) is not None else []
    if backlog.store != identity.spool:
        known = "another spool than the one it has adopted" if identity.spool else "a spool that is not adopted yet"
        what = (
            "put that one back, or run 'forebay init --spool' to adopt this one"
            if identity.spool
            else "run 'forebay init'"
        )
        warnings.append(f"spool: {config.spool.path} holds {known}: {what}")
    return backlog.document(config.spool), warnings


def _absent(config: Config) -> dict[str, Any]:
    assert config.spool is not None
    return {"path": str(config.spool.path), "there": False}


def _fallback(rows: Sequence[SessionRow]) -> str | None:
    """Return why the newest session went to the spool, if its point waits there; None: it does not, or nobody said."""
    if not rows or rows[0].route != "FALLBACK" or rows[0].exit_code == frame.DONE:
        return None
    reason = json.loads(rows[0].report).get("fallback")
    return reason if isinstance(reason, str) else None


def _session(row: SessionRow) -> dict[str, Any]:
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


def _text(document: dict[str, Any]) -> str:
    from adapters.cli.progress import bytes_text, time_text
    from adapters.cli.vaultcheck import check_line

    cache = document["cache"]
    pending = " (still to be made: run 'forebay init' once it can be reached)" if document["vault_pending"] else ""
    lines = [
        f"System {document['system']}: {', '.join(document['volumes'])}",
        f"  vault: {document['vault']}{pending}",
        *([check_line(document["vault_check"])] if not document["vault_pending"] else []),
        *_cache_text(cache),
        *_spool_text(document["spool"]),
        f"  newest restore point: {document['newest_point'] or 'none yet'}",
    ]
    lines += [f"  warning: {warning}" for warning in document["warnings"]]
    if document["fallback"] is not None:
        lines.append(f"The last session went to the spool: {document['fallback']}")
    if document["running"] is not None:
        lines.append(f"A session runs now (process {document['running']}).")
    if document["cut_off"]:
        count = len(document["cut_off"])
        lines.append(
            f"{'A session was' if count == 1 else f'{count} sessions were'} stopped or killed after the newest restore "
            "point; the next one goes on from what was sent."
        )
    if not document["sessions"]:
        lines.append("No session has ended yet: 'forebay backup' runs one.")
        return "\n".join(lines)
    lines.append("Last sessions, newest first:")
    for session in document["sessions"]:
        started = datetime.fromisoformat(session["started"]).astimezone()
        far = "spool" if session["route"] == "FALLBACK" else "vault"
        lines.append(
            f"  {started:%Y-%m-%d %H:%M:%S}  {_outcome(session):<22} {time_text(session['seconds']):>10}  "
            f"read {bytes_text(session['read_bytes'])}, {far} {bytes_text(session['vault_bytes'])}, "
            f"cache {bytes_text(session['cache_bytes'])}"
        )
        if session["error"]:
            lines.append(f"      {session['error']}")
        lines += [f"      - {problem}" for problem in session["problems"]]
    return "\n".join(lines)


def _cache_text(cache: dict[str, Any] | None) -> list[str]:
    from adapters.cli.cachehealth import standing_lines

    if cache is None:
        return ["  cache: none"]
    # Taken out again where the output is no terminal.
    return [f"  cache: {cache['path']}", *standing_lines(cache, colours="NO_COLOR" not in os.environ)]


def _spool_text(spool: dict[str, Any] | None) -> list[str]:
    from adapters.cli.progress import bytes_text

    if spool is None:
        return ["  spool: none"]
    if not spool["there"]:
        return [f"  spool: {spool['path']}, away"]
    points = spool["points"]
    waiting = "nothing waits"
    if points:
        waiting = f"{points} restore point{'s' if points > 1 else ''} to be uploaded"
        if spool["oldest"] is not None:
            waiting += f", the oldest of {datetime.fromisoformat(spool['oldest']).astimezone():%Y-%m-%d %H:%M:%S}"
    return [
        f"  spool: {spool['path']}, {waiting}; {bytes_text(spool['used_bytes'])} used, "
        f"{bytes_text(spool['free_bytes'])} free"
    ]


def _outcome(session: dict[str, Any]) -> str:
    if session["exit_code"] == frame.DONE:
        return "done"
    if session["exit_code"] == frame.SOMETHING_MISSING:
        return "done, with problems"
    if session["exit_code"] == frame.IN_SPOOL:
        return "done, in the spool"
    return f"failed (exit {session['exit_code']})"
