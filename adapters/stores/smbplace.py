"""The folder of a store in a share: whether it is there, still the same, and how long a file in use is waited for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from smbprotocol.exceptions import SMBResponseException

from adapters.stores.calls import Call
from adapters.stores.smberrors import ABSENT, ACCESS_DENIED, BUSY
from adapters.stores.smblinks import Links
from adapters.stores.smbmessages import PLAIN_FILE, Handle
from adapters.stores.smbwire import Link
from engine.errors import ObjectMissing, StoreUnavailable
from engine.names import FORMAT

T = TypeVar("T")

MARKER_BYTES_MAX: Final = 4096
PAUSES_S: Final = (0.01, 0.2)  # between two looks at a file that others have open: the first one and the longest


class Place:
    """The store's `folder`, a path from the share's root; methods block and take the `Call` they report to.

    `busy_s`: how long a file that others have open is waited for.
    """

    def __init__(self, links: Links, folder: str, busy_s: float) -> None:
        self.links, self.folder, self._busy_s = links, folder, busy_s
        self._lock = threading.Lock()
        self._marker: tuple[Handle, bytes] | None = None

    @property
    def where(self) -> str:
        """What messages call the store."""
        return self.links.where

    def at(self, name: str) -> str:
        """Return the path of an object or folder of the store."""
        return f"{self.folder}/{name}" if name else self.folder

    def here(self, call: Call, work: Callable[[Link], T], name: str = "") -> T:
        """Return `work(link)`, done in a store that is there; errors are named. Raises: as `Links.use`."""

        def checked(link: Link) -> T:
            self.check_marker(link)
            call.progress()
            return work(link)

        return self.links.use(call, checked, name)

    def looking(self, call: Call, work: Callable[[Link], T], name: str) -> T:
        """Return `work(link)`, which changes nothing, as `here`, in fewer round trips. Raises: as `Links.use`."""
        return self.links.use(call, lambda link: self.beside_marker(link, lambda: work(link)), name)

    def beside_marker(self, link: Link, work: Callable[[], T]) -> T:
        """Return `work()`, which changes nothing, while the server is asked for the marker: that one counts first."""
        if (known := self._marker) is None:
            self.check_marker(link)
            return work()
        looked = link.peek_later(self.at(FORMAT), PLAIN_FILE)
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
                found = link.peek(self.at(FORMAT), PLAIN_FILE)
                if (known[0].created, known[0].written) == (found.created, found.written):
                    return
            found, content = link.open_and_read(self.at(FORMAT), 0, MARKER_BYTES_MAX)
            link.release(found)
        except SMBResponseException as error:
            if error.status not in ABSENT:
                raise
            raise StoreUnavailable(
                f"{self.where} holds no Forebay store (no object {FORMAT!r}): check the path, and its disk"
            ) from error
        with self._lock:
            if self._marker is not None and self._marker[1] != content:
                raise StoreUnavailable(
                    f"{self.where} holds another store than when it was opened: put the right one back"
                )
            self._marker = (found, content)

    def patiently(self, call: Call, work: Callable[[], T], *, denied: bool = False) -> T:
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


@contextmanager
def naming_absent(name: str) -> Iterator[None]:
    """Raise ObjectMissing where there is nothing under a name."""
    try:
        yield
    except SMBResponseException as error:
        if error.status in ABSENT:
            raise ObjectMissing(name) from error
        raise
