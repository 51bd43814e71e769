"""The blocking half of a folder store: file system calls, made in worker threads only.

What must be true at every instant, also when it is the last one the machine does:
- An object has its name only once all its bytes are written: temporary name → write → fsync → link → fsync of
  the folders. With `durable_put=False` the two fsyncs come at `flush`.
- Nothing is written anywhere but into a folder that holds the marker. Every operation first opens the root and
  looks at the marker through that handle, and works relative to it, so that a disk that is unmounted meanwhile
  cannot turn a checked folder into its empty mount point.
- A call that was abandoned publishes nothing any more and removes its temporary file.
"""

from __future__ import annotations

import os
import secrets
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from adapters.directio import STEP_BYTES, read_large
from adapters.stores.calls import Call
from adapters.stores.openroot import SYNC, OpenRoot, opened, read_regular
from adapters.stores.oserrors import renaming
from adapters.stores.plainnames import TMP
from engine.block import Bytes
from engine.errors import ConfigError, ContentDiffers, ObjectMissing, StoreRejected, StoreUnavailable
from engine.names import FORMAT
from engine.ports import Room

MARKER_BYTES_MAX: Final = 4096
UNSYNCED_MAX: Final = 4096  # puts that may wait for a flush; later ones are made durable at once
PUBLISH_TRIES_MAX: Final = 8


class FolderFiles:
    """Objects as files under `root`; every method blocks and takes the `Call` it reports progress to."""

    def __init__(self, root: Path, owner: str, durable_put: bool) -> None:
        if not (owner.isascii() and owner.isalnum() and len(owner) <= 64):
            raise ValueError(f"an owner is 1 to 64 letters and digits, not {owner!r}")
        self.root = os.fspath(root.absolute())
        self._owner, self._durable_put = owner, durable_put
        self._lock = threading.Lock()
        self._marker: tuple[tuple[int, int], bytes] | None = None
        self._settled: set[str] = set()  # folders whose entry in their parent is durable
        self._unsynced: dict[str, None] = {}
        self._doubt: str | None = None  # why a flush can vouch for nothing any more

    @contextmanager
    def here(self, name: str = "") -> Iterator[OpenRoot]:
        """Open the root of a store that is there, and name every error of what is done in it.

        Raises: StoreUnavailable (away), and what the table of errors says.
        """
        where = f"folder {self.root}" + (f", object {name}" if name else "")
        with renaming(where):
            try:
                with opened(self.root) as at:
                    self._check_marker(at)
                    yield at
            except (FileNotFoundError, NotADirectoryError) as error:
                if os.path.isdir(self.root):
                    raise
                raise StoreUnavailable(f"folder {self.root} is not there: mount its disk") from error

    def _check_marker(self, at: OpenRoot) -> None:
        """Tell a store from an empty mount point, and this store from another one mounted in its place."""
        try:
            found = os.stat(at.path(FORMAT), dir_fd=at.fd)
        except FileNotFoundError as error:
            raise StoreUnavailable(
                f"folder {self.root} holds no Forebay store (no object {FORMAT!r}): mount its disk"
            ) from error
        identity = (found.st_dev, found.st_ino)
        if self._marker is not None and self._marker[0] == identity:
            return
        with read_regular(at, FORMAT) as (fd, _):
            content = os.read(fd, MARKER_BYTES_MAX)
        with self._lock:
            if self._marker is not None and self._marker[1] != content:
                raise StoreUnavailable(
                    f"folder {self.root} holds another store than when it was opened: mount the right disk"
                )
            if self._marker is not None and self._marker[0] != identity and self._unsynced:
                self._doubt = f"folder {self.root} was mounted anew before all that was put was durable: start again"
            self._marker = (identity, content)

    def probe(self, call: Call) -> None:
        """Return if the store is there."""
        with self.here():
            call.progress()

    def room(self, call: Call) -> Room:
        """See `Device.room`."""
        with self.here() as at:
            size, free = at.room()
            call.progress()
        return Room(size, free) if size else Room()

    def put(self, call: Call, name: str, data: Bytes) -> None:
        """See the port."""
        view = memoryview(data).cast("B")
        with self.here(name) as at:
            temporary = f"{TMP}/{self._owner}-{secrets.token_hex(12)}"
            written = False
            try:
                for _ in range(PUBLISH_TRIES_MAX):
                    standing = self._standing(call, at, name, view)
                    if standing == "same":
                        break
                    if not written:
                        at.make_folders(temporary)
                        at.make_folders(name)
                        at.write_new(temporary, view, self._durable_put, call)
                        written = True
                    call.progress()
                    if at.publish(temporary, name, replace=standing == "other size"):
                        break
                else:
                    raise StoreRejected(
                        f"folder {self.root}: object {name} cannot be written: remove what has its name"
                    )
            finally:
                if written:
                    at.discard(temporary)
            self._settle(call, at, name)

    def _standing(self, call: Call, at: OpenRoot, name: str, view: memoryview) -> str:
        """Compare what stands under `name`: "absent", "same" or "other size". Raises: StoreRejected."""
        try:
            with read_regular(at, name, SYNC) as (fd, size):
                if size != len(view):
                    return "other size"
                for offset in range(0, size, STEP_BYTES):
                    if os.read(fd, STEP_BYTES) != bytes(view[offset : offset + STEP_BYTES]):
                        raise ContentDiffers(f"folder {self.root}: object {name} exists with other content")
                    call.progress()
                if self._durable_put:
                    os.fsync(fd)  # whoever wrote it may not have come to its fsync
                return "same"
        except ObjectMissing:
            return "absent"

    def _settle(self, call: Call, at: OpenRoot, name: str) -> None:
        """Make the object's name durable, or leave it and its bytes to the next flush."""
        if not self._durable_put:
            with self._lock:
                self._unsynced[name] = None
                if len(self._unsynced) <= UNSYNCED_MAX:
                    return
            self._sync_file(at, name)
        self._sync_folders(call, at, name)
        with self._lock:
            self._unsynced.pop(name, None)

    def _sync_file(self, at: OpenRoot, name: str) -> None:
        with suppress(ObjectMissing), read_regular(at, name, SYNC) as (fd, _):
            os.fsync(fd)

    def _sync_folders(self, call: Call, at: OpenRoot, name: str) -> None:
        parts = name.split("/")[:-1]
        for count in range(len(parts)):
            folder = "/".join(parts[: count + 1])
            if folder not in self._settled:
                at.sync_folder("/".join(parts[:count]))
                self._settled.add(folder)
        at.sync_folder("/".join(parts))
        call.progress()

    def unsynced(self) -> list[str]:
        """Return the names of what was put and is not durable yet."""
        with self._lock:
            return list(self._unsynced)

    def sync_files(self, call: Call, names: Sequence[str]) -> None:
        """Make the bytes of objects durable: the first half of a flush, from several threads at once."""
        with self.here() as at, self._doubting():
            for name in names:
                self._sync_file(at, name)
                call.progress()

    def sync_names(self, call: Call, names: Sequence[str]) -> None:
        """Make objects durable whose bytes are: the second half of a flush."""
        with self.here() as at, self._doubting():
            for name in {name.rpartition("/")[0]: name for name in names}.values():
                self._sync_folders(call, at, name)
        with self._lock:
            for name in names:
                self._unsynced.pop(name, None)

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """Remember that something could not be made durable: the system says so once, and then that all is well."""
        if self._doubt is not None:
            raise StoreUnavailable(self._doubt)
        try:
            yield
        except OSError as error:
            self._doubt = f"folder {self.root}: not all that was put became durable ({error.strerror}): start again"
            raise

    def get(self, call: Call, name: str, offset: int, length: int | None) -> Bytes:
        """See the port."""
        with self.here(name) as at, read_regular(at, name) as (fd, size):
            left = max(0, size - offset) if length is None else min(length, max(0, size - offset))
            if (found := read_large(fd, offset, left, call.progress)) is not None:
                return found
            os.lseek(fd, offset, os.SEEK_SET)
            pieces: list[bytes] = []
            while left:
                piece = os.read(fd, min(left, STEP_BYTES))
                call.progress()
                if not piece:
                    break
                pieces.append(piece)
                left -= len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def stat(self, call: Call, name: str) -> int:
        """See the port."""
        with self.here(name) as at:
            try:
                found = os.stat(at.path(name), dir_fd=at.fd)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise ObjectMissing(name) from error
            call.progress()
            if not stat.S_ISREG(found.st_mode):
                raise ObjectMissing(name)
            return found.st_size

    def delete(self, call: Call, name: str) -> None:
        """See the port."""
        with self.here(name) as at:
            try:
                os.unlink(at.path(name), dir_fd=at.fd)
            except (FileNotFoundError, NotADirectoryError):
                return
            call.progress()
            self._settle(call, at, name)

    def sweep(self, call: Call) -> int:
        """Remove the temporary files that earlier calls of this owner left behind; return how many."""
        with self.here() as at:
            try:
                standing = os.listdir(os.path.join(self.root, TMP))
            except FileNotFoundError:
                return 0
            leftovers = [name for name in standing if name.startswith(f"{self._owner}-")]
            for name in leftovers:
                with suppress(FileNotFoundError):
                    os.unlink(at.path(f"{TMP}/{name}"), dir_fd=at.fd)
                call.progress()
            return len(leftovers)


