"""Where a store lies: a folder of this machine, or a folder in a share with what it takes to log in there.

`smb_of` reads both ways to write a share, `smb://server[:port]/share/folder` and `\\\\server\\share\\folder`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

import msgspec

from adapters.config.buckets import Bucket

SMB_PORT: Final = 445
SEGMENT_CHARS_MAX: Final = 255
# What no name on a share may hold, whatever the system behind it; "%" is only the beginning of an escape in a URL.
_BAD_CHARS: Final = re.compile(r'[\x00-\x1f:*?"<>|\\/]')
_DEVICES: Final = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


class SmbUrl(msgspec.Struct, frozen=True):
    """A folder in a share: `folder` is its path below the share, with "/" between the names."""

    server: str
    share: str
    folder: str
    port: int = SMB_PORT

    def __str__(self) -> str:
        host = f"[{self.server}]" if ":" in self.server else self.server
        port = "" if self.port == SMB_PORT else f":{self.port}"
        return f"smb://{host}{port}/{self.share}/{self.folder}"

    @property
    def unc(self) -> tuple[str, ...]:
        """The parts by which two places are compared, outermost first; look-up ignores case."""
        return (f"{self.server}:{self.port}".lower(), self.share.lower(), *self.folder.lower().split("/"))


class Share(msgspec.Struct, frozen=True):
    """A folder in a share and who logs in there; `name` ("vault", "cache") finds the password where no file has it.

    `user`: `user`, `DOMAIN\\user` or `user@domain`. `encrypt`: refuse to talk to a server in the clear.
    """

    url: SmbUrl
    name: Literal["vault", "cache"]
    user: str | None = None
    password_file: Path | None = None
    encrypt: bool = True

    def __str__(self) -> str:
        return str(self.url)


Remote: TypeAlias = Share | Bucket
Place: TypeAlias = Path | Remote


def is_smb(text: str) -> bool:
    """Tell whether `text` means a share: an smb:// URL, or a path that begins with two backslashes and a name."""
    return text.lower().startswith("smb:") or re.match(r"\\\\[^\\/?.]", text) is not None


def smb_of(text: str) -> SmbUrl:
    """Return the share and folder that `text`, an smb:// URL or a `\\\\server\\share\\folder`, names.

    Raises: ValueError, with the reason.
    """
    if not text.lower().startswith("smb:"):
        server, *names = text[2:].replace("/", "\\").rstrip("\\").split("\\")
        return _checked(server, SMB_PORT, names)
    if not text.lower().startswith("smb://"):
        raise ValueError("two slashes follow smb:")
    if "?" in text or "#" in text:
        raise ValueError("? and # must be written %3F and %23")
    parts = urlsplit(text)
    if "@" in parts.netloc:
        raise ValueError("a user does not belong in the URL: set user and password_file")
    try:
        server, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("after the server's name comes a port, a number from 1 to 65535, or none") from None
    if port == 0:
        raise ValueError("0 is no port")
    path = unquote(parts.path, errors="strict")
    return _checked(server, port or SMB_PORT, path.strip("/").split("/") if path.strip("/") else [])


def _checked(server: str, port: int, names: list[str]) -> SmbUrl:
    if not re.fullmatch(r"[^\W_][\w.:%-]{0,254}", server):
        raise ValueError("it names no server")
    if not names or not names[0]:
        raise ValueError("it names no share: write smb://server/share/folder")
    if len(names) == 1:
        raise ValueError("it names no folder in the share: write smb://server/share/folder")
    for name in names:
        if not name or name in (".", ".."):
            raise ValueError("an empty name, . and .. are no folders")
        if _BAD_CHARS.search(name) or name[-1] in " ." or _DEVICES.fullmatch(name):
            raise ValueError(f"{name!r} is no name on a share")
        if len(name.encode("utf-16-le")) > 2 * SEGMENT_CHARS_MAX:
            raise ValueError(f"a name is longer than {SEGMENT_CHARS_MAX} characters")
    return SmbUrl(server.lower(), names[0], "/".join(names[1:]), port)


def inside(inner: Share, outer: Share) -> bool:
    """Tell whether a share's folder lies in another one, as far as their names tell."""
    mine, other = inner.url.unc, outer.url.unc
    return mine[: len(other)] == other


def mapped_drive(path: Path | str, drive_type: Any = None) -> str | None:
    """Return why `path` cannot be used if it lies on a mapped network drive of Windows, else None.

    `drive_type`: what Windows says of the root of a drive (GetDriveTypeW).
    """
    drive = re.match(r"([A-Za-z]:)[\\/]", os.fspath(path))
    if drive is None:
        return None
    if drive_type is None:
        if os.name != "nt":
            return None
        import ctypes

        drive_type = ctypes.__dict__["windll"].kernel32.GetDriveTypeW
    if drive_type(drive[1] + "\\") != 4:  # DRIVE_REMOTE
        return None
    return (
        f"{drive[1]} is a mapped network drive, which exists only in the login that mapped it, not for a service or a"
        " scheduled task: write the share itself, smb://server/share/folder, with user and password_file"
    )
