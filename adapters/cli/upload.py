"""`forebay upload`: what waits in the spool goes to the vault now; or not for a while."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import click

from adapters.cli import frame
from engine.errors import ConfigError, ForebayError, SessionAborted

if TYPE_CHECKING:
    from adapters.config import Config
    from adapters.state.pause import Pause
    from engine.pipeline.report import UploadReport
    from engine.pipeline.upload import Upload

STOPPED: Final = "stopped before it was done; what was sent stays, the next upload goes on from there"
NETWORK: Final = "network"
PAUSE_MAX_S: Final = 366 * 86_400.0


@click.command(
    epilog=frame.examples(
        "forebay upload", "forebay upload --pause 2h", "forebay upload --pause network", "forebay upload --resume"
    )
)
@click.option(
    "--pause",
    metavar="TIME|network",
    help="Upload nothing by itself for this long (such as 10min), or until this machine is in another network.",
)
@click.option("--resume", is_flag=True, help="End the pause.")
@frame.pass_context
def command(context: frame.Context, pause: str | None, resume: bool) -> int:
    """Upload the restore points that wait in the spool, oldest first, whatever the upload window says.

    Each is in the vault whole, or not at all; one that is cut off goes on from the last pack. Gives way to a backup
    that starts meanwhile. Exit codes: 0 nothing waits any more, 1 failed, or a point lacks blocks nobody has any more,
    2 usage or configuration, 3 it gave way and points still wait, 5 a session runs.
    """
    if pause is not None and resume:
        raise click.UsageError("--pause and --resume exclude each other")
    context.stopped = STOPPED
    config = context.config
    if config.spool is None:
        raise ConfigError(f"{config.source} has no [spool] table: nothing waits for an upload")
    if pause is not None:
        return _pause(context, config, pause)
    if resume:
        from adapters.state.pause import end_pause

        end_pause(config.system.state_dir)
        context.emit({"paused": None, "exit_code": frame.DONE}, "The pause is over: the next backup uploads again.")
        return frame.DONE
    return context.run_async(partial(_upload, context, config))


def _pause(context: frame.Context, config: Config, text: str) -> int:
    from adapters.clock import SystemClock
    from adapters.state.pause import set_pause

    pause = _parsed(text, SystemClock().now_ms())
    set_pause(config.system.state_dir, pause)
    sentence = pause.sentence(SystemClock().now_ms())
    context.emit({"paused": sentence, "exit_code": frame.DONE}, f"Done: {sentence}.")
    return frame.DONE


def _parsed(text: str, now_ms: int) -> Pause:
    from adapters.config.units import parse_duration
    from adapters.state.pause import Pause, network_mark

    if text == NETWORK:
        return Pause(network=network_mark())
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.UsageError(f"--pause {text!r}: {error}; give a time such as 10min, or '{NETWORK}'") from None
    if not 0 < seconds <= PAUSE_MAX_S:
        raise click.UsageError(f"--pause {text!r}: it must be more than nothing and at most a year")
    return Pause(until_ms=now_ms + round(seconds * 1000))


async def _upload(context: frame.Context, config: Config) -> int:
    import anyio

    from adapters.allocator import keep_freed_memory
    from adapters.cli.firstcontact import first_contact
    from adapters.cli.progress import Snapshot
    from adapters.cli.reporting import reporter_of, tell
    from adapters.clock import SystemClock
    from adapters.compose import build_setup
    from adapters.state import identity as files
    from adapters.state import owed, turns
    from adapters.state.directory import StateDirectory
    from adapters.state.pause import paused
    from engine.pipeline.upload import Upload

    keep_freed_memory()
    state_dir, clock = config.system.state_dir, SystemClock()
    identity = files.load(config.system.identity_file)
    files.require_name(config.system.identity_file, identity, config.system.name)
    if (why := paused(state_dir, clock.now_ms())) is not None:
        raise SessionAborted(why)
    with StateDirectory.open(state_dir) as state:
        turns.offer(state_dir)
        identity = await first_contact(config, identity)
        setup = await build_setup(config, identity, state, clock=clock)
        upload = Upload(setup, lambda: turns.wanted(state_dir) or paused(state_dir, clock.now_ms()) is not None)
        began = clock.monotonic()
        with context.progress("upload") as progress:
            async with anyio.create_task_group() as group:
                group.start_soon(progress.watch, lambda: Snapshot(upload.sent_bytes, None, {}, _note(upload)))
                await _run(upload)
                done = upload.report
                if done.uploaded or done.lost or done.error is not None or owed.owed(state_dir):
                    near = setup.cache.objects if setup.cache is not None else None
                    lost = done.error is not None and not done.uploaded
                    reporter = reporter_of(identity, setup.vault, near)
                    await tell(config, identity, state, reporter, ["vault"] if lost else [])
                group.cancel_scope.cancel()
        upload.report.seconds = round(clock.monotonic() - began, 3)
    report = upload.report
    report.exit_code = _exit_code(report)
    if report.error is not None and context.quiet:
        click.echo(f"forebay: {report.error}", err=True)
    context.emit(report, _text(report))
    return report.exit_code


async def _run(upload: Upload) -> None:
    try:
        if await upload.anything():
            await upload.open()
            await upload.all()
    except ForebayError as error:
        upload.report.error = str(error)


def _exit_code(report: UploadReport) -> int:
    if report.error is not None or report.lost or any(each.holes for each in report.uploaded):
        return frame.FAILED
    return frame.IN_SPOOL if report.left else frame.DONE


def _note(upload: Upload) -> str:
    return f"uploading; {upload.report.left} restore point(s) to go"


def _text(report: UploadReport) -> str:
    from adapters.cli.progress import bytes_text, time_text
    from adapters.cli.recovering import problem_lines

    lines = [
        f"Uploaded restore point {each.point}: {bytes_text(each.bytes)}"
        + (", incomplete: see the problems" if each.holes else "")
        for each in report.uploaded
    ]
    if report.error is not None:
        lines.append(f"Stopped: {report.error}")
    if report.left:
        lines.append(f"{report.left} restore point(s) still wait in the spool")
    elif report.error is None:
        lines.append(f"Nothing waits in the spool; done in {time_text(report.seconds)}.")
    return "\n".join([*lines, *problem_lines(report.problems)])
