"""The places of stores as `init` finds them: a store, a place where one can be made, or neither and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from adapters.cli.writable import nearest_existing, why_not_writable
from engine.errors import ConfigError

if TYPE_CHECKING:
    from adapters.config import Config
    from adapters.stores.folder import FolderStore
    from engine.vault.formatobject import StoreKind

OWNER_ONLY: Final = 0o700


def folders(config: Config) -> list[tuple[StoreKind, Path]]:
    """Return the stores near this machine that the configuration has and uses, with their folders."""
    found: list[tuple[StoreKind, Path]] = []
    if config.active_cache is not None:
        found.append(("cache", config.active_cache.path))
    if config.spool is not None:
        found.append(("spool", config.spool.path))
    return found


def look_at(kind: StoreKind, folder: Path, config: Config) -> Literal["store", "new"]:
    """Tell a store from a place where one can be made. Raises: ConfigError."""
    from adapters.stores.plainnames import TMP
    from engine.names import FORMAT

    try:
        if (folder / FORMAT).exists():
            return "store"
        # The state directory is made by init itself, and the spool may lie in it.
        own = kind == "spool" and folder.is_relative_to(config.system.state_dir)
        if not folder.exists() and not folder.parent.is_dir() and not own:
            raise ConfigError(f"{kind}: there is no folder {folder.parent}: mount its disk, or make it")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{kind}: {folder} is not a folder: choose another path")
        if folder.exists() and {entry.name for entry in folder.iterdir()} - {TMP, "lost+found"}:
            raise ConfigError(f"{kind}: folder {folder} is not empty and holds no Forebay store: choose an empty one")
    except OSError as error:
        raise ConfigError(f"{kind}: {folder} cannot be looked at: {error.strerror or error}") from None
    return "new"


def check_writable(config: Config, *, vault: bool = True) -> None:
    """Return if every place can be written to, so that none is left half made. Raises: ConfigError."""
    places: list[tuple[str, Path]] = [("vault", config.vault.folder)] if vault else []
    places += [("state_dir", config.system.state_dir), ("identity_file", config.system.identity_file.parent)]
    for what, folder in [*places, *folders(config)]:
        try:
            existing = nearest_existing(folder)
            reason = why_not_writable(existing)
        except OSError as error:
            existing, reason = folder, error.strerror or str(error)
        if reason is not None:
            raise ConfigError(f"{what}: {existing} cannot be written to ({reason}); nothing was changed")


def open_store(folder: Path, config: Config) -> FolderStore:
    """Return the store in a folder."""
    from adapters.stores.folder import FolderStore

    return FolderStore(folder, "init", connect_timeout_s=config.vault.connect_timeout_s)


async def check_marker(folder: Path, kind: StoreKind) -> None:
    """Return if the folder holds a store of this kind that may be written to. Raises: StoreError."""
    from adapters.stores.folder import FolderStore
    from engine.vault.formatobject import read_format

    await read_format(FolderStore(folder, "init"), kind, "write")


async def has_slots(folder: Path) -> bool:
    """Tell whether a store has key slots: a domain. Raises: StoreError."""
    from adapters.stores.folder import FolderStore

    async for _ in FolderStore(folder, "init").list("key/"):
        return True
    return False


async def make_store(kind: StoreKind, folder: Path, config: Config, marker: bytes | None = None) -> None:
    """Make a store in a folder that holds none yet, with a random id or with this format object.

    The spool lies on the machine itself: its folder is the owner's only.

    Raises: ConfigError, StoreRejected, StoreUnavailable.
    """
    import anyio.to_thread

    from adapters.stores.folder import FolderStore
    from engine.vault.formatobject import new_store

    if look_at(kind, folder, config) == "new":
        if kind == "spool":
            await anyio.to_thread.run_sync(_make_private, folder)
        await FolderStore.create(folder, marker or new_store(kind).encode())


def _make_private(folder: Path) -> None:
    try:
        folder.parent.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        folder.mkdir(mode=OWNER_ONLY, exist_ok=True)
        if os.name == "posix":
            folder.chmod(OWNER_ONLY)
    except OSError as error:
        raise ConfigError(f"spool: {folder} cannot be made: {error.strerror or error}") from None
