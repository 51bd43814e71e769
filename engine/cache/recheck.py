"""Checking just the blocks a session healed, at its end: what was missing counts as there once its pack is seen there.

So the score of the cache is true at once, and not a day later; the age of the last verification that passed stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from engine.bits import any_along, rows_of
from engine.block import ids_of
from engine.columns import Column64
from engine.distinct import distinct
from engine.index import PackIndex
from engine.names import PackName
from engine.state import CacheHistory, Masks, Pages, StateStore, VolumeState

_PAGES_AT_ONCE = 512
_EVERY_PAGE = 1 << 40


def healing_packs(states: list[VolumeState], index: PackIndex) -> Column64:
    """Return the keys of the packs in which blocks that were missing lie now, ascending (*sync*)."""
    keys: Column64 = np.empty(0, np.uint64)
    for state in states:
        for pages, masks in _lacking(state):
            entries = state.current(pages)
            rows = rows_of(masks) & any_along(entries["ref"])
            places = index.lookup(ids_of(entries["ref"][rows]))
            keys = distinct(keys, places["pack"][places["length"] > 0])
    return keys


def lacking_blocks(state: VolumeState) -> int:
    """Return how many blocks of a volume are missing (*sync*)."""
    return sum(int(np.bitwise_count(masks).sum()) for _, masks in _lacking(state))


def count_healed(history: CacheHistory, store: bytes, healed: int) -> None:
    """Note with the last result of a cache how many of its missing blocks are there now (*sync*).

    Raises: StateCorrupt, SessionAborted.
    """
    last = history.last_completed(store) if healed > 0 else None
    if last is not None and last.missing_now:
        found = min(last.missing, last.healed_since + healed)
        history.put_attempt(msgspec.structs.replace(last, healed_since=found))


def _lacking(state: VolumeState) -> Iterator[tuple[Pages, Masks]]:
    pages = state.missing_pages(0, _EVERY_PAGE)
    for start in range(0, len(pages), _PAGES_AT_ONCE):
        part = pages[start : start + _PAGES_AT_ONCE]
        yield part, state.missing(part)


def amend(state: VolumeState, **changes: object) -> None:
    """Let the head of a map say other things of the cache. Raises: StateCorrupt, SessionAborted."""
    if (head := state.head) is not None and (new := msgspec.structs.replace(head, **changes)) != head:
        state.amend(new)


def bring_pages_again(
    state: StateStore, volumes: Iterable[str], system: bytes, lost: Iterable[PackName | None]
) -> None:
    """Have what a point needs besides its blocks put in the cache by the next session, if it is among `lost` packs.

    Raises: StateCorrupt, SessionAborted.
    """
    if any(name is not None and (name.kind, name.writer) == ("page", system) for name in lost):
        for volume in volumes:
            amend(state.volume(volume), pages_cached=False)
