"""`forebay restore`: a volume of a restore point to a file or device."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from adapters.cli import frame
from adapters.cli.recovering import Opener, Recovery, Request, place_options, problem_lines
from engine.errors import ConfigError

if TYPE_CHECKING:
    from adapters.cli.progress import Snapshot
    from engine.ports import MirrorFiles, RestoreTarget
    from engine.recovery.access import SystemAccess
    from engine.recovery.catalogue import Point
    from engine.recovery.restore import Restore, RestoreReport

HOLES_SHOWN: Final = 20
# Threads that open records, beside the one that writes: more wait for each other between any two library calls. On two
# processors a second one made the restore of deltas slower, 4.2 s instead of 3.6 s.
OPENERS_MAX: Final = 2
STOPPED: Final = (
    "stopped before it was done: a file is as it was before, a device may hold a part of the volume; run it again: "
    "a restore to a file goes on where it was"
)


@dataclass(frozen=True, slots=True)
class _Wanted:
    point: str
    volume: str
    to: Path
    system: str | None
    overwrite: bool


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml restore latest --volume data --to data.img",
        "forebay restore 000001a203b0d2cf --volume data --to /dev/vdb --overwrite",
        "forebay restore latest --vault file:///srv/vault --system web-01 --volume data --to data.img",
        "forebay restore latest --volume data --to data.img --only-cache",
    )
)
@click.argument("point")
@click.option("--volume", required=True, metavar="NAME", help="The volume to restore.")
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="PATH", help="A new file, or a device.")
@click.option("--system", metavar="NAME", help="The system (name or id) the point is of; default: this one.")
@click.option("--only-cache", is_flag=True, help="Read nothing but cache and spool, as if there were no vault.")
@click.option("--overwrite", is_flag=True, help="Replace a file that exists; needed for a device.")
@place_options
@frame.pass_context
def command(
    context: frame.Context,
    point: str,
    volume: str,
    to: Path,
    system: str | None,
    only_cache: bool,
    overwrite: bool,
    vault: str | None,
    spool: Path | None,
    cache: str | None,
    passphrase_file: Path | None,
    key_file: Path | None,
) -> int:
    """Write a volume of a restore point to a file or device.

    POINT is an id that `forebay points` lists, as much of its beginning as tells it from the others, or 'latest': the
    newest that has the volume. Every block is checked and comes from the nearest place that has it whole. A file is
    written sparse and gets its name when all is there; what is interrupted goes on where it was when the same command
    is run again. Needs the passphrase. Exit code 1: blocks could not be given
    (they are listed by number, everything else is restored), or nothing could; 4: the backup itself could not read
    some ranges.
    """
    request = Request(
        vault=vault,
        spool=spool,
        cache=cache,
        only_cache=only_cache,
        passphrase_file=passphrase_file,
        key_file=key_file,
    )
    wanted = _Wanted(point, volume, to, system, overwrite)
    context.stopped = STOPPED
    return context.run_async(partial(_restore, context, request, wanted))


async def _restore(context: frame.Context, request: Request, wanted: _Wanted) -> int:
    from adapters.allocator import RESTORE_KEPT_BYTES, RESTORE_MAPPED_FROM_BYTES, keep_freed_memory
    from engine.recovery.catalogue import Catalogue

    keep_freed_memory(RESTORE_MAPPED_FROM_BYTES, RESTORE_KEPT_BYTES)
    recovery = await Opener(context, request).open(own=False)
    _check_outside(wanted.to, recovery.folders)
    access = _system(context, request, recovery, wanted.system)
    catalogue = Catalogue(recovery.places, recovery.newest)
    point = await catalogue.find(await catalogue.names(access), wanted.point, wanted.volume)
    # Mirrors of an index are only filled where a block is not where its run says, and for the cache.
    with tempfile.TemporaryDirectory(prefix="forebay-restore-", ignore_cleanup_errors=True) as folder:
        report = await _run(context, recovery, point, wanted, Path(folder))
    context.emit(report, _text(report, wanted.to))
    return report.exit_code


def _check_outside(to: Path, folders: Iterable[Path]) -> None:
    """Return if `to` is no file of a store or of local state. Raises: ConfigError."""
    real = Path(os.path.realpath(to))
    for folder in folders:
        if real.is_relative_to(os.path.realpath(folder)):
            raise ConfigError(f"{to} lies in {folder}, where Forebay keeps its own files: choose a path outside of it")


def _system(context: frame.Context, request: Request, recovery: Recovery, name: str | None) -> SystemAccess:
    if name is not None:
        return recovery.access.named(name)
    if request.detached:
        return recovery.access.only()
    if recovery.identity is not None:
        return recovery.access.named(recovery.identity.system.hex())
    return recovery.access.named(context.config.system.name)


async def _run(
    context: frame.Context, recovery: Recovery, point: Point, wanted: _Wanted, folder: Path
) -> RestoreReport:
    import anyio
    import anyio.to_thread

    from adapters.clock import SystemClock
    from adapters.volumes.open import open_target
    from engine.recovery.restore import Restore
    from engine.recovery.sources import open_source

    size_bytes = point.volume(wanted.volume).bytes
    openers = max(1, min((os.cpu_count() or 1) - 1, OPENERS_MAX))
    source = open_source(recovery.places, point, partial(_mirror, folder), openers)
    target: RestoreTarget = await anyio.to_thread.run_sync(open_target, wanted.to, size_bytes, wanted.overwrite)
    restore = Restore(point, wanted.volume, target, source, SystemClock())
    with context.progress("restore") as progress:
        async with anyio.create_task_group() as group:
            group.start_soon(progress.watch, partial(_snapshot, restore, size_bytes))
            report = await restore.run()
            group.cancel_scope.cancel()
    return report


def _mirror(folder: Path, place: str) -> MirrorFiles:
    from adapters.state.files import Disk
    from adapters.state.fragments import MirrorFolder

    return MirrorFolder(folder / place, Disk(), writable=True)


def _snapshot(restore: Restore, size_bytes: int) -> Snapshot:
    from adapters.cli.progress import Snapshot

    return Snapshot(restore.done_bytes, size_bytes)


def _text(report: RestoreReport, to: Path) -> str:
    """Return the report for people."""
    from adapters.cli.progress import blocks_text, bytes_text, time_text

    spooled = f"from the spool {bytes_text(report.from_spool)}, " if report.from_spool else ""
    lines = [
        f"Volume {report.volume!r} of {report.system}, restore point {report.point}, is in {to}: "
        f"{bytes_text(report.bytes)} in {time_text(report.seconds)}",
        f"  from the cache {bytes_text(report.from_cache)}, {spooled}from the vault {bytes_text(report.from_vault)}; "
        "the rest is zeros and repetitions",
    ]
    if report.resumed:
        lines.insert(1, f"  {bytes_text(report.resumed)} of it were done by a restore that was interrupted")
    if report.holes:
        shown = [f"{first}" if count == 1 else f"{first}-{first + count - 1}" for first, count in report.holes]
        more = f" and {len(shown) - HOLES_SHOWN} more ranges" if len(shown) > HOLES_SHOWN else ""
        lost = f"{blocks_text(report.hole_blocks)} of 64 KiB"
        lines.append(f"NOT RESTORED: {lost}: {', '.join(shown[:HOLES_SHOWN])}{more}")
    return "\n".join([*lines, *problem_lines(report.problems)])
