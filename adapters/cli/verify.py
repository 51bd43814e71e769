"""`forebay verify`: find out what the cache lacks of what is on the volumes now."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import click
import msgspec

from adapters.cli import frame
from adapters.cli.pointshealed import points_lines, points_said
from engine.errors import ConfigError, ForebayError, SessionAborted, SessionRunning

if TYPE_CHECKING:
    from adapters.cli.progress import Snapshot
    from adapters.config import Cache, Config
    from adapters.state.directory import StateDirectory
    from adapters.state.locks import FileLock
    from engine.cache.due import Chance
    from engine.cache.healing import Healing
    from engine.cache.verification import Verification
    from engine.vault.identity import Identity

CutOff: TypeAlias = Literal["verification", "healing"] | None

STOPPED: Final = "stopped before it was done; the next 'forebay verify' goes on from where it was"
AGAIN_S: Final = 1.0  # between two looks whether the session has ended that it gave way to


def _share(context: click.Context, parameter: click.Parameter, value: str | None) -> float:
    from adapters.config.units import parse_percent

    if value is None:
        return 0.0
    try:
        share = parse_percent(value if value.endswith("%") else f"{value}%")
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise click.BadParameter(f"{value!r} is no percentage from 0 to 100")
    return share


@click.command(
    epilog=frame.examples(
        "forebay verify", "forebay verify --deep", "forebay verify --if-due", "forebay verify --vault --read 5%"
    )
)
@click.option("--deep", is_flag=True, help="Read a share of the cache's packs first, those read longest ago.")
@click.option("--if-due", is_flag=True, help="Only if one is due, or was cut off; for timers.")
@click.option("--vault", is_flag=True, help="Verify the vault instead: is all there that this system's points need?")
@click.option("--read", metavar="PERCENT", callback=_share, help="With --vault: read so much of that, too.")
@frame.pass_context
def command(context: frame.Context, deep: bool, if_due: bool, vault: bool, read: float) -> int:
    """Compare the newest state of all volumes with what the cache holds, and note what it lacks.

    The next backup puts that there. No volume is read. Runs at the lowest priority; while a backup or an upload runs
    it waits, then goes on, also after it was stopped or killed. Exit codes: 0 at most 1 % is missing, 1 more is, or it
    could not be finished, 2 usage or configuration. With --if-due also 0 if none may begin now.

    With --vault: see whether the vault has all packs that this system's restore points need, and put there again what
    it lost, as far as the cache has it. The next backup sends what is on the volumes. Points that cannot be made whole
    are marked, see 'forebay points'. Exit codes: 0 all is there, 1 something was missing, or it could not be finished.
    """
    if vault:
        if deep or if_due:
            raise click.UsageError("--vault goes with neither --deep nor --if-due")
        from adapters.cli.verifyvault import verify_vault

        return verify_vault(context, read)
    if read:
        raise click.UsageError("--read goes with --vault; for the cache: --deep, and [cache] verify read")
    context.stopped = STOPPED
    config = context.config
    if config.cache is None or not config.cache.enabled:
        return _without_cache(context, config, if_due)
    from adapters.logfile import VERIFICATIONS, ComponentFile

    context.log_file = ComponentFile(config.system.state_dir / VERIFICATIONS, "cache")
    left: CutOff = "verification"
    if if_due:
        chance, left = _chance(config, config.cache)
        if left is None:
            return _skip(context, chance, chance.reason)
    share = config.cache.verify.read_share if deep else 0.0
    return context.run_async(partial(_verify, context, config, if_due, _Work(share, left == "verification")))


def _without_cache(context: frame.Context, config: Config, if_due: bool) -> int:
    """Say that there is nothing to verify: to a timer, which asks for what is due, that is no error."""
    if config.cache is None:
        skipped, why = "no_cache", f"{config.source} has no [cache] table: there is nothing to verify"
    else:
        skipped, why = "disabled", f"the cache is switched off in {config.source} ([cache] enabled = false)"
    if not if_due:
        raise ConfigError(why)
    document = {"completed": False, "skipped": skipped, "next": None, "problems": [], "exit_code": frame.DONE}
    context.emit(document, f"No verification: {why}.")
    return frame.DONE


def _chance(config: Config, cache: Cache) -> tuple[Chance, CutOff]:
    """Return when the next verification may begin, and with what there is to begin, or to go on, now; None: nothing."""
    from adapters.cli.cachehealth import standing_of
    from adapters.clock import SystemClock
    from adapters.state import identity as files
    from adapters.state.directory import StateDirectory

    store = files.load(config.system.identity_file).cache
    with StateDirectory.open(config.system.state_dir, lock=False) as state:
        point = state.upkeep(store).checkpoint() if store is not None else None
        chance = standing_of(config, cache, store, state.history, SystemClock().now_ms()).chance
    # What ran and left no checkpoint runs no more: whoever still does holds the lock that is asked for then.
    if chance.may_start or chance.reason == "running" or (point is not None and not point.attempt.completed):
        return chance, "verification"
    return chance, "healing" if point is not None and cache.heal == "points" else None


def _skip(context: frame.Context, chance: Chance, reason: str) -> int:
    """Tell that none begins now, why, and when the next may."""
    from adapters.cli.moments import iso, local
    from engine.events import EventLog

    context.start_logs()
    following = iso(chance.next_ms)
    EventLog("verify").info(
        "verification_skipped", component="cache", reason=reason, due=iso(chance.due_ms), next=following
    )
    why = {
        "not_due": "it is not due yet",
        "business_hours": "it waits for the end of the business hours",
        "running": "another one runs",
        "no_session": "no backup with this cache has ended yet",
    }.get(reason, reason)
    when = f"; the next one may begin at {local(following)}" if following is not None else ""
    context.emit(
        {
            "completed": False,
            "skipped": reason,
            "next": following,
            "problems": _log_problems(context),
            "exit_code": frame.DONE,
        },
        f"No verification now: {why}{when}.",
    )
    return frame.DONE


def _log_problems(context: frame.Context) -> list[str]:
    problem = context.log_file.problem if context.log_file is not None else None
    return [] if problem is None else [problem]


class _Work(msgspec.Struct):
    """What is to be done, and what was: a verification that reads `read_share` of the packs, then healing.

    Of each the last one counts: the others gave way.
    """

    read_share: float
    verifies: bool
    verification: Verification | None = None
    healing: Healing | None = None
    problems: list[str] = []
    error: ForebayError | None = None


async def _verify(context: frame.Context, config: Config, if_due: bool, work: _Work) -> int:
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
        EventLog("verify").info("priority_not_lowered", component="cache", refused=refused)
    clock = SystemClock()
    began = clock.monotonic()
    try:
        alone = only_one(config.system.state_dir)
    except SessionAborted:
        if not if_due:
            raise
        assert config.cache is not None
        chance, _ = _chance(config, config.cache)
        return _skip(context, chance, "running")
    with alone, context.progress("verify") as progress:
        async with anyio.create_task_group() as group:
            group.start_soon(progress.watch, partial(_snapshot, work))
            work.error = await _to_the_end(config, identity, work)
            await tell_alone(config, identity)
            group.cancel_scope.cancel()
    return _tell(context, work, round(clock.monotonic() - began, 3))


async def _to_the_end(config: Config, identity: Identity, work: _Work) -> ForebayError | None:
    """Verify, then heal, giving way as often as somebody wants it to; return why it could not be finished."""
    import anyio

    from adapters.state.directory import StateDirectory

    while True:
        try:
            with StateDirectory.open(config.system.state_dir, yields=True) as state:
                if (not work.verifies or await _verified(config, identity, state, work)) and (
                    await _healed(config, identity, state, work)
                ):
                    return None
        except SessionRunning:
            pass
        except ForebayError as error:
            return error
        await anyio.sleep(AGAIN_S)


async def _verified(config: Config, identity: Identity, state: StateDirectory, work: _Work) -> bool:
    """Go on with the verification; False: it gave way. Raises: ForebayError."""
    from adapters.compose import build_verification
    from engine.events import EventLog

    work.verification = await build_verification(config, identity, state, read_share=work.read_share)
    try:
        work.verifies = not await work.verification.run()
    finally:
        work.problems = work.verification.problems
    if work.verifies:
        blocks = work.verification.position_blocks
        EventLog("verify").info("verification_paused", component="cache", blocks=blocks)
    return not work.verifies


async def _healed(config: Config, identity: Identity, state: StateDirectory, work: _Work) -> bool:
    """Go on with healing what restore points need, where that is configured; False: it gave way."""
    from adapters.compose import build_healing
    from engine.events import EventLog

    assert config.cache is not None
    if config.cache.heal != "points":
        return True
    before = work.healing.done if work.healing is not None else None
    work.healing = await build_healing(config, identity, state, before=before)
    if done := await work.healing.run():
        work.problems = [*work.problems, *work.healing.problems]
    else:
        EventLog("heal").info("healing_paused", component="cache", healed=work.healing.done.healed)
    return done


def only_one(state_dir: Path) -> FileLock:
    """Return what is held while a verification runs, or waits. Raises: SessionAborted (one does)."""
    from adapters.state.files import write_failed
    from adapters.state.locks import FileLock

    lock = FileLock(state_dir / "verify.lock")
    try:
        if lock.acquire():
            return lock
    except OSError as error:
        raise write_failed(state_dir / "verify.lock", error) from error
    raise SessionAborted(f"another verification runs on the state directory {state_dir}: wait for its end, or stop it")


def _snapshot(work: _Work) -> Snapshot:
    from adapters.cli.progress import Snapshot
    from engine.block import BLOCK_BYTES

    if work.healing is not None:
        return Snapshot(work.healing.done.put_bytes, None, {}, work.healing.phase)
    last = work.verification
    if last is None:
        return Snapshot(0, None, {}, "waiting for the end of a session")
    return Snapshot(last.position_blocks * BLOCK_BYTES, last.total_blocks * BLOCK_BYTES or None, {}, last.phase)


def _tell(context: frame.Context, work: _Work, seconds: float) -> int:
    error = work.error
    attempt = work.verification.attempt if work.verification is not None else None
    # Healing alone is what one that passed, or told that it did not, left to do.
    passed = error is None and (attempt is None or attempt.passed)
    code = frame.DONE if passed else frame.FAILED if error is None else frame.exit_code_of(error)
    problems = [*work.problems, *_log_problems(context)]
    document: dict[str, Any] = {
        "completed": error is None,
        "passed": passed,
        "blocks": attempt.blocks if attempt is not None else 0,
        "missing": attempt.missing if attempt is not None else 0,
        "deep_packs": attempt.deep_packs if attempt is not None else 0,
        "deep_bytes": attempt.deep_bytes if attempt is not None else 0,
        "damaged_packs": attempt.damaged_packs if attempt is not None else 0,
        "damaged_bytes": attempt.damaged_bytes if attempt is not None else 0,
        "points": points_said(work.healing.done) if work.healing is not None else None,
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
    from adapters.cli.progress import blocks_text, bytes_text, time_text
    from adapters.cli.recovering import problem_lines

    lines: list[str] = []
    if document["error"] is not None:
        lines = [f"Not finished: {document['error']}"]
    elif document["blocks"] or document["points"] is None:
        blocks, missing = document["blocks"], document["missing"]
        share = f" ({100 * missing / blocks:.2g} %)" if missing else ""
        lines = [
            f"Compared {blocks_text(blocks)} with the cache in {time_text(document['seconds'])}: "
            f"{blocks_text(missing) if missing else 'nothing'} missing{share}"
        ]
        if missing:
            verdict = "at most 1 %: passed" if document["passed"] else "more than 1 %: FAILED"
            lines.append(f"That is {verdict}. The next backup puts there what is missing.")
    if document["deep_packs"]:
        lines.append(
            f"Read {document['deep_packs']} of its packs, {bytes_text(document['deep_bytes'])}; damaged: "
            f"{document['damaged_packs']}, {bytes_text(document['damaged_bytes'])}"
        )
    lines += points_lines(document["points"])
    return "\n".join([*lines, *problem_lines(document["problems"])])
