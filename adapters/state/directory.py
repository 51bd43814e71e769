"""The state directory of one system: its lock, its incarnation, the journal of commits, and the ways to the rest.

```
lock, lock.pid       held by one session; the kernel lets go of it when the process dies
lock.offered         the holder only uploads, and gives way to a session; lock.wanted: one waits (turns.py)
upload-pause         until when nothing is uploaded by itself (pause.py)
incarnation          8 random bytes, made when the directory is first locked
newest               the restore point the state ends with
journal              the intent of a commit that may have happened
sessions             sessions begun and not ended by a published root
history.sqlite       sessions that ended, verifications of the cache, foreign packs opened once
verification.log     what verifications did, were skipped for, and when the next may begin; .1 to .4: older ones
volumes/<hash>/      map, staged pages and missing-block bitmap of a volume (maps.py), parts of its blocks (parts.py)
index/<store id>/    mirror of a store's index fragments; index/<store id>.acks: acknowledged packs no fragment lists
index/<cache id>.*   what is noted of a cache: packs it lost, how far its verification came and what it saw (upkeep.py),
                     what its last trimming told (trimnotes.py), what of older points was found in it (healnotes.py)
```
Everything here can be rebuilt from vault and volumes. Maps and origins of parts hold keys of blocks: folders and files
are the owner's alone.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec
from blake3 import blake3

from adapters.state import turns
from adapters.state.atomic import read_struct, write_struct
from adapters.state.files import Disk, write_failed
from adapters.state.history import HistoryFile
from adapters.state.locks import FileLock
from engine.errors import SessionRunning, StateCorrupt
from engine.staterecords import Intent, Newest

# Imported where they are used: whoever only looks at newest point and history needs no numpy.
if TYPE_CHECKING:
    from adapters.state.fragments import AckFile, MirrorFolder
    from adapters.state.healnotes import HealFile
    from adapters.state.maps import VolumeMap
    from adapters.state.trimnotes import TrimFile
    from adapters.state.upkeep import UpkeepFiles

SESSIONS_MAX: Final = 1024  # the oldest are forgotten: their packs are then left to an abandon note
NO_INCARNATION: Final = bytes(8)
_INCARNATION_MAGIC: Final = b"FBINCA\x00\x01"
_NEWEST_MAGIC: Final = b"FBNEWE\x00\x01"
_JOURNAL_MAGIC: Final = b"FBJOUR\x00\x01"
_SESSIONS_MAGIC: Final = b"FBSESS\x00\x01"


class _Incarnation(msgspec.Struct, frozen=True):
    value: bytes


class _Sessions(msgspec.Struct, frozen=True):
    ids: list[bytes]


class StateDirectory:
    """A state directory, locked for a session or opened to be looked at (implements `StateStore`).

    Get one by `open`; close it, or use it in a `with` statement.
    """

    def __init__(self, path: Path, disk: Disk, lock: FileLock | None) -> None:
        self.path, self._disk, self._lock = path, disk, lock
        self._guard = threading.Lock()
        self._volumes: dict[str, VolumeMap] = {}
        self._mirrors: dict[bytes, MirrorFolder] = {}
        self._acks: dict[bytes, AckFile] = {}
        self._history: HistoryFile | None = None
        self._incarnation = self._load_incarnation()

    @classmethod
    def open(
        cls, path: Path | str, *, lock: bool = True, disk: Disk | None = None, yields: bool = False
    ) -> StateDirectory:
        """Open the state directory at `path`; with `lock` as the one session that may change it.

        Without the lock nothing is created or changed, and a missing directory is an empty one. `yields`: waits for
        nobody, not even for who would give way, and gives way from the start.

        Raises: SessionRunning (another process holds the lock), SessionAborted (it cannot be made or locked).
        """
        path, disk = Path(path), disk or Disk()
        if not lock:
            return cls(path, disk, None)
        disk.make_folder(path)
        held = _acquire(path, yields)
        try:
            turns.begin(path)
            if yields:
                turns.offer(path)
            else:
                write_pid(path)
            return cls(path, disk, held)
        except BaseException:
            held.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release everything, the lock last; safe to call twice."""
        with self._guard:
            for volume in self._volumes.values():
                volume.close()
            for acks in self._acks.values():
                acks.close()
            if self._history is not None:
                self._history.close()
            self._volumes, self._acks, self._history = {}, {}, None
            if self._lock is not None:
                (self.path / "lock.pid").unlink(missing_ok=True)
                self._lock.release()
                self._lock = None

    @property
    def incarnation(self) -> bytes:
        """The random 8 bytes of this state directory; eight zeros: it was never used (only without the lock)."""
        return self._incarnation

    def renew_incarnation(self) -> bytes:
        """Choose a new incarnation (the state was cloned or rolled back). Raises: SessionAborted."""
        value = secrets.token_bytes(8)
        write_struct(self.path / "incarnation", _INCARNATION_MAGIC, _Incarnation(value), self._disk)
        self._incarnation = value
        return value

    def newest(self) -> Newest | None:
        """Return the restore point this state ends with. Raises: StateCorrupt."""
        return read_struct(self.path / "newest", _NEWEST_MAGIC, Newest, self._disk)

    def set_newest(self, newest: Newest) -> None:
        """Record, durably, the restore point this state ends with. Raises: SessionAborted."""
        write_struct(self.path / "newest", _NEWEST_MAGIC, newest, self._disk)

    def clear_newest(self) -> None:
        """Forget, durably, which restore point this state ends with. Raises: SessionAborted."""
        self._disk.remove(self.path / "newest")
        self._disk.sync_folder(self.path)

    def volume(self, name: str) -> VolumeMap:
        """Return the state of the volume configured as `name`, opened once.

        Raises: SessionAborted (an apply that a crash cut off could not be finished: the disk is full).
        """
        from adapters.state.maps import VolumeMap

        with self._guard:
            if name not in self._volumes:
                folder = self.path / "volumes" / blake3(name.encode()).hexdigest()[:16]
                writable = self._lock is not None
                self._volumes[name] = VolumeMap(
                    folder, self._disk, writable=writable, keep_sealed=writable and self._is_intended(name)
                )
            return self._volumes[name]

    def mirror(self, store: bytes) -> MirrorFolder:
        """Return the index mirror of the store with this id."""
        from adapters.state.fragments import MirrorFolder

        with self._guard:
            if store not in self._mirrors:
                folder = self.path / "index" / store.hex()
                self._mirrors[store] = MirrorFolder(folder, self._disk, writable=self._lock is not None)
            return self._mirrors[store]

    def acks(self, store: bytes) -> AckFile:
        """Return the log of acknowledged packs of the store with this id."""
        from adapters.state.fragments import AckFile

        with self._guard:
            if store not in self._acks:
                path = self.path / "index" / f"{store.hex()}.acks"
                self._acks[store] = AckFile(path, self._disk, writable=self._lock is not None)
            return self._acks[store]

    def upkeep(self, store: bytes) -> UpkeepFiles:
        """Return what is noted of the cache with this id."""
        from adapters.state.upkeep import UpkeepFiles

        return UpkeepFiles(self.path / "index", store, self._disk)

    def trim_notes(self, store: bytes) -> TrimFile:
        """Return what is noted of the last trimming of the cache with this id."""
        from adapters.state.trimnotes import TrimFile

        return TrimFile(self.path / "index", store, self._disk)

    def heal_notes(self, store: bytes) -> HealFile:
        """Return what is noted of older points in the cache with this id."""
        from adapters.state.healnotes import HealFile

        return HealFile(self.path / "index", store, self._disk)

    @property
    def history(self) -> HistoryFile:
        """Sessions that ended and foreign packs opened once (implements `History`)."""
        with self._guard:
            if self._history is None:
                self._history = HistoryFile(self.path / "history.sqlite", writable=self._lock is not None)
            return self._history

    def intent(self) -> Intent | None:
        """Return the open intent, if a commit may have been interrupted. Raises: StateCorrupt."""
        try:
            return read_struct(self.path / "journal", _JOURNAL_MAGIC, Intent, self._disk)
        except StateCorrupt as error:
            raise StateCorrupt(f"{error}; whether the last commit happened is not known here any more") from error

    def write_intent(self, intent: Intent) -> None:
        """Make the intent durable. Raises: SessionAborted."""
        write_struct(self.path / "journal", _JOURNAL_MAGIC, intent, self._disk)

    def clear_intent(self) -> None:
        """Remove the intent, durably. Raises: SessionAborted."""
        self._disk.remove(self.path / "journal")
        self._disk.sync_folder(self.path)

    def open_sessions(self) -> list[bytes]:
        """Return the ids (16 bytes) of sessions that were begun and not ended by a published root, oldest first.

        Raises: StateCorrupt.
        """
        found = read_struct(self.path / "sessions", _SESSIONS_MAGIC, _Sessions, self._disk)
        return found.ids if found else []

    def begin_session(self, session: bytes) -> None:
        """Record, durably, that a session has begun: it may leave packs behind.

        Raises: StateCorrupt, SessionAborted.
        """
        ids = [known for known in self.open_sessions() if known != session]
        begun = _Sessions([*ids, session][-SESSIONS_MAX:])
        write_struct(self.path / "sessions", _SESSIONS_MAGIC, begun, self._disk)

    def end_sessions(self) -> None:
        """Forget all open sessions: a published root names them as ended. Raises: SessionAborted."""
        self._disk.remove(self.path / "sessions")
        self._disk.sync_folder(self.path)

    def _load_incarnation(self) -> bytes:
        try:
            found = read_struct(self.path / "incarnation", _INCARNATION_MAGIC, _Incarnation, self._disk)
        except StateCorrupt:
            found = None  # a new one is what a state gets that is not known to be the one the newest root came from
        if found is not None and len(found.value) == len(NO_INCARNATION):
            return found.value
        if self._lock is None:
            return NO_INCARNATION
        # Whoever made the directory may have died before its name was durable; nothing it held would be.
        self._disk.sync_folder(self.path.absolute().parent)
        return self.renew_incarnation()

    def _is_intended(self, name: str) -> bool:
        """Tell whether an open intent may ask for what is staged of a volume."""
        try:
            intent = self.intent()
        except StateCorrupt:
            return False
        return intent is not None and name in intent.heads


def write_pid(path: Path) -> None:
    """Note for others who holds the lock of the state directory at `path`; a courtesy, hence not synced."""
    try:
        (path / "lock.pid").write_text(str(os.getpid()), encoding="ascii")
    except OSError as error:
        raise write_failed(path / "lock.pid", error) from error


def _acquire(path: Path, yields: bool) -> FileLock:
    lock = FileLock(path / "lock")
    try:
        if lock.acquire() or (not yields and turns.wait_for(lock, path)):
            return lock
    except OSError as error:
        raise write_failed(path / "lock", error) from error
    raise SessionRunning(
        f"another session{_holder(path)} runs on the state directory {path}: wait for its end, or stop it"
    )


def running_process(path: Path) -> int | None:
    """Return the process that runs a session on the state directory at `path`, as far as it noted that, or None.

    Whether a process that noted itself is still there is only asked where asking is harmless, so not on Windows.
    """
    noted = _noted_process(path)
    if noted is not None and sys.platform != "win32":
        try:
            os.kill(noted, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # another user's
    return noted


def _noted_process(path: Path) -> int | None:
    try:
        text = (path / "lock.pid").read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return None
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _holder(path: Path) -> str:
    noted = _noted_process(path)
    return "" if noted is None else f" (process {noted})"
