"""The staged pages of a volume: what a session changes, kept beside the map, and the redo log of its commit.

Rules:
- While a session runs, a page's image holds only the entries its mask names; nothing of it outlives a crash.
- `close_set` completes every staged page to a whole image, with a checksum, makes all of it durable, and last of all
  puts the seal: a small file with a random number and totals over masks and checksums. Only a sealed set is ever
  applied; applying it never reads the map, so that a map torn by a crash is simply written again.
- The seal of an empty set says so and needs no other file: whatever a power failure brings back there is no part of it.
- The first change after a seal removes the seal, durably, before anything else is touched.
- The map's head names the seal it was made from: a seal found again after a crash is known to be applied.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from adapters.state.atomic import read_struct, write_struct
from adapters.state.files import Disk
from adapters.state.pagefile import (
    PAGE_BYTES,
    Images,
    PageFile,
    WordFile,
    Words,
    bytes_of,
    check_pages,
    groups_of,
    lay_over,
    page_sums,
)
from engine.bits import rows_of
from engine.errors import StateCorrupt
from engine.state import ENTRY, Entries, Masks, Pages

SEAL_MAGIC: Final = b"FBSEAL\x00\x01"
WHOLE_MASK: Final = (1 << 64) - 1
EVERY_PAGE: Final = 1 << 50


class Seal(msgspec.Struct, frozen=True):
    """A sealed set: its number (16 random bytes), the number of the set its map was made from (b"": no map), and
    totals modulo 2**64 of the masks and checksums of its pages, and of what is staged beside them (parts.py).
    `empty`: it has no pages.
    """

    number: bytes
    base: bytes
    masks: int
    sums: int
    parts: int = 0
    empty: bool = False


def overlay(entries: Entries, masks: Masks, staged: Entries) -> None:
    """Replace the entries that `masks` names by the staged ones, in place."""
    lay_over(entries, rows_of(masks), staged)


class Staging:
    """The files `staged`, `staged.masks`, `staged.sums` and `staged.seal` of one volume's folder.

    `base` returns the map's entries of pages: what completes an image. Safe for several threads that stage
    different pages; everything else is called with no one staging.
    """

    def __init__(self, folder: Path, disk: Disk, *, writable: bool, base: Callable[[Pages], Entries]) -> None:
        self._disk, self._base, self._lock = disk, base, threading.Lock()
        self.images = PageFile(disk.open(folder / "staged", writable=writable))
        self.masks = WordFile(disk.open(folder / "staged.masks", writable=writable))
        self.sums = WordFile(disk.open(folder / "staged.sums", writable=writable))
        self._seal_path = folder / "staged.seal"
        self.seal: Seal | None = None
        self._damaged = False
        try:
            self.seal = read_struct(self._seal_path, SEAL_MAGIC, Seal, disk)
        except StateCorrupt:
            self._damaged = True  # as good as none: what it sealed is dropped, and apply says so
        if writable and self.seal is not None and self.seal.empty:
            self._cut()

    def stage(self, page: int, mask: int, entries: Entries) -> None:
        """Stage the entries of a page that `mask` names, over what was staged of it before."""
        if not mask:
            return
        self.break_seal()
        before = self.masks.word(page)
        image = np.ascontiguousarray(entries)
        if before & ~mask:
            pages = np.array([page], dtype=np.int64)
            merged = self.images.read(pages).view(ENTRY)
            overlay(merged, np.array([mask], dtype=np.uint64), image.reshape(1, -1))
            image = merged[0]
        self.images.file.write_at(page * PAGE_BYTES, bytes_of(image))
        if before != before | mask:
            self.masks.set_word(page, before | mask)

    def pages(self) -> Pages:
        """Return the staged pages, ascending."""
        return self.masks.used_pages(0, EVERY_PAGE)

    def groups(self, stop: int) -> Iterator[Pages]:
        """Yield the staged pages before `stop`, ascending, in pieces whose images fit into memory."""
        for pages in self.masks.used(0, stop):
            yield from groups_of(pages)

    def read(self, pages: Pages) -> tuple[Masks, Entries]:
        """Return masks and entries of pages; checked if sealed. Raises: StateCorrupt."""
        masks = self.masks.read(pages)
        images = self.images.read(pages)
        if self.seal is not None:
            staged = np.flatnonzero(masks)
            check_pages(self.images.file.path, pages[staged], images[staged], self.sums.read(pages[staged]))
        return masks, images.view(ENTRY)

    def whole(self, pages: Pages) -> tuple[Images, Words]:
        """Return the complete images of sealed pages and their checksums, checked. Raises: StateCorrupt."""
        images, sums = self.images.read(pages), self.sums.read(pages)
        check_pages(self.images.file.path, pages, images, sums)
        return images, sums

    def close_set(self, base: bytes, parts: int) -> None:
        """Seal what is staged over the map made from set `base`: whole images, checksums, all durable.

        Nothing staged is a set, too. `parts`: the total of what is staged beside, which need not be durable.
        """
        if self.seal is not None:
            return
        masks_total = sums_total = 0
        empty = True
        for pages in self.groups(EVERY_PAGE):
            empty = False
            masks = self.masks.read(pages)
            images = self.images.read(pages)
            partial = np.flatnonzero(masks != WHOLE_MASK)
            if partial.size:
                entries = self._base(pages[partial])
                overlay(entries, masks[partial], images[partial].view(ENTRY))
                images[partial] = entries.view(np.uint8)
                self.images.write(pages[partial], images[partial])
            sums = page_sums(pages, images)
            self.sums.write(pages, sums)
            masks_total += int(masks.sum(dtype=np.uint64))
            sums_total += int(sums.sum(dtype=np.uint64))
        for file in () if empty else (self.images.file, self.masks.file, self.sums.file):
            file.sync()
        number = secrets.token_bytes(16)
        seal = Seal(number, base, masks_total & WHOLE_MASK, sums_total & WHOLE_MASK, parts, empty)
        write_struct(self._seal_path, SEAL_MAGIC, seal, self._disk)
        self.seal = seal

    def adds_up(self) -> bool:
        """Tell whether there is a seal and masks and checksums add up to it."""
        if self.seal is None or self.seal.empty:
            return self.seal is not None
        sums = sum(int(self.sums.read(pages).sum(dtype=np.uint64)) for pages in self.masks.used(0, EVERY_PAGE))
        return (self.masks.total(EVERY_PAGE), sums & WHOLE_MASK) == (self.seal.masks, self.seal.sums)

    def drop(self) -> None:
        """Forget what is staged; after a crash it may be found again, but not with its seal."""
        self.break_seal()
        self._cut()

    def drop_applied(self) -> None:
        """Forget what is staged and was applied; its seal, found again after a crash, is in the map's head."""
        self._disk.remove(self._seal_path)
        self.seal = None
        self._cut()

    def close(self) -> None:
        """Release the files."""
        for file in (self.images.file, self.masks.file, self.sums.file):
            file.close()

    def _cut(self) -> None:
        self.masks.cut(0)
        self.images.cut(0)
        self.sums.cut(0)

    def break_seal(self) -> None:
        """Remove the seal, durably, if there is one: what follows changes what is staged."""
        if self.seal is None and not self._damaged:
            return
        with self._lock:
            if self.seal is None and not self._damaged:
                return
            self._disk.remove(self._seal_path)
            self._disk.sync_folder(self._seal_path.parent)
            self.seal, self._damaged = None, False
