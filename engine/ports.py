"""The engine's view of the outside world. Adapters implement these; the engine imports no adapter.

Each method says what it raises. An exception named nowhere here is a bug and propagates. Ports marked *sync*
are called from worker threads only (inside a batch's one hop), the others from the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from engine.block import Bytes


class ObjectInfo(msgspec.Struct, frozen=True):
    """One row of a listing: the object's name and its size in bytes."""

    name: str
    size: int


class ObjectStore(Protocol):
    """Whole objects under plain names: vault, cache and spool are each one pack store over one of these."""

    async def put(self, name: str, data: Bytes) -> None:
        """Store `data` under `name`, atomically: readers see nothing or all of it.

        A name that exists with the same size and content is success; one of another size is replaced; one of
        the same size with other content is ContentDiffers, which is StoreRejected. Durable once put has returned, or,
        for a store that is also a `Barrier`, once `flush` has.

        Raises: StoreUnavailable, StoreRejected.
        """
        ...

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        """Return `length` bytes from `offset` (to the end if None); fewer only where the object ends.

        Raises: ObjectMissing, StoreUnavailable, StoreRejected.
        """
        ...

    async def stat(self, name: str) -> int:
        """Return the object's size in bytes. Raises: ObjectMissing, StoreUnavailable, StoreRejected."""
        ...

    def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        """Stream the objects whose names start with `prefix` and are greater than `after`, in no set order.

        `prefix` ends with "/" or is a whole leading part of names (`data/<writer>/<hash prefix>`), or "".
        A prefix nothing is under gives nothing. Raises: StoreUnavailable, StoreRejected.
        """
        ...

    async def delete(self, name: str) -> None:
        """Remove an object; one that is not there is success. Raises: StoreUnavailable, StoreRejected."""
        ...

    async def probe(self) -> None:
        """Return if the store is there and answers now. Raises: StoreUnavailable (away), StoreRejected."""
        ...


class Barrier(Protocol):
    """A store whose puts may lie in volatile memory until `flush`."""

    async def flush(self) -> None:
        """Return once everything put before is durable. Raises: StoreUnavailable, StoreRejected."""
        ...


class Room(msgspec.Struct, frozen=True):
    """What is known of the device a store lies on, in bytes; None: nothing."""

    device_bytes: int | None = None
    free_bytes: int | None = None


@runtime_checkable
class Device(Protocol):
    """What a store lies on."""

    async def room(self) -> Room:
        """Return how large it is, and how much of it this system may fill still.

        Raises: StoreUnavailable (the store is away), StoreRejected.
        """
        ...


class Retention(Protocol):
    """A store that locks what is put there: nobody can delete it before its time."""

    async def check_lock(self) -> None:
        """Return if it locks what is put there now.

        Raises: StoreUnavailable, StoreRejected (it cannot, there is no right to, or the clocks of both sides differ).
        """
        ...

    async def extend_lock(self, name: str) -> None:
        """Lock an object as if it were put now; one that is locked for longer is success.

        Raises: ObjectMissing, StoreUnavailable, StoreRejected.
        """
        ...


class VolumeReader(Protocol):
    """A volume opened for reading (*sync*)."""

    @property
    def name(self) -> str:
        """The configured name."""
        ...

    @property
    def size_bytes(self) -> int:
        """The size when it was opened."""
        ...

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes at `offset`, from any thread. Raises: SourceError (also when too short)."""
        ...

    def data_extents(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of the ranges between `start` and `stop` that may hold data, ascending.

        What lies between them reads as zero and need not be read. Raises: SourceError.
        """
        ...

    def close(self) -> None:
        """Release the volume; safe to call twice."""
        ...


class Changes(msgspec.Struct, frozen=True):
    """What a tracker says has changed since the point whose `generation` it was given.

    `extents`: ascending, merged (offset, length) pairs in bytes, or None: nothing is known, compare the whole
    volume. `generation`: to be stored with the new point, or None. `problem`: a sentence for the user when the
    tracker was set up but could not be trusted, else None.
    """

    extents: list[tuple[int, int]] | None
    generation: str | None
    problem: str | None = None


class ChangeTracker(Protocol):
    """Where changed blocks are looked for; always a hint, never believed without the sampled check (*sync*)."""

    def changes(self, generation: str | None) -> Changes:
        """Return the changes since `generation` (None: none is known). Never raises for a bad hint: see Changes."""
        ...


class RestoreTarget(Protocol):
    """Where a restore writes to (*sync*): a new sparse file or a block device."""

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """Write `pieces`, one right after the other, from `offset` on; from any thread. Raises: RestoreError."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros. Raises: RestoreError."""
        ...

    def begun(self) -> bytes:
        """Return what `keep` kept last in an interrupted restore to this target; b"": this one begins anew."""
        ...

    def keep(self, progress: bytes) -> None:
        """Make all that was written durable, and `progress` known to whoever restores to this target next.

        A target that cannot keep anything does nothing. Raises: RestoreError.
        """
        ...

    def restart(self) -> None:
        """Forget what an interrupted restore did: everything is as in a new target. Raises: RestoreError."""
        ...

    def finish(self) -> None:
        """Make everything durable and give the target its final name. Raises: RestoreError."""
        ...

    def abandon(self) -> None:
        """Release the target, and remove what was begun unless something of it was kept; never raises."""
        ...


class Clock(Protocol):
    """Time, as an argument of the world: tests bring their own."""

    def now_ms(self) -> int:
        """Return milliseconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        ...


class MirrorFiles(Protocol):
    """The folder of one store's index mirror in `state_dir` (*sync*); contents are rebuildable."""

    def names(self) -> list[str]:
        """Return the names of the fragments held, sorted."""
        ...

    def open(self, name: str) -> memoryview:
        """Return a fragment's bytes, memory-mapped read-only. Raises: StateCorrupt."""
        ...

    def create(self, name: str, size: int) -> memoryview:
        """Return a writable memory-mapped new file of `size` bytes, invisible until `publish`. Raises: StateCorrupt."""
        ...

    def publish(self, name: str, data: memoryview | bytes) -> None:
        """Make what `create` returned (or these bytes) durable under `name`. Raises: StateCorrupt."""
        ...

    def remove(self, name: str) -> None:
        """Remove a fragment; one that is not there is success."""
        ...


class AckLog(Protocol):
    """Packs a store acknowledged that no index fragment lists yet: what an interrupted session leaves (*sync*)."""

    def append(self, entry: bytes) -> None:
        """Append one entry (torn tails are dropped when read), in a way that survives kill -9. Raises: StateCorrupt."""
        ...

    def read(self) -> list[bytes]:
        """Return all whole entries, oldest first."""
        ...

    def clear(self) -> None:
        """Forget all entries."""
        ...
