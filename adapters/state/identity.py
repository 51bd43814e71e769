"""The identity file: owner-only, always whole, and beside it the identity of an enrolment that is under way."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from adapters.state.atomic import write_atomic
from adapters.state.files import Disk
from engine.errors import ConfigError
from engine.vault.identity import IDENTITY_BYTES_MAX, Identity, decode_identity, encode_identity

_STAGED: Final = ".enrolling"
_TEMPORARY: Final = ".new"
_OTHERS: Final = 0o077


def load(path: Path) -> Identity:
    """Return the identity in the file `path`.

    Raises: ConfigError if it is missing, damaged, cannot be read, or is open to other users.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"identity file {path} is no file: check [system] identity_file")
            if os.name == "posix" and status.st_mode & _OTHERS:
                raise ConfigError(
                    f"identity file {path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}): "
                    "run chmod 600 on it"
                )
            data = file.read(IDENTITY_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no identity file {path}: run 'forebay init' to enrol this system") from None
    except OSError as error:
        raise ConfigError(f"identity file {path} cannot be read: {error.strerror or error}") from None
    return decode_identity(data, str(path))


def require_name(path: Path, identity: Identity, name: str) -> None:
    """Return if `identity`, loaded from `path`, is of the system configured as `name`. Raises: ConfigError."""
    if identity.name != name:
        raise ConfigError(
            f"this machine is enrolled as {identity.name!r}, but [system] name is {name!r}: put the old "
            f"name back, or move {path} away (and keep it) to enrol a new system"
        )


def save(path: Path, identity: Identity) -> None:
    """Write the identity file, owner-only and durably, and forget a staged one. Raises: SessionAborted."""
    _write(path, identity)
    unstage(path)


def stage(path: Path, identity: Identity) -> None:
    """Keep the identity of an enrolment that is under way beside the identity file. Raises: SessionAborted."""
    _write(_staged(path), identity)


def load_staged(path: Path) -> Identity | None:
    """Return the identity of an enrolment that was begun and not finished; None if there is none to be used."""
    try:
        return load(_staged(path))
    except ConfigError:
        return None


def unstage(path: Path) -> None:
    """Forget the staged identity; that there is none is success. Raises: SessionAborted."""
    disk = Disk()
    disk.remove(_staged(path))
    disk.sync_folder(path.parent)


def _staged(path: Path) -> Path:
    return path.with_name(path.name + _STAGED)


def _write(path: Path, identity: Identity) -> None:
    disk = Disk()
    disk.make_folder(path.parent)
    # A left-over temporary file would keep its mode: remove it, so that the new one is owner-only.
    disk.remove(path.with_name(path.name + _TEMPORARY))
    write_atomic(path, encode_identity(identity), disk)
