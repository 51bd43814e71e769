"""What the configuration file may say, as frozen structs: every key, its type, default and bounds.

This is the only list of settings: `load` reads the file with it, and a test holds deploy/forebay.toml against it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from adapters.config.buckets import Addressing, Bucket, Encryption, LockMode, bucket_of, is_s3
from adapters.config.places import Place, Share, SmbUrl, is_smb, smb_of
from adapters.config.units import MIB, TIB
from engine.policy import DAY_MINUTES, DAY_S, BusinessHours, TrimPolicy, VerifyPolicy

# Packs in flight are bounded per lane, the open one included (DESIGN.md §4); the queue comes on top.
LANE_BYTES_MAX: Final = 128 * MIB
MEMORY_BYTES_MAX: Final = 350 * MIB

S3_RECONNECT_WINDOW_S: Final = 1800.0
OnLoss: TypeAlias = Literal["restart", "resume"]
S3_SETTINGS: Final = frozenset(Bucket.__struct_fields__) - {"bucket", "prefix"}


def _size(least: int, most: int) -> Meta:
    return Meta(ge=least, le=most, extra={"unit": "size"})


def _duration(least_s: float, most_s: float) -> Meta:
    return Meta(ge=least_s, le=most_s, extra={"unit": "duration"})


def _share(least: float, most: float) -> Meta:
    return Meta(ge=least, le=most, extra={"unit": "percent"})


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
            " or smb://server[:port]/share/folder, or s3://bucket/prefix"
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
HttpUrl = Annotated[
    str,
    _name(
        "an http:// or https:// URL with a host, perhaps a port, and no login",
        r"(?i)^https?://([\w.-]{1,253}|\[[0-9a-f:.]{2,45}\])(:\d{1,5})?/?\Z",
    ),
]
Region = Annotated[str, _name("1 to 64 of a-z A-Z 0-9 -", r"^[A-Za-z0-9-]{1,64}\Z")]
Profile = Annotated[str, _name("1 to 64 letters, digits or . _ -", r"^[\w.-]{1,64}\Z")]
StorageClass = Annotated[
    str,
    _name(
        "1 to 64 of A-Z 0-9 _, and none whose objects must be thawed before they are read",
        r"^(?!(GLACIER|DEEP_ARCHIVE)\Z)[A-Z0-9_]{1,64}\Z",
    ),
]
KmsKey = Annotated[str, _name("the id or the ARN of a key", r"^[\w:/.-]{1,2048}\Z")]
DayWindow = Annotated[
    tuple[int, int],
    Meta(extra={"unit": "window", "allowed": 'two different times of a day, "HH:MM-HH:MM"'}),
]
TimeOfDay = Annotated[int, Meta(extra={"unit": "time", "allowed": 'a time of day, "HH:MM"'})]
Days = Annotated[
    frozenset[int], Meta(extra={"unit": "days", "allowed": 'days of the week, as "mon-fri" or "mon,wed,sat-sun"'})
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
    endpoint_url: HttpUrl | None = None
    region: Region | None = None
    addressing: Addressing = "auto"
    credentials_file: Path | None = None
    profile: Profile | None = None
    ca_file: Path | None = None
    proxy: HttpUrl | None = None
    storage_class: StorageClass | None = None
    encryption: Encryption = "default"
    kms_key: KmsKey | None = None
    lock_s: Annotated[float, _duration(86_400, 3650 * 86_400)] | None = msgspec.field(default=None, name="lock")
    lock_mode: LockMode = "governance"
    connect_timeout_s: Annotated[float, _duration(1, 300)] = msgspec.field(default=15.0, name="connect_timeout")
    retries_max: Annotated[int, Meta(ge=0, le=100)] = 5
    retry_within_s: Annotated[float, _duration(1, 3600)] = msgspec.field(default=60.0, name="retry_within")
    own_reconnect_window_s: Annotated[float, _duration(0, 86_400)] | None = msgspec.field(
        default=None, name="reconnect_window"
    )
    reconnect_total_s: Annotated[float, _duration(0, 86_400)] = msgspec.field(default=7200.0, name="reconnect_total")
    own_on_loss: OnLoss | None = msgspec.field(default=None, name="on_loss")
    share: Literal["vault", "own"] = "vault"
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    pack_size_bytes: Annotated[int, _size(4 * MIB, 64 * MIB)] = msgspec.field(default=16 * MIB, name="pack_size")
    paranoid: bool = False
    delta: bool = True

    @property
    def place(self) -> Place:
        """What the URL names: a folder of the machine this runs on, one in a share, or a bucket."""
        if is_s3(self.url):
            bucket, prefix = bucket_of(self.url)
            return Bucket(bucket=bucket, prefix=prefix, **{key: getattr(self, key) for key in S3_SETTINGS})
        if is_smb(self.url):
            return Share(smb_of(self.url), "vault", self.user, self.password_file, self.smb_encrypt)
        return Path(folder_of(self.url, windows=os.name == "nt"))

    @property
    def reconnect_window_s(self) -> float:
        """How long a lost vault is waited for: a server on the internet comes back, a share seldom (DESIGN.md §3.2)."""
        if self.own_reconnect_window_s is not None:
            return self.own_reconnect_window_s
        return S3_RECONNECT_WINDOW_S if is_s3(self.url) else 0.0

    @property
    def on_loss(self) -> OnLoss:
        """What a session that lost its vault does with what it sent there."""
        return self.own_on_loss or ("resume" if is_s3(self.url) else "restart")


class Verify(msgspec.Struct, frozen=True, kw_only=True):
    """`[cache] verify`: when the cache is verified."""

    every_s: Annotated[float, _duration(3600, 720 * 3600)] = msgspec.field(default=24 * 3600.0, name="every")
    in_business_hours: bool = True
    force_after_s: Annotated[float, _duration(3600, 720 * 3600)] = msgspec.field(
        default=27 * 3600.0, name="force_after"
    )
    read_share: Annotated[float, _share(0, 1)] = msgspec.field(default=0.05, name="read")

    @property
    def policy(self) -> VerifyPolicy:
        """The same as the engine has it."""
        return VerifyPolicy(self.every_s, self.in_business_hours, self.force_after_s, self.read_share)


class Trim(msgspec.Struct, frozen=True, kw_only=True):
    """`[cache] trim`: how much the cache may hold. None: off."""

    min_free_share: Annotated[float, _share(0.01, 0.95)] = msgspec.field(default=0.15, name="min_free")
    max_size_bytes: Annotated[int, _size(256 * MIB, 1024 * TIB)] | None = msgspec.field(default=None, name="max_size")
    max_age_s: Annotated[float, _duration(0, 36_500 * DAY_S)] | None = msgspec.field(default=None, name="max_age")

    @property
    def policy(self) -> TrimPolicy:
        """The same as the engine has it; of `max_age` whole days count."""
        days = None if self.max_age_s is None else int(self.max_age_s // DAY_S)
        return TrimPolicy(self.min_free_share, self.max_size_bytes, days)


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
    verify: Verify = Verify()
    heal: Literal["current", "points"] = "current"
    trim: Trim = Trim()

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


class Hours(msgspec.Struct, frozen=True, kw_only=True):
    """`[schedule] business_hours`: when people work, in local time. An end before the start is on the next day."""

    days: Days = BusinessHours().days
    start_minute: TimeOfDay = msgspec.field(default=BusinessHours().start_minute, name="start")
    end_minute: TimeOfDay = msgspec.field(default=BusinessHours().end_minute, name="end")

    def __post_init__(self) -> None:
        """Refuse hours of no length. Raises: ValueError, with the reason."""
        if self.start_minute == DAY_MINUTES:
            raise ValueError('start = "24:00" is no start: write "00:00"')
        if self.start_minute == self.end_minute:
            raise ValueError('start and end are the same: write "00:00" to "24:00" for whole days')

    @property
    def policy(self) -> BusinessHours:
        """The same as the engine has it."""
        return BusinessHours(self.days, self.start_minute, self.end_minute)


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """`[schedule]`: what is done when."""

    business_hours: Hours = Hours()


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The whole file. `source` is where it was read from."""

    system: System
    volumes: tuple[Volume, ...]
    vault: Vault
    cache: Cache | None = None
    spool: Spool | None = None
    queue: Queue = Queue()
    schedule: Schedule = Schedule()
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
    "": frozenset({"bandwidth"}),
    "system": frozenset(),
    "volume": frozenset(),
    "vault": frozenset(),
    "cache": frozenset(),
    "cache.verify": frozenset(),
    "cache.trim": frozenset(),
    "spool": frozenset(),
    "queue": frozenset(),
    "schedule": frozenset({"backup", "retry_every", "retry_for"}),
    "schedule.business_hours": frozenset(),
}


def folder_of(url: str, *, windows: bool) -> str:
    """Return the absolute path a file:// URL names, in the form of Windows or of POSIX.

    Raises: ValueError, with the reason.
    """
    from urllib.parse import unquote, urlsplit

    if not url.lower().startswith("file://"):
        raise ValueError("it is no file://, smb:// or s3:// URL")
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
