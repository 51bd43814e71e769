"""The missing-block bitmap: one `uint64` a page, bit i set when the cache is known to lack entry i's block.

The file is made of chunks of 4 KiB: 511 words, then xxh3_64 of their bytes seeded with the chunk's number (0 for
a chunk of zeros). A chunk that does not match (a flipped bit, a write cut off by a power failure) counts as all
missing: its blocks are compared with the cache again, which is the worst that a lost bit may cost.
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from adapters.state.files import StateFile
from adapters.state.pagefile import Words, bytes_of
from engine.distinct import distinct
from engine.state import PAGE_ENTRIES, Masks, Pages

CHUNK_BYTES: Final = 4096
CHUNK_PAGES: Final = CHUNK_BYTES // 8 - 1
_WINDOW_CHUNKS: Final = 256


def valid_masks(pages: Pages, blocks: int) -> Masks:
    """Return masks of the entries of `pages` that lie before block number `blocks`."""
    counts = np.clip(blocks - pages * PAGE_ENTRIES, 0, PAGE_ENTRIES).tolist()
    return np.array([(1 << count) - 1 for count in counts], dtype=np.uint64)


class MissingBitmap:
    """The file `missing` of one volume's folder. Safe to call from several threads."""

    def __init__(self, file: StateFile) -> None:
        self._file, self._lock = file, threading.Lock()
        self._unsynced = file.size() > 0  # who wrote it may have died before

    def read(self, pages: Pages, blocks: int) -> Masks:
        """Return the missing bits of `pages`; a damaged chunk has all bits set that lie before block `blocks`."""
        out = np.zeros(pages.size, dtype=np.uint64)
        chunks = pages // CHUNK_PAGES
        for chunk in distinct(chunks).tolist():
            here = np.flatnonzero(chunks == chunk)
            words, damaged = self._chunk(chunk)
            mine = pages[here]
            out[here] = valid_masks(mine, blocks) if damaged else words[mine - chunk * CHUNK_PAGES]
        return out

    def pages(self, first: int, stop: int, blocks: int) -> Pages:
        """Return the pages in [first, stop) with at least one missing bit, as `read` sees them."""
        stop = min(stop, -(-self._file.size() // CHUNK_BYTES) * CHUNK_PAGES)
        found: list[Pages] = [np.empty(0, dtype=np.int64)]
        for start in range(first // CHUNK_PAGES, -(-stop // CHUNK_PAGES), _WINDOW_CHUNKS):
            count = min(_WINDOW_CHUNKS, -(-stop // CHUNK_PAGES) - start)
            window = self._read_chunks(start, count)
            for at in np.flatnonzero(window.any(axis=1)).tolist():
                numbers = np.arange(CHUNK_PAGES, dtype=np.int64) + (start + at) * CHUNK_PAGES
                numbers = numbers[(numbers >= first) & (numbers < stop)]
                found.append(numbers[self.read(numbers, blocks) != 0])
        return np.concatenate(found)

    def write(self, pages: Pages, masks: Masks, blocks: int) -> None:
        """Replace the missing bits of `pages`; durable after `sync`."""
        chunks = pages // CHUNK_PAGES
        with self._lock:
            for chunk in distinct(chunks).tolist():
                here = np.flatnonzero(chunks == chunk)
                words, damaged = self._load(chunk)
                if damaged:
                    words = valid_masks(np.arange(CHUNK_PAGES, dtype=np.int64) + chunk * CHUNK_PAGES, blocks)
                words[pages[here] - chunk * CHUNK_PAGES] = masks[here]
                self._store(chunk, words)

    def cut(self, blocks: int) -> None:
        """Clear every bit from block number `blocks` on."""
        last = blocks // PAGE_ENTRIES // CHUNK_PAGES
        with self._lock:
            size = self._file.size()
            if size > (last + 1) * CHUNK_BYTES:
                self._truncate((last + 1) * CHUNK_BYTES)
            if size > last * CHUNK_BYTES:
                words, damaged = self._load(last)
                valid = valid_masks(np.arange(CHUNK_PAGES, dtype=np.int64) + last * CHUNK_PAGES, blocks)
                self._store(last, valid if damaged else words & valid)

    def clear(self) -> None:
        """Forget all bits."""
        with self._lock:
            if self._file.size():
                self._truncate(0)

    def sync(self) -> None:
        """Make all bits durable."""
        with self._lock:
            if self._unsynced:
                self._file.sync()
            self._unsynced = False

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _chunk(self, chunk: int) -> tuple[Words, bool]:
        with self._lock:
            return self._load(chunk)

    def _load(self, chunk: int) -> tuple[Words, bool]:
        """Return a chunk's words (a copy) and whether they do not match their checksum."""
        words = self._read_chunks(chunk, 1)[0]
        return words[:CHUNK_PAGES], int(words[CHUNK_PAGES]) != _chunk_sum(chunk, words[:CHUNK_PAGES])

    def _store(self, chunk: int, words: Words) -> None:
        self._unsynced = True
        block = np.empty(CHUNK_PAGES + 1, dtype="<u8")
        block[:CHUNK_PAGES] = words
        block[CHUNK_PAGES] = _chunk_sum(chunk, block[:CHUNK_PAGES])
        self._file.write_at(chunk * CHUNK_BYTES, bytes_of(block))

    def _truncate(self, size: int) -> None:
        self._unsynced = True
        self._file.truncate(size)

    def _read_chunks(self, chunk: int, count: int) -> npt.NDArray[np.uint64]:
        out = np.empty((count, CHUNK_PAGES + 1), dtype="<u8")
        self._file.read_into(chunk * CHUNK_BYTES, bytes_of(out))
        return out


def _chunk_sum(chunk: int, words: Words) -> int:
    if not words.any():
        return 0
    return xxhash.xxh3_64_intdigest(bytes_of(words), chunk) or 1
