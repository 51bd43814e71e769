"""Room for what is too large to be held in memory, and needed only while something runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from engine.block import Bytes


class ScratchFile(Protocol):
    """A file without a name, gone once it is closed (*sync*, from any thread)."""

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (bytes) from `offset`, with zeros where nothing was written. Raises: StateCorrupt."""
        ...

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write `data` at `offset`. Raises: SessionAborted (also for a full disk)."""
        ...

    def close(self) -> None:
        """Let go of it; safe to call twice."""
        ...


class MemoryScratch:
    """A ScratchFile in memory, for what is known to be small."""

    def __init__(self) -> None:
        self._data = bytearray()

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` from `offset`, with zeros where nothing was written."""
        there = memoryview(self._data)[offset : offset + len(view)]
        view[: len(there)] = there
        view[len(there) :] = bytes(len(view) - len(there))

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write `data` at `offset`."""
        stop = offset + len(data)
        if stop > len(self._data):
            self._data.extend(bytes(stop - len(self._data)))
        self._data[offset:stop] = data

    def close(self) -> None:
        """Let go of it."""
        self._data = bytearray()
