"""`forebay trim`: keep the cache within its bounds now."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from adapters.cli import frame
from engine.errors import ConfigError, ForebayError, SessionRunning

if TYPE_CHECKING:
    from adapters.cli.progress import Snapshot
    from adapters.config import Config
    from engine.cache.trimjob import TrimJob
    from engine.vault.identity import Identity

STOPPED: Final = "stopped before it was done; nothing that counts is lost, the next trimming goes on"
AGAIN_S: Final = 1.0  # between two looks whether the session has ended that it gave way to


@click.command(epilog=frame.examples("forebay trim", "forebay trim --json"))
@frame.pass_context
def command(context: frame.Context) -> int:
    """Let go of what no system saw for longest, until the bounds of [cache] trim are kept.

    What any system saw less than 14 days ago stays, and so do last known copies of what restore points need. Every
    backup does this at its end. While a backup or an upload runs it waits, or begins again after it. Exit codes: 0 the
    bounds are kept, 1 it could not be done, or the clock is not believed, 2 usage or configuration, 4 done, but what is
    protected takes more than the bounds allow.
    """
    context.stopped = STOPPED
    config = context.config
    if config.cache is None:
        raise ConfigError(f"{config.source} has no [cache] table: there is nothing to trim")
    if not config.cache.enabled:
        raise ConfigError(f"the cache is switched off in {config.source} ([cache] enabled = false)")
    return context.run_async(partial(_trim, context, config))


async def _trim(context: frame.Context, config: Config) -> int:
    import anyio

    from adapters.allocator import keep_freed_memory
    from adapters.cli.reporting import tell_alone
    from adapters.clock import SystemClock
    from adapters.state import identity as files

    keep_freed_memory()
    identity = files.load(config.system.identity_file)
    files.require_name(config.system.identity_file, identity, config.system.name)
    clock = SystemClock()
    began = clock.monotonic()
    watched: list[TrimJob] = []
    with context.progress("trim") as progress:
        async with anyio.create_task_group() as group:
            group.start_soon(progress.watch, partial(_snapshot, watched))
            error = await _to_the_end(config, identity, watched)
            await tell_alone(config, identity)
            group.cancel_scope.cancel()
    return _tell(context, config, watched, error, round(clock.monotonic() - began, 3))


async def _to_the_end(config: Config, identity: Identity, watched: list[TrimJob]) -> ForebayError | None:
    """Trim, giving way as often as somebody wants it to; return why it could not be done."""
    import anyio

    from adapters.compose import build_trimming
    from adapters.state.directory import StateDirectory
    from engine.events import EventLog

    while True:
        try:
            with StateDirectory.open(config.system.state_dir, yields=True) as state:
                trimming = await build_trimming(config, identity, state)
                watched.append(trimming)
                if await trimming.run():
                    return None
            EventLog("trim").info("trim_gave_way", component="cache", freed_bytes=trimming.freed_bytes)
        except SessionRunning:
            pass
        except ForebayError as error:
            return error
        await anyio.sleep(AGAIN_S)


def _snapshot(watched: list[TrimJob]) -> Snapshot:
    from adapters.cli.progress import Snapshot

    if not watched:
        return Snapshot(0, None, {}, "waiting for the end of a session")
    last = watched[-1]
    return Snapshot(max(last.freed_bytes, 0), last.needed_bytes or None, {}, last.phase)


def _tell(
    context: frame.Context, config: Config, watched: list[TrimJob], error: ForebayError | None, seconds: float
) -> int:
    from engine.cache.trimrecord import document_of

    report = watched[-1].report if watched else None
    told: dict[str, Any] = {}
    code = frame.exit_code_of(error) if error is not None else frame.DONE
    if report is not None:
        told = document_of(report)
        code = frame.DONE if report.met else frame.FAILED if report.refused is not None else frame.SOMETHING_MISSING
    problems = [*(watched[-1].problems if watched else []), *told.get("problems", [])]
    assert config.cache is not None
    if (warning := config.cache.trim.policy.warning) is not None:
        problems.append(f"[cache] trim: {warning}")
    document = {
        **told,
        "completed": report is not None,
        "error": str(error) if error is not None else None,
        "problems": problems,
        "seconds": seconds,
        "exit_code": code,
    }
    if error is not None and context.quiet:
        click.echo(f"forebay: {error}", err=True)
    context.emit(document, _text(document))
    return code


def _text(document: dict[str, Any]) -> str:
    from adapters.cli.progress import bytes_text, time_text
    from adapters.cli.recovering import problem_lines
    from adapters.cli.trimtext import trim_lines

    if document["error"] is not None:
        lines = [f"Not done: {document['error']}"]
    else:
        size, free = document["size_bytes"], document["free_bytes"]
        room = f", {bytes_text(free)} of {bytes_text(document['device_bytes'])} free" if free is not None else ""
        lines = [f"Cache: {bytes_text(size)}{room} (looked at in {time_text(document['seconds'])})"]
        lines += trim_lines(document) or ["Nothing had to go."]
    return "\n".join([*lines, *problem_lines(document["problems"])])
