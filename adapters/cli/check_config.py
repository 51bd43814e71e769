"""`forebay check-config`: reads the file, then looks at every place it names, and says all that is wrong at once."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from adapters.cli import frame
from adapters.cli.progress import bytes_text
from engine.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from adapters.config import Config, Volume

# Per block of 64 KiB: the map's entry of 64 bytes and its share of page checksums, index mirror and bitmap.
STATE_SHARE: Final = 0.0013
MARKER: Final = "format"
MARKER_BYTES_MAX: Final = 4096


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
    can become. Exit code 2: the file is wrong; 1: a place it names is; 0: all is well.
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
    sizes = {volume.name: _volume_bytes(volume, problems) for volume in config.volumes}
    _check_store("vault", config.vault.folder, problems)
    cache = config.cache
    if config.active_cache is not None:
        _check_store("cache", config.active_cache.path, problems)
    _check_state(config.system.state_dir, problems)
    _check_identity(config.system.identity_file, problems)
    total = sum(size or 0 for size in sizes.values())
    return {
        "ok": not problems,
        "config": config.source,
        "system": config.system.name,
        "volumes": [{"name": each.name, "path": each.path, "bytes": sizes[each.name]} for each in config.volumes],
        "vault": {"url": config.vault.url},
        "cache": None if cache is None else {"path": cache.path, "enabled": cache.enabled},
        "state": {"path": config.system.state_dir, "bytes_max": round(total * STATE_SHARE)},
        "memory_bytes_max": config.memory_bytes,
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
    return "\n".join([*lines, _listed(document["problems"])])


def _listed(problems: list[str]) -> str:
    if not problems:
        return "Nothing is wrong."
    head = "1 problem:" if len(problems) == 1 else f"{len(problems)} problems:"
    return "\n".join([head, *(f"  - {problem}" for problem in problems)])


def _volume_bytes(volume: Volume, problems: list[str]) -> int | None:
    """Return the size of a volume that can be opened and read, else note why not and return None."""
    name, path = f"volume {volume.name!r}", volume.path
    if volume.hints is not None and not volume.hints.is_file():
        problems.append(f"{name}: there is no hints file {volume.hints}: without it every session compares everything")
    try:
        if path.is_dir():
            problems.append(f"{name}: {path} is a folder; a volume is a device or an image file")
            return None
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            file.read(min(size, 512))
            return size
    except OSError as error:
        problems.append(f"{name}: {path} cannot be read: {_reason(error)}")
        return None


def _check_store(kind: Literal["vault", "cache"], folder: Path, problems: list[str]) -> None:
    from engine.vault.formatobject import parse_format

    marker = folder / MARKER
    option = " --cache" if kind == "cache" else ""
    try:
        if not folder.is_dir():
            problems.append(f"{kind}: there is no folder {folder}: mount it, or create it with forebay init{option}")
            return
        with marker.open("rb") as file:
            found = parse_format(file.read(MARKER_BYTES_MAX + 1), "write")
    except FileNotFoundError:
        problems.append(f"{kind}: {folder} is no store yet: mount the right disk there, or run forebay init{option}")
        return
    except OSError as error:
        problems.append(f"{kind}: {folder} cannot be read: {_reason(error)}")
        return
    except StoreError as error:
        problems.append(f"{kind}: {folder}: {error}")
        return
    if found.kind != kind:
        problems.append(f"{kind}: the store in {folder} is a {found.kind}, not a {kind}: name the right folder")
        return
    _check_writable(kind, folder, problems)


def _check_state(folder: Path, problems: list[str]) -> None:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        problems.append(f"state_dir: {existing} is no folder, so {folder} cannot be used: name another one")
        return
    _check_writable("state_dir", existing, problems)


def _check_writable(what: str, folder: Path, problems: list[str]) -> None:
    try:
        # Asking for rights answers wrongly on network and read-only mounts; a file without a name leaves nothing.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        problems.append(f"{what}: {folder} cannot be written to: {_reason(error)}")


def _check_identity(file: Path, problems: list[str]) -> None:
    try:
        status = file.stat()
    except FileNotFoundError:
        problems.append(f"identity: there is no {file}: run forebay init to enrol this system")
        return
    except OSError as error:
        problems.append(f"identity: {file} cannot be read: {_reason(error)}")
        return
    if os.name == "posix" and stat.S_IMODE(status.st_mode) & 0o077:
        problems.append(f"identity: {file} is open to other users: run chmod 600 on it")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
