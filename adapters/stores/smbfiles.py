"""The blocking half of a store in a share: requests over links of its own, made in worker threads only.

What must be true at every instant, also when it is the last one this machine or the server does:
- An object has its name only once all its bytes are durable on the server (`smbput`).
- Nothing is written but into a folder that holds the marker, the same as when it was first looked at (`smbplace`); the
  folder of the store itself is made by `create` alone.
- A call that was abandoned publishes nothing any more and removes its temporary file.
"""

from __future__ import annotations

import secrets
from typing import Final, Literal

from smbprotocol.exceptions import SMBResponseException

from adapters.stores.calls import Call
from adapters.stores.smberrors import ABSENT, BUSY
from adapters.stores.smbhandles import closing, exists, make_folder, suppress_absent
from adapters.stores.smblinks import Links
from adapters.stores.smbmessages import (
    CREATE,
    DELETE,
    DELETE_ON_CLOSE,
    IS_FOLDER,
    OPEN_OR_CREATE,
    PLAIN_FILE,
    WRITE,
)  # fmt: skip
from adapters.stores.smbpace import PIECE_FIRST
from adapters.stores.smbplace import Place, naming_absent
from adapters.stores.smbput import TMP, Putter
from adapters.stores.smbwire import Link
from engine.block import Bytes
from engine.errors import ConfigError
from engine.names import FORMAT
from engine.ports import Room

LOCK: Final = f"{TMP}init-lock"  # open as long as a store is made
FOLDERS_AT_ONCE: Final = 4  # read over one link


class SmbFiles:
    """Objects as files in `folder`, a path from the share's root; methods block and take the `Call` they report to.

    `busy_s`: how long a file that others have open is waited for.
    """

    def __init__(self, links: Links, folder: str, owner: str, busy_s: float) -> None:
        if not (owner.isascii() and owner.isalnum() and len(owner) <= 64):
            raise ValueError(f"an owner is 1 to 64 letters and digits, not {owner!r}")
        self._links, self.folder, self._owner = links, folder, owner
        self.place = Place(links, folder, busy_s)
        self._putter = Putter(self.place, owner)

    def _at(self, name: str) -> str:
        return self.place.at(name)

    def probe(self, call: Call) -> None:
        """Return if the store is there."""
        self._links.use(call, self.place.check_marker, brief=False)

    def put(self, call: Call, name: str, data: Bytes) -> None:
        """See the port."""
        view = memoryview(data).cast("B")
        brief = len(view) <= PIECE_FIRST
        self._links.use(call, lambda link: self._putter.put(call, link, name, view), name, brief=brief)

    def get(self, call: Call, name: str, offset: int, length: int | None) -> Bytes:
        """See the port."""

        def read(link: Link) -> Bytes:
            count = link.step_bytes() if length is None else min(length, link.step_bytes())
            with naming_absent(name):
                file, piece = self.place.patiently(
                    call, lambda: link.open_and_read(self._at(name), offset, max(1, count))
                )
            with closing(link, file):
                left = max(0, file.size - offset)
                left = left if length is None else min(length, left)
                if not piece or len(piece) >= left:
                    return piece[:left]
                more = link.read_all(file, offset + len(piece), left - len(piece), call.progress)
                return b"".join([piece, *more])

        return self.place.looking(call, read, name)

    def stat(self, call: Call, name: str) -> int:
        """See the port."""

        def look(link: Link) -> int:
            with naming_absent(name):
                return self.place.patiently(call, lambda: link.peek(self._at(name), PLAIN_FILE)).size

        return self.place.looking(call, look, name)

    def room(self, call: Call) -> Room:
        """See `Device.room`."""

        def ask(link: Link) -> Room:
            found = link.room(self.folder)
            return Room(*found) if found is not None and found[0] else Room()

        return self.place.looking(call, ask, "")

    def delete(self, call: Call, name: str) -> None:
        """See the port."""

        def gone(link: Link) -> None:
            with suppress_absent():
                self.place.patiently(call, lambda: link.remove_later(self._at(name))())

        self.place.here(call, gone, name)

    def sweep(self, call: Call) -> int:
        """Remove the temporary files that earlier calls of this owner left behind; return how many.

        They lie beside the objects they were to become: in the folders of this owner, and in those above.
        """

        def look(link: Link) -> int:
            found = 0
            tops = [each.name for each in link.entries(self.folder, "*") if each.attributes & IS_FOLDER]
            call.progress()
            every = ["", *tops, *(f"{top}/{self._owner}" for top in tops)]
            for folders in (every[at : at + FOLDERS_AT_ONCE] for at in range(0, len(every), FOLDERS_AT_ONCE)):
                reading = [link.entries_later(self._at(each), f"{TMP}{self._owner}-*") for each in folders]
                for folder, rows in zip(folders, reading, strict=True):
                    with suppress_absent():
                        for each in list(rows()):
                            with suppress_absent():
                                link.remove_later(f"{self._at(folder)}/{each.name}")()
                                found += 1
                    call.progress()
            return found

        return self.place.here(call, look)

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
            names = [f"{folder}/{self._putter.temporary()}" if folder else self._putter.temporary() for _ in range(2)]
            with closing(link, link.create(names[0], WRITE | DELETE, PLAIN_FILE, disposition=CREATE)) as file:
                link.write_all(file, memoryview(b"\0"), call.progress)
                link.rename_later(file, names[1], replace=False)()
            link.remove_later(names[1])()

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
                        link.remove_later(self._at(each.name))()
            temporary = f"{TMP}init-{secrets.token_hex(12)}"
            if not self._putter.publish(call, link, temporary, FORMAT, memoryview(marker), "absent", once=True):
                raise ConfigError(f"{where} was made a store by someone else just now: run init again")

        self._links.use(call, make)

    def _require_new(self, link: Link) -> None:
        if self._look(link) == "store":
            raise ConfigError(f"{self._links.where} already holds a store: choose another folder, or use that one")
