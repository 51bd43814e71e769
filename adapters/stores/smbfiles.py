"""The blocking half of a store in a share: requests over links of its own, made in worker threads only.

What must be true at every instant, also when it is the last one this machine or the server does:
- An object has its name only once all its bytes are durable on the server: temporary name in the same folder → write →
  flush → close → open again and look at the size → rename, which never replaces → flush.
- Nothing is written but into a folder that holds the marker, the same as when it was first looked at; the folder of the
  store itself is made by `create` alone.
- A call that was abandoned publishes nothing any more and removes its temporary file.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal, TypeVar

from smbprotocol.exceptions import SMBException, SMBResponseException

from adapters.stores.calls import Call
from adapters.stores.smberrors import ABSENT, ACCESS_DENIED, BUSY, COLLISION
from adapters.stores.smbhandles import closing, exists, make_folder, opened, suppress_absent
from adapters.stores.smblinks import Links
from adapters.stores.smbwire import (
    CREATE,
    DELETE,
    DELETE_ON_CLOSE,
    IS_FOLDER,
    OPEN_OR_CREATE,
    PLAIN_FILE,
    READ,
    READ_ATTRIBUTES,
    SHARE_READ,
    WRITE,
    Handle,
    Link,
)
from engine.block import Bytes
from engine.errors import ConfigError, ObjectMissing, StoreRejected, StoreUnavailable
from engine.names import FORMAT

T = TypeVar("T")

MARKER_BYTES_MAX: Final = 4096
PUBLISH_TRIES_MAX: Final = 8
# The first character of a temporary name: no object's name has it.
TMP: Final = "~"
LOCK: Final = f"{TMP}init-lock"  # open as long as a store is made
PAUSES_S: Final = (0.01, 0.2)  # between two looks at a file that others have open: the first one and the longest


class SmbFiles:
    """Objects as files in `folder`, a path from the share's root; methods block and take the `Call` they report to.

    `busy_s`: how long a file that others have open is waited for.
    """

    def __init__(self, links: Links, folder: str, owner: str, busy_s: float) -> None:
        if not (owner.isascii() and owner.isalnum() and len(owner) <= 64):
            raise ValueError(f"an owner is 1 to 64 letters and digits, not {owner!r}")
        self._links, self.folder, self._owner, self._busy_s = links, folder, owner, busy_s
        self._lock = threading.Lock()
        self._marker: tuple[Handle, bytes] | None = None

    def _at(self, name: str) -> str:
        return f"{self.folder}/{name}" if name else self.folder

    def here(self, call: Call, work: Callable[[Link], T], name: str = "") -> T:
        """Return `work(link)`, done in a store that is there; errors are named. Raises: as `Links.use`."""

        def checked(link: Link) -> T:
            self.check_marker(link)
            call.progress()
            return work(link)

        return self._links.use(call, checked, name)

    def looking(self, call: Call, work: Callable[[Link], T], name: str) -> T:
        """Return `work(link)`, which changes nothing, as `here`, in fewer round trips. Raises: as `Links.use`."""
        return self._links.use(call, lambda link: self._beside_marker(link, lambda: work(link)), name)

    def _beside_marker(self, link: Link, work: Callable[[], T]) -> T:
        """Return `work()`, which changes nothing, while the server is asked for the marker: that one counts first."""
        if (known := self._marker) is None:
            self.check_marker(link)
            return work()
        looked = link.peek_later(self._at(FORMAT), PLAIN_FILE)
        try:
            return work()
        finally:
            try:
                found = looked()
                same = (known[0].created, known[0].written) == (found.created, found.written)
            except SMBResponseException:
                same = False
            if not same:
                self.check_marker(link)

    def check_marker(self, link: Link) -> None:
        """Tell this store from an empty folder, and from another store in its place."""
        try:
            if (known := self._marker) is not None:
                found = link.peek(self._at(FORMAT), PLAIN_FILE)
                if (known[0].created, known[0].written) == (found.created, found.written):
                    return
            with opened(link, self._at(FORMAT), READ, PLAIN_FILE) as found:
                content = link.read(found, 0, MARKER_BYTES_MAX)
        except SMBResponseException as error:
            if error.status not in ABSENT:
                raise
            raise StoreUnavailable(
                f"{self._links.where} holds no Forebay store (no object {FORMAT!r}): check the path, and its disk"
            ) from error
        with self._lock:
            if self._marker is not None and self._marker[1] != content:
                raise StoreUnavailable(
                    f"{self._links.where} holds another store than when it was opened: put the right one back"
                )
            self._marker = (found, content)

    def probe(self, call: Call) -> None:
        """Return if the store is there."""
        self.here(call, lambda link: None)

    def put(self, call: Call, name: str, data: Bytes) -> None:
        """See the port."""
        view = memoryview(data).cast("B")
        self._links.use(call, lambda link: self._put(call, link, name, view), name)

    def _put(self, call: Call, link: Link, name: str, view: memoryview) -> None:
        folder = name.rpartition("/")[0]
        temporary = f"{folder}/{self._temporary()}" if folder else self._temporary()
        written = False
        standing = self._beside_marker(link, lambda: self._standing(call, link, name, view))
        call.progress()
        try:
            for tried in range(PUBLISH_TRIES_MAX):
                if tried:
                    standing = self._standing(call, link, name, view)
                if standing == "same":
                    return
                if not written:
                    written = True
                    self._write_new(call, link, temporary, view)
                call.progress()
                if self._publish(call, link, temporary, name, len(view), replace=standing == "other size"):
                    written = False
                    return
            raise StoreRejected(f"{self._links.where}: object {name} cannot be written: remove what has its name")
        finally:
            if written:
                with suppress(SMBException, OSError):
                    self._remove(link, temporary)

    def _temporary(self) -> str:
        return f"{TMP}{self._owner}-{secrets.token_hex(12)}"

    def _standing(self, call: Call, link: Link, name: str, view: memoryview) -> str:
        """Compare what stands under `name`: "absent", "same" or "other size". Raises: StoreRejected."""

        def compare() -> str:
            with opened(link, self._at(name), READ, PLAIN_FILE) as found:
                if found.size != len(view):
                    return "other size"
                offset = 0
                while offset < found.size:
                    piece = link.read(found, offset, min(link.step_bytes(), found.size - offset))
                    if not piece or piece != bytes(view[offset : offset + len(piece)]):
                        raise StoreRejected(f"{self._links.where}: object {name} exists with other content")
                    offset += len(piece)
                    call.progress()
                return "same"

        try:
            return self._patiently(call, compare)
        except SMBResponseException as error:
            if error.status in ABSENT:
                return "absent"
            raise

    def _write_new(self, call: Call, link: Link, name: str, view: memoryview) -> None:
        """Write a file that must not exist, durably, in folders that are made if they are missing."""
        try:
            file = self._create_new(link, name)
        except SMBResponseException as error:
            if error.status not in ABSENT:
                raise
            self._make_folders(link, name)
            file = self._create_new(link, name)
        with closing(link, file):
            link.write_all(file, view, call.progress)
            link.flush(file)
            call.progress()

    def _create_new(self, link: Link, name: str) -> Handle:
        return link.create(self._at(name), WRITE, PLAIN_FILE, disposition=CREATE, sharing=SHARE_READ)

    def _make_folders(self, link: Link, name: str) -> None:
        """Make the folders an object's name needs, below that of the store only."""
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            make_folder(link, self._at("/".join(parts[:count])))

    def _publish(self, call: Call, link: Link, temporary: str, name: str, size: int, *, replace: bool) -> bool:
        """Give a written file its name; False if, without `replace`, the name exists by now."""

        def reopen() -> Handle:  # it may not be closed yet
            return link.create(self._at(temporary), WRITE | DELETE, PLAIN_FILE)

        # Opened anew: what the server says now is what it keeps, not what this handle wrote.
        with closing(link, self._patiently(call, reopen)) as file:
            if file.size != size:
                raise StoreUnavailable(
                    f"{self._links.where}: object {name} has {file.size} of {size} bytes after it was written: check"
                    " the server's disk"
                )

            def rename() -> None:
                call.progress()
                link.rename(file, self._at(name), replace=replace)

            try:
                self._patiently(call, rename, denied=replace)
            except SMBResponseException as error:
                if error.status != COLLISION or replace:
                    raise
                return False
            link.flush(file)
            call.progress()
            return True

    def _patiently(self, call: Call, work: Callable[[], T], *, denied: bool = False) -> T:
        """Return `work()`, done again for a while as long as others have its file open.

        `denied`: that is how a server says so of a name that is to be replaced.
        """
        until_s, pause_s = time.monotonic() + self._busy_s, PAUSES_S[0]
        waiting = threading.Event()
        while True:
            try:
                return work()
            except SMBResponseException as error:
                busy = error.status in BUSY or (denied and error.status == ACCESS_DENIED)
                if not busy or time.monotonic() >= until_s:
                    raise
            waiting.wait(pause_s)
            pause_s = min(2 * pause_s, PAUSES_S[1])
            call.progress()

    def get(self, call: Call, name: str, offset: int, length: int | None) -> Bytes:
        """See the port."""

        def read(link: Link) -> Bytes:
            with self._naming_absent(name):
                file = self._patiently(call, lambda: link.create(self._at(name), READ, PLAIN_FILE))
            with closing(link, file):
                left = max(0, file.size - offset)
                left = left if length is None else min(length, left)
                pieces = link.read_all(file, offset, left, call.progress)
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

        return self.looking(call, read, name)

    def stat(self, call: Call, name: str) -> int:
        """See the port."""

        def look(link: Link) -> int:
            with self._naming_absent(name):
                return self._patiently(call, lambda: link.peek(self._at(name), PLAIN_FILE)).size

        return self.looking(call, look, name)

    @contextmanager
    def _naming_absent(self, name: str) -> Iterator[None]:
        try:
            yield
        except SMBResponseException as error:
            if error.status in ABSENT:
                raise ObjectMissing(name) from error
            raise

    def delete(self, call: Call, name: str) -> None:
        """See the port."""

        def remove(link: Link) -> None:
            with suppress_absent():
                self._patiently(call, lambda: self._remove(link, name))

        self.here(call, remove, name)

    def _remove(self, link: Link, name: str) -> None:
        with opened(link, self._at(name), DELETE | READ_ATTRIBUTES, PLAIN_FILE | DELETE_ON_CLOSE):
            pass

    def sweep(self, call: Call) -> int:
        """Remove the temporary files that earlier calls of this owner left behind; return how many.

        They lie beside the objects they were to become: in the folders of this owner, and in those above.
        """

        def look(link: Link) -> int:
            found = 0
            tops = [each.name for each in link.entries(self.folder, "*") if each.attributes & IS_FOLDER]
            call.progress()
            for folder in ["", *tops, *(f"{top}/{self._owner}" for top in tops)]:
                with suppress_absent():
                    for each in list(link.entries(self._at(folder), f"{TMP}{self._owner}-*")):
                        with suppress_absent():
                            self._remove(link, f"{folder}/{each.name}" if folder else each.name)
                            found += 1
                        call.progress()
            return found

        return self.here(call, look)

    def look(self, call: Call) -> Literal["store", "new"]:
        """Tell a store from a place where one can be made. Raises: ConfigError, and as `Links.use`."""
        return self._links.use(call, self._look)

    def _look(self, link: Link) -> Literal["store", "new"]:
        where, (parent, slash, _) = self._links.where, self.folder.rpartition("/")
        if exists(link, self._at(FORMAT)):
            return "store"
        try:
            names = [each.name for each in link.entries(self.folder, "*")]
        except SMBResponseException as error:
            if error.status not in ABSENT:
                raise
            if exists(link, self.folder):
                raise ConfigError(f"{where} is not a folder: choose another path") from error
            if slash and not exists(link, parent):
                raise ConfigError(f"there is no folder {parent!r} in the share of {where}: make it") from error
            return "new"
        if any(not name.startswith(f"{TMP}init-") for name in names):
            raise ConfigError(f"{where} is not empty and holds no Forebay store: choose an empty folder")
        return "new"

    def try_write(self, call: Call) -> None:
        """Return if files can be made, renamed and removed where the store is, or is to be. Raises: as `Links.use`."""

        def write(link: Link) -> None:
            folder = self.folder if exists(link, self.folder) else self.folder.rpartition("/")[0]
            names = [f"{folder}/{self._temporary()}" if folder else self._temporary() for _ in range(2)]
            with closing(link, link.create(names[0], WRITE | DELETE, PLAIN_FILE, disposition=CREATE)) as file:
                link.write_all(file, memoryview(b"\0"), call.progress)
                link.rename(file, names[1], replace=False)
            with opened(link, names[1], DELETE | READ_ATTRIBUTES, PLAIN_FILE | DELETE_ON_CLOSE):
                pass

        self._links.use(call, write)

    def create(self, call: Call, marker: bytes) -> None:
        """Make the folder of a new store and put its format object. Raises: ConfigError, and as `Links.use`."""
        where, options = self._links.where, PLAIN_FILE | DELETE_ON_CLOSE

        def make(link: Link) -> None:
            self._require_new(link)
            make_folder(link, self.folder)
            # Of two that rename at the same moment Samba lets both; a file that is open for one alone has one opener.
            try:
                lock = link.create(self._at(LOCK), WRITE | DELETE, options, disposition=OPEN_OR_CREATE, sharing=0)
            except SMBResponseException as error:
                if error.status not in BUSY:
                    raise
                raise ConfigError(f"{where} is made a store by someone else just now: run init again") from error
            with closing(link, lock, waiting=True):
                self._require_new(link)
                put_marker(link)

        def put_marker(link: Link) -> None:
            for each in list(link.entries(self.folder, f"{TMP}init-*")):
                with suppress_absent():
                    if each.name != LOCK:
                        self._remove(link, each.name)
            temporary = f"{TMP}init-{secrets.token_hex(12)}"
            self._write_new(call, link, temporary, memoryview(marker))
            if not self._publish(call, link, temporary, FORMAT, len(marker), replace=False):
                self._remove(link, temporary)
                raise ConfigError(f"{where} was made a store by someone else just now: run init again")

        self._links.use(call, make)

    def _require_new(self, link: Link) -> None:
        if self._look(link) == "store":
            raise ConfigError(f"{self._links.where} already holds a store: choose another folder, or use that one")
