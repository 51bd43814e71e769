"""What is known of the parts of a volume's blocks, beside its map (engine/parts.py), and what is staged of it.

```
parts                       64 entries a page: 9,728 bytes
origins                     64 origins a page: 17,408 bytes, a hole where no record is a delta
parts.sums                  two words a page: the checksum of its entries, that of its origins
staged.parts, staged.origins, staged.parts.sums    the same, of a session
staged.parts.masks          one word a page: which of its blocks are staged
```
Nothing here is synced: to lose it costs whole blocks on the line, once. Why nothing wrong is believed all the same:
- A page that does not fit its checksum reads as zero. The checksum of origins is seeded with that of the entries
  beside them: neither an older nor a newer page of origins fits.
- An entry counts only where its place is the map's, so an older page that a power failure brings back does not count.
- An entry of a delta counts only with its origins: without them it would pass for a record that holds every part.
- Staged entries have no places yet. After a crash they are believed all together or not at all: the seal, which is
  durable, holds the total of their masks and checksums.

Whatever goes wrong while they are applied (a full disk, a bad sector), everything known of parts is forgotten and the
map's apply goes on. It must not fail for a hint, and half-written pages could keep keys of sources that no block needs
any more; to forget needs no space.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np

from adapters.state.files import Disk, StateFile
from adapters.state.pagefile import (
    WORD_BYTES,
    Images,
    PageFile,
    WordFile,
    Words,
    digests_of,
    groups_of,
    lay_over,
    page_sums,
)
from engine.bits import rows_of
from engine.block import DELTA_FLAG, Mask
from engine.errors import SessionAborted, StateCorrupt
from engine.parts import ORIGINS, PART_ENTRY, Origins, PartEntries, bind, same_place
from engine.state import PAGE_ENTRIES, Entries, Masks, Pages

ENTRIES_BYTES: Final = PART_ENTRY.itemsize * PAGE_ENTRIES
ORIGINS_BYTES: Final = ORIGINS.itemsize * PAGE_ENTRIES
GROUP_PAGES: Final = 128  # known and staged, entries and origins: 7 MiB
_EVERY_WORD: Final = 1 << 52
_U64: Final = (1 << 64) - 1
_PAIR: Final = np.arange(2)
_NOTHING: Final = np.zeros(1, PART_ENTRY)
_NO_ORIGIN: Final = np.zeros(1, ORIGINS)


class _Pairs:
    """A page of entries and a page of origins for each page of the map, in three files; all zero: nothing, a hole."""

    def __init__(self, folder: Path, disk: Disk, prefix: str, *, writable: bool) -> None:
        self._entries = PageFile(disk.open(folder / f"{prefix}parts", writable=writable), ENTRIES_BYTES)
        self._origins = PageFile(disk.open(folder / f"{prefix}origins", writable=writable), ORIGINS_BYTES)
        self._sums = WordFile(disk.open(folder / f"{prefix}parts.sums", writable=writable))

    def read(self, pages: Pages) -> tuple[Mask, PartEntries, Origins]:
        """Return which pages have entries that fit their checksum, the entries, their origins; zero what does not."""
        words = self._words(pages)
        fits, entries = _fitting(self._entries, pages, pages, words[:, 0])
        _, origins = _fitting(self._origins, pages, words[:, 0], np.where(fits, words[:, 1], 0))
        return fits, entries.view(PART_ENTRY), origins.view(ORIGINS)

    def write(self, pages: Pages, entries: PartEntries, origins: Origins | None) -> None:
        """Replace pages; `origins` None: there are none."""
        words = np.zeros((pages.size, 2), dtype="<u8")
        words[:, 0] = _put(self._entries, pages, pages, entries.view(np.uint8))
        if origins is None:
            _erase(self._origins, pages)
        else:
            words[:, 1] = _put(self._origins, pages, words[:, 0], origins.view(np.uint8))
        changed = (words != self._words(pages)).any(axis=1)
        self._sums.write(_words_of(pages[changed]), words[changed].reshape(-1))

    def put(self, page: int, entries: PartEntries, origins: Origins | None) -> None:
        """Replace one page (shapes (64,)), as `write` does, but leave what lies where there are no origins now."""
        pages = np.array([page], dtype=np.int64)
        images = entries.view(np.uint8).reshape(1, -1)
        words = page_sums(pages, images)
        self._entries.write(pages, images)
        if origins is None:
            words = np.append(words, np.uint64(0))
        else:
            images = origins.view(np.uint8).reshape(1, -1)
            words = np.append(words, page_sums(words, images))
            self._origins.write(pages, images)
        self._sums.file.write_at(page * 2 * WORD_BYTES, words.tobytes())

    def total(self) -> int:
        """Return the sum of all checksums, modulo 2**64."""
        return self._sums.total(_EVERY_WORD)

    def empty(self) -> bool:
        """Tell whether no file holds anything."""
        return not any(file.size() for file in self._files())

    def cut(self, pages: int) -> None:
        """Drop all pages from number `pages` on."""
        self._entries.cut(pages)
        self._origins.cut(pages)
        self._sums.cut(2 * pages)

    def close(self) -> None:
        """Release the files."""
        for file in self._files():
            file.close()

    def _files(self) -> tuple[StateFile, ...]:
        return self._entries.file, self._origins.file, self._sums.file

    def _words(self, pages: Pages) -> Words:
        return self._sums.read(_words_of(pages)).reshape(-1, 2)


class PartFiles:
    """The files of parts in one volume's folder. `stage` is safe for several threads that stage different pages."""

    def __init__(self, folder: Path, disk: Disk, *, writable: bool) -> None:
        self._known = _Pairs(folder, disk, "", writable=writable)
        self._staged = _Pairs(folder, disk, "staged.", writable=writable)
        self._masks = WordFile(disk.open(folder / "staged.parts.masks", writable=writable))

    def read(self, pages: Pages, current: Callable[[Pages], Entries]) -> tuple[PartEntries, Origins]:
        """Return what is known of the blocks of `pages`, zero for the rest; `current` returns the map's entries.

        Never fails: what cannot be read is not known.
        """
        try:
            fits, entries, origins = self._known.read(pages)
            if fits.any():
                _settle(entries, origins, current(pages))
            return entries, origins
        except (StateCorrupt, SessionAborted):  # whoever reads the map itself is told of it
            return np.zeros((pages.size, PAGE_ENTRIES), PART_ENTRY), np.zeros((pages.size, PAGE_ENTRIES), ORIGINS)

    def stage(self, page: int, mask: int, entries: PartEntries, origins: Origins | None) -> None:
        """Stage the entries of a page that `mask` names, over what was staged of it before.

        Raises: StateCorrupt, SessionAborted.
        """
        if not mask:
            return
        entries = np.ascontiguousarray(entries)
        origins = None if origins is None else np.ascontiguousarray(origins)
        before = self._masks.word(page)
        if before & ~mask:
            fits, merged, sources = self._staged.read(np.array([page], dtype=np.int64))
            before = before if fits[0] else 0
            rows = rows_of(np.array([mask], dtype=np.uint64))
            lay_over(merged, rows, entries)
            lay_over(sources, rows, _NO_ORIGIN if origins is None else origins)
            entries, origins = merged[0], sources[0]
        self._staged.put(page, entries, origins)
        if before != before | mask:
            self._masks.set_word(page, before | mask)

    def read_staged(self, pages: Pages) -> tuple[Masks, PartEntries, Origins]:
        """Return masks, entries and origins staged for `pages`. Raises: StateCorrupt."""
        masks = self._masks.read(pages)
        fits, entries, origins = self._staged.read(pages)
        masks[~fits] = 0
        return masks, entries, origins

    def total(self) -> int:
        """Return what a seal remembers of the staged entries, modulo 2**64. Raises: StateCorrupt."""
        return (self._masks.total(_EVERY_WORD) + self._staged.total()) & _U64

    def adds_up(self, total: int) -> bool:
        """Tell whether what is staged is what a seal remembers."""
        try:
            return self.total() == total
        except StateCorrupt:
            return False

    def apply(self, covered: WordFile, current: Callable[[Pages], Entries], blocks: int) -> None:
        """Lay what is staged over what is known; never fails, and may be done again.

        `covered`: masks of the blocks the session staged in the map: of those nothing older stays known. `current`
        returns the new map's entries. `blocks`: how many the volume has; nothing beyond stays.
        """
        try:
            self._apply(covered, current, blocks)
        except (StateCorrupt, SessionAborted):
            self._give_up()

    def drop_staged(self) -> None:
        """Forget what is staged. Raises: SessionAborted."""
        self._masks.cut(0)
        self._staged.cut(0)

    def drop_known(self) -> None:
        """Forget what is known, not what is staged. Raises: SessionAborted."""
        self._known.cut(0)

    def forget(self) -> None:
        """Forget everything. Raises: SessionAborted."""
        self.drop_known()
        self.drop_staged()

    def close(self) -> None:
        """Release the files."""
        self._known.close()
        self._staged.close()
        self._masks.file.close()

    def _apply(self, covered: WordFile, current: Callable[[Pages], Entries], blocks: int) -> None:
        if self._known.empty() and not self._masks.file.size():
            return
        stop = -(-blocks // PAGE_ENTRIES)
        self._known.cut(stop)
        for pages in covered.used(0, stop):
            self._lay(pages, covered, current)
        for pages in self._masks.used(0, stop):
            self._lay(pages[covered.read(pages) == 0], covered, current)
        if blocks % PAGE_ENTRIES:
            # Nothing need be staged in the last page when the volume shrinks; its entries beyond the end have no place.
            self._lay(np.array([stop - 1], dtype=np.int64), covered, current)

    def _lay(self, pages: Pages, covered: WordFile, current: Callable[[Pages], Entries]) -> None:
        for group in groups_of(pages, GROUP_PAGES):
            _, entries, origins = self._known.read(group)
            masks, fresh, sources = self.read_staged(group)
            standing = current(group)
            bind(standing["place"], fresh)
            gone, rows = rows_of(covered.read(group)), rows_of(masks)
            lay_over(entries, gone, _NOTHING)
            lay_over(entries, rows, fresh)
            lay_over(origins, rows, sources)
            _settle(entries, origins, standing)
            self._known.write(group, entries, origins)

    def _give_up(self) -> None:
        # Where even that fails, what stays counts as little as any older page.
        with suppress(SessionAborted):
            self.forget()


def _settle(entries: PartEntries, origins: Origins, current: Entries) -> None:
    """Zero, in place, entries that are not of the records the map names, and origins that are not of deltas there."""
    places = current["place"]
    delta = (places["length"] & np.uint32(DELTA_FLAG)) != 0
    traced = origins["sources"]["place"]["length"][..., 0] != 0
    stands = same_place(entries["place"], places) & (traced | ~delta)
    if not stands.all():
        lay_over(entries, ~stands, _NOTHING)
    stands &= delta
    if not stands.all():
        lay_over(origins, ~stands, _NO_ORIGIN)


def _words_of(pages: Pages) -> Pages:
    """Return where the two words of each page stand."""
    return (pages[:, None] * 2 + _PAIR).reshape(-1)


def _fitting(file: PageFile, pages: Pages, seeds: Pages | Words, sums: Words) -> tuple[Mask, Images]:
    """Return which of `pages` have an image that fits its checksum, and the images, zero where they do not."""
    fits = sums != 0
    if fits.all():
        images = file.read(pages)
        fits = digests_of(seeds, images) == sums
        if not fits.all():
            images[~fits] = 0
        return fits, images
    images = np.zeros((pages.size, file.page_bytes), dtype=np.uint8)
    there = np.flatnonzero(fits)
    if there.size:
        fits[there], images[there] = _fitting(file, pages[there], seeds[there], sums[there])
    return fits, images


def _put(file: PageFile, pages: Pages, seeds: Pages | Words, images: Images) -> Words:
    """Write images that are not zero, wipe out what lies at the places of the others, return the checksums."""
    sums = page_sums(seeds, images)
    there = sums != 0
    file.write(pages[there], images[there])
    _erase(file, pages[~there])
    return sums


def _erase(file: PageFile, pages: Pages) -> None:
    """Overwrite with zeros what there is of pages, whatever their checksums say; leave holes holes."""
    left = pages[pages * file.page_bytes < file.file.size()]
    for group in groups_of(left, GROUP_PAGES):
        images = file.read(group)
        used = group[images.view(np.uint64).any(axis=1)]
        file.write(used, np.zeros((used.size, file.page_bytes), dtype=np.uint8))
