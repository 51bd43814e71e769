"""`forebay points`: the restore points there are, in vault and cache, and those the vault has lost."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapters.cli import frame
from adapters.cli.recovering import Opener, Recovery, Request, place_options, point_time, problem_lines
from engine.errors import ConfigError

if TYPE_CHECKING:
    from engine.recovery.access import SystemAccess
    from engine.recovery.catalogue import LostPoint, Point
    from engine.root import VolumePoint


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml points",
        "forebay --config forebay.toml points --all --passphrase-file FILE",
        "forebay points --vault file:///srv/vault --system web-01",
        "forebay points --cache /mnt/usb/forebay --json",
        "forebay --config forebay.toml points --delete 000001a203ae553c",
    )
)
@click.option("--system", metavar="NAME", help="The points of another system (name or id); needs the passphrase.")
@click.option("--all", "every", is_flag=True, help="The points of all systems; needs the passphrase.")
@click.option("--superseded", is_flag=True, help="Also those that a newer root of the same session replaced.")
@click.option("--delete", metavar="POINT", help="Delete this point, which waits in the spool and was never uploaded.")
@click.option("--yes", is_flag=True, help="With --delete: do not ask.")
@place_options
@frame.pass_context
def command(
    context: frame.Context,
    system: str | None,
    every: bool,
    superseded: bool,
    delete: str | None,
    yes: bool,
    vault: str | None,
    spool: Path | None,
    cache: str | None,
    passphrase_file: Path | None,
    key_file: Path | None,
) -> int:
    """List restore points: id, time, volumes, sizes, where they are, and their state.

    This system's own points need no passphrase, other systems' do. With --vault, --spool or --cache nothing but the
    passphrase is needed: no configuration, no enrolment. A point that is not uploaded yet is listed as spooled, one
    that exists and cannot be opened as damaged. Exit code 4: a place that was asked for could not be read.
    """
    if system is not None and every:
        raise ConfigError("give either --system NAME or --all")
    request = Request(vault=vault, spool=spool, cache=cache, passphrase_file=passphrase_file, key_file=key_file)
    if delete is not None:
        if request.detached or system is not None or every:
            raise click.UsageError("--delete takes a point of this system: leave other systems and places out")
        from adapters.cli.deleting import delete as delete_point

        return delete_point(context, delete, yes=yes)
    if yes:
        raise click.UsageError("--yes goes with --delete POINT")
    return context.run_async(partial(_points, context, request, system, every, superseded))


async def _points(context: frame.Context, request: Request, system: str | None, every: bool, superseded: bool) -> int:
    own = not request.detached and not every and system in (None, context.config.system.name)
    recovery = await Opener(context, request).open(own=own)
    points: list[Point] = []
    lost: list[LostPoint] = []
    for access in _wanted(recovery, system, every or request.detached):
        found, gone = await _of_system(recovery, access)
        points += found
        lost += gone
    standing = [point for point in points if not point.removed]
    shown = [point for point in standing if superseded or point.state != "superseded"]
    hidden = len(standing) - len(shown)
    problems = recovery.problems.listed()
    missing = any(recovery.places.is_aside(name) for name in ("vault", "spool", "cache"))
    document = {
        "points": [_document(point) for point in shown],
        "lost": [_lost_document(one) for one in lost],
        "problems": problems,
        "exit_code": frame.SOMETHING_MISSING if missing else frame.DONE,
    }
    context.emit(document, _text(shown, lost, hidden, problems))
    return frame.SOMETHING_MISSING if missing else frame.DONE


def _wanted(recovery: Recovery, system: str | None, every: bool) -> list[SystemAccess]:
    if system is not None:
        return [recovery.access.named(system)]
    if every:
        return recovery.access.systems
    return [recovery.access.only()]


async def _of_system(recovery: Recovery, access: SystemAccess) -> tuple[list[Point], list[LostPoint]]:
    from engine.recovery.catalogue import Catalogue

    catalogue = Catalogue(recovery.places, recovery.newest)
    names = await catalogue.names(access)
    points = await catalogue.load(names, names.roots)
    return points, await catalogue.lost(names, points)


def _document(point: Point) -> dict[str, Any]:
    from engine.pipeline.report import iso_time

    body = point.root.body if point.root is not None else None
    return {
        "id": str(point.id),
        "time": iso_time(body.time) if body is not None else None,
        "system": point.access.name,
        "volumes": [_volume_document(volume) for volume in body.volumes] if body else [],
        "where": point.where,
        "state": point.state,
        "held": point.held,
        "holes": point.holes,
        "problems": point.problems,
    }


def _volume_document(volume: VolumePoint) -> dict[str, Any]:
    return {"name": volume.name, "bytes": volume.bytes, "unreadable": volume.unreadable}


def _unreadable_notes(point: Point) -> list[str]:
    volumes = point.root.body.volumes if point.root is not None else []
    return [
        f"{point.id}: {sum(length for _, length in volume.unreadable)} bytes of volume {volume.name!r} could not be "
        "read when it was made and were stored as zeros"
        for volume in volumes
        if volume.unreadable
    ]


def _lost_document(one: LostPoint) -> dict[str, Any]:
    return {"id": str(one.id), "system": one.access.name, "reason": one.reason, "where": one.where}


def _text(points: list[Point], lost: list[LostPoint], hidden: int, problems: list[str]) -> str:
    from adapters.cli.progress import bytes_text

    lines = []
    rows = [["POINT", "TIME", "SYSTEM", "VOLUMES", "WHERE", "STATE"]]
    for point in points:
        body = point.root.body if point.root is not None else None
        volumes = [f"{volume.name} {bytes_text(volume.bytes)}" for volume in body.volumes] if body else ["?"]
        state = point.state + (", held" if point.held else "")
        time = point_time(point.id, body.time if body else None)
        rows.append([str(point.id), time, point.access.name, ", ".join(volumes), "+".join(point.where), state])
    lines += _aligned(rows) if points else ["There are no restore points yet: 'forebay backup' makes one."]
    notes = [f"{point.id}: {problem}" for point in points for problem in point.problems]
    notes += [note for point in points for note in _unreadable_notes(point)]
    gone = [f"{one.id} of {one.access.name}: {one.reason}" for one in lost]
    if hidden:
        lines.append(f"({hidden} superseded, not shown: see --superseded)")
    if gone:
        lines += ["Lost:", *(f"  - {one}" for one in gone)]
    return "\n".join([*lines, *problem_lines([*notes, *problems])])


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
