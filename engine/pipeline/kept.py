"""The stage that looks whether what a store acknowledged is there: on the way an error may be taken for success.

Packs are looked at together, before the root that lists them (reliance.py, upload.py); whatever else is put is looked
at at once, below the retries: a 503 passes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from engine.block import Bytes
from engine.errors import ObjectMissing, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.ports import ObjectInfo, ObjectStore


def not_kept(name: str) -> StoreRejected:
    """Return the error for a pack the vault took a moment ago and does not have."""
    return StoreRejected(
        f"the vault acknowledged object {name} and does not have it whole: find out what is in between"
    )


class KeptStore:
    """An ObjectStore, and a Barrier if `inner` is one, that believes an acknowledgement once it sees the object."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    async def put(self, name: str, data: Bytes) -> None:
        """Store an object, see ObjectStore."""
        await self._inner.put(name, data)
        if PackName.parse(name) is not None:
            return
        try:
            size = await self._inner.stat(name)
        except ObjectMissing:
            size = -1
        if size != len(data):
            raise StoreUnavailable(
                f"object {name} was acknowledged and is not there whole: something on the way takes errors for success"
            )

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        """Return a range of an object, see ObjectStore."""
        return await self._inner.get(name, offset, length)

    async def stat(self, name: str) -> int:
        """Return an object's size in bytes, see ObjectStore."""
        return await self._inner.stat(name)

    def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Stream a listing, see ObjectStore."""
        return self._inner.list(prefix, after)

    async def delete(self, name: str) -> None:
        """Remove an object, see ObjectStore."""
        await self._inner.delete(name)

    async def probe(self) -> None:
        """Return if the store is there, see ObjectStore."""
        await self._inner.probe()

    async def flush(self) -> None:
        """Return once everything put before is durable, see Barrier."""
        barrier: Callable[[], Awaitable[None]] | None = getattr(self._inner, "flush", None)
        if barrier is not None:
            await barrier()
