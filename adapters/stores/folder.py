"""Objects as files in a local or mounted folder: the async half, over `folderfiles` (one thread hop a call).

A file system call cannot be cancelled: every call is given up after a time without progress (see `calls`), and a
cancelled or timed-out put publishes nothing unless its link was already on the way.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeVar

from adapters.stores.calls import Call, WatchedThreads
from adapters.stores.folderfiles import FolderFiles, create_folder
from adapters.stores.folderwalk import walk
from adapters.stores.plainnames import check_object_name
from engine.block import Bytes
from engine.ports import ObjectInfo, Room
from engine.workers import run_workers

T = TypeVar("T")

THREADS_MAX: Final = 32
LIST_CHUNK: Final = 1000
SYNCS_MAX: Final = 8  # of files at once, in a flush
SYNC_CHUNK: Final = 16  # files a thread hop


class FolderStore:
    """An ObjectStore, a Barrier and a Device, over the folder `root`.

    `owner`: 1 to 64 letters and digits, in the names of temporary files. `sync`: "put" makes every put durable by
    itself, "flush" leaves it to `flush`. A probe may take `connect_timeout_s`, every other call
    `stall_timeout_s` without progress, one fsync of a flush `flush_timeout_s`.
    The folder is *there* while it holds the object `format`, the same bytes as when it was first looked at;
    otherwise every operation is StoreUnavailable and nothing is ever created.
    """

    def __init__(
        self,
        root: Path,
        owner: str,
        sync: Literal["put", "flush"] = "put",
        connect_timeout_s: float = 15.0,
        stall_timeout_s: float = 30.0,
        flush_timeout_s: float = 120.0,
    ) -> None:
        if min(connect_timeout_s, stall_timeout_s, flush_timeout_s) <= 0:
            raise ValueError("timeouts must be greater than 0 s")
        self._files = FolderFiles(root, owner, durable_put=sync == "put")
        self._threads = WatchedThreads(f"folder {self._files.root}", THREADS_MAX)
        self._connect_timeout_s = connect_timeout_s
        self._stall_timeout_s, self._flush_timeout_s = stall_timeout_s, flush_timeout_s

    @classmethod
    async def create(cls, root: Path, format_bytes: bytes, stall_timeout_s: float = 30.0) -> None:
        """Make `root` the folder of a new store with this format object; only `init` does.

        The parent of `root` must exist; `root` must be absent or empty (what an interrupted create left, and
        `lost+found`, do not count).

        Raises: ConfigError (no parent, not a folder, not empty, holds a store), StoreRejected, StoreUnavailable.
        """
        threads = WatchedThreads(f"folder {root}", 1)
        await threads.run(stall_timeout_s, lambda call: create_folder(call, root, format_bytes))

    async def _run(self, function: Callable[[Call], T], timeout_s: float | None = None) -> T:
        return await self._threads.run(timeout_s or self._stall_timeout_s, function)

    async def put(self, name: str, data: Bytes) -> None:
        """See `ObjectStore.put`; a name that is no plain one is StoreRejected, here and below."""
        check_object_name(name)
        await self._run(lambda call: self._files.put(call, name, data))

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        """See `ObjectStore.get`."""
        check_object_name(name)
        return await self._run(lambda call: self._files.get(call, name, offset, length))

    async def stat(self, name: str) -> int:
        """See `ObjectStore.stat`."""
        check_object_name(name)
        return await self._run(lambda call: self._files.stat(call, name))

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """See `ObjectStore.list`; folders are read as the listing goes, `LIST_CHUNK` objects a hop."""
        found = walk(self._files.root, prefix, after)

        def chunk(call: Call) -> list[ObjectInfo]:
            with self._files.here():
                rows = list(islice(found, LIST_CHUNK))
                call.progress()
            # Looked at again after the reading: a folder that was unmounted meanwhile is away, not empty.
            self._files.probe(call)
            return rows

        while True:
            rows = await self._run(chunk)
            for row in rows:
                yield row
            if len(rows) < LIST_CHUNK:
                return

    async def delete(self, name: str) -> None:
        """See `ObjectStore.delete`; durable like a put."""
        check_object_name(name)
        await self._run(lambda call: self._files.delete(call, name))

    async def probe(self) -> None:
        """See `ObjectStore.probe`."""
        await self._run(self._files.probe, self._connect_timeout_s)

    async def room(self) -> Room:
        """See `Device.room`."""
        return await self._run(self._files.room)

    async def flush(self) -> None:
        """See `Barrier.flush`. Once it could not make something durable it never succeeds again."""
        names = self._files.unsynced()
        # Several at once: a file system makes the changes of all who wait durable together.
        rest = iter([names[start : start + SYNC_CHUNK] for start in range(0, len(names), SYNC_CHUNK)])

        async def work() -> None:
            for part in rest:
                await self._run(partial(self._files.sync_files, names=part), self._flush_timeout_s)

        await run_workers(work, SYNCS_MAX)
        await self._run(lambda call: self._files.sync_names(call, names), self._flush_timeout_s)

    async def sweep(self) -> int:
        """Remove temporary files this owner left behind and return how many; call it while no other call runs.

        Raises: StoreUnavailable, StoreRejected.
        """
        return await self._run(self._files.sweep)
