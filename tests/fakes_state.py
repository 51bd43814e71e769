"""Local state in memory, for tests of the engine: the same port, none of the durability."""

from __future__ import annotations

import numpy as np

from engine.bits import rows_of
from engine.block import BATCH_BLOCKS, blocks_in
from engine.state import ENTRY, Entries, Head, Masks, Pages


class MemoryVolumeState:
    """VolumeState over dicts."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.map: dict[int, Entries] = {}
        self.staged: dict[int, tuple[int, Entries]] = {}
        self.lacking: dict[int, int] = {}

    def read(self, pages: Pages) -> Entries:
        found = np.zeros((len(pages), BATCH_BLOCKS), dtype=ENTRY)
        for row, page in enumerate(pages.tolist()):
            if page in self.map:
                found[row] = self.map[page]
        return found

    def used_pages(self, first: int, stop: int) -> Pages:
        used = [page for page in sorted(self.map) if first <= page < stop and self.map[page]["ref"].any()]
        return np.array(used, dtype=np.int64)

    def stage(self, page: int, mask: int, entries: Entries) -> None:
        before, known = self.staged.get(page, (0, np.zeros(BATCH_BLOCKS, dtype=ENTRY)))
        chosen = rows_of(np.array([mask], dtype=np.uint64))[0]
        merged = known.copy()
        merged[chosen] = entries[chosen]
        self.staged[page] = (before | mask, merged)

    def staged_pages(self) -> Pages:
        return np.array(sorted(self.staged), dtype=np.int64)

    def read_staged(self, pages: Pages) -> tuple[Masks, Entries]:
        masks = np.zeros(len(pages), dtype=np.uint64)
        entries = np.zeros((len(pages), BATCH_BLOCKS), dtype=ENTRY)
        for row, page in enumerate(pages.tolist()):
            if page in self.staged:
                masks[row], entries[row] = self.staged[page]
        return masks, entries

    def current(self, pages: Pages) -> Entries:
        entries = self.read(pages)
        masks, staged = self.read_staged(pages)
        chosen = rows_of(masks)
        entries[chosen] = staged[chosen]
        return entries

    def sync_staged(self) -> None:
        return

    def discard_staged(self) -> None:
        self.staged.clear()

    def forget(self) -> None:
        self.__init__()  # type: ignore[misc]

    def apply(self, head: Head) -> None:
        pages = self.staged_pages()
        for page, entries in zip(pages.tolist(), self.current(pages), strict=True):
            self.map[page] = entries.copy()
        blocks = blocks_in(head.volume_bytes)
        for page in list(self.map):
            self.map[page][max(0, blocks - page * BATCH_BLOCKS) :] = np.zeros((), dtype=ENTRY)
        self.staged.clear()
        self.head = head

    def missing(self, pages: Pages) -> Masks:
        return np.array([self.lacking.get(page, 0) for page in pages.tolist()], dtype=np.uint64)

    def missing_pages(self, first: int, stop: int) -> Pages:
        return np.array([p for p in sorted(self.lacking) if first <= p < stop and self.lacking[p]], dtype=np.int64)

    def set_missing(self, pages: Pages, masks: Masks) -> None:
        self.lacking.update(zip(pages.tolist(), masks.tolist(), strict=True))

    def sync_missing(self) -> None:
        return
