"""Sparse arrays in files: one `uint64` a page (`WordFile`) and one 4 KiB image a page (`PageFile`).

What was never written reads as zero and takes no space: the cost of both goes with what is used. Scans run over
windows, so that memory stays bounded whatever the volume's size. Values are little-endian.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from adapters.state.files import StateFile
from engine.errors import StateCorrupt
from engine.state import ENTRY, PAGE_ENTRIES, Pages

PAGE_BYTES: Final = ENTRY.itemsize * PAGE_ENTRIES
WORD_BYTES: Final = 8
WINDOW_PAGES: Final = 1 << 17  # words scanned at once: 1 MiB
GROUP_PAGES: Final = 512  # images copied at once: 2 MiB

Words: TypeAlias = npt.NDArray[np.uint64]
Images: TypeAlias = npt.NDArray[np.uint8]  # shape (n, PAGE_BYTES)


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def runs_of(pages: Pages) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) positions of `pages` whose page numbers follow each other."""
    if pages.size == 1:
        yield 0, 1
        return
    edges = np.flatnonzero(np.diff(pages) != 1) + 1
    start = 0
    for stop in (*edges.tolist(), int(pages.size)):
        if stop > start:
            yield start, stop
        start = stop


def groups_of(pages: Pages) -> Iterator[Pages]:
    """Yield `pages` in pieces whose images fit into memory."""
    for start in range(0, pages.size, GROUP_PAGES):
        yield pages[start : start + GROUP_PAGES]


def page_sums(pages: Pages, images: Images) -> Words:
    """Return the checksum of each image: xxh3_64 seeded with its page number; 0 stands for an all-zero image."""
    flat = bytes_of(images)
    sums = np.fromiter(
        (
            xxhash.xxh3_64_intdigest(flat[at * PAGE_BYTES : (at + 1) * PAGE_BYTES], page) or 1
            for at, page in enumerate(pages.tolist())
        ),
        dtype="<u8",
        count=pages.size,
    )
    sums[~images.view(np.uint64).any(axis=1)] = 0
    return sums


def check_pages(path: Path, pages: Pages, images: Images, sums: Words) -> None:
    """Compare images with their checksums. Raises: StateCorrupt naming file and page."""
    wrong = np.flatnonzero(page_sums(pages, images) != sums)
    if wrong.size:
        raise StateCorrupt(f"{path} is damaged: the checksum of page {int(pages[wrong[0]])} does not match")


class WordFile:
    """A file of one `uint64` per page."""

    def __init__(self, file: StateFile) -> None:
        self.file = file

    def read(self, pages: Pages) -> Words:
        """Return the words of `pages`."""
        out = np.empty(pages.size, dtype="<u8")
        view = bytes_of(out)
        for start, stop in runs_of(pages):
            self.file.read_into(int(pages[start]) * WORD_BYTES, view[start * WORD_BYTES : stop * WORD_BYTES])
        return out

    def read_range(self, first: int, stop: int) -> Words:
        """Return the words of the pages in [first, stop)."""
        out = np.empty(stop - first, dtype="<u8")
        self.file.read_into(first * WORD_BYTES, bytes_of(out))
        return out

    def write(self, pages: Pages, words: Words) -> None:
        """Set the words of `pages`."""
        view = bytes_of(np.ascontiguousarray(words, dtype="<u8"))
        for start, stop in runs_of(pages):
            self.file.write_at(int(pages[start]) * WORD_BYTES, view[start * WORD_BYTES : stop * WORD_BYTES])

    def windows(self, first: int, stop: int) -> Iterator[tuple[int, Words]]:
        """Yield (first page, words) of windows up to `stop` or the file's end."""
        stop = min(stop, -(-self.file.size() // WORD_BYTES))
        for start in range(first, stop, WINDOW_PAGES):
            yield start, self.read_range(start, min(start + WINDOW_PAGES, stop))

    def used(self, first: int, stop: int) -> Iterator[Pages]:
        """Yield, a window at a time, the pages in [first, stop) whose word is not zero."""
        for start, words in self.windows(first, stop):
            found = np.flatnonzero(words)
            if found.size:
                yield found + start

    def used_pages(self, first: int, stop: int) -> Pages:
        """Return the pages in [first, stop) whose word is not zero."""
        found = list(self.used(first, stop))
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def total(self, stop: int) -> int:
        """Return the sum, modulo 2**64, of the words of the pages before `stop`."""
        return sum(int(words.sum(dtype=np.uint64)) for _, words in self.windows(0, stop)) & ((1 << 64) - 1)

    def cut(self, pages: int) -> None:
        """Drop all pages from number `pages` on."""
        if self.file.size() > pages * WORD_BYTES:
            self.file.truncate(pages * WORD_BYTES)


class PageFile:
    """A file of one 4 KiB image per page."""

    def __init__(self, file: StateFile) -> None:
        self.file = file

    def read(self, pages: Pages) -> Images:
        """Return the images of `pages`, unchecked."""
        out = np.empty((pages.size, PAGE_BYTES), dtype=np.uint8)
        view = bytes_of(out)
        for start, stop in runs_of(pages):
            self.file.read_into(int(pages[start]) * PAGE_BYTES, view[start * PAGE_BYTES : stop * PAGE_BYTES])
        return out

    def write(self, pages: Pages, images: Images) -> None:
        """Set the images of `pages`."""
        view = bytes_of(np.ascontiguousarray(images))
        for start, stop in runs_of(pages):
            self.file.write_at(int(pages[start]) * PAGE_BYTES, view[start * PAGE_BYTES : stop * PAGE_BYTES])

    def cut(self, pages: int) -> None:
        """Drop all pages from number `pages` on."""
        if self.file.size() > pages * PAGE_BYTES:
            self.file.truncate(pages * PAGE_BYTES)


def allocate(file: StateFile, pages: Pages, item_bytes: int) -> None:
    """Reserve space in `file` for the items of `pages`, in whole file-system blocks of 4 KiB."""
    blocks = np.unique(pages * item_bytes // PAGE_BYTES)
    for start, stop in runs_of(blocks):
        file.allocate(int(blocks[start]) * PAGE_BYTES, (stop - start) * PAGE_BYTES)
