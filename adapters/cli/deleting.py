"""`forebay points --delete`: deletes a restore point that waits in the spool, once somebody has said yes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import click

from adapters.cli import frame
from adapters.cli.recovering import point_time, problem_lines
from engine.errors import ConfigError, ObjectMissing, StoreError

if TYPE_CHECKING:
    from adapters.config import Config, Place
    from adapters.openstore import PlacedStore
    from engine.names import PointId
    from engine.spool import Spool
    from engine.vault.identity import Identity

TEXT: Final = "deleted from the spool by 'forebay points --delete'"
_PREFIX_MIN: Final = 4
_SHOWN_MAX: Final = 5


@dataclass(frozen=True, slots=True)
class _Chosen:
    point: PointId
    shown: str  # a line that tells the user what it is


def delete(context: frame.Context, text: str, *, yes: bool) -> int:
    """Delete the spooled point that `text` names, after asking unless `yes`; return the exit code.

    Raises: ConfigError, SessionRunning, StoreError, StateCorrupt, SessionAborted.
    """
    config = context.config
    if config.spool is None:
        raise ConfigError(
            f"{config.source} has no [spool]: only points that wait in the spool can be deleted by this version"
        )
    context.start_logs()
    chosen = frame.run_async(partial(_choose, config, text))
    _ask(chosen, yes=yes)
    return context.run_async(partial(_delete, context, config, chosen.point))


def on_terminal() -> bool:
    """Tell whether there is somebody to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _ask(chosen: _Chosen, *, yes: bool) -> None:
    if yes:
        return
    if not on_terminal():
        raise ConfigError(f"to delete restore point {chosen.point} where nobody can be asked, give --yes")
    click.echo(f"{chosen.shown}\nIt was never uploaded: nobody can restore it afterwards.", err=True)
    if not click.confirm("Delete it?", err=True):
        raise ConfigError("nothing was deleted")


async def _choose(config: Config, text: str) -> _Chosen:
    from engine.names import PointId

    identity, spool = await _open(config)
    points = await spool.points()
    matches = [point for point in points if str(point).startswith(text.lower())]
    if len(text) < _PREFIX_MIN or not matches:
        in_vault = await _in_vault(config, identity, text)
        if in_vault is not None:
            raise ConfigError(
                f"restore point {in_vault} is in the vault: this version deletes only what waits in the spool"
            )
        shown = ", ".join(map(str, points[-_SHOWN_MAX:])) or "none"
        raise ConfigError(f"no restore point in the spool is called {text!r}; the newest there: {shown}")
    if len(matches) > 1:
        shown = ", ".join(map(str, matches[-_SHOWN_MAX:]))
        raise ConfigError(f"{text!r} means {len(matches)} restore points: give more of the id; the newest: {shown}")
    (point,) = matches
    if await _in_vault(config, identity, str(point)) is not None:
        raise ConfigError(f"restore point {point} is in the vault already: 'forebay upload' takes it out of the spool")
    kinds = [note[2] for note in map(PointId.parse_note, (await spool.notes()).get(point, [])) if note is not None]
    if "held" in kinds:
        raise ConfigError(f"restore point {point} is held: a note says that it must not be removed")
    return _Chosen(point, await _shown(spool, point))


async def _open(config: Config) -> tuple[Identity, Spool]:
    from adapters.state import identity as files
    from engine.spool import Spool

    assert config.spool is not None
    identity = files.load(config.system.identity_file)
    path = config.spool.path
    store = _store(path, config, identity)
    return identity, await Spool.open(store, identity, str(path), also=[_store(config.vault.place, config, identity)])


def _store(place: Place, config: Config, identity: Identity) -> PlacedStore:
    from adapters.openstore import open_store

    return open_store(place, identity.system.hex(), connect_timeout_s=config.vault.connect_timeout_s)


async def _in_vault(config: Config, identity: Identity, text: str) -> PointId | None:
    """Return the point of this system in the vault whose id begins with `text`, if the vault can be asked."""
    from engine.names import PointId

    vault = _store(config.vault.place, config, identity)
    prefix = f"root/{identity.system.hex()}/"
    try:
        await vault.probe()
        async for info in vault.list(prefix):
            parsed = PointId.parse_root(info.name)
            if parsed is not None and len(text) >= _PREFIX_MIN and str(parsed[1]).startswith(text.lower()):
                return parsed[1]
    except StoreError:
        return None
    return None


async def _shown(spool: Spool, point: PointId) -> str:
    from adapters.cli.progress import bytes_text

    try:
        root, _ = await spool.root(point)
    except StoreError as error:
        return f"Restore point {point}, which cannot be opened: {error}"
    volumes = ", ".join(f"{volume.name} {bytes_text(volume.bytes)}" for volume in root.body.volumes)
    return f"Restore point {point} of {point_time(point, root.body.time)}: {volumes}"


async def _delete(context: frame.Context, config: Config, point: PointId) -> int:
    import anyio.to_thread

    from adapters.clock import SystemClock
    from adapters.state.directory import StateDirectory
    from engine.spooldelete import delete_point

    names = [volume.name for volume in config.volumes]
    state = await anyio.to_thread.run_sync(StateDirectory.open, config.system.state_dir)
    with state:
        identity, spool = await _open(config)
        if point not in await spool.points():  # uploaded, or deleted, while somebody thought about it
            raise ConfigError(f"restore point {point} is not in the spool any more")
        done = await delete_point(spool, state, names, point, SystemClock().now_ms(), TEXT)
        problems = await _tell_cache(config, identity, spool, point)
    document: dict[str, Any] = {
        "deleted": str(point),
        "freed_bytes": done.freed_bytes,
        "state_lost": done.state_lost,
        "problems": problems,
        "exit_code": frame.DONE,
    }
    context.emit(document, _text(document))
    return frame.DONE


async def _tell_cache(config: Config, identity: Identity, spool: Spool, point: PointId) -> list[str]:
    """Copy the note into the cache, which keeps a copy of the root; return what kept it from getting there."""
    from engine.vault.formatobject import read_format

    if config.active_cache is None or identity.cache is None:
        return []
    cache = _store(config.active_cache.place, config, identity)
    try:
        if (await read_format(cache, "cache", "write")).store != identity.cache:
            return []
        for name in (await spool.notes()).get(point, []):
            await cache.put(name, await spool.objects.get(name))
    except ObjectMissing:
        return []
    except StoreError as error:
        return [f"the cache was not told: {error}; it still lists the point where nothing else is asked"]
    return []


def _text(document: dict[str, Any]) -> str:
    from adapters.cli.progress import bytes_text

    lines = [f"Restore point {document['deleted']} is deleted: {bytes_text(document['freed_bytes'])} got free."]
    if document["state_lost"]:
        lines.append("Local state stood at it: the next session reads and compares everything.")
    return "\n".join([*lines, *problem_lines(document["problems"])])
