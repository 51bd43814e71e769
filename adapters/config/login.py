"""Where the password of a login comes from; read at each login, so that a changed one is taken up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.config.secret import Secret, read_secret
from engine.errors import ConfigError, StoreRejected

if TYPE_CHECKING:
    from adapters.config.places import Share


def password_of(share: Share) -> str | None:
    """Return the password for a share: of password_file, else the systemd credential, else the environment.

    None: there is none, and a Kerberos ticket is to do; a cache takes none.

    Raises: StoreRejected: at a session it is the store that cannot be used.
    """
    try:
        secret = _found(share)
    except ConfigError as error:
        raise StoreRejected(f"share {share}: {error}") from None
    if secret is None and share.name == "cache":
        raise StoreRejected(f"share {share}: there is no password: set [cache] password_file")
    return None if secret is None else secret.reveal()


def _found(share: Share) -> Secret | None:
    if share.password_file is not None:
        return read_secret("password", share.password_file)
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and (file := Path(credentials, f"forebay-{share.name}-password")).exists():
        return read_secret("password", file)
    value = os.environ.get(f"FOREBAY_{share.name.upper()}_PASSWORD")
    return Secret(value) if value else None
