"""The few requests a store in a share is made of (worker threads only).

What ends in `_later` sends its requests and returns what waits for their answers: that must be called, once. Requests
sent as a chain are done by the server one after the other, each about the file the one before it opened; of several
chains under way it may do a later one first.

No leases or oplocks are asked for, so nothing of the share is cached on this side and no listing is stale.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from smbprotocol.exceptions import SMBConnectionClosed, SMBResponseException
from smbprotocol.header import NtStatus

from adapters.stores import smbmessages as ask
from adapters.stores.smbconnection import Login, Outcome, Wire
from adapters.stores.smberrors import ShortWrite
from adapters.stores.smbmessages import OPEN, SHARE_ALL, Entry, Handle
from adapters.stores.smbpace import PIECE_MAX, Pace

CREDIT_BYTES: Final = 1 << 16
AHEAD_MAX: Final = 2  # requests of one read or write on their way, so that the line has no pause between them
RELEASED_MAX: Final = 4  # closes whose answers are not waited for: each takes a credit
CHAINED_MAX: Final = 12  # requests that may be under way beside one that carries data: each takes a credit

_NOT_TOLD: Final = (
    NtStatus.STATUS_NOT_SUPPORTED,
    NtStatus.STATUS_INVALID_INFO_CLASS,
    NtStatus.STATUS_INVALID_PARAMETER,
    NtStatus.STATUS_INVALID_DEVICE_REQUEST,
)
_NO_MORE: Final = (NtStatus.STATUS_NO_MORE_FILES, NtStatus.STATUS_NO_SUCH_FILE)


class Link(Wire):
    """A connection with the requests of a store.

    Names are paths from the share's root with "/" between; "" is the root. All methods raise what the library and the
    operating system raise; see `smberrors`.
    """

    def __init__(self, login: Login) -> None:
        super().__init__(login)
        self._released: deque[Any] = deque()  # closes whose answers nobody has looked at
        self._up, self._down = Pace(), Pace()

    def create(
        self, name: str, access: int, options: int, *, disposition: int = OPEN, sharing: int = SHARE_ALL
    ) -> Handle:
        """Open a file or folder, or make it with the disposition CREATE."""
        return ask.handle_of(self._ask(ask.create(self._path(name), access, options, disposition, sharing)))

    def peek(self, name: str, options: int = 0) -> Handle:
        """Look at a file or folder, in one round trip; the handle is closed already."""
        return self.peek_later(name, options)()

    def peek_later(self, name: str, options: int = 0) -> Callable[[], Handle]:
        """Begin to `peek`."""
        chain = self._chain_later(ask.create(self._path(name), ask.READ_ATTRIBUTES, options), ask.close())

        def looked() -> Handle:
            opening, closing = map(_good, chain())
            del closing
            return ask.handle_of(opening)

        return looked

    def make_folder_later(self, name: str) -> Callable[[], None]:
        """Begin to make a folder that must not exist."""
        path = self._path(name)
        return self._done_later(ask.create(path, ask.READ_ATTRIBUTES, ask.FOLDER, ask.CREATE), ask.close())

    def open_and_read(self, name: str, offset: int, length: int) -> tuple[Handle, bytes]:
        """Open a file and read up to `length` bytes of it, at most a request's, in one round trip."""
        opening, reading = self._chain_later(
            ask.create(self._path(name), ask.READ, ask.PLAIN_FILE), ask.read(offset, length)
        )()  # fmt: skip
        file = ask.handle_of(_good(opening))
        try:
            return file, _read_bytes(reading, length)
        except BaseException:
            self._close_after(file)
            raise

    def write_new_later(self, name: str, data: bytes) -> Callable[[], None]:
        """Begin to write a file that must not exist, and to close it; `data` is at most a request's."""
        chain = self._chain_later(
            ask.create(self._path(name), ask.WRITE, ask.PLAIN_FILE, ask.CREATE, ask.SHARE_READ),
            ask.write(0, data),
            ask.close(),
        )

        def written() -> None:
            opening, writing, closing = chain()
            file = ask.handle_of(_good(opening))
            if isinstance(closing, SMBResponseException):
                self._close_after(file)
            _taken(_good(writing), len(data))

        return written

    def reopen_later(self, name: str) -> Callable[[], Handle]:
        """Begin to open a written file to rename it, and to make its bytes durable."""
        chain = self._chain_later(ask.create(self._path(name), ask.WRITE | ask.DELETE, ask.PLAIN_FILE), ask.flush())

        def reopened() -> Handle:
            opening, flushing = chain()
            file = ask.handle_of(_good(opening))
            if isinstance(flushing, SMBResponseException):
                self._close_after(file)
                raise flushing
            return file

        return reopened

    def rename_later(self, file: Handle, name: str, *, replace: bool, keep: bool = False) -> Callable[[], None]:
        """Begin to give a file opened with DELETE another name, durably; unless `replace`, one that nothing has yet.

        `keep`: it keeps the one it has, too.
        """
        path = self._path(name)
        return self._done_later(ask.rename(file.id, path, replace=replace, keep=keep), ask.flush(file.id))

    def remove_later(self, name: str) -> Callable[[], None]:
        """Begin to remove a file."""
        return self._done_later(*self._removal(name))

    def discard(self, name: str) -> None:
        """Remove a file without waiting for it: nothing depends on it, and no one hears if it fails."""
        session, tree = self._session.session_id, self._tree.tree_connect_id
        self._released.extend(self._connection.send_compound(self._removal(name), session, tree, related=True))

    def room(self, folder: str) -> tuple[int, int] | None:
        """Return (bytes, free bytes) of the device a folder lies on; None: the server does not tell."""
        opening, telling, closing = self._chain_later(
            ask.create(self._path(folder), ask.READ_ATTRIBUTES, ask.FOLDER), ask.room(), ask.close()
        )()  # fmt: skip
        file = ask.handle_of(_good(opening))
        if isinstance(closing, SMBResponseException):
            self._close_after(file)
        if isinstance(telling, SMBResponseException) and telling.status in _NOT_TOLD:
            return None
        return ask.room_of(_good(telling))

    def _removal(self, name: str) -> list[Any]:
        access, options = ask.DELETE | ask.READ_ATTRIBUTES, ask.PLAIN_FILE | ask.DELETE_ON_CLOSE
        return [ask.create(self._path(name), access, options), ask.close()]

    def _done_later(self, *messages: Any) -> Callable[[], None]:
        chain = self._chain_later(*messages)

        def done() -> None:
            for each in chain():
                _good(each)

        return done

    def _close_after(self, file: Handle) -> None:
        """Close what a chain opened and did not come to close."""
        with suppress(SMBResponseException, SMBConnectionClosed, OSError):
            self.close_handle(file)

    def close_handle(self, handle: Handle) -> None:
        """Close a file or folder."""
        self.release(handle)
        self._answer(self._released.pop())

    def release(self, handle: Handle) -> None:
        """Close a file or folder without waiting for it: nothing depends on it any more."""
        self._released.append(self._send(ask.close(handle.id)))
        while len(self._released) > RELEASED_MAX:
            self._drain([self._released.popleft()])

    def step_bytes(self, pace: Pace | None = None) -> int:
        """Return how much a request may carry now: what server, credits and `pace` (down if None) allow."""
        window, connection = self._connection.sequence_window, self._connection
        credit_bytes = CREDIT_BYTES * (window["high"] - window["low"] if connection.supports_multi_credit else 1)
        most = min(connection.max_read_size, connection.max_write_size, connection.max_transact_size)
        return min((pace or self._down).piece_bytes, max(CREDIT_BYTES, min(PIECE_MAX, int(most), credit_bytes)))

    def carries(self, count: int) -> bool:
        """Tell whether one request may carry `count` bytes, with a few others beside it."""
        window = self._connection.sequence_window
        credits = int(window["high"]) - int(window["low"]) - CHAINED_MAX
        return 0 < count <= min(self.step_bytes(self._up), CREDIT_BYTES * credits)

    def _may_send(self, ahead: int) -> bool:
        """Tell whether another full request may be sent while `ahead` are on their way."""
        window, connection = self._connection.sequence_window, self._connection
        credits = PIECE_MAX // CREDIT_BYTES if connection.supports_multi_credit else 1
        return not ahead or (ahead < AHEAD_MAX and window["high"] - window["low"] >= credits)

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`, b"" only at the end of the file."""
        return b"".join(self.read_all(handle, offset, min(length, self.step_bytes()), lambda: None))

    def read_all(self, handle: Handle, offset: int, length: int, moved: Callable[[], None]) -> list[bytes]:
        """Return `length` bytes from `offset`, fewer only if the file ends; `moved` is called after every piece."""
        waiting: deque[tuple[Any, int, float]] = deque()
        at, asked, end, pieces = offset, offset, offset + length, list[bytes]()
        try:
            while at < end:
                if asked < end and self._may_send(len(waiting)):
                    count = min(self.step_bytes(), end - asked)
                    waiting.append((self._send(ask.read(asked, count, handle.id)), count, time.monotonic()))
                    asked += count
                    continue
                request, count, since_s = waiting.popleft()
                piece = _read_bytes(self._outcome(request), count)
                self._down.took(count, time.monotonic() - since_s)
                moved()
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                if len(piece) < count:  # what was asked for ahead begins too late
                    self._drain(request for request, *_ in waiting)
                    waiting.clear()
                    asked = at
        finally:
            self._drain(request for request, *_ in waiting)
        return pieces

    def write_all(
        self, handle: Handle, view: memoryview, moved: Callable[[], None], sent_all: Callable[[], None] = lambda: None
    ) -> None:
        """Write `view` from the file's beginning on.

        `moved` is called after every piece that was taken, `sent_all` as soon as nothing is left to be sent.
        """
        waiting: deque[tuple[Any, int, float]] = deque()
        sent = 0
        try:
            while waiting or sent < len(view):
                if sent < len(view) and self._may_send(len(waiting)):
                    piece = bytes(view[sent : sent + self.step_bytes(self._up)])
                    since_s = time.monotonic()
                    waiting.append((self._send(ask.write(sent, piece, handle.id)), len(piece), since_s))
                    sent += len(piece)
                    if sent == len(view):
                        sent_all()
                    continue
                request, count, since_s = waiting.popleft()
                _taken(self._answer(request), count)
                self._up.took(count, time.monotonic() - since_s)
                moved()
        finally:
            self._drain(request for request, *_ in waiting)

    def entries(self, name: str, pattern: str) -> Iterator[Entry]:
        """Yield what lies in a folder and fits `pattern` (`*`: all), in the server's order, as it is read."""
        return self.entries_later(name, pattern)()

    def entries_later(self, name: str, pattern: str) -> Callable[[], Iterator[Entry]]:
        """Begin to read a folder: a small one takes one round trip."""
        chain = self._chain_later(
            ask.create(self._path(name), ask.READ, ask.FOLDER),
            ask.query(pattern, CREDIT_BYTES),
            ask.query(pattern, CREDIT_BYTES),
        )

        def rows() -> Iterator[Entry]:
            opening, *answers = chain()
            folder = ask.handle_of(_good(opening))
            try:
                while True:
                    answer = (
                        answers.pop(0)
                        if answers
                        else self._outcome(self._send(ask.query(pattern, self.step_bytes(), folder.id)))
                    )
                    if isinstance(answer, SMBResponseException) and answer.status in _NO_MORE:
                        break
                    yield from ask.rows_of(_good(answer))
            finally:
                with suppress(SMBResponseException, SMBConnectionClosed, OSError):
                    self.release(folder)

        return rows


def _good(outcome: Outcome) -> bytes:
    if isinstance(outcome, SMBResponseException):
        raise outcome
    return outcome


def _read_bytes(outcome: Outcome, length: int) -> bytes:
    """Return what a read gave; b"" at the end of the file."""
    if isinstance(outcome, SMBResponseException) and outcome.status == NtStatus.STATUS_END_OF_FILE:
        return b""
    return ask.bytes_of(_good(outcome), length)


def _taken(answer: bytes, count: int) -> None:
    if (taken := ask.written_of(answer)) != count:
        raise ShortWrite(f"the server took {taken} of {count} bytes")
