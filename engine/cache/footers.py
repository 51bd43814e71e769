"""Records no stamp speaks of: days they inherited stand in the footers of their packs; others nobody has seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import numpy as np

from engine.cache.stamps import Seen
from engine.cache.trimplan import Days, Ints
from engine.columns import Column64
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import PackName
from engine.pack import PACK_TAIL_BYTES, PackEntries, footer_start, read_footer
from engine.ports import ObjectStore

FOOTERS_MAX: Final = 1024  # read in one trimming of packs that nobody has stamped whole


class Footers:
    """Footers read for one trimming. Methods raise StoreUnavailable and StoreRejected."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._inherited: dict[int, Days] = {}
        self._left = FOOTERS_MAX

    async def inherited(self, name: PackName, count: int) -> Days:
        """Return the days of `count` records no stamp says enough of; 0: none, or too many footers were read before."""
        if name.key not in self._inherited and self._left:
            self._left -= 1
            self._inherited[name.key] = np.zeros(0, np.uint16)
            with suppress(ObjectMissing, StoreCorrupt):
                self._inherited[name.key] = (await self.read(name)).days
        found = self._inherited.get(name.key)
        return found if found is not None and len(found) == count else np.zeros(count, np.uint16)

    async def read(self, name: PackName) -> PackEntries:
        """Return the footer of a pack. Raises: ObjectMissing, StoreCorrupt."""
        tail = await self._objects.get(str(name), name.size - PACK_TAIL_BYTES, PACK_TAIL_BYTES)
        start = footer_start(name, tail)
        return read_footer(name, await self._objects.get(str(name), start, name.size - start), start)


def unseen_of(keys: Column64, counts: Ints, days: Days, today: int) -> Iterator[Seen]:
    """Yield, for each pack with records nobody has seen, those as seen today; `days`: of all records, pack by pack."""
    starts = np.cumsum(counts) - counts
    for key, start, count in zip(keys.tolist(), starts.tolist(), counts.tolist(), strict=True):
        unseen = days[start : start + count] == 0
        if unseen.all():
            yield Seen(key, np.array([today], np.uint16))
        elif unseen.any():
            yield Seen(key, unseen * np.uint16(today))
