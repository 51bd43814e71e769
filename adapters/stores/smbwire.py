"""One connection to a share, and the few requests a store is made of (worker threads only).

Connection, login and share are this object's own: nothing is taken from, or left in, the library's global cache. One
thread at a time uses a link, since a server grants its credits by the connection. No request waits with a time of its
own; whoever watches the call cuts the link (`cut`), and every wait in it ends at once with an error.

No leases or oplocks are asked for, so nothing of the share is cached on this side and no listing is stale.
"""

from __future__ import annotations

import logging
import socket
import struct
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final, Literal

import msgspec
from smbprotocol.connection import Connection
from smbprotocol.exceptions import SMBConnectionClosed, SMBResponseException
from smbprotocol.header import NtStatus
from smbprotocol.open import (
    SMB2CloseRequest,
    SMB2CreateRequest,
    SMB2FlushRequest,
    SMB2QueryDirectoryRequest,
    SMB2ReadRequest,
    SMB2SetInfoRequest,
    SMB2WriteRequest,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from adapters.stores.smberrors import Garbled, ShortWrite

REQUEST_BYTES: Final = 1 << 20  # larger ones are slower: measured
CREDIT_BYTES: Final = 1 << 16
AHEAD_MAX: Final = 2  # requests of one read or write on their way, so that the line has no pause between them
RELEASED_MAX: Final = 4  # closes whose answers are not waited for: each takes a credit
WORKER_ENDS_S: Final = 1.0  # how long the library's thread may take to end after it noticed

READ_ATTRIBUTES: Final = 0x0080
READ: Final = 0x0001 | READ_ATTRIBUTES
WRITE: Final = 0x0002 | READ_ATTRIBUTES
DELETE: Final = 0x0001_0000
OPEN: Final = 1
CREATE: Final = 2
OPEN_OR_CREATE: Final = 3
FOLDER: Final = 0x0001  # the options of a create request
PLAIN_FILE: Final = 0x0040
DELETE_ON_CLOSE: Final = 0x1000
SHARE_READ: Final = 1
SHARE_ALL: Final = 7
IMPERSONATION: Final = 2
IS_FOLDER: Final = 0x10  # an attribute
IS_LINK: Final = 0x400
LAST_OPENED: Final = b"\xff" * 16  # by the request before this one, sent together with it
FILE_DIRECTORY_INFORMATION: Final = 1
FILE_RENAME_INFORMATION: Final = 10

_CREATED: Final = struct.Struct("<8xQ8xQ16xQI4x16s")
_READ: Final = struct.Struct("<2xBxI")
_WRITTEN: Final = struct.Struct("<4xI")
_QUERIED: Final = struct.Struct("<2xHI")
_ENTRY: Final = struct.Struct("<I36xQ8xII")
_NO_MORE: Final = (NtStatus.STATUS_NO_MORE_FILES, NtStatus.STATUS_NO_SUCH_FILE)

for _name in ("smbprotocol", "spnego"):
    # What they warn of, tracebacks included, is told as an error of ours.
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False


class Login(msgspec.Struct, frozen=True):
    """Where and as whom; `encrypt`: nothing but login and negotiation goes over the line in the clear."""

    server: str
    port: int
    share: str
    user: str
    encrypt: bool


class Handle(msgspec.Struct, frozen=True):
    """An open file or folder: its `size` in bytes, and what changes when another file takes its name."""

    id: bytes
    size: int
    created: int
    written: int
    attributes: int


class Entry(msgspec.Struct, frozen=True):
    """A row of a folder."""

    name: str
    size: int
    attributes: int


class Link:
    """A connection, logged in and connected to its share once `open` has returned.

    Names are paths from the share's root with "/" between; "" is the root. All methods raise what the library and the
    operating system raise; see `smberrors`.
    """

    def __init__(self, login: Login) -> None:
        self._login = login
        self._is_cut = False
        self._connection = Connection(uuid.uuid4(), login.server, login.port, require_signing=True)
        self._session: Any = None
        self._tree: Any = None
        self._prefix = ""
        self._released: deque[Any] = deque()  # closes whose answers nobody has looked at

    def open(self, password: str | None, connect_timeout_s: float) -> None:
        """Connect, log in, and connect to the share."""
        login = self._login
        self._connection.connect(timeout=connect_timeout_s)
        self._session = Session(
            self._connection, username=login.user, password=password, require_encryption=login.encrypt
        )
        if self._is_cut:
            raise ConnectionAbortedError
        self._session.connect()
        self._tree = TreeConnect(self._session, rf"\\{login.server}\{login.share}")
        self._tree.connect()
        if self._tree.is_dfs_share:
            self._prefix = rf"{login.server}\{login.share}" + "\\"

    def cut(self) -> None:
        """Make every wait on this link end now, in whatever thread it is; for other threads to call."""
        self._is_cut = True
        # The library's own close waits for the thread that sends, which is the one that hangs.
        transport = self._connection.transport
        found = transport and transport._sock
        if found:
            with suppress(OSError):
                found.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the link up without a word to the server, which may hang."""
        self.cut()
        if self._connection.transport:
            with suppress(OSError):
                self._connection.disconnect(close=False)

    @property
    def is_alive(self) -> bool:
        """Whether nobody has noticed yet that the link is gone."""
        return not self._is_cut and bool(self._connection.transport and self._connection.transport.connected)

    def why_broken(self) -> Literal["gone", "garbled"] | None:
        """Tell whether the connection ended, or an answer made no sense to the library; None: all is well.

        To be asked after an error that nothing else explains: on a broken connection the library raises many things.
        """
        connection: Any = self._connection
        if connection._t_worker is not None:
            connection._t_worker.join(0 if connection._t_exc else WORKER_ENDS_S)
        if connection._t_exc is not None:
            return "garbled"
        ended = connection._t_worker is not None and not connection._t_worker.is_alive()
        return "gone" if ended or self._is_cut else None

    def _ask(self, message: Any) -> bytes:
        return self._answer(self._send(message))

    def _send(self, message: Any) -> Any:
        return self._connection.send(message, sid=self._session.session_id, tid=self._tree.tree_connect_id)

    def _answer(self, request: Any) -> bytes:
        response = self._connection.receive(request, resolve_symlinks=False)
        return bytes(response["data"].get_value())

    def _drain(self, requests: Iterable[Any]) -> None:
        """Take the answers nobody waits for any more, so that the link can be used further."""
        for request in requests:
            with suppress(SMBResponseException):
                self._answer(request)

    def _path(self, name: str) -> str:
        return (self._prefix + name.replace("/", "\\")).rstrip("\\")

    def create(
        self, name: str, access: int, options: int, *, disposition: int = OPEN, sharing: int = SHARE_ALL
    ) -> Handle:
        """Open a file or folder, or make it with the disposition CREATE."""
        return _handle(self._ask(self._create_request(name, access, options, disposition, sharing)))

    def peek(self, name: str, options: int = 0) -> Handle:
        """Look at a file or folder, in one round trip; the handle is closed already."""
        return self.peek_later(name, options)()

    def peek_later(self, name: str, options: int = 0) -> Callable[[], Handle]:
        """Begin to `peek`, and return what waits for the answer: it must be called, once."""
        close = SMB2CloseRequest()
        close["file_id"] = LAST_OPENED
        messages = [self._create_request(name, READ_ATTRIBUTES, options, OPEN, SHARE_ALL), close]
        session, tree = self._session.session_id, self._tree.tree_connect_id
        opening, closing = self._connection.send_compound(messages, session, tree, related=True)

        def looked() -> Handle:
            try:
                answer = self._connection.receive(opening, resolve_symlinks=False)
            except SMBResponseException:
                with suppress(SMBResponseException):
                    self._connection.receive(closing)
                raise
            self._connection.receive(closing)
            return _handle(answer["data"].get_value())

        return looked

    def _create_request(self, name: str, access: int, options: int, disposition: int, sharing: int) -> Any:
        message = SMB2CreateRequest()
        message["impersonation_level"] = IMPERSONATION
        message["desired_access"] = access
        message["share_access"] = sharing
        message["create_disposition"] = disposition
        message["create_options"] = options
        message["buffer_path"] = self._path(name).encode("utf-16-le") or b"\0\0"
        return message

    def close_handle(self, handle: Handle) -> None:
        """Close a file or folder."""
        self.release(handle)
        self._answer(self._released.pop())

    def release(self, handle: Handle) -> None:
        """Close a file or folder without waiting for it: nothing depends on it any more."""
        message = SMB2CloseRequest()
        message["file_id"] = handle.id
        self._released.append(self._send(message))
        if len(self._released) > RELEASED_MAX:
            self._drain([self._released.popleft()])

    def step_bytes(self) -> int:
        """Return how much a request may carry now: what server and credits allow, at most `REQUEST_BYTES`."""
        window, connection = self._connection.sequence_window, self._connection
        credit_bytes = CREDIT_BYTES * (window["high"] - window["low"] if connection.supports_multi_credit else 1)
        most = min(connection.max_read_size, connection.max_write_size, connection.max_transact_size)
        return max(CREDIT_BYTES, min(REQUEST_BYTES, int(most), credit_bytes))

    def _may_send(self, ahead: int) -> bool:
        """Tell whether another full request may be sent while `ahead` are on their way."""
        window, connection = self._connection.sequence_window, self._connection
        credits = REQUEST_BYTES // CREDIT_BYTES if connection.supports_multi_credit else 1
        return not ahead or (ahead < AHEAD_MAX and window["high"] - window["low"] >= credits)

    def _read_request(self, handle: Handle, offset: int, length: int) -> Any:
        message = SMB2ReadRequest()
        message["length"] = length
        message["offset"] = offset
        message["file_id"] = handle.id
        message["padding"] = b"\x50"
        return message

    def read(self, handle: Handle, offset: int, length: int) -> bytes:
        """Return up to `length` bytes from `offset`, b"" only at the end of the file."""
        return _read_bytes(lambda: self._ask(self._read_request(handle, offset, length)), length)

    def read_all(self, handle: Handle, offset: int, length: int, moved: Callable[[], None]) -> list[bytes]:
        """Return `length` bytes from `offset`, fewer only if the file ends; `moved` is called after every piece."""
        waiting: deque[tuple[Any, int]] = deque()
        at, asked, end, pieces = offset, offset, offset + length, list[bytes]()
        try:
            while at < end:
                if asked < end and self._may_send(len(waiting)):
                    count = min(self.step_bytes(), end - asked)
                    waiting.append((self._send(self._read_request(handle, asked, count)), count))
                    asked += count
                    continue
                request, count = waiting.popleft()
                piece = _read_bytes(partial(self._answer, request), count)
                moved()
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                if len(piece) < count:  # what was asked for ahead begins too late
                    self._drain(request for request, _ in waiting)
                    waiting.clear()
                    asked = at
        finally:
            self._drain(request for request, _ in waiting)
        return pieces

    def write_all(self, handle: Handle, view: memoryview, moved: Callable[[], None]) -> None:
        """Write `view` from the file's beginning on; `moved` is called after every piece that was taken."""
        waiting: deque[tuple[Any, int]] = deque()
        sent = 0
        try:
            while waiting or sent < len(view):
                if sent < len(view) and self._may_send(len(waiting)):
                    piece = bytes(view[sent : sent + self.step_bytes()])
                    waiting.append((self._send(self._write_request(handle, sent, piece)), len(piece)))
                    sent += len(piece)
                    continue
                request, count = waiting.popleft()
                (taken,) = _fields(_WRITTEN, self._answer(request))
                if taken != count:
                    raise ShortWrite(f"the server took {taken} of {count} bytes")
                moved()
        finally:
            self._drain(request for request, _ in waiting)

    def _write_request(self, handle: Handle, offset: int, data: bytes) -> Any:
        message = SMB2WriteRequest()
        message["length"] = len(data)
        message["offset"] = offset
        message["file_id"] = handle.id
        message["buffer"] = data
        return message

    def flush(self, handle: Handle) -> None:
        """Return once what was written, and the file's name, is durable."""
        message = SMB2FlushRequest()
        message["file_id"] = handle.id
        self._ask(message)

    def rename(self, handle: Handle, name: str, *, replace: bool) -> None:
        """Give a file opened with DELETE another name; unless `replace`, one that nothing has yet."""
        text = self._path(name).encode("utf-16-le")
        message = SMB2SetInfoRequest()
        message["info_type"] = 1
        message["file_info_class"] = FILE_RENAME_INFORMATION
        message["file_id"] = handle.id
        message["buffer"] = struct.pack("<B15xI", replace, len(text)) + text
        self._ask(message)

    def entries(self, name: str, pattern: str) -> Iterator[Entry]:
        """Yield what lies in a folder and fits `pattern` (`*`: all), in the server's order, as it is read."""
        folder = self.create(name, READ, FOLDER)
        try:
            while True:
                message = SMB2QueryDirectoryRequest()
                message["file_information_class"] = FILE_DIRECTORY_INFORMATION
                message["file_id"] = folder.id
                message["output_buffer_length"] = self.step_bytes()
                message["buffer"] = pattern.encode("utf-16-le")
                try:
                    answer = self._ask(message)
                except SMBResponseException as error:
                    if error.status in _NO_MORE:
                        break
                    raise
                yield from _rows(answer)
        finally:
            with suppress(SMBResponseException, SMBConnectionClosed, OSError):
                self.release(folder)


def _read_bytes(ask: Callable[[], bytes], length: int) -> bytes:
    """Return what a read gave; b"" at the end of the file."""
    try:
        answer = ask()
    except SMBResponseException as error:
        if error.status == NtStatus.STATUS_END_OF_FILE:
            return b""
        raise
    start, count = _fields(_READ, answer)
    if not 0 < count <= length or start < 64 or len(answer) < start - 64 + count:
        raise Garbled
    return answer[start - 64 : start - 64 + count]


def _fields(form: struct.Struct, answer: bytes, at: int = 0) -> tuple[Any, ...]:
    if len(answer) < at + form.size:
        raise Garbled
    return form.unpack_from(answer, at)


def _handle(answer: bytes) -> Handle:
    created, written, size, attributes, file_id = _fields(_CREATED, answer)
    return Handle(file_id, size, created, written, attributes)


def _rows(answer: bytes) -> Iterator[Entry]:
    start, count = _fields(_QUERIED, answer)
    rows = answer[start - 64 : start - 64 + count]
    at = 0
    while rows:
        step, size, attributes, name_bytes = _fields(_ENTRY, rows, at)
        name = rows[at + _ENTRY.size : at + _ENTRY.size + name_bytes].decode("utf-16-le", "replace")
        if name not in (".", ".."):
            yield Entry(name, size, attributes)
        if not step:
            return
        at += step