def create_folder(call: Call, root: Path, marker: bytes) -> None:
    """Make `root` the folder of a new store; see `FolderStore.create`."""
    path = os.fspath(root.absolute())
    with renaming(f"folder {path}"):
        leftovers = _make_root(path)
        with opened(path) as at:
            for name in leftovers:
                at.discard(f"{TMP}/{name}")
            temporary = f"{TMP}/init-{secrets.token_hex(12)}"
            at.make_folders(temporary)
            at.write_new(temporary, memoryview(marker), True, call)
            try:
                if not at.publish(temporary, FORMAT, replace=False):
                    raise ConfigError(f"folder {path} was made a store by someone else just now: run init again")
            finally:
                at.discard(temporary)
            at.sync_folder("")
        with opened(os.path.dirname(path)) as parent:
            parent.sync_folder("")


def _make_root(path: str) -> list[str]:
    """Make the folder unless it is there and empty; return what an interrupted `create_folder` left in its tmp/."""
    parent = os.path.dirname(path)
    if not os.path.isdir(parent):
        raise ConfigError(f"folder {parent} does not exist: mount its disk or make it, then run init again")
    with suppress(FileExistsError):
        os.mkdir(path)
    if not os.path.isdir(path):
        raise ConfigError(f"{path} is not a folder: choose another path")
    standing = {name for name in os.listdir(path) if name != "lost+found"}
    if FORMAT in standing:
        raise ConfigError(f"folder {path} already holds a store: choose another folder, or use the one that is there")
    leftovers = os.listdir(os.path.join(path, TMP)) if TMP in standing else []
    if standing - {TMP} or not all(name.startswith("init-") for name in leftovers):
        raise ConfigError(f"folder {path} is not empty: choose an empty one, or one that does not exist yet")
    return leftovers
