"""`forebay backup`: one session now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import click

from adapters.cli import frame

if TYPE_CHECKING:
    from adapters.cli.progress import Snapshot
    from engine.pipeline.report import SessionReport
    from engine.pipeline.session import Session

STOPPED: Final = "stopped before it was done; nothing half-done counts, the next run goes on from what was finished"


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml backup",
        "forebay --config forebay.toml backup --volume data --json",
        "forebay --config forebay.toml backup --full",
    )
)
@click.option("--volume", "names", multiple=True, metavar="NAME", help="Only this volume; may be given several times.")
@click.option("--full", is_flag=True, help="Read everything and trust nothing that is kept locally.")
@frame.pass_context
def command(context: frame.Context, names: tuple[str, ...], full: bool) -> int:
    """Back up the volumes now: one restore point in the vault, and what changed in the cache.

    Only blocks that the vault, or the cache, does not have yet travel there. Needs no passphrase. Exit codes: 0 done,
    1 failed, 2 usage or configuration, 4 done, but something asked for is missing (see problems), 5 another session
    runs.
    """
    context.stopped = STOPPED
    return context.run_async(partial(_backup, context, names, full))


async def _backup(context: frame.Context, names: tuple[str, ...], full: bool) -> int:
    import anyio

    from adapters.allocator import keep_freed_memory
    from adapters.compose import build_session, chosen_volumes
    from adapters.state import identity as files
    from adapters.state.directory import StateDirectory

    keep_freed_memory()
    config = context.config
    volumes = chosen_volumes(config, names)
    identity = files.load(config.system.identity_file)
    files.require_name(config.system.identity_file, identity, config.system.name)
    with StateDirectory.open(config.system.state_dir) as state:
        session = await build_session(config, identity, state, volumes, full=full)
        with context.progress("backup") as progress:
            async with anyio.create_task_group() as group:
                group.start_soon(progress.watch, partial(_snapshot, session))
                report = await session.run()
                group.cancel_scope.cancel()
    if report.error is not None and context.quiet:  # else a log line has told it
        click.echo(f"forebay: {report.error}", err=True)
    context.emit(report, _text(report))
    return report.exit_code


def _snapshot(session: Session) -> Snapshot:
    from adapters.cli.progress import Snapshot

    total = sum(run.reader.size_bytes for run in session.runs)
    done = sum(min(run.position, run.reader.size_bytes) for run in session.runs)
    lanes: dict[str, float] = {}
    if session.transmitter is not None and session.transmitter.queue is not None:
        fill = session.transmitter.queue.fill
        lanes = {lane: held / fill.bytes_max for lane, held in fill.lane_bytes.items()}
    return Snapshot(done, total or None, lanes, session.phase)


def _text(report: SessionReport) -> str:
    """Return the report for people."""
    from adapters.cli.progress import blocks_text, bytes_text, time_text

    lines = []
    if report.point is not None:
        lines.append(f"Restore point {report.point}, made in {time_text(report.seconds)}")
    for name, volume in report.volumes.items():
        lines.append(
            f"  {name}: {bytes_text(volume.bytes)}, read {bytes_text(volume.read_bytes)} "
            f"({'everything was compared' if volume.compared == 'all' else 'by hints'}), "
            f"{blocks_text(volume.changed)} changed"
        )
        lines.append(f"    to the vault: {blocks_text(volume.vault_blocks)}, {bytes_text(volume.vault_bytes)}")
        if report.cache is not None:
            lines.append(f"    to the cache: {blocks_text(volume.cache_blocks)}, {bytes_text(volume.cache_bytes)}")
    if report.problems:
        lines.append("Problems:")
        lines += [f"  - {problem}" for problem in report.problems]
    if report.point is None:
        lines.append("There is no new restore point.")
    return "\n".join(lines)
