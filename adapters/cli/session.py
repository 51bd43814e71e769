"""One session, run and shown: what `backup` does once the command line is understood."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial

import anyio
import click

from adapters.allocator import keep_freed_memory
from adapters.cli import frame
from adapters.cli.firstcontact import first_contact
from adapters.cli.progress import Snapshot, blocks_text, bytes_text, time_text
from adapters.cli.reporting import reporter_of, tell
from adapters.cli.trimtext import trim_lines
from adapters.compose import build_session, chosen_volumes
from adapters.config import Config
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.pipeline.report import SessionReport
from engine.pipeline.session import Session
from engine.reporting import Reporter
from engine.vault.formatobject import StoreKind


async def run_session(context: frame.Context, config: Config, names: Sequence[str], full: bool) -> int:
    """Back up the volumes called `names` (none: all), show how far it is, give the report; return the exit code.

    Raises: ConfigError, SessionRunning, SessionAborted.
    """
    keep_freed_memory()
    volumes = chosen_volumes(config, names)
    identity = files.load(config.system.identity_file)
    files.require_name(config.system.identity_file, identity, config.system.name)
    with StateDirectory.open(config.system.state_dir) as state:
        identity = await first_contact(config, identity)
        session = await build_session(config, identity, state, volumes, full=full)
        near = session.setup.cache
        reporter = reporter_of(identity, session.setup.vault, near.objects if near is not None else None)
        with context.progress("backup") as progress:
            async with anyio.create_task_group() as group:
                group.start_soon(progress.watch, partial(_snapshot, session))
                # Beside the work, so that at its end nothing but the report itself travels.
                group.start_soon(reporter.prepare, "vault")
                report = await session.run()
                session.phase = "reporting"
                await tell(config, identity, state, reporter, _away(session, reporter))
                group.cancel_scope.cancel()
    if report.error is not None and context.quiet:  # else a log line has told it
        click.echo(f"forebay: {report.error}", err=True)
    context.emit(report, _text(report))
    return report.exit_code


def _away(session: Session, reporter: Reporter) -> list[StoreKind]:
    """Return the stores a session has found not to be there: they are not waited for once more."""
    report = session.report
    away: list[StoreKind] = []
    if session.vault_lost or (report.point is None and not reporter.prepared("vault")):
        away.append("vault")
    if report.cache != "ok":
        away.append("cache")
    return away


def _snapshot(session: Session) -> Snapshot:
    total = sum(run.reader.size_bytes for run in session.runs)
    done = sum(min(run.position, run.reader.size_bytes) for run in session.runs)
    lanes: dict[str, float] = {}
    if session.transmitter is not None and session.transmitter.queue is not None:
        fill = session.transmitter.queue.fill
        lanes = {lane: held / fill.bytes_max for lane, held in fill.lane_bytes.items()}
    return Snapshot(done, total or None, lanes, _note(session))


def _note(session: Session) -> str:
    outage = session.outage
    if outage is None:
        return session.phase
    since, until = (datetime.fromtimestamp(ms / 1000).astimezone() for ms in (outage.since_ms, outage.until_ms))
    return f"the vault is away since {since:%H:%M:%S}; waiting until {until:%H:%M:%S}, then {session.after_outage}"


def _text(report: SessionReport) -> str:
    """Return the report for people."""
    lines = []
    if report.point is not None:
        lines.append(f"Restore point {report.point}, made in {time_text(report.seconds)}")
    for name, volume in report.volumes.items():
        lines.append(
            f"  {name}: {bytes_text(volume.bytes)}, read {bytes_text(volume.read_bytes)} "
            f"({'everything was compared' if volume.compared == 'all' else 'by hints'}), "
            f"{blocks_text(volume.changed)} changed"
        )
        parts = f" ({volume.vault_deltas} of them only changed parts)" if volume.vault_deltas else ""
        where = "spool" if "FALLBACK" in [change.route for change in report.route_history] else "vault"
        lines.append(f"    to the {where}: {blocks_text(volume.vault_blocks)}{parts}, {bytes_text(volume.vault_bytes)}")
        if report.cache is not None:
            lines.append(f"    to the cache: {blocks_text(volume.cache_blocks)}, {bytes_text(volume.cache_bytes)}")
    if report.fallback is not None and report.point is not None:
        lines.append(f"It went into the spool: {report.fallback}")
    lines += [f"Uploaded: restore point {each.point}, {bytes_text(each.bytes)}" for each in report.uploaded]
    if report.backlog:
        lines.append(f"{report.backlog} restore point(s) wait in the spool for their upload")
    if report.trim is not None:
        lines += trim_lines(report.trim)
    if report.problems:
        lines.append("Problems:")
        lines += [f"  - {problem}" for problem in report.problems]
    if report.point is None:
        lines.append("There is no new restore point.")
    return "\n".join(lines)
