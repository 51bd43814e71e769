"""The places of stores as `init` finds them: a store, a place where one can be made, or neither and why.

A folder is looked at as it lies there; of a share or a bucket its server is asked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from adapters.cli.writable import nearest_existing, why_not_writable
from engine.errors import ConfigError

if TYPE_CHECKING:
    from adapters.config import Config, Place, Remote
    from adapters.openstore import PlacedStore
    from engine.vault.formatobject import StoreKind

OWNER: Final = "init"  # stands in the names of temporary files
OWNER_ONLY: Final = 0o700


def near_places(config: Config) -> list[tuple[StoreKind, Place]]:
    """Return the stores near this machine that the configuration has and uses, with their places."""
    found: list[tuple[StoreKind, Place]] = []
    if config.active_cache is not None:
        found.append(("cache", config.active_cache.place))
    if config.spool is not None:
        found.append(("spool", config.spool.path))
    return found


async def look_at(kind: StoreKind, place: Place, config: Config) -> Literal["store", "new"]:
    """Tell a store from a place where one can be made. Raises: ConfigError; of a share or a bucket StoreError, too."""
    if isinstance(place, Path):
        return _look_at_folder(kind, place, config)
    from adapters.openstore import open_remote

    try:
        return await open_remote(place, OWNER, connect_timeout_s=config.vault.connect_timeout_s).look()
    except ConfigError as error:
        raise ConfigError(f"{kind}: {error}") from None


def _look_at_folder(kind: StoreKind, folder: Path, config: Config) -> Literal["store", "new"]:
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


async def check_writable(config: Config, *, vault: bool = True) -> None:
    """Return if every place can be written to, so that none is left half made. Raises: ConfigError."""
    places: list[tuple[str, Place]] = [("vault", config.vault.place)] if vault else []
    places += [("state_dir", config.system.state_dir), ("identity_file", config.system.identity_file.parent)]
    for what, folder in [*places, *near_places(config)]:
        if not isinstance(folder, Path):
            if (why := await why_not_remote(folder, config)) is not None:
                raise ConfigError(f"{what}: {why}; nothing was changed")
            continue
        try:
            existing = nearest_existing(folder)
            reason = why_not_writable(existing)
        except OSError as error:
            existing, reason = folder, error.strerror or str(error)
        if reason is not None:
            raise ConfigError(f"{what}: {existing} cannot be written to ({reason}); nothing was changed")


async def why_not_remote(place: Remote, config: Config, owner: str = OWNER) -> str | None:
    """Return why nothing can be put in a share or a bucket, None if it can."""
    from adapters.openstore import open_remote

    return await open_remote(place, owner, connect_timeout_s=config.vault.connect_timeout_s).why_not_writable()


def open_place(place: Place, config: Config) -> PlacedStore:
    """Return the store in a place."""
    from adapters.openstore import open_store

    return open_store(place, OWNER, connect_timeout_s=config.vault.connect_timeout_s)


async def check_marker(place: Place, kind: StoreKind, config: Config) -> None:
    """Return if the place holds a store of this kind that may be written to. Raises: StoreError."""
    from engine.vault.formatobject import read_format

    await read_format(open_place(place, config), kind, "write")


async def has_slots(place: Place, config: Config) -> bool:
    """Tell whether a store has key slots: a domain. Raises: StoreError."""
    async for _ in open_place(place, config).list("key/"):
        return True
    return False


async def make_store(kind: StoreKind, place: Place, config: Config, marker: bytes | None = None) -> None:
    """Make a store in a place that holds none yet, with a random id or with this format object.

    The spool lies on the machine itself: its folder is the owner's only.

    Raises: ConfigError, StoreRejected, StoreUnavailable.
    """
    import anyio.to_thread

    from engine.vault.formatobject import new_store

    if await look_at(kind, place, config) != "new":
        return
    marker = marker or new_store(kind).encode()
    if isinstance(place, Path):
        from adapters.stores.folder import FolderStore

        if kind == "spool":
            await anyio.to_thread.run_sync(_make_private, place)
        await FolderStore.create(place, marker)
    else:
        from adapters.openstore import open_remote

        await open_remote(place, OWNER, connect_timeout_s=config.vault.connect_timeout_s).create(marker)


def _make_private(folder: Path) -> None:
    try:
        folder.parent.mkdir(mode=OWNER_ONLY, parents=True, exist_ok=True)
        folder.mkdir(mode=OWNER_ONLY, exist_ok=True)
        if os.name == "posix":
            folder.chmod(OWNER_ONLY)
    except OSError as error:
        raise ConfigError(f"spool: {folder} cannot be made: {error.strerror or error}") from None
