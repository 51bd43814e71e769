"""What the configuration file may say, as frozen structs: every key, its type, default and bounds.

This is the only list of settings: `load` reads the file with it, and a test holds deploy/forebay.toml against it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from adapters.config.places import Place, Share, SmbUrl, is_smb, smb_of
from adapters.config.units import MIB, TIB

# Packs in flight are bounded per lane, the open one included (DESIGN.md §4); the queue comes on top.
LANE_BYTES_MAX: Final = 128 * MIB
MEMORY_BYTES_MAX: Final = 350 * MIB


def _size(least: int, most: int) -> Meta:
    return Meta(ge=least, le=most, extra={"unit": "size"})


def _duration(least_s: float, most_s: float) -> Meta:
    return Meta(ge=least_s, le=most_s, extra={"unit": "duration"})


def _name(allowed: str, pattern: str) -> Meta:
    return Meta(pattern=pattern, extra={"allowed": allowed})


SystemName = Annotated[
    str,
    _name(
        "1 to 64 letters, digits, spaces or . _ -, beginning and ending with a letter or digit",
        r"^[^\W_]([\w .-]{0,62}[^\W_])?\Z",
    ),
]
VolumeName = Annotated[
    str,
    _name(
        "1 to 64 of a-z A-Z 0-9 . _ -, beginning with a letter or digit",
        r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z",
    ),
]
VaultUrl = Annotated[
    str,
    Meta(
        extra={
            "allowed": "a file:// URL with an absolute path, such as file:///srv/vault,"
            " or smb://server[:port]/share/folder"
        }
    ),
]
NearPath = Annotated[
    Path | SmbUrl, Meta(extra={"unit": "place", "allowed": "a path, or smb://server[:port]/share/folder"})
]
UserName = Annotated[
    str,
    _name("user or DOMAIN\\user or user@domain", r"^[^\x00-\x1f\\/]{1,128}(\\[^\x00-\x1f\\/]{1,128})?\Z"),
]
DayWindow = Annotated[
    tuple[int, int],
    Meta(extra={"unit": "window", "allowed": 'two different times of a day, "HH:MM-HH:MM"'}),
]


def default_state_dir() -> Path:
    """Return where local state lives when the file does not say."""
    if os.name == "nt":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData"), "Forebay")
    return Path("/var/lib/forebay")


class System(msgspec.Struct, frozen=True, kw_only=True):
    """`[system]`: the protected machine."""

    name: SystemName
    state_dir: Path = msgspec.field(default_factory=default_state_dir)
    identity_file: Path = Path()  # stands for <state_dir>/identity

    def __post_init__(self) -> None:
        """Put the default identity file where the state is."""
        if self.identity_file == Path():
            msgspec.structs.force_setattr(self, "identity_file", self.state_dir / "identity")


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """One `[[volume]]`: a device or an image file."""

    name: VolumeName
    path: Path
    hints: Path | None = None
    on_read_error: Literal["fail", "skip"] = "fail"


class Vault(msgspec.Struct, frozen=True, kw_only=True):
    """`[vault]`: the remote store. `place` is what `url` names."""

    url: VaultUrl
    user: UserName | None = None
    password_file: Path | None = None
    smb_encrypt: bool = True
    connect_timeout_s: Annotated[float, _duration(1, 300)] = msgspec.field(default=15.0, name="connect_timeout")
    retries_max: Annotated[int, Meta(ge=0, le=100)] = 5
    retry_within_s: Annotated[float, _duration(1, 3600)] = msgspec.field(default=60.0, name="retry_within")
    reconnect_window_s: Annotated[float, _duration(0, 86_400)] = msgspec.field(default=0.0, name="reconnect_window")
    reconnect_total_s: Annotated[float, _duration(0, 86_400)] = msgspec.field(default=7200.0, name="reconnect_total")
    on_loss: Literal["restart", "resume"] = "restart"
    share: Literal["vault", "own"] = "vault"
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    pack_size_bytes: Annotated[int, _size(4 * MIB, 64 * MIB)] = msgspec.field(default=16 * MIB, name="pack_size")
    paranoid: bool = False
    delta: bool = True

    @property
    def place(self) -> Place:
        """What the URL names: a folder of the machine this runs on, or one in a share."""
        if is_smb(self.url):
            return Share(smb_of(self.url), "vault", self.user, self.password_file, self.smb_encrypt)
        return Path(folder_of(self.url, windows=os.name == "nt"))


class Cache(msgspec.Struct, frozen=True, kw_only=True):
    """`[cache]`: the near store; left out, there is none."""

    path: NearPath
    user: UserName | None = None
    password_file: Path | None = None
    smb_encrypt: bool = True
    enabled: bool = True
    retries_max: Annotated[int, Meta(ge=0, le=1000)] = 20
    on_error: Literal["warn", "error", "fail"] = "warn"
    on_slow: Literal["wait", "skip"] = "wait"
    skip_after_s: Annotated[float, _duration(1, 3600)] = msgspec.field(default=10.0, name="skip_after")

    @property
    def place(self) -> Place:
        """What `path` names: a folder of this machine, or one in a share."""
        if isinstance(self.path, SmbUrl):
            return Share(self.path, "cache", self.user, self.password_file, self.smb_encrypt)
        return self.path


class Spool(msgspec.Struct, frozen=True, kw_only=True):
    """`[spool]`: the folder that stands in for the vault while it is away; left out, there is no fallback.

    `max_size_bytes`: None: bounded by the disk. `upload_window_minutes`: (start, end) in minutes of the local day,
    the end the lesser one where the window crosses midnight; None: at any time.
    """

    path: Path
    max_size_bytes: Annotated[int, _size(256 * MIB, 1024 * TIB)] | None = msgspec.field(default=None, name="max_size")
    upload_window_minutes: DayWindow | None = msgspec.field(default=None, name="upload_window")


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """`[queue]`: the transmission queue both lanes share."""

    size_bytes: Annotated[int, _size(8 * MIB, 222 * MIB)] = msgspec.field(default=64 * MIB, name="size")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `source` is where it was read from."""

    system: System
    volumes: tuple[Volume, ...]
    vault: Vault
    cache: Cache | None = None
    spool: Spool | None = None
    queue: Queue = Queue()
    source: Path = Path()

    @property
    def active_cache(self) -> Cache | None:
        """The cache, unless there is none or it is switched off."""
        return self.cache if self.cache is not None and self.cache.enabled else None

    @property
    def memory_bytes(self) -> int:
        """What a session holds at most: the queue and the packs in flight of each lane."""
        lanes = 1 if self.active_cache is None else 2
        return self.queue.size_bytes + lanes * LANE_BYTES_MAX


