"""The bound of the spool: a stage above its object store that keeps count of what lies in it (DESIGN.md §3.1, §3.3).

What would exceed `max_size`, or what the disk has no room for, waits while somebody makes room, if somebody can; where
nothing is left to free, the put is refused. Nobody else writes to the store, or deletes from it, meanwhile.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import anyio
import anyio.to_thread

from engine.block import Bytes
from engine.errors import ObjectMissing, StoreRejected
from engine.events import EventLog
from engine.ports import ObjectStore
from engine.spoolroom import WARN_SHARE, left_on_disk
from engine.stage import Stage

log = EventLog("spool")

# Within the bound, kept for what must not wait for room, since what makes room waits for it: fragments (at most 8 MiB
# wait to be listed) and notes.
UNBOUNDED_BYTES: Final = 8 << 20
_UNBOUNDED: Final = ("index/", "note/")

# Frees what can be freed; False: there was nothing to free.
MakeRoom: TypeAlias = Callable[[], Awaitable[bool]]


class SpoolFull(StoreRejected):
    """The spool may hold, or its disk can take, no more."""


class BoundedStore(Stage):
    """The stage over the spool; `max_bytes` None: bounded by its disk alone.

    `where` names the spool in sentences; `free_bytes` asks how much its disk has left (*sync*). `make_room` may be set
    once somebody can.
    """

    def __init__(self, inner: ObjectStore, where: str, max_bytes: int | None, free_bytes: Callable[[], int]) -> None:
        super().__init__(inner)
        self._where = where
        self._max_bytes, self._free_bytes = max_bytes, free_bytes
        self._used: int | None = None
        self._pending = 0  # bytes of puts that run
        self._busy = anyio.Lock()
        self._making_room = anyio.Lock()
        self._warned = False
        self._disk_ends = False  # before `max_bytes`, when that was last looked at
        self.make_room: MakeRoom | None = None

    async def used_bytes(self) -> int:
        """Return how much lies in the store. Raises: StoreUnavailable, StoreRejected."""
        async with self._busy:
            if self._used is None:
                self._used = sum([info.size async for info in self._inner.list("")])
            return self._used

    async def left_bytes(self) -> int:
        """Return how much more may be put. Raises: StoreUnavailable, StoreRejected."""
        await self.used_bytes()
        free = await anyio.to_thread.run_sync(self._free_bytes)
        used = (self._used or 0) + self._pending
        self._disk_ends = True
        left = left_on_disk(free - self._pending)
        if self._max_bytes is not None and (bound := self._max_bytes - UNBOUNDED_BYTES - used) < left:
            self._disk_ends, left = False, max(0, bound)
        return left

    async def put(self, name: str, data: Bytes) -> None:
        """Store an object, see ObjectStore. Raises: SpoolFull besides."""
        before = await self._size(name)
        more = max(0, len(data) - before)
        if name.startswith(_UNBOUNDED):
            self._pending += more
        else:
            await self._reserve(more)
        try:
            await self._inner.put(name, data)
            if self._used is not None:
                self._used += len(data) - before
        finally:
            self._pending -= more
        await self._warn()

    async def delete(self, name: str) -> None:
        """Remove an object, see ObjectStore."""
        size = await self._size(name)
        await self._inner.delete(name)
        if self._used is not None:
            self._used -= size

    async def _size(self, name: str) -> int:
        try:
            return await self._inner.stat(name)
        except ObjectMissing:
            return 0

    async def _reserve(self, size: int) -> None:
        """Count `size` as pending once there is room for it. Raises: SpoolFull."""
        while await self.left_bytes() < size:
            async with self._making_room:
                if await self.left_bytes() >= size:
                    break
                if self.make_room is None or not await self.make_room():
                    raise SpoolFull(self._full())
        self._pending += size  # nobody else came between the last look and this line

    async def _warn(self) -> None:
        if self._warned:
            return
        left, used = await self.left_bytes(), await self.used_bytes()
        if used > WARN_SHARE * (used + left):
            self._warned = True
            log.warning("spool_fills_up", component="spool", path=self._where, used_bytes=used, left_bytes=left)

    def _full(self) -> str:
        disk = self._disk_ends or self._max_bytes is None
        bound = "its disk is full" if disk else f"[spool] max_size is {(self._max_bytes or 0) >> 20} MiB"
        return (
            f"the spool {self._where} is full ({bound}): make the vault reachable so that what waits in it is "
            "uploaded, give it more room, or delete points with 'forebay points --delete'; the restore points in it "
            "are untouched"
        )
