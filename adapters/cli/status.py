"""`forebay status`: the last sessions and how things stand; reads what is near only, and answers at once."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapters.cli import frame
from adapters.cli.recovering import Request, place_options
from engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adapters.config import Config
    from adapters.state.directory import StateDirectory
    from engine.state import SessionRow
    from engine.vault.identity import Identity


@click.command(
    epilog=frame.examples(
        "forebay status",
        "forebay status --last 50 --json",
        "forebay status --all --passphrase-file FILE",
        "forebay status --vault s3://bucket/prefix --system db-02",
    )
)
@click.option("--last", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many sessions to show.")
@click.option("--system", metavar="NAME", help="Another system (name or id), by its report; needs the passphrase.")
@click.option("--all", "every", is_flag=True, help="All systems, by their reports, worst first; needs the passphrase.")
@place_options
@frame.pass_context
def command(
    context: frame.Context,
    last: int,
    system: str | None,
    every: bool,
    vault: str | None,
    spool: Path | None,
    cache: str | None,
    passphrase_file: Path | None,
    key_file: Path | None,
) -> int:
    """Show the last sessions, the newest restore point, what waits in the spool and what is configured.

    Of the cache it tells how well it is: green, yellow, red, or gray where nobody can know, by its verifications.
    Reads what lies on this machine only: whether vault and cache can be reached is what check-config tells. Exit code 1
    if the last session failed or was cut off.

    --all and --system read the reports that systems leave in the vault, with copies in the cache; with --vault or
    --cache nothing but the passphrase is needed: no configuration, no enrolment. Exit code 4 then, if a place or a
    report that is there could not be read; how systems are does not change it.
    """
    if system is not None and every:
        raise ConfigError("give either --system NAME or --all")
    request = Request(vault=vault, spool=spool, cache=cache, passphrase_file=passphrase_file, key_file=key_file)
    if request.detached or every or (system is not None and system != context.config_as_written().system.name):
        from adapters.cli.fleet import show

        return context.run_async(partial(show, context, request, system, last))
    return _own(context, last)


def _own(context: frame.Context, last: int) -> int:
    """Show how this system stands, by what lies on this machine."""
    from adapters.cli.backlog import spool_said
    from adapters.cli.cachehealth import standing_warnings
    from adapters.cli.lastsessions import session_said
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
        cache = _cache(config, identity, state)
        checked = check_document(state.history, identity.vault)
        ended = {row.session for row in rows}
        cut_off = [session for session in begun if session not in ended]
    running = running_process(config.system.state_dir)
    if running is not None:
        cut_off = cut_off[:-1]  # the last that began
    failed = bool(cut_off) or (bool(rows) and rows[0].exit_code in (frame.FAILED, frame.USAGE))
    spool, warnings = spool_said(config, identity)
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
        "sessions": [session_said(row) for row in rows[:last]],
        "warnings": warnings,
        "exit_code": frame.FAILED if failed else frame.DONE,
    }
    context.emit(document, _text(document))
    return frame.FAILED if failed else frame.DONE


def _cache(config: Config, identity: Identity, state: StateDirectory) -> dict[str, Any] | None:
    from adapters.cli.cachehealth import room_of, standing_document, standing_of
    from adapters.cli.cacheroom import room_document

    cache = config.cache
    if cache is None:
        return None
    standing = standing_of(config, cache, identity.cache, state.history, time.time_ns() // 1_000_000)
    said = standing_document(standing, enabled=cache.enabled)
    room = room_document(room_of(state, identity.cache, standing))
    return {"path": str(cache.place), "enabled": cache.enabled, **said, "room": room}


def _fallback(rows: Sequence[SessionRow]) -> str | None:
    """Return why the newest session went to the spool, if its point waits there; None: it does not, or nobody said."""
    if not rows or rows[0].route != "FALLBACK" or rows[0].exit_code == frame.DONE:
        return None
    reason = json.loads(rows[0].report).get("fallback")
    return reason if isinstance(reason, str) else None


def _text(document: dict[str, Any]) -> str:
    from adapters.cli.backlog import spool_lines
    from adapters.cli.lastsessions import session_lines
    from adapters.cli.vaultcheck import check_line

    cache = document["cache"]
    pending = " (still to be made: run 'forebay init' once it can be reached)" if document["vault_pending"] else ""
    lines = [
        f"System {document['system']}: {', '.join(document['volumes'])}",
        f"  vault: {document['vault']}{pending}",
        *([check_line(document["vault_check"])] if not document["vault_pending"] else []),
        *_cache_text(cache),
        *spool_lines(document["spool"]),
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
    return "\n".join([*lines, "Last sessions, newest first:", *session_lines(document["sessions"])])


def _cache_text(cache: dict[str, Any] | None) -> list[str]:
    from adapters.cli.cachehealth import standing_lines

    if cache is None:
        return ["  cache: none"]
    # Taken out again where the output is no terminal.
    return [f"  cache: {cache['path']}", *standing_lines(cache, colours="NO_COLOR" not in os.environ)]
