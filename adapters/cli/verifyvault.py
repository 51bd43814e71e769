"""`forebay verify --vault`: find out what the vault lacks of what this system's restore points need."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from adapters.cli import frame
from adapters.cli.verify import AGAIN_S, only_one
from engine.errors import ForebayError, SessionRunning

if TYPE_CHECKING:
    from adapters.cli.progress import Snapshot
    from adapters.config import Config
    from engine.vault.identity import Identity
    from engine.vault.verification import VaultVerification

STOPPED: Final = (
    "stopped before it was done; what was read and what was put there again stays, and counts the next time"
)


def verify_vault(context: frame.Context, read_share: float) -> int:
    """Verify the vault and tell what came of it; return the exit code."""
    from adapters.logfile import VERIFICATIONS, ComponentFile

    context.stopped = STOPPED
    config = context.config
    context.log_file = ComponentFile(config.system.state_dir / VERIFICATIONS, "vault")
    return context.run_async(partial(_verify, context, config, read_share))


async def _verify(context: frame.Context, config: Config, read_share: float) -> int:
    import anyio

    from adapters import priority
    from adapters.allocator import keep_freed_memory
    from adapters.cli.reporting import tell_alone
    from adapters.clock import SystemClock
    from adapters.state import identity as files
    from engine.events import EventLog

    keep_freed_memory()
    identity = files.load(config.system.identity_file)
    files.require_name(config.system.identity_file, identity, config.system.name)
    if refused := priority.lower():
        EventLog("verify").info("priority_not_lowered", component="vault", refused=refused)
    clock = SystemClock()
    began = clock.monotonic()
    watched: list[VaultVerification] = []
    with only_one(config.system.state_dir), context.progress("verify") as progress:
        async with anyio.create_task_group() as group:
            group.start_soon(progress.watch, partial(_snapshot, watched))
            error = await _to_the_end(config, identity, read_share, watched)
            await tell_alone(config, identity)
            group.cancel_scope.cancel()
    return _tell(context, watched, error, round(clock.monotonic() - began, 3))


async def _to_the_end(
    config: Config, identity: Identity, read_share: float, watched: list[VaultVerification]
) -> ForebayError | None:
    """Verify, giving way as often as somebody wants it to; return why it could not be finished."""
    import anyio

    from adapters.compose import build_vault_verification
    from adapters.state.directory import StateDirectory
    from engine.events import EventLog

    while True:
        try:
            with StateDirectory.open(config.system.state_dir, yields=True) as state:
                carried = watched[-1].check if watched else None
                verification = await build_vault_verification(
                    config, identity, state, read_share=read_share, carried=carried
                )
                watched.append(verification)
                if await verification.run():
                    return None
            EventLog("verify").info("vault_verification_paused", component="vault", read_bytes=verification.read_bytes)
        except SessionRunning:
            pass
        except ForebayError as error:
            return error
        await anyio.sleep(AGAIN_S)


def _snapshot(watched: list[VaultVerification]) -> Snapshot:
    from adapters.cli.progress import Snapshot

    if not watched:
        return Snapshot(0, None, {}, "waiting for the end of a session")
    last = watched[-1]
    return Snapshot(last.read_bytes, last.to_read_bytes or None, {}, last.phase)


def _tell(context: frame.Context, watched: list[VaultVerification], error: ForebayError | None, seconds: float) -> int:
    check = watched[-1].check if watched else None
    passed = error is None and check is not None and check.passed
    code = frame.DONE if passed else frame.FAILED if error is None else frame.exit_code_of(error)
    problems = list(dict.fromkeys(problem for each in watched for problem in each.problems))
    if context.log_file is not None and context.log_file.problem is not None:
        problems.append(context.log_file.problem)
    document: dict[str, Any] = {
        "completed": error is None,
        "passed": passed,
        **{name: getattr(check, name, 0) for name in _COUNTS},
        "error": str(error) if error is not None else None,
        "problems": problems,
        "seconds": seconds,
        "exit_code": code,
    }
    if error is not None and context.quiet:
        click.echo(f"forebay: {error}", err=True)
    context.emit(document, _text(document))
    return code


_COUNTS: Final = (
    "points", "damaged_roots", "packs", "bytes", "missing_packs", "missing_bytes", "damaged_packs", "damaged_bytes",
    "new_packs", "read_packs", "read_bytes", "copied_packs", "filled_blocks", "incomplete", "holes", "mended",
)  # fmt: skip


def _text(document: dict[str, Any]) -> str:
    from adapters.cli.progress import blocks_text, bytes_text, packs_text, points_text, time_text
    from adapters.cli.recovering import problem_lines

    if document["error"] is not None:
        lines = [f"Not finished: {document['error']}"]
    else:
        points = points_text(document["points"])
        lines = [
            f"{points} need{'s' * (document['points'] == 1)} {packs_text(document['packs'])} of the vault, "
            f"{bytes_text(document['bytes'])}; looked for in {time_text(document['seconds'])}"
        ]
        lost = document["missing_packs"] + document["damaged_packs"]
        if not lost and not document["damaged_roots"]:
            lines.append("All of them are there.")
        if lost:
            lines.append(
                f"Gone: {packs_text(document['missing_packs'])}, {bytes_text(document['missing_bytes'])}; damaged: "
                f"{document['damaged_packs']}, {bytes_text(document['damaged_bytes'])}"
            )
        if document["passed"] and lost:
            lines.append("All that is needed of them lies elsewhere in the vault.")
    if document["read_packs"]:
        lines.append(f"Read: {packs_text(document['read_packs'])}, {bytes_text(document['read_bytes'])}")
    if document["copied_packs"] or document["filled_blocks"]:
        lines.append(
            f"Put there again: {packs_text(document['copied_packs'])} and {blocks_text(document['filled_blocks'])}"
        )
    if document["mended"]:
        lines.append(f"Whole again: {points_text(document['mended'])}")
    if document["incomplete"]:
        lines.append(
            f"INCOMPLETE: {points_text(document['incomplete'])}; the next backup sends what is on the volumes still, "
            "then 'forebay verify --vault' marks as whole what is"
        )
    return "\n".join([*lines, *problem_lines(document["problems"])])
