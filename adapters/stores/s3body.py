"""The body of a put: sent in pieces, each of which is told as progress, and sent again from its beginning if need be.

botocore takes it for a file (to sign it), aiohttp for a payload (to send it). Bytes in one piece would be copied into
the transport's buffer as a whole, and nobody could tell a put that is slow from one that hangs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

PIECE_BYTES: Final = 256 << 10
# How much may lie unsent in the system's buffer: what lies there counts as sent, so a lot of it would hide a stall,
# and the time it takes over a thin line would look like one.
UNSENT_BYTES_MAX: Final = 512 << 10


class PutBody(Payload):
    """`view`, of the SHA-256 `digest`, as the body of one request; `moved` hears of every piece that was sent."""

    def __init__(self, view: memoryview, digest: bytes, moved: Callable[[], None]) -> None:
        super().__init__(view, content_type="application/octet-stream")
        self.digest = digest
        self._view, self._moved = view, moved
        self._at = 0
        self._transport: asyncio.WriteTransport | None = None

    @property
    def size(self) -> int:
        """The length in bytes."""
        return len(self._view)

    def __len__(self) -> int:
        return len(self._view)

    def read(self, length: int = -1) -> memoryview:
        """Return the next bytes, as a file would."""
        end = len(self._view) if length < 0 else min(len(self._view), self._at + length)
        piece = self._view[self._at : end]
        self._at = end
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to an offset, as a file would."""
        self._at = max(0, offset + (0, self._at, len(self._view))[whence])
        return self._at

    def tell(self) -> int:
        """Return the offset, as a file would."""
        return self._at

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send it all."""
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        """Send it, or as much of it as `content_length` says."""
        end = len(self._view) if content_length is None else min(len(self._view), content_length)
        self._transport = getattr(writer, "transport", None)
        for start in range(0, end, PIECE_BYTES):
            await writer.write(self._view[start : min(end, start + PIECE_BYTES)])
            self._moved()

    def let_go(self) -> None:
        """End the connection this was sent over if it was closed with some of it unsent.

        A transport that is closed sends first what it has, and to a server that takes nothing that never ends.
        """
        transport, self._transport = self._transport, None
        if transport is not None and transport.is_closing():
            transport.abort()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return it as text; nobody asks for that."""
        return bytes(self._view).decode(encoding, errors)


def make_socket(address: Any) -> socket.socket:
    """Return a socket for `address` (family, type, protocol, …) that keeps little unsent; aiohttp connects it."""
    made = socket.socket(*address[:3])
    option = getattr(socket, "TCP_NOTSENT_LOWAT", None)
    if option is not None:
        made.setsockopt(socket.IPPROTO_TCP, option, UNSENT_BYTES_MAX)
    return made
