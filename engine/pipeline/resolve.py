"""Places of staged blocks: once everything sent is acknowledged, each staged ref gets the place of its record.

A block may have been claimed by another batch, deduplicated against an older pack, or its pack may have turned
out to be unusable since: so places are looked up again here, in one pass over the staged pages, and what has no
place comes back as work to send again, together with what did not change and lies in a pack known to be gone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from engine.bits import any_along, masks_of, rows_of
from engine.block import Ids, Mask, Places, ids_of
from engine.distinct import distinct
from engine.state import Entries, Masks, Pages, VolumeState

CHUNK_PAGES: Final = 512
EVERY_PAGE: Final = 1 << 40

PackKeys: TypeAlias = npt.NDArray[np.uint64]
NO_KEYS: Final[PackKeys] = np.empty(0, dtype=np.uint64)


class Lookup(Protocol):
    """The half of a store's index that answers where records are."""

    def lookup(self, ids: Ids) -> Places:
        """Return places in acknowledged, usable packs; length 0 where there is none."""
        ...

    def delta_sources(self, ids: Ids, places: Places) -> tuple[npt.NDArray[np.intp], PackKeys, Mask]:
        """Return (position, key of a pack a source lies in) of the deltas at `places`, and which are answered."""
        ...


class Resolved(msgspec.Struct):
    """`keys`: of the packs staged blocks rely on, those of their deltas' sources too, ascending.

    `pages`, `masks`: what has no place, or not any more.
    """

    keys: npt.NDArray[np.uint64]
    pages: Pages
    masks: Masks


def staged_chunks(state: VolumeState) -> Iterator[tuple[Pages, Masks, Entries]]:
    """Yield what is staged, ascending, in chunks of bounded size (*sync*). Raises: StateCorrupt."""
    pages = state.staged_pages()
    for start in range(0, len(pages), CHUNK_PAGES):
        part = pages[start : start + CHUNK_PAGES]
        masks, entries = state.read_staged(part)
        yield part, masks, entries


def resolve(state: VolumeState, index: Lookup, gone: PackKeys = NO_KEYS) -> Resolved:
    """Give every staged non-zero block its place (*sync*). `gone`: keys of packs that nothing may rely on any more.

    Raises: StateCorrupt.
    """
    keys: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
    open_pages: list[Pages] = []
    open_masks: list[Masks] = []
    for pages, masks, entries in staged_chunks(state):
        rows = rows_of(masks) & any_along(entries["ref"])
        ids = ids_of(entries["ref"][rows])
        places = index.lookup(ids)
        moved = rows.copy()
        moved[rows] = places != entries["place"][rows]
        entries["place"][rows] = places
        for position in np.flatnonzero(moved.any(axis=1)).tolist():
            state.stage(int(pages[position]), int(masks[position]), entries[position])
        _, sources, _ = index.delta_sources(ids, places)
        keys = distinct(keys, places["pack"][places["length"] > 0], sources)
        absent = rows.copy()
        absent[rows] = places["length"] == 0
        lacking = masks_of(absent)
        if lacking.any():
            open_pages.append(pages[lacking > 0])
            open_masks.append(lacking[lacking > 0])
    for pages, lacking in _unchanged_in(state, index, gone) if gone.size else ():
        open_pages.append(pages)
        open_masks.append(lacking)
    if not open_pages:
        return Resolved(keys, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.uint64))
    both, row = np.unique(np.concatenate(open_pages), return_inverse=True)
    masks = np.zeros(len(both), dtype=np.uint64)
    np.bitwise_or.at(masks, row, np.concatenate(open_masks))
    return Resolved(keys, both, masks)


def _unchanged_in(state: VolumeState, index: Lookup, gone: PackKeys) -> Iterator[tuple[Pages, Masks]]:
    """Yield the blocks of the map that nothing is staged for and that lie in packs of `gone`, or lean on one."""
    used = state.used_pages(0, EVERY_PAGE)
    for start in range(0, len(used), CHUNK_PAGES):
        part = used[start : start + CHUNK_PAGES]
        staged, _ = state.read_staged(part)
        entries = state.read(part)
        rows = any_along(entries["ref"])
        places = entries["place"][rows]
        positions, sources, known = index.delta_sources(ids_of(entries["ref"][rows]), places)
        bad: Mask = np.isin(places["pack"], gone) | ~known
        bad[positions[np.isin(sources, gone)]] = True
        rows[rows] = bad
        lost = masks_of(rows) & ~staged
        if lost.any():
            yield part[lost > 0], lost[lost > 0]


def samples(
    state: VolumeState, wanted: npt.NDArray[np.uint64], chance: random.Random
) -> dict[int, tuple[bytes, npt.NDArray[np.void]]]:
    """Return, for each pack key of `wanted` that staged blocks rely on, one (ref, place), chosen at random (*sync*)."""
    chosen: dict[int, tuple[bytes, npt.NDArray[np.void]]] = {}
    for _, masks, entries in staged_chunks(state):
        rows = rows_of(masks) & (entries["place"]["length"] > 0)
        refs, places = entries["ref"][rows], entries["place"][rows]
        hits = np.flatnonzero(np.isin(places["pack"], wanted)).tolist()
        chance.shuffle(hits)
        packs, first = np.unique(places["pack"][hits], return_index=True)
        for pack, row in zip(packs.tolist(), first.tolist(), strict=True):
            if pack not in chosen or chance.random() < 0.5:
                chosen[pack] = (refs[hits[row]].tobytes(), places[hits[row]])
    return chosen


def missing_from(state: VolumeState, index: Lookup | None, pages: Pages) -> None:
    """Set the missing bits of `pages` to what the cache's index lacks of their current blocks (*sync*).

    `index` None: nothing is known to have arrived, so every non-zero staged block counts as missing.
    """
    for start in range(0, len(pages), CHUNK_PAGES):
        part = pages[start : start + CHUNK_PAGES]
        entries = state.current(part)
        rows = any_along(entries["ref"])
        if index is not None:
            rows[rows] = index.lookup(ids_of(entries["ref"][rows]))["length"] == 0
        else:
            masks, _ = state.read_staged(part)
            rows &= rows_of(masks | state.missing(part))
        state.set_missing(part, masks_of(rows))
