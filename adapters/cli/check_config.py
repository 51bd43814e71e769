"""`forebay check-config`: reads the file, then looks at every place it names, and says all that is wrong at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from adapters.cli import frame
from adapters.cli.progress import bytes_text
from adapters.cli.statesize import bytes_per_block, room_missing
from adapters.cli.writable import nearest_existing, why_not_writable
from engine.block import BLOCK_BYTES
from engine.errors import ConfigError, SourceError, StoreError, StoreUnavailable

if TYPE_CHECKING:
    from adapters.config import Config, Volume
    from engine.vault.formatobject import FormatObject
    from engine.vault.identity import Identity

SAMPLE_BYTES: Final = 4096


@click.command(
    epilog=frame.examples(
        "forebay --config forebay.toml check-config",
        "forebay --config forebay.toml check-config --json",
    )
)
@frame.pass_context
def command(context: frame.Context) -> int:
    """Say what is wrong with the configuration and the places it names.

    Reads the file, opens every volume, looks for vault and cache and whether they can be written to, and names all
    that is wrong at once. Nothing is changed. States how much memory a session takes and how large the local state
    can become, and warns if its disk has no room for that. Exit code 2: the file is wrong; 1: a place it names is; 0:
    all is well.
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
    _check_stores(config, _identity(config, problems), problems)
    state_bytes = bytes_per_block(config) * sum(-(-(size or 0) // BLOCK_BYTES) for size in sizes.values())
    _check_state(config, state_bytes, problems, warnings)
    cache = config.cache
    return {
        "ok": not problems,
        "config": config.source,
        "system": config.system.name,
        "volumes": [{"name": each.name, "path": each.path, "bytes": sizes[each.name]} for each in config.volumes],
        "vault": {"url": config.vault.url},
        "cache": None if cache is None else {"path": cache.path, "enabled": cache.enabled},
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
    state = document["state"]
    lines.append(f"  local state: {state['path']}, up to {bytes_text(state['bytes_max'])} for these volumes")
    lines.append(f"  memory of a session: up to {bytes_text(document['memory_bytes_max'])} for queue and packs")
    lines += [f"  warning: {warning}" for warning in document["warnings"]]
    return "\n".join([*lines, _listed(document["problems"])])


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


async def _store_in(kind: Literal["vault", "cache"], folder: Path, config: Config) -> FormatObject:
    """Return the marker of the store in `folder`. Raises: StoreError."""
    from adapters.stores.folder import FolderStore
    from engine.vault.formatobject import read_format

    store = FolderStore(folder, "check", stall_timeout_s=config.vault.connect_timeout_s)
    return await read_format(store, kind, "write")


def _check_stores(config: Config, identity: Identity | None, problems: list[str]) -> None:
    places: list[tuple[Literal["vault", "cache"], Path]] = [("vault", config.vault.folder)]
    if config.active_cache is not None:
        places.append(("cache", config.active_cache.path))
    for kind, folder in places:
        try:
            found = frame.run_async(partial(_store_in, kind, folder, config))
        except StoreError as error:
            new = identity is None and isinstance(error, StoreUnavailable)
            makes = ", or run 'forebay init' to make it" if new else ""
            problems.append(_naming(folder, f"{kind}: ", error) + makes)
            continue
        expected = None if identity is None else identity.vault if kind == "vault" else identity.cache
        if identity is not None and found.store != expected:
            move = f"move {config.system.identity_file} away (and keep it) and run 'forebay init' to enrol in this one"
            way = "run 'forebay init --cache' to adopt it" if kind == "cache" else move
            problems.append(f"{kind} {folder}: another store than the one init was run for: mount that one, or {way}")
        _check_writable(kind, folder, problems)


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
        missing = room_missing(folder, existing, bytes_max)
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


def _naming(path: Path, what: str, error: Exception) -> str:
    """Return the error's sentence, with the path where it does not name it itself."""
    return f"{what}{error}" if str(path) in str(error) else f"{what}{path}: {error}"
