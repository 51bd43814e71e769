"""Fakes that implement the engine's ports; stores among them pass the contract suite (tests/contract)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import anyio
import anyio.lowlevel

from engine.block import Bytes
from engine.errors import ContentDiffers, ObjectMissing, SourceError, StoreError, StoreUnavailable
from engine.ports import ObjectInfo, ObjectStore

Operation = Literal["put", "get", "stat", "list", "delete", "probe", "flush"]


class MemoryStore:
    """An ObjectStore in memory. `away = True` makes every operation StoreUnavailable.

    With `barrier=True` puts lie in `volatile` until `flush`; `power_cut` then forgets them.
    """

    def __init__(self, barrier: bool = False) -> None:
        self.objects: dict[str, bytes] = {}
        self.volatile: dict[str, bytes] = {}
        self.away = False
        self._barrier = barrier

    def _seen(self) -> dict[str, bytes]:
        return self.objects | self.volatile if self.volatile else self.objects

    def _content(self, name: str) -> bytes:
        seen = self._seen()
        if name not in seen:
            raise ObjectMissing(name)
        return seen[name]

    async def _enter(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.away:
            raise StoreUnavailable("the memory store is away")

    async def put(self, name: str, data: Bytes) -> None:
        await self._enter()
        content, existing = bytes(data), self._seen().get(name)
        if existing is not None and len(existing) == len(content) and existing != content:
            raise ContentDiffers(f"object {name} exists with other content")
        if existing != content:
            (self.volatile if self._barrier else self.objects)[name] = content

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        await self._enter()
        content = self._content(name)
        return content[offset:] if length is None else content[offset : offset + length]

    async def stat(self, name: str) -> int:
        await self._enter()
        return len(self._content(name))

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._enter()
        for name, content in sorted(self._seen().items()):
            if name.startswith(prefix) and name > after:
                yield ObjectInfo(name, len(content))

    async def delete(self, name: str) -> None:
        await self._enter()
        self.objects.pop(name, None)
        self.volatile.pop(name, None)

    async def probe(self) -> None:
        await self._enter()

    async def flush(self) -> None:
        await self._enter()
        self.objects |= self.volatile
        self.volatile.clear()

    def power_cut(self) -> None:
        """Forget what no flush has made durable."""
        self.volatile.clear()


@dataclass(frozen=True)
class _Fault:
    operation: Operation
    first: int
    last: int
    prefix: str
    error: Callable[[], StoreError] | None = None
    after: bool = False
    until: anyio.Event | None = None
    reached: anyio.Event | None = None
    damage: Callable[[bytes], bytes] | None = None
    instead: Callable[[bytes], bytes | None] | None = None


def flip_a_bit(data: bytes) -> bytes:
    """Return `data` with one bit in its middle flipped."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else data


class FaultPlan:
    """What goes wrong and when: calls are counted from 1 per operation, only those whose name has the prefix.

    `plan.fail("put", 3, 5)`: the 3rd to the 5th put raise StoreUnavailable.
    `plan.lose_acknowledgement("put", 2)`: the second is applied, then StoreUnavailable is raised.
    `reached = plan.stall("put", 1, until=event)`: the first waits for the event; `reached` tells that it does.
    `plan.corrupt("get", 1)`: the first returns damaged bytes.
    `plan.acknowledge_only(1)`: the first put returns as if it was done, and nothing was.
    """

    def __init__(self) -> None:
        self._faults: list[_Fault] = []
        self._counts: dict[tuple[Operation, str], int] = {}

    def fail(
        self,
        operation: Operation,
        first: int = 1,
        last: int | None = None,
        error: Callable[[], StoreError] = lambda: StoreUnavailable("failed by plan"),
        prefix: str = "",
    ) -> FaultPlan:
        """Fail calls `first` to `last` (only `first` if None) before anything is applied."""
        return self._add(_Fault(operation, first, first if last is None else last, prefix, error))

    def lose_acknowledgement(
        self, operation: Operation, first: int = 1, last: int | None = None, prefix: str = ""
    ) -> FaultPlan:
        """Apply calls `first` to `last`, then raise StoreUnavailable."""
        error = lambda: StoreUnavailable("the acknowledgement was lost by plan")  # noqa: E731
        return self._add(_Fault(operation, first, first if last is None else last, prefix, error, after=True))

    def stall(self, operation: Operation, call: int, until: anyio.Event, prefix: str = "") -> anyio.Event:
        """Let one call wait until the event is set; return an event that is set once it waits."""
        reached = anyio.Event()
        self._add(_Fault(operation, call, call, prefix, until=until, reached=reached))
        return reached

    def corrupt(
        self,
        operation: Literal["get"],
        first: int = 1,
        last: int | None = None,
        prefix: str = "",
        damage: Callable[[bytes], bytes] = flip_a_bit,
    ) -> FaultPlan:
        """Damage what calls `first` to `last` return."""
        return self._add(_Fault(operation, first, first if last is None else last, prefix, damage=damage))

    def acknowledge_only(
        self,
        first: int = 1,
        last: int | None = None,
        prefix: str = "",
        instead: Callable[[bytes], bytes | None] = lambda _: None,
    ) -> FaultPlan:
        """Let puts `first` to `last` return though they put nothing, or only what `instead` makes of the bytes."""
        return self._add(_Fault("put", first, first if last is None else last, prefix, instead=instead))

    def _add(self, fault: _Fault) -> FaultPlan:
        self._faults.append(fault)
        return self

    def due(self, operation: Operation, name: str) -> list[_Fault]:
        """Count a call and return the faults that strike it."""
        prefixes = {
            fault.prefix for fault in self._faults if fault.operation == operation and name.startswith(fault.prefix)
        }
        for prefix in prefixes | {""}:
            self._counts[operation, prefix] = self._counts.get((operation, prefix), 0) + 1
        return [
            fault
            for fault in self._faults
            if fault.operation == operation
            and fault.prefix in prefixes
            and fault.first <= self._counts[operation, fault.prefix] <= fault.last
        ]


