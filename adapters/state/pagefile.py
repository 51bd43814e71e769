"""Sparse arrays in files: one `uint64` a page (`WordFile`) and one image of a fixed size a page (`PageFile`).

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
from engine.block import Mask
from engine.distinct import distinct
from engine.errors import StateCorrupt
from engine.state import ENTRY, PAGE_ENTRIES, Pages

PAGE_BYTES: Final = ENTRY.itemsize * PAGE_ENTRIES  # of the map, and a block of most file systems
WORD_BYTES: Final = 8
WINDOW_PAGES: Final = 1 << 17  # words scanned at once: 1 MiB
GROUP_PAGES: Final = 512  # images copied at once: 2 MiB

Words: TypeAlias = npt.NDArray[np.uint64]
Images: TypeAlias = npt.NDArray[np.uint8]  # shape (n, bytes of a page)


def bytes_of(array: npt.NDArray[Any]) -> memoryview:
    """Return the bytes of a contiguous array, not copied."""
    return array.reshape(-1).view(np.uint8).data


def runs_of(pages: Pages) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) positions of `pages` (ascending) whose page numbers follow each other."""
    if pages.size and pages[-1] - pages[0] == pages.size - 1:
        yield 0, pages.size
        return
    edges = np.flatnonzero(np.diff(pages) != 1) + 1
    start = 0
    for stop in (*edges.tolist(), int(pages.size)):
        if stop > start:
            yield start, stop
        start = stop


def groups_of(pages: Pages, count: int = GROUP_PAGES) -> Iterator[Pages]:
    """Yield `pages` in pieces of `count`, whose images fit into memory."""
    for start in range(0, pages.size, count):
        yield pages[start : start + count]


def lay_over(images: npt.NDArray[Any], rows: Mask, others: npt.NDArray[Any]) -> None:
    """Replace the items of `images` that `rows` names by those of `others` (same dtype; shape or one), in place."""
    # As opaque bytes: numpy copies items with fields field by field, which takes ten times as long.
    opaque = np.dtype((np.void, images.dtype.itemsize))
    np.copyto(images.view(opaque), others.view(opaque), where=rows)


def digests_of(seeds: Pages | Words, images: Images) -> Words:
    """Return the seeded xxh3_64 of each image; never 0."""
    flat, size, digest = bytes_of(images), images.shape[1], xxhash.xxh3_64_intdigest
    return np.array(
        [digest(flat[at * size : (at + 1) * size], seed) or 1 for at, seed in enumerate(seeds.tolist())], dtype="<u8"
    )


def page_sums(seeds: Pages | Words, images: Images) -> Words:
    """Return the checksum of each image: its digest seeded with its page number; 0 stands for an all-zero image."""
    sums = digests_of(seeds, images)
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

    def word(self, page: int) -> int:
        """Return the word of one page."""
        word = bytearray(WORD_BYTES)
        self.file.read_into(page * WORD_BYTES, memoryview(word))
        return int.from_bytes(word, "little")

    def set_word(self, page: int, word: int) -> None:
        """Set the word of one page."""
        self.file.write_at(page * WORD_BYTES, word.to_bytes(WORD_BYTES, "little"))

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
    """A file of one image of `page_bytes` per page."""

    def __init__(self, file: StateFile, page_bytes: int = PAGE_BYTES) -> None:
        self.file, self.page_bytes = file, page_bytes

    def read(self, pages: Pages) -> Images:
        """Return the images of `pages`, unchecked."""
        size = self.page_bytes
        out = np.empty((pages.size, size), dtype=np.uint8)
        view = bytes_of(out)
        for start, stop in runs_of(pages):
            self.file.read_into(int(pages[start]) * size, view[start * size : stop * size])
        return out

    def write(self, pages: Pages, images: Images) -> None:
        """Set the images of `pages`."""
        size = self.page_bytes
        view = bytes_of(np.ascontiguousarray(images))
        for start, stop in runs_of(pages):
            self.file.write_at(int(pages[start]) * size, view[start * size : stop * size])

    def cut(self, pages: int) -> None:
        """Drop all pages from number `pages` on."""
        if self.file.size() > pages * self.page_bytes:
            self.file.truncate(pages * self.page_bytes)


def allocate(file: StateFile, pages: Pages, item_bytes: int) -> None:
    """Reserve space in `file` for the items of `pages`, in whole file-system blocks of 4 KiB."""
    blocks = distinct(pages * item_bytes // PAGE_BYTES)
    for start, stop in runs_of(blocks):
        file.allocate(int(blocks[start]) * PAGE_BYTES, (stop - start) * PAGE_BYTES)
