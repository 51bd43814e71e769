"""Putting an object into a share, in as few round trips as it takes to be certain (worker threads only).

- An object has its name only once all its bytes are durable on the server: temporary name in the same folder → write →
  close → open again, flush, look at the size → rename, which never replaces → flush → look what has the name.
- What need not wait for an answer is asked at the same time. A server may then do a later thing first; so an answer
  counts only if it tells by itself that what it depends on was done, and is asked for again otherwise.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal, TypeVar

from smbprotocol.exceptions import SMBException, SMBResponseException

from adapters.stores.calls import BEAT_S, Call
from adapters.stores.smberrors import ABSENT, BUSY, COLLISION, Garbled, ShortWrite
from adapters.stores.smbhandles import closing, make_folder, opened
from adapters.stores.smbmessages import CREATE, PLAIN_FILE, READ, SHARE_READ, WRITE, Handle
from adapters.stores.smbplace import Place
from adapters.stores.smbwire import Link
from engine.errors import ContentDiffers, StoreRejected, StoreUnavailable

T = TypeVar("T")
Standing = Literal["absent", "no folder", "same", "other size"]

PUBLISH_TRIES_MAX: Final = 8
SENDERS_MAX: Final = 2  # more at once gain nothing; the others make ready and finish meanwhile: measured
# The first character of a temporary name: no object's name has it.
TMP: Final = "~"
NO_FOLDER: Final = 0xC000003A
# Two copies of one machine may give their roots one name at the same moment, and each must learn who was first. Of two
# that rename to one name Samba lets both; of two that link to it only one can.
CONTESTED: Final = "root/"


class SendTurns:
    """Lets few puts send their bytes at once: all that began together would end together, and leave the line empty."""

    def __init__(self, count: int) -> None:
        self._free = threading.Semaphore(count)
        self._moved_s = 0.0  # when any that has its turn was last seen to get on

    def moved(self) -> None:
        """Tell those who wait that somebody gets on."""
        self._moved_s = time.monotonic()

    @contextmanager
    def turn(self, call: Call) -> Iterator[Callable[[], None]]:
        """Wait for a turn, which what is yielded ends early; while others get on, waiting is no stall."""
        seen_s = self._moved_s
        while not self._free.acquire(timeout=BEAT_S):
            if self._moved_s > seen_s:
                seen_s = self._moved_s
                call.progress()
        held = True

        def end() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        try:
            call.progress()
            yield end
        finally:
            end()


class Putter:
    """Puts objects of one `owner`, which the names of temporary files tell."""

    def __init__(self, place: Place, owner: str) -> None:
        self._place, self._owner = place, owner
        self._turns = SendTurns(SENDERS_MAX)

    def temporary(self) -> str:
        """Return a new name for a temporary file."""
        return f"{TMP}{self._owner}-{secrets.token_hex(12)}"

    def put(self, call: Call, link: Link, name: str, view: memoryview) -> None:
        """Put an object, see the port."""
        folder = name.rpartition("/")[0]
        temporary = f"{folder}/{self.temporary()}" if folder else self.temporary()
        standing = self._place.beside_marker(link, lambda: self._standing(call, link, name, view))
        call.progress()
        if standing != "same" and not self.publish(call, link, temporary, name, view, standing):
            raise StoreRejected(f"{self._place.where}: object {name} cannot be written: remove what has its name")

    def publish(
        self,
        call: Call,
        link: Link,
        temporary: str,
        name: str,
        view: memoryview,
        standing: Standing,
        *,
        once: bool = False,
    ) -> bool:
        """Write an object under a temporary name and give it its own; False: something else has that by now.

        `standing`: what was found there; `once`: what came since is not looked at.
        """
        place, file = self._place, None
        left: Literal["in the way", "a second name", "nothing"] = "in the way"  # of the temporary file, at the end
        try:
            file = self._write_new(call, link, temporary, view, standing)
            call.progress()
            if file.size != len(view):
                raise StoreUnavailable(
                    f"{place.where}: object {name} has {file.size} of {len(view)} bytes after it was written: check"
                    " the server's disk"
                )
            for _ in range(1 if once else PUBLISH_TRIES_MAX):
                if kept := self._name(call, link, file, name, len(view), replace=standing == "other size"):
                    left = kept
                    return True
                if not once:
                    standing = self._standing(call, link, name, view)
                if standing == "same":
                    return True
            return False
        finally:
            with suppress(SMBException, OSError):
                if file is not None:
                    link.release(file)
                if left == "in the way":
                    link.remove_later(place.at(temporary))()
                elif left == "a second name":
                    link.discard(place.at(temporary))

    def _standing(self, call: Call, link: Link, name: str, view: memoryview) -> Standing:
        """Compare what stands under `name`. Raises: StoreRejected."""

        def compare() -> Standing:
            with opened(link, self._place.at(name), READ, PLAIN_FILE) as found:
                if found.size != len(view):
                    return "other size"
                offset = 0
                while offset < found.size:
                    piece = link.read(found, offset, found.size - offset)
                    if not piece or piece != bytes(view[offset : offset + len(piece)]):
                        raise ContentDiffers(f"{self._place.where}: object {name} exists with other content")
                    offset += len(piece)
                    call.progress()
                return "same"

        try:
            return self._place.patiently(call, compare)
        except SMBResponseException as error:
            if error.status in ABSENT:
                return "no folder" if error.status == NO_FOLDER else "absent"
            raise

    def _write_new(self, call: Call, link: Link, name: str, view: memoryview, standing: Standing) -> Handle:
        """Write a file that must not exist, in folders that are made if they are missing, and open it again, durable.

        What it is opened with tells its size on the server, as it keeps it: not what was written there.
        """
        if link.carries(len(view)):
            file = self._write_short(link, name, bytes(view), standing)
            if file is not None and file.size == len(view):
                return file  # opened after it was written, and flushed after that
            if file is not None:
                link.close_handle(file)
        else:
            self._write_long(call, link, name, view, standing)
        call.progress()
        # It may not be closed yet.
        return self._place.patiently(call, lambda: link.reopen_later(self._place.at(name))())

    def _write_short(self, link: Link, name: str, data: bytes, standing: Standing) -> Handle | None:
        """Write a file in one request, and open it again at the same time; None: that came too early."""
        path, folders = self._place.at(name), self._folders(name) if standing == "no folder" else []
        for last in (False, True):
            making = [link.make_folder_later(each) for each in folders]
            writing, reopening = link.write_new_later(path, data), link.reopen_later(path)
            for each in making:
                _settled(each)  # what is wrong with it, the file tells
            written, file = _settled(writing), _settled(reopening)
            if written is None:
                if isinstance(file, Handle):
                    return file
                if isinstance(file, SMBResponseException) and file.status in {*ABSENT, *BUSY}:
                    return None
                raise file
            if isinstance(file, Handle):
                link.release(file)
            if last or not isinstance(written, SMBResponseException) or written.status not in ABSENT:
                raise written
            self._make_folders(link, name)
            folders = []
        raise AssertionError

    def _write_long(self, call: Call, link: Link, name: str, view: memoryview, standing: Standing) -> None:
        if standing == "no folder":
            self._make_folders(link, name)
        try:
            file = self._create_new(link, name)
        except SMBResponseException as error:
            if error.status not in ABSENT:
                raise
            self._make_folders(link, name)
            file = self._create_new(link, name)

        def moved() -> None:
            call.progress()
            self._turns.moved()

        with closing(link, file), self._turns.turn(call) as end:
            link.write_all(file, view, moved, end)

    def _create_new(self, link: Link, name: str) -> Handle:
        return link.create(self._place.at(name), WRITE, PLAIN_FILE, disposition=CREATE, sharing=SHARE_READ)

    def _folders(self, name: str) -> list[str]:
        """Return the folders an object's name needs, the outermost first, below that of the store only."""
        parts = name.split("/")[:-1]
        return [self._place.at("/".join(parts[:count])) for count in range(1, len(parts) + 1)]

    def _make_folders(self, link: Link, name: str) -> None:
        for folder in self._folders(name):
            make_folder(link, folder)

    def _name(
        self, call: Call, link: Link, file: Handle, name: str, size: int, *, replace: bool
    ) -> Literal["a second name", "nothing"] | None:
        """Give a written file its name; return what is left of its old one. None: the name is taken (no `replace`)."""
        place = self._place
        try:
            if name.startswith(CONTESTED) and not replace:
                try:
                    place.patiently(
                        call, lambda: self._look_after(call, link, file, name, size, replace=False, keep=True)
                    )
                    return "a second name"
                except SMBResponseException as error:
                    if error.status == COLLISION or error.status in BUSY:
                        raise
                    # The server has no such thing, or does not permit it, which the next request tells.
            place.patiently(
                call, lambda: self._look_after(call, link, file, name, size, replace=replace), denied=replace
            )
        except SMBResponseException as error:
            if error.status != COLLISION or replace:
                raise
            return None
        return "nothing"

    def _look_after(
        self, call: Call, link: Link, file: Handle, name: str, size: int, *, replace: bool, keep: bool = False
    ) -> None:
        """Rename a file, or link it if it is to `keep` its name, and see that the object is there."""
        path = self._place.at(name)
        call.progress()
        naming = link.rename_later(file, path, replace=replace, keep=keep)
        looking = link.peek_later(path, PLAIN_FILE)
        failed, found = _settled(naming), _settled(looking)
        if failed is not None:
            raise failed
        call.progress()
        if not isinstance(found, Handle) or found.size != size:
            found = link.peek(path, PLAIN_FILE)  # the first look may have come too early
        if found.size != size:
            raise StoreUnavailable(
                f"{self._place.where}: object {name} is not there whole after it was written: try again"
            )


def _settled(answer: Callable[[], T]) -> T | Exception:
    """Return what was asked for, or why there is none; a lost connection is raised."""
    try:
        return answer()
    except (SMBResponseException, ShortWrite, Garbled) as error:
        return error
