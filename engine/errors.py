"""The one tree of errors. Every message is a clear sentence that names the thing and what to do about it."""

from __future__ import annotations


class ForebayError(Exception):
    """Base of everything Forebay raises on purpose; `str(error)` is shown to the user as it is."""


class ConfigError(ForebayError):
    """The configuration, the command line or a passphrase is wrong; nothing was changed. Exit code 2."""


class SessionRunning(ForebayError):
    """Another session holds this state directory. Exit code 5."""


class SourceError(ForebayError):
    """A volume could not be read.

    `volume` is the configured name; `offset` and `length` are bytes; `reason` is the system's own words.
    """

    def __init__(self, volume: str, offset: int, length: int, reason: str) -> None:
        what = f"reading {length} bytes at offset {offset} failed" if length else "it cannot be read"
        super().__init__(f"volume {volume!r}: {what}: {reason}")
        self.volume, self.offset, self.length, self.reason = volume, offset, length, reason


class SourceGone(SourceError):
    """The volume as a whole is not there, or not any more: no bad range that could be skipped. `length` may be 0."""


class StoreError(ForebayError):
    """Base of what an object store, or something read back from one, may raise."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or used now: try again; may become a change of route."""


class StoreThrottled(StoreUnavailable):
    """The store is there and asks to be asked less: no outage until it lasts."""


class StoreRejected(StoreError):
    """The store answered and refused (rights, quota, no such bucket, disk full): trying again does not help."""


class ContentDiffers(StoreRejected):
    """Something else of the same size lies under the name of what was to be put: it was damaged there, or forged."""


class ObjectMissing(StoreError):
    """The named object does not exist in a store that is there. `name` is the object's name."""

    def __init__(self, name: str, message: str | None = None) -> None:
        super().__init__(message or f"object {name} does not exist in the store")
        self.name = name


class StoreCorrupt(StoreError):
    """Something read back from a store is not what it claims to be. `name` is the object's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"object {name} is damaged: {reason}")
        self.name, self.reason = name, reason


class FormatTooNew(StoreError):
    """The store, or an object in it, was written by a newer version and must not be touched by this one."""


class StateCorrupt(ForebayError):
    """Local state does not hold together; everything but the identity can be rebuilt from vault and volume."""


class SessionAborted(ForebayError):
    """The session ended without a restore point; the message says why. Exit code 1."""


class RestoreError(ForebayError):
    """A restore could not be started or finished; the message says why. Exit code 1."""
