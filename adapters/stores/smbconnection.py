"""One connection to a share, logged in: how requests go there and answers come back (worker threads only).

Connection, login and share are this object's own: nothing is taken from, or left in, the library's global cache. One
thread at a time uses it, since a server grants its credits by the connection. No request waits with a time of its
own; whoever watches the call cuts the connection (`cut`), and every wait in it ends at once with an error.
"""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Final, Literal, TypeAlias

import msgspec
from smbprotocol.connection import Connection
from smbprotocol.exceptions import SMBResponseException
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

WORKER_ENDS_S: Final = 1.0  # how long the library's thread may take to end after it noticed

Outcome: TypeAlias = bytes | SMBResponseException

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


class Wire:
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

    def open(self, password: str | None, connect_timeout_s: float) -> None:
        """Connect, log in, and connect to the share."""
        login = self._login
        self._connection.connect(timeout=connect_timeout_s)
        if (transport := self._connection.transport) and transport._sock:
            # A request behind a close nobody waits for would be held back until that is acknowledged.
            transport._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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

    def _chain_later(self, *messages: Any) -> Callable[[], list[Outcome]]:
        """Begin requests that are done one after the other; what waits for them returns an answer or error of each."""
        session, tree = self._session.session_id, self._tree.tree_connect_id
        requests = self._connection.send_compound(list(messages), session, tree, related=True)

        def outcomes() -> list[Outcome]:
            return [self._outcome(request) for request in requests]

        return outcomes

    def _outcome(self, request: Any) -> Outcome:
        try:
            return self._answer(request)
        except SMBResponseException as error:
            return error
