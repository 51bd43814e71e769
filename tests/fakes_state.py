"""Local state in memory, for tests of the engine: the same port, none of the durability."""

from __future__ import annotations

import numpy as np

from engine.bits import rows_of
from engine.block import BATCH_BLOCKS, DELTA_FLAG, blocks_in
from engine.cache.attempt import Attempt
from engine.parts import ORIGINS, PART_ENTRY, Origins, PartEntries, bind, same_place
from engine.state import ENTRY, Entries, Head, Masks, Pages


class MemoryVolumeState:
    """VolumeState over dicts."""

    def __init__(self) -> None:
        self.head: Head | None = None
        self.map: dict[int, Entries] = {}
        self.staged: dict[int, tuple[int, Entries]] = {}
        self.lacking: dict[int, int] = {}
        self.known: dict[int, tuple[PartEntries, Origins]] = {}
        self.learned: dict[int, tuple[int, PartEntries, Origins]] = {}

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
        self.learned.clear()

    def forget(self) -> None:
        self.__init__()  # type: ignore[misc]

    def apply(self, head: Head) -> None:
        pages = self.staged_pages()
        covered = {page: self.staged[page][0] for page in pages.tolist()}
        for page, entries in zip(pages.tolist(), self.current(pages), strict=True):
            self.map[page] = entries.copy()
        blocks = blocks_in(head.volume_bytes)
        for page in list(self.map):
            self.map[page][max(0, blocks - page * BATCH_BLOCKS) :] = np.zeros((), dtype=ENTRY)
        self.staged.clear()
        for page in {*covered, *self.learned, *self.known}:
            self._lay_parts(page, covered.get(page, 0))
        self.learned.clear()
        self.head = head

    def parts(self, pages: Pages) -> tuple[PartEntries, Origins]:
        found = np.zeros((len(pages), BATCH_BLOCKS), PART_ENTRY), np.zeros((len(pages), BATCH_BLOCKS), ORIGINS)
        for row, page in enumerate(pages.tolist()):
            if page in self.known:
                found[0][row], found[1][row] = self.known[page]
        return found

    def stage_parts(self, page: int, mask: int, parts: PartEntries, origins: Origins | None) -> None:
        if not mask:
            return
        before, known, sources = self.learned.get(page, (0, *_nothing_known()))
        chosen = rows_of(np.array([mask], dtype=np.uint64))[0]
        known, sources = known.copy(), sources.copy()
        known[chosen] = parts[chosen]
        sources[chosen] = np.zeros((), ORIGINS) if origins is None else origins[chosen]
        self.learned[page] = (before | mask, known, sources)

    def read_staged_parts(self, pages: Pages) -> tuple[Masks, PartEntries, Origins]:
        masks = np.zeros(len(pages), dtype=np.uint64)
        parts, origins = self.parts(np.full(len(pages), -1))
        for row, page in enumerate(pages.tolist()):
            if page in self.learned:
                masks[row], parts[row], origins[row] = self.learned[page]
        return masks, parts, origins

    def forget_parts(self) -> None:
        self.known.clear()
        self.learned.clear()

    def _lay_parts(self, page: int, covered: int) -> None:
        """Settle what is known of a page of which the blocks `covered` were staged, once its map is final."""
        places = self.read(np.array([page]))[0]["place"]
        parts, origins = self.known.get(page, _nothing_known())
        mask, learned, sources = self.learned.get(page, (0, *_nothing_known()))
        bind(places, learned)
        rows, gone = rows_of(np.array([mask, covered], dtype=np.uint64))
        parts[gone], origins[gone] = np.zeros((), PART_ENTRY), np.zeros((), ORIGINS)
        parts[rows], origins[rows] = learned[rows], sources[rows]
        delta = (places["length"] & np.uint32(DELTA_FLAG)) != 0
        traced = origins["sources"]["place"]["length"][:, 0] != 0
        stands = same_place(parts["place"], places) & (~delta | traced)
        parts[~stands], origins[~(stands & delta)] = np.zeros((), PART_ENTRY), np.zeros((), ORIGINS)
        self.known.pop(page, None)
        if stands.any():
            self.known[page] = (parts, origins)

    def amend(self, head: Head) -> None:
        self.head = head

    def missing(self, pages: Pages) -> Masks:
        return np.array([self.lacking.get(page, 0) for page in pages.tolist()], dtype=np.uint64)

    def missing_pages(self, first: int, stop: int) -> Pages:
        return np.array([p for p in sorted(self.lacking) if first <= p < stop and self.lacking[p]], dtype=np.int64)

    def set_missing(self, pages: Pages, masks: Masks) -> None:
        self.lacking.update(zip(pages.tolist(), masks.tolist(), strict=True))

    def sync_missing(self) -> None:
        return


class MemoryCacheHistory:
    """CacheHistory over a dict, with the bound of the real one."""

    def __init__(self, attempts_max: int = 1000) -> None:
        self.attempts_max = attempts_max
        self.kept: dict[str, Attempt] = {}  # in the order in which they began
        self.first: dict[bytes, int] = {}

    def put_attempt(self, attempt: Attempt) -> None:
        self.kept[attempt.attempt] = attempt
        store = bytes.fromhex(attempt.store)
        needed = (self.last_completed(store), self.last_passed(store))
        for old in list(self.kept.values())[: -self.attempts_max]:
            if old not in needed:
                del self.kept[old.attempt]

    def attempts(self, store: bytes, count: int) -> list[Attempt]:
        return [each for each in reversed(self.kept.values()) if each.store == store.hex()][:count]

    def last_completed(self, store: bytes) -> Attempt | None:
        return next((each for each in self.attempts(store, len(self.kept)) if each.completed), None)

    def last_passed(self, store: bytes) -> Attempt | None:
        return next((each for each in self.attempts(store, len(self.kept)) if each.passed), None)

    def note_session(self, store: bytes, ended_ms: int) -> None:
        self.first.setdefault(store, ended_ms)

    def first_session_ms(self, store: bytes) -> int | None:
        return self.first.get(store)


def _nothing_known() -> tuple[PartEntries, Origins]:
    return np.zeros(BATCH_BLOCKS, PART_ENTRY), np.zeros(BATCH_BLOCKS, ORIGINS)
