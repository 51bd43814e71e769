"""Objects as files in a share, without a mount: the async half, over `smbfiles` (one thread hop a call).

A link serves one call at a time, and a request on a hung server is waited for without end: so every call is watched
(see `calls`), and one that makes no progress is ended by cutting its link; the next one makes another.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Final, Literal, TypeVar

import anyio

from adapters.stores.calls import Call, WatchedThreads
from adapters.stores.plainnames import check_object_name
from adapters.stores.smbconnection import Login
from adapters.stores.smbfiles import SmbFiles
from adapters.stores.smblinks import Links
from adapters.stores.smbwalk import Listing
from engine.block import Bytes
from engine.errors import StoreError
from engine.ports import ObjectInfo, Room

T = TypeVar("T")

# Two carry bytes at once (`smbput`); the others make ready, and finish what they brought. Probes and listings have
# links of their own, so that they wait for no put.
LINKS_MAX: Final = 4
THREADS_MAX: Final = 16
LIST_CHUNK: Final = 1000


class SmbStore:
    """An ObjectStore, and a Device, over a folder in a share; every put is durable by itself.

    `folder`: its path below the share, with "/". `owner`: 1 to 64 letters and digits, in the names of temporary files.
    `password`: gives the password of each login, None for a Kerberos ticket; it may raise StoreRejected. `where`: what
    messages call the store. To connect may take `connect_timeout_s`, every other step `stall_timeout_s`; a file that
    others have open is waited for `busy_s`.
    The store is *there* while the folder holds the object `format`, the same bytes as when it was first looked at;
    otherwise every operation is StoreUnavailable and nothing is ever created.
    """

    def __init__(
        self,
        login: Login,
        folder: str,
        owner: str,
        password: Callable[[], str | None],
        where: str,
        *,
        connect_timeout_s: float = 15.0,
        stall_timeout_s: float = 30.0,
        busy_s: float = 5.0,
    ) -> None:
        if min(connect_timeout_s, stall_timeout_s, busy_s) <= 0:
            raise ValueError("timeouts must be greater than 0 s")
        self._links = Links(login, password, where, connect_timeout_s)
        self._files = SmbFiles(self._links, folder, owner, busy_s)
        self._threads = WatchedThreads(where, THREADS_MAX)
        self._connect_timeout_s, self._stall_timeout_s = connect_timeout_s, stall_timeout_s
        self._free_links = anyio.Semaphore(LINKS_MAX)

    async def _run(self, function: Callable[[Call], T]) -> T:
        await self._threads.turn(self._free_links)
        try:
            return await self._threads.run(self._stall_timeout_s, function)
        finally:
            self._free_links.release()

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
        listing = Listing(self._links, self._files, prefix, after)
        try:
            while True:
                rows = await self._threads.run(self._stall_timeout_s, lambda call: listing.rows(call, LIST_CHUNK))
                for row in rows:
                    yield row
                if len(rows) < LIST_CHUNK:
                    return
        finally:
            listing.close()

    async def delete(self, name: str) -> None:
        """See `ObjectStore.delete`."""
        check_object_name(name)
        await self._run(lambda call: self._files.delete(call, name))

    async def probe(self) -> None:
        """See `ObjectStore.probe`; it waits for no other call."""
        await self._threads.run(self._connect_timeout_s, self._files.probe)

    async def room(self) -> Room:
        """See `Device.room`; a quota of the user's counts. Not every server tells."""
        return await self._run(self._files.room)

    async def sweep(self) -> int:
        """Remove temporary files this owner left behind and return how many; call it while no other call runs.

        Raises: StoreUnavailable, StoreRejected.
        """
        return await self._run(self._files.sweep)

    async def look(self) -> Literal["store", "new"]:
        """Tell a store from a place where one can be made.

        Raises: ConfigError (neither), StoreUnavailable, StoreRejected.
        """
        return await self._run(self._files.look)

    async def why_not_writable(self) -> str | None:
        """Return, in a sentence, why nothing can be put there; None if it can. Leaves nothing behind."""
        try:
            await self._run(self._files.try_write)
        except StoreError as error:
            return str(error)
        return None

    async def create(self, marker: bytes) -> None:
        """Make a new store with this format object; only `init` does.

        The folder above it must exist; the folder itself must be absent or empty, but for what an interrupted create
        left.

        Raises: ConfigError (no folder above, not empty, holds a store), StoreRejected, StoreUnavailable.
        """
        await self._run(lambda call: self._files.create(call, marker))

    def close(self) -> None:
        """Close the connections that idle; a later call makes new ones."""
        self._links.close()
