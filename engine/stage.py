"""Stages: what stands before a store looks like the store, and hands on all it does not do itself (DESIGN.md §4)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import anyio.to_thread
import msgspec

from engine.block import Bytes
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import NumberedName
from engine.ports import ObjectInfo, ObjectStore

Numbered = TypeVar("Numbered", bound=NumberedName)


def barrier_of(store: ObjectStore) -> Callable[[], Awaitable[None]] | None:
    """Return the `flush` of a store that is a `Barrier`, None of one whose puts are durable by themselves."""
    flush: Callable[[], Awaitable[None]] | None = getattr(store, "flush", None)
    return flush


async def flush(objects: ObjectStore) -> None:
    """Return once what was put before is durable, also where the store is a `Barrier`. Raises: as `Barrier`."""
    barrier = barrier_of(objects)
    if barrier is not None:
        await barrier()


async def free_name(objects: ObjectStore, first: Numbered, tries: int) -> Numbered | None:
    """Return the first of `tries` names, counted from `first` on, that no object has; None: all are taken.

    A name that is taken was put by this state directory's clone, or by a put whose answer was lost. Raises: StoreError.
    """
    for sequence in range(first.sequence, first.sequence + tries):
        name = msgspec.structs.replace(first, sequence=sequence)
        try:
            await objects.stat(str(name))
        except ObjectMissing:
            return name
    return None


async def remove_damaged(
    objects: ObjectStore,
    damaged: Mapping[Numbered, int],
    sound: Iterable[Numbered],
    check: Callable[[Numbered, Bytes], object],
    read_max: int,
) -> list[Numbered]:
    """Remove what is `damaged` (and its bytes) of one system's own objects; return what went, ascending.

    The newest of an incarnation stays: others may hold it whole. What is good when it is read again, up to `read_max`
    bytes of it, stays, too: it may be that it was only read badly. `check` raises StoreCorrupt.
    Raises: StoreUnavailable, StoreRejected.
    """
    newest = {name.incarnation: name.sequence for name in sorted(sound)}
    gone = []
    for name, size in sorted(damaged.items()):
        if name.sequence >= newest.get(name.incarnation, 0):
            continue
        try:
            await anyio.to_thread.run_sync(check, name, await objects.get(str(name), 0, min(size, read_max)))
        except StoreCorrupt:
            await objects.delete(str(name))
            gone.append(name)
        except ObjectMissing:
            continue
    return gone


class Stage:
    """An ObjectStore, and a Barrier if `inner` is one, that hands everything on; a stage overrides what it is for."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    async def put(self, name: str, data: Bytes) -> None:
        """Store an object, see ObjectStore."""
        await self._inner.put(name, data)

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
        await flush(self._inner)
