"""Small files a person wrote, read whole: never without a bound, and a secret only if it is nobody else's."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from engine.errors import ConfigError


def read_small(what: str, file: Path, bytes_max: int, *, secret: bool = False) -> bytes:
    """Return the bytes of a file of at most `bytes_max`; `what`: for messages.

    `secret`: only its owner and its group may read it, for systemd hands credentials over to a group.

    Raises: ConfigError (cannot be read, too large, a secret that is open to every user).
    """
    try:
        with file.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if secret and os.name == "posix" and stat.S_ISREG(status.st_mode) and status.st_mode & 0o007:
                raise ConfigError(f"{what} {file} is open to every user: run chmod o= on it")
            data = stream.read(bytes_max + 1)
    except OSError as error:
        raise ConfigError(f"{what} {file} cannot be read: {error.strerror or error}") from None
    if len(data) > bytes_max:
        raise ConfigError(f"{what} {file} is larger than {bytes_max} bytes: is it the right file?")
    return data
