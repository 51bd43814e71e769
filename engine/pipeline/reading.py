"""Reading a hop's blocks: into one buffer a thread, zero-tested at once, hashed one by one."""

from __future__ import annotations

import threading
from typing import Final

import msgspec
import numpy as np

from engine.bits import rows_of
from engine.block import (
    BATCH_BLOCKS,
    BATCH_BYTES,
    BLOCK_BYTES,
    REF_BYTES,
    Mask,
    Refs,
    block_length,
    blocks_in,
    ref_of,
    zero_mask,
)
from engine.pipeline.candidates import Work
from engine.pipeline.skips import read_with_skips
from engine.ports import VolumeReader

BUFFER_ALIGNMENT: Final = 4096  # of batch buffers: devices can then be read straight into them
_ZERO_REF: Final = bytes(REF_BYTES)


class Read(msgspec.Struct, frozen=True):
    """Blocks read by a hop: their row and bit in the work's pages, their refs (zero for zero blocks), contents.

    `contents` lie in the thread's buffer and are valid until its next read.
    """

    rows: Mask  # bool[pages, 64]
    refs: Refs  # uint8[k, 48]
    contents: list[memoryview]
    unreadable: list[tuple[int, int]]
    read_bytes: int


class BlockReader:
    """Reads and names the blocks of one volume. `read` runs in worker threads, several at once (*sync*)."""

    def __init__(self, reader: VolumeReader, blocks_subkey: bytes, *, skip_unreadable: bool) -> None:
        self._reader, self._subkey, self._skip = reader, blocks_subkey, skip_unreadable
        self._volume_bytes = reader.size_bytes

    def read(self, work: Work) -> Read:
        """Read the blocks `work.read` names. Raises: SourceError."""
        rows = rows_of(work.read)
        page_of, bit_of = np.nonzero(rows)
        numbers = work.pages[page_of] * BATCH_BLOCKS + bit_of
        buffer = _buffer()
        unreadable: list[tuple[int, int]] = []
        last = blocks_in(self._volume_bytes) - 1
        total = len(numbers)
        position = read_bytes = 0
        for begin, count in _runs(numbers):
            offset = begin * BLOCK_BYTES
            length = min(count * BLOCK_BYTES, self._volume_bytes - offset)
            view = buffer[position * BLOCK_BYTES : position * BLOCK_BYTES + length]
            if self._skip:
                unreadable += read_with_skips(self._reader, offset, view)
            else:
                self._reader.read_into(offset, view)
            if length < count * BLOCK_BYTES:
                # The rest of a short last block's slot holds a former batch: the zero test must not see it.
                end = (position + count) * BLOCK_BYTES
                buffer[position * BLOCK_BYTES + length : end] = bytes(end - position * BLOCK_BYTES - length)
            read_bytes += length
            position += count
        stops = range(BLOCK_BYTES, (total + 1) * BLOCK_BYTES, BLOCK_BYTES)
        contents = [buffer[stop - BLOCK_BYTES : stop] for stop in stops]
        if total and numbers[-1] == last:
            contents[-1] = contents[-1][: block_length(last, self._volume_bytes)]
        zero = zero_mask(buffer[: total * BLOCK_BYTES]).tolist() if total else []
        subkey = self._subkey
        digests = [
            _ZERO_REF if is_zero else ref_of(subkey, content) for content, is_zero in zip(contents, zero, strict=True)
        ]
        refs: Refs = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(total, REF_BYTES)
        return Read(rows, refs, contents, unreadable, read_bytes)


# One batch a worker thread, whatever the number of volumes: what is read lives no longer than its hop.
_BUFFERS: Final = threading.local()


def _buffer() -> memoryview:
    buffer: memoryview | None = getattr(_BUFFERS, "view", None)
    if buffer is None:
        room = np.empty(BATCH_BYTES + BUFFER_ALIGNMENT, dtype=np.uint8)
        start = -int(room.__array_interface__["data"][0]) % BUFFER_ALIGNMENT
        buffer = _BUFFERS.view = room.data[start : start + BATCH_BYTES]
    return buffer


def _runs(numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[tuple[int, int]]:
    """Return (first, count) of the runs of consecutive block numbers, each at most a batch long."""
    if not numbers.size:
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers) != 1) + 1))
    stops = np.concatenate((starts[1:], [len(numbers)]))
    return [(int(numbers[a]), int(b - a)) for a, b in zip(starts, stops, strict=True)]
