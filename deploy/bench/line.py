"""A thin line with a delay, as a TCP proxy: what runs over it shares its rate, and is late by its delay.

Each direction is one line for all connections: bytes leave it at `rate`, one piece after the other, and arrive
`delay_s` later. Nothing else waits for the delay, so it takes nothing from the rate. A sender is held back once
`BUFFER_S` of the line wait, as by the buffer of a router; a new connection is late by a round trip.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable
from contextlib import suppress
from types import TracebackType

PIECE_BYTES = 8 << 10
BUFFER_S = 0.1
# What a sender's system believes sent but the line has not taken: too much would be a second line, too little makes
# acknowledgements late.
KERNEL_BYTES = 256 << 10
HEAD_BYTES = 6 << 10  # a request without a body, or the head of one with a body, is shorter

Piece = tuple[float, bytes]


class Way:
    """One direction: when what it is given leaves and arrives, and what left when."""

    def __init__(self, rate: float, delay_s: float) -> None:
        self._rate, self._delay_s = rate, delay_s
        self._free_s = 0.0
        self._turn = asyncio.Lock()
        self.left: list[tuple[float, float, int]] = []  # from, to, bytes

    async def send(self, data: bytes) -> float:
        """Have the line take `data`; return when it arrives, by the clock of the event loop."""
        loop = asyncio.get_running_loop()
        async with self._turn:  # first come, first served
            if (ahead_s := self._free_s - loop.time()) > BUFFER_S:
                await asyncio.sleep(ahead_s - BUFFER_S / 2)
            began_s = max(loop.time(), self._free_s)
            self._free_s = began_s + len(data) / self._rate
            self.left.append((began_s, self._free_s, len(data)))
            return self._free_s + self._delay_s


class Line:
    """The proxy, in a thread of its own while the context lasts; `port` is to be used instead of the server's.

    `rate`: bytes per second in each direction; `delay_s`: one way.
    """

    def __init__(self, port: int, rate: float, delay_s: float) -> None:
        self.port = 0
        self.rate, self.delay_s = rate, delay_s
        self._target = port
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="line", daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._ways = {"up": Way(rate, delay_s), "down": Way(rate, delay_s)}

    def __enter__(self) -> Line:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        assert self._ended is not None
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def forget(self) -> None:
        """Forget what went over the line so far."""
        for way in self._ways.values():
            way.left.clear()

    def fullness(self) -> tuple[float, float]:
        """Return how full the way up was, from the first body to the last byte (1: all the time), and how long that is.

        The first body begins with the first piece that is larger than a request's head. Raises: ValueError (none was).
        """
        left = list(self._ways["up"].left)
        first = next((at for at, (_, _, size) in enumerate(left) if size > HEAD_BYTES), None)
        if first is None:
            raise ValueError("nothing of size went over the line")
        took_s = left[-1][1] - left[first][0]
        return sum(size for _, _, size in left[first:]) / self.rate / took_s, took_s

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        # Named as TCP, asyncio lets what it accepts send at once: a small answer must not wait for an acknowledgement.
        with socket.socket(proto=socket.IPPROTO_TCP) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
            server = await asyncio.start_server(self._connected, sock=listening, limit=PIECE_BYTES)
            self._ready.set()
            await self._ended.wait()
            server.close()
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

    async def _connected(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * self.delay_s)
        far, far_out = await asyncio.open_connection("127.0.0.1", self._target, limit=PIECE_BYTES)
        try:
            await _both(self._carry(near, far_out, self._ways["up"]), self._carry(far, near_out, self._ways["down"]))
        finally:
            for writer in (near_out, far_out):
                writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
        late: asyncio.Queue[Piece] = asyncio.Queue()
        await _both(self._take(reader, way, late), self._give(late, writer))

    async def _take(self, reader: asyncio.StreamReader, way: Way, late: asyncio.Queue[Piece]) -> None:
        while data := await reader.read(PIECE_BYTES):
            late.put_nowait((await way.send(data), data))
        late.put_nowait((0.0, b""))

    async def _give(self, late: asyncio.Queue[Piece], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, data = await late.get()
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            writer.write(data)
            await writer.drain()


async def _both(one: Awaitable[None], other: Awaitable[None]) -> None:
    # Nobody waits for this task, so nobody is to hear that it was cancelled.
    with suppress(OSError, asyncio.CancelledError):
        await asyncio.gather(one, other)
