"""Packs that a trimming writes inherit when their records were last seen: also what is said while they are written.

Between a look at the stamps and the list that says a pack is removed others may stamp that they saw it. What is left of
it lies elsewhere then, where no stamp of theirs says so. So once the old packs are listed as removed, the stamps that
came meanwhile are read, and what they say of the old ones is said of the new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import msgspec
import numpy as np

from engine.block import Mask
from engine.cache.trimplan import Days, Ints
from engine.columns import Column64, Rows
from engine.names import PackName

Heir: TypeAlias = tuple[PackName, Days]  # and for each of its records the day it was last seen on


class LastSeen(Protocol):
    """When records were last seen by any system, from stamps and from what rewritten packs inherited.

    A record's number in its pack is the rank of its offset among those the pack's writer lists. Days count from
    2020-01-01; 0: nobody is known to have seen it. Writers whose clocks are wrong are left out.
    """

    async def packs(self, keys: Column64) -> Days:
        """Return for each pack (ascending keys) the day all its records were last seen on; MIXED: ask for each of them.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt (what was seen lately cannot be known).
        """
        ...

    async def records(self, keys: Column64, counts: Ints) -> Days:
        """Return for each of the `counts[i]` records of each pack (ascending keys) the day it was last seen on.

        Only packs that `packs` was asked for. Raises: StoreUnavailable, StoreRejected.
        """
        ...

    async def since(self, keys: Column64) -> Mask:
        """Tell which of these packs (ascending keys) may have been seen since `packs` was asked.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt.
        """
        ...

    async def later(self, keys: Column64, counts: Ints) -> Days:
        """Return for each record, as `records`, the day it was seen on by what was not yet said when first asked.

        0: of that nothing was said. Of any packs. Raises: StoreUnavailable, StoreRejected, StoreCorrupt.
        """
        ...


class Copied(msgspec.Struct, frozen=True, eq=False):
    """Records of a pack that were copied, in that order: `ranks` among the `count` it has; `key` of the pack."""

    key: int
    count: int
    ranks: Rows


async def with_later(heirs: Sequence[Heir], copied: Sequence[Copied], seen: LastSeen) -> list[Heir]:
    """Return `heirs`, which hold what was `copied` in the same order, with what was said later of the old packs.

    Raises: StoreUnavailable, StoreRejected, StoreCorrupt.
    """
    if not copied:
        return [*heirs]
    packs = sorted(copied, key=lambda each: each.key)
    counts = np.array([each.count for each in packs], np.int64)
    days = await seen.later(np.array([each.key for each in packs], np.uint64), counts)
    starts = dict(zip([each.key for each in packs], (np.cumsum(counts) - counts).tolist(), strict=True))
    said = np.concatenate([days[starts[each.key] + each.ranks] for each in copied])
    found, done = [], 0
    for name, known in heirs:
        found.append((name, np.maximum(known, said[done : done + len(known)])))
        done += len(known)
    return found
