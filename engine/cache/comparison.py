"""Comparing block maps with an index: which blocks a cache lacks, and in which of its records the others lie."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from engine.bits import masks_of
from engine.block import Mask
from engine.cache.seen import SeenPacks, SeenRows
from engine.columns import ENTRY_BYTES, Column64
from engine.distinct import distinct
from engine.index import PackIndex
from engine.scratch import MemoryScratch, ScratchFile
from engine.state import PAGE_ENTRIES, Entries, Masks, Pages, VolumeState

READ_PAGES: Final = 512  # 2 MiB of map
# Ids are looked up in ascending order, so many at a time that an index that is not in memory is read in long pieces:
# 128 GiB of volume, which take 80 MiB of memory.
STRETCH_PAGES: Final = 32_768
WINDOW_PAGES: Final = 32 * STRETCH_PAGES  # 4 TiB: however large a volume is, a list of its pages is small
LOOKED_UP: Final = 1 << 16
LOOKED_UP_LEAST: Final = 1 << 11
TOUCHED_BYTES: Final = 1 << 25  # of an index, before what was mapped of it is let go

N = TypeVar("N", bound=np.generic)


class Stopped(Exception):
    """Whoever compares was asked to stop."""


class Stretch(msgspec.Struct, frozen=True):
    """What was compared: all pages before `stop`; how many non-zero `blocks` since the last stretch, and `missing`."""

    stop: int
    blocks: int
    missing: int


class Comparison:
    """Compares maps with one index (*sync*); `stopping` is asked every few milliseconds. `seen`: what was found.

    `relax` is called now and then, to let go of what of the index was mapped into memory; `scratch` makes files for
    what was found.
    """

    def __init__(
        self,
        index: PackIndex,
        stopping: Callable[[], bool] = lambda: False,
        relax: Callable[[], None] = lambda: None,
        scratch: Callable[[], ScratchFile] = MemoryScratch,
    ) -> None:
        self._index, self._stopping, self._relax, self._scratch = index, stopping, relax, scratch
        self.seen = SeenRows(scratch, relax)

    def gather(self, into: SeenPacks) -> None:
        """Add what was found to `into`, and begin anew. Raises: StateCorrupt, SessionAborted."""
        self.seen.gather(into)
        self.seen = SeenRows(self._scratch, self._relax)

    def volume(self, state: VolumeState, start: int, end: int) -> Iterator[Stretch]:
        """Settle the missing bits of a volume's pages in [start, end), and yield after every stretch.

        Raises: Stopped (the bits of a stretch that was not yielded are as they were), StateCorrupt, SessionAborted.
        """
        for window in range(start, end, WINDOW_PAGES):
            stop = min(window + WINDOW_PAGES, end)
            pages = distinct(state.used_pages(window, stop), state.missing_pages(window, stop))
            for first in range(0, len(pages), STRETCH_PAGES):
                part = pages[first : first + STRETCH_PAGES]
                blocks, missing = self.pages(state, part)
                yield Stretch(int(part[-1]) + 1, blocks, missing)

    def pages(self, state: VolumeState, pages: Pages) -> tuple[int, int]:
        """Settle the missing bits of `pages`; return how many non-zero blocks they have, and how many are missing."""
        used: list[Mask] = []
        ids = np.empty((len(pages) * PAGE_ENTRIES, 2), np.uint64)
        filled = 0
        for part in self._in_parts(pages, READ_PAGES):
            words = _words_of(state.read(part))
            nonzero = (words[:, :, 0] | words[:, :, 1]) != 0
            used.append(nonzero)
            found = words[:, :, :2][nonzero]
            ids[filled : filled + len(found)] = found
            filled += len(found)
        there = self._locate(ids[:filled])
        absent = np.concatenate(used)
        absent[absent] = ~there
        _set_missing(state, pages, masks_of(absent))
        return len(there), len(there) - int(np.count_nonzero(there))

    def _locate(self, ids: Column64) -> Mask:
        there: Mask = np.empty(len(ids), np.bool_)
        order = ids[:, 0].argsort().astype(np.uint32)
        entries = sum(map(len, self._index.views()))
        # Of a large index, few ids at a time touch as much as many do of a small one.
        most = len(ids) * (TOUCHED_BYTES // ENTRY_BYTES) // max(1, entries)
        for part in self._in_parts(order, min(max(most, LOOKED_UP_LEAST), LOOKED_UP)):
            asked = ids[part]
            there[part], places = self._index.locate(asked[:, 0].copy(), asked[:, 1].copy())
            for view, rows in places:
                self.seen.mark(view, rows)
            # What lies behind is not looked at again in this stretch: the next ids are greater.
            self._relax()
        return there

    def _in_parts(self, values: npt.NDArray[N], size: int) -> Iterator[npt.NDArray[N]]:
        for start in range(0, len(values), size):
            if self._stopping():
                raise Stopped
            yield values[start : start + size]


def seen_in(states: Iterable[VolumeState], index: PackIndex) -> SeenPacks:
    """Return in which records the blocks lie that a session staged, those around them included (*sync*)."""
    seen, found = SeenRows(), SeenPacks()
    for state in states:
        pages = state.staged_pages()
        for start in range(0, len(pages), READ_PAGES):
            words = _words_of(state.current(pages[start : start + READ_PAGES]))
            ids = words[:, :, :2][(words[:, :, 0] | words[:, :, 1]) != 0]
            ids = ids[ids[:, 0].argsort()]
            for view, rows in index.locate(ids[:, 0].copy(), ids[:, 1].copy())[1]:
                seen.mark(view, rows)
    seen.gather(found)
    return found


def _words_of(entries: Entries) -> Column64:
    """Return map entries as `uint64[pages, 64, 8]`: the first two are the id, which is 0 for zero blocks only."""
    return entries.view("<u8").reshape(*entries.shape, -1)


def _set_missing(state: VolumeState, pages: Pages, masks: Masks) -> None:
    """Write those missing bits that are not what they were."""
    (changed,) = (state.missing(pages) != masks).nonzero()
    if changed.size:
        state.set_missing(pages[changed], masks[changed])