# Settings DESIGN.md names that this version does not have yet: a promise must never be ignored in silence.
LATER: Final[dict[str, frozenset[str]]] = {
    "": frozenset({"schedule", "bandwidth"}),
    "system": frozenset(),
    "volume": frozenset(),
    "vault": frozenset({"region", "endpoint_url", "credentials_file", "lock"}),
    "cache": frozenset({"verify", "trim"}),
    "spool": frozenset(),
    "queue": frozenset(),
}


def folder_of(url: str, *, windows: bool) -> str:
    """Return the absolute path a file:// URL names, in the form of Windows or of POSIX.

    Raises: ValueError, with the reason.
    """
    from urllib.parse import unquote, urlsplit

    scheme = url.partition(":")[0].lower()
    if scheme == "s3":
        raise ValueError(f"{scheme}:// is not supported by this version yet")
    if not url.lower().startswith("file://"):
        raise ValueError("it is no file:// or smb:// URL")
    if "?" in url or "#" in url:
        raise ValueError("? and # must be written %3F and %23")
    parts = urlsplit(url)
    if parts.netloc.lower() not in ("", "localhost"):
        raise ValueError(
            f"it names the host {parts.netloc!r}: a local path begins after three slashes, a share is written smb://"
        )
    path = unquote(parts.path, errors="strict")
    if "\0" in path:
        raise ValueError("it holds a zero byte")
    if not windows:
        if path.strip("/") == "":
            raise ValueError("it names no folder")
        return path
    drive = path.lstrip("/")
    if not (len(drive) > 3 and drive[0].isascii() and drive[0].isalpha() and drive[1:3] in (":/", ":\\")):
        raise ValueError("it names no folder on a drive, as file:///C:/vault does")
    return drive.replace("/", "\\")
