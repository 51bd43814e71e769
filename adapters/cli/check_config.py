"""`forebay check-config`: reads the file, then looks at every place it names, and says all that is wrong at once."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from adapters.cli import frame
from adapters.cli.progress import bytes_text
from adapters.cli.statesize import bytes_per_block, room_missing
from adapters.cli.storeplaces import near_places, why_not_remote
from adapters.cli.writable import nearest_existing, why_not_writable
from adapters.openstore import weakness_of
from engine.block import BLOCK_BYTES
from engine.errors import ConfigError, SourceError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from adapters.config import Config, Place, Volume
    from engine.vault.formatobject import FormatObject, StoreKind
    from engine.vault.identity import Identity

SAMPLE_BYTES: Final = 4096
OWNER: Final = "check"  # stands in the names of temporary files


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml check-config",
        "forebay --config forebay.toml check-config --json",
    )
)
@frame.pass_context
def command(context: frame.Context) -> int:
    """Say what is wrong with the configuration and the places it names.

    Reads the file, opens every volume, looks for vault, cache and spool and whether they can be written to, and names
    all that is wrong at once. Nothing is changed. States how much memory a session takes, how large the local state can
    become and how much room the spool has left, and warns if a disk has not enough. Exit code 2: the file is wrong; 1:
    a place it names is; 0: all is well.
    """
    from adapters.config import ConfigProblems

    source = context.require_config_file()
    try:
        config = context.config
    except ConfigError as error:
        problems = list(error.problems) if isinstance(error, ConfigProblems) else [str(error)]
        broken = {"ok": False, "config": source, "problems": problems, "exit_code": frame.USAGE}
        context.emit(broken, _listed(problems))
        return frame.USAGE
    document = examine(config)
    context.emit(document, _text(document))
    return frame.FAILED if document["problems"] else frame.DONE


def examine(config: Config) -> dict[str, Any]:
    """Return what `check-config --json` prints: the places, the sizes, and `problems`, a sentence for each."""
    problems: list[str] = []
    warnings: list[str] = []
    sizes = {volume.name: _volume_bytes(volume, problems) for volume in config.volumes}
    identity = _identity(config, problems)
    _check_stores(config, identity, problems, warnings)
    state_bytes = bytes_per_block(config) * sum(-(-(size or 0) // BLOCK_BYTES) for size in sizes.values())
    _check_state(config, state_bytes, problems, warnings)
    spool = _check_spool(config, identity, problems, warnings)
    cache = config.cache
    if cache is not None and (warning := cache.trim.policy.warning) is not None:
        warnings.append(f"[cache] trim: {warning}")
    return {
        "ok": not problems,
        "config": config.source,
        "system": config.system.name,
        "volumes": [{"name": each.name, "path": each.path, "bytes": sizes[each.name]} for each in config.volumes],
        "vault": {"url": config.vault.url},
        "cache": None if cache is None else {"path": str(cache.place), "enabled": cache.enabled},
        "spool": spool,
        "state": {"path": config.system.state_dir, "bytes_max": state_bytes},
        "memory_bytes_max": config.memory_bytes,
        "warnings": warnings,
        "problems": problems,
        "exit_code": frame.FAILED if problems else frame.DONE,
    }


def _text(document: dict[str, Any]) -> str:
    cache = document["cache"]
    lines = [f"{document['config']} is well-formed."]
    for volume in document["volumes"]:
        size = "cannot be opened" if volume["bytes"] is None else bytes_text(volume["bytes"])
        lines.append(f"  volume {volume['name']}: {volume['path']}, {size}")
    lines.append(f"  vault: {document['vault']['url']}")
    off = "" if cache is None or cache["enabled"] else ", switched off"
    lines.append(f"  cache: {cache['path']}{off}" if cache else "  cache: none")
    lines.append(_spool_text(document["spool"]))
    state = document["state"]
    lines.append(f"  local state: {state['path']}, up to {bytes_text(state['bytes_max'])} for these volumes")
    lines.append(f"  memory of a session: up to {bytes_text(document['memory_bytes_max'])} for queue and packs")
    lines += [f"  warning: {warning}" for warning in document["warnings"]]
    return "\n".join([*lines, _listed(document["problems"])])


def _spool_text(spool: dict[str, Any] | None) -> str:
    if spool is None:
        return "  spool: none"
    room = f", {bytes_text(spool['free_bytes'])} free" if spool["there"] else ""
    limit = f" of at most {bytes_text(spool['max_bytes'])}" if spool["there"] and spool["max_bytes"] else ""
    return f"  spool: {spool['path']}{room}{limit}"


def _listed(problems: list[str]) -> str:
    if not problems:
        return "Nothing is wrong."
    head = "1 problem:" if len(problems) == 1 else f"{len(problems)} problems:"
    return "\n".join([head, *(f"  - {problem}" for problem in problems)])


def _volume_bytes(volume: Volume, problems: list[str]) -> int | None:
    """Return the size of a volume that can be opened and read, else note why not and return None."""
    from adapters.volumes.open import open_volume

    if volume.hints is not None and not volume.hints.is_file():
        problems.append(
            f"volume {volume.name!r}: there is no hints file {volume.hints}: sessions will compare everything"
        )
    try:
        reader = open_volume(volume.name, volume.path)
        try:
            reader.read_into(0, memoryview(bytearray(min(reader.size_bytes, SAMPLE_BYTES))))
            return reader.size_bytes
        finally:
            reader.close()
    except SourceError as error:
        problems.append(_naming(volume.path, "", error))
        return None


async def _store_in(kind: StoreKind, place: Place, config: Config) -> FormatObject:
    """Return the marker of the store in a place. Raises: StoreError."""
    from adapters.openstore import open_store
    from engine.vault.formatobject import read_format

    timeout_s = config.vault.connect_timeout_s
    store = open_store(place, OWNER, connect_timeout_s=timeout_s, stall_timeout_s=timeout_s)
    return await read_format(store, kind, "write")


def _check_stores(config: Config, identity: Identity | None, problems: list[str], warnings: list[str]) -> None:
    for kind, place in [("vault", config.vault.place), *near_places(config)]:
        expected = None
        if identity is not None:
            expected = {"vault": identity.vault, "cache": identity.cache, "spool": identity.spool}[kind]
        pending = identity is None or expected is None or (kind == "vault" and identity.vault_pending)
        try:
            found = frame.run_async(partial(_store_in, kind, place, config))
        except StoreError as error:
            makes = ", or run 'forebay init' to make it" if pending and isinstance(error, StoreUnavailable) else ""
            problems.append(_naming(place, f"{kind}: ", error) + makes)
            continue
        if identity is not None and found.store != expected:
            move = f"move {config.system.identity_file} away (and keep it) and run 'forebay init' to enrol in this one"
            adopt = f"run 'forebay init{'' if expected is None else f' --{kind}'}' to adopt it"
            way = move if kind == "vault" else adopt
            problems.append(f"{kind} {place}: another store than the one init was run for: mount that one, or {way}")
        if isinstance(place, Path):
            _check_writable(kind, place, problems)
        elif (why := frame.run_async(partial(why_not_remote, place, config, OWNER))) is not None:
            problems.append(f"{kind}: {why}")
        else:
            _check_weakness(kind, place, config, problems, warnings)


def _check_weakness(kind: StoreKind, place: Place, config: Config, problems: list[str], warnings: list[str]) -> None:
    timeout_s = config.vault.connect_timeout_s
    try:
        weakness = frame.run_async(partial(weakness_of, place, connect_timeout_s=timeout_s))
    except StoreError as error:
        problems.append(_naming(place, f"{kind}: ", error))
    else:
        warnings += [f"{kind}: {weakness}"] if weakness is not None else []


def _check_spool(
    config: Config, identity: Identity | None, problems: list[str], warnings: list[str]
) -> dict[str, Any] | None:
    """Return what the spool has and has room for; note what is wrong with that."""
    from adapters.cli.backlog import backlog_of

    spool = config.spool
    if spool is None:
        return None
    absent = {"path": str(spool.path), "there": False}
    try:
        backlog = backlog_of(spool, bytes(16) if identity is None else identity.system)
    except OSError as error:
        problems.append(f"spool: {spool.path} cannot be read: {error.strerror or error}")
        return absent
    if backlog is None:
        return absent
    if (warning := backlog.warning(spool)) is not None:
        warnings.append(warning)
    if os.name == "posix" and spool.path.stat().st_mode & 0o077:
        warnings.append(f"spool: other users of this machine may look into {spool.path}: run chmod 700 on it")
    return backlog.document(spool)


def _check_state(config: Config, bytes_max: int, problems: list[str], warnings: list[str]) -> None:
    folder = config.system.state_dir
    try:
        existing = nearest_existing(folder)
    except OSError as error:
        problems.append(f"state_dir: {folder} cannot be looked at: {error.strerror or error}")
        return
    if not existing.is_dir():
        problems.append(f"state_dir: {existing} is no folder, so {folder} cannot be used: name another one")
        return
    _check_writable("state_dir", existing, problems)
    try:
        missing = room_missing(folder, existing, bytes_max, config.spool.path if config.spool is not None else None)
    except OSError:
        return  # what the system does not tell is no reason for a warning
    if missing:
        less = ", set [vault] delta = false" if config.vault.delta else ""
        warnings.append(
            f"state_dir: the disk of {folder} may become full: local state can grow to {bytes_text(bytes_max)}, "
            f"for which {bytes_text(missing)} are missing: free them{less} or name another folder"
        )


def _check_writable(what: str, folder: Path, problems: list[str]) -> None:
    reason = why_not_writable(folder)
    if reason is not None:
        problems.append(f"{what}: {folder} cannot be written to: {reason}")


def _identity(config: Config, problems: list[str]) -> Identity | None:
    from adapters.state import identity as files

    try:
        identity = files.load(config.system.identity_file)
    except ConfigError as error:
        problems.append(str(error))
        return None
    if identity.name != config.system.name:
        problems.append(
            f"identity file {config.system.identity_file} is of system {identity.name!r}, not of "
            f"{config.system.name!r}: put the old [system] name back, or run forebay init with another identity_file"
        )
    return identity


def _naming(path: Place, what: str, error: Exception) -> str:
    """Return the error's sentence, with the path where it does not name it itself."""
    return f"{what}{error}" if str(path) in str(error) else f"{what}{path}: {error}"