class FaultyStore:
    """An ObjectStore (and Barrier) around another one that fails by plan; `calls` records what was asked."""

    def __init__(self, inner: ObjectStore, plan: FaultPlan) -> None:
        self.inner, self.plan = inner, plan
        self.calls: list[tuple[Operation, str]] = []

    async def _before(self, operation: Operation, name: str) -> list[_Fault]:
        self.calls.append((operation, name))
        faults = self.plan.due(operation, name)
        for fault in faults:
            if fault.until is not None:
                if fault.reached is not None:
                    fault.reached.set()
                await fault.until.wait()
            if fault.error is not None and not fault.after:
                raise fault.error()
        return faults

    @staticmethod
    def _after(faults: Sequence[_Fault]) -> None:
        for fault in faults:
            if fault.error is not None and fault.after:
                raise fault.error()

    async def put(self, name: str, data: Bytes) -> None:
        faults = await self._before("put", name)
        kept: Bytes | None = data
        for fault in faults:
            if fault.instead is not None:
                kept = fault.instead(bytes(data))
        if kept is not None:
            await self.inner.put(name, kept)
        self._after(faults)

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        faults = await self._before("get", name)
        data = bytes(await self.inner.get(name, offset, length))
        self._after(faults)
        for fault in faults:
            if fault.damage is not None:
                data = fault.damage(data)
        return data

    async def stat(self, name: str) -> int:
        faults = await self._before("stat", name)
        size = await self.inner.stat(name)
        self._after(faults)
        return size

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        faults = await self._before("list", prefix)
        async for info in self.inner.list(prefix, after):
            yield info
        self._after(faults)

    async def delete(self, name: str) -> None:
        faults = await self._before("delete", name)
        await self.inner.delete(name)
        self._after(faults)

    async def probe(self) -> None:
        faults = await self._before("probe", "")
        await self.inner.probe()
        self._after(faults)

    async def flush(self) -> None:
        faults = await self._before("flush", "")
        flush = getattr(self.inner, "flush", None)
        if flush is not None:
            await flush()
        self._after(faults)


class FakeClock:
    """A Clock whose time moves only by sleeps (auto) or by `advance` (manual)."""

    def __init__(self, now_ms: int = 1_790_000_000_000, manual: bool = False) -> None:
        self._start_ms, self._elapsed_s, self._manual = now_ms, 0.0, manual
        self._sleepers: list[tuple[float, anyio.Event]] = []
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return self._start_ms + round(self._elapsed_s * 1000)

    def monotonic(self) -> float:
        return self._elapsed_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        due_s = self._elapsed_s + seconds
        if self._manual:
            sleeper = (due_s, anyio.Event())
            self._sleepers.append(sleeper)
            try:
                await sleeper[1].wait()
            finally:
                if sleeper in self._sleepers:
                    self._sleepers.remove(sleeper)
        else:
            await anyio.lowlevel.checkpoint()
            self._elapsed_s = max(self._elapsed_s, due_s)

    def advance(self, seconds: float) -> None:
        """Move time on and wake the sleepers that are due, earliest first."""
        self._elapsed_s += seconds
        for sleeper in sorted(self._sleepers, key=lambda pair: pair[0]):
            if sleeper[0] <= self._elapsed_s:
                self._sleepers.remove(sleeper)
                sleeper[1].set()

    @property
    def sleepers(self) -> int:
        """How many wait (manual mode)."""
        return len(self._sleepers)


@dataclass
class MemoryVolume:
    """A VolumeReader over bytes in memory.

    `extents`: what `data_extents` knows to hold data, merged and ascending (None: the whole volume). `bad`:
    (offset, length) ranges that cannot be read. `reads` records (offset, length) of every read.
    """

    name: str
    content: bytearray
    extents: Sequence[tuple[int, int]] | None = None
    bad: Sequence[tuple[int, int]] = ()
    reads: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        stop = offset + len(buffer)
        if stop > len(self.content):
            raise SourceError(self.name, offset, len(buffer), "the volume ends before")
        for bad_offset, bad_length in self.bad:
            if offset < bad_offset + bad_length and bad_offset < stop:
                raise SourceError(self.name, offset, len(buffer), "Input/output error")
        buffer[:] = self.content[offset:stop]

    def data_extents(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        stop = min(stop, len(self.content))
        for offset, length in [(0, len(self.content))] if self.extents is None else self.extents:
            low, high = max(start, offset), min(stop, offset + length)
            if low < high:
                yield low, high - low

    def close(self) -> None:
        self.closed = True
