"""When each record of a cache was last seen by any system, from the stamps of all of them (`LastSeen`, heirs.py).

Of a stamp first the head is read: for each pack the newest and the oldest day of any of its records. Of all heads that
makes two days a pack, between which all its records were last seen. Where they differ, the details of those stamps are
read that say more of it, and only once somebody asks for the pack's records. Held are 4 bytes for each pack and 22 for
each of those a stamp says more of, however many systems there are.

Nothing is taken for older than it may be. What a stamp says that cannot be read whole counts as seen on its newest day.
Where a stamp of the protected days cannot be read at all, nobody knows what its system needs: then nothing is trimmed.
What a stamp says of days to come says nothing, for its writer's clock ran ahead; what it says of others counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import Mask
from engine.cache.stamping import Stamping
from engine.cache.stamps import StampDetails, StampHead
from engine.cache.trim import MIXED
from engine.cache.trimplan import DAY_MAX, Days, Ints
from engine.columns import Column64, Rows
from engine.distinct import among, distinct
from engine.errors import ObjectMissing, StoreCorrupt, StoreUnavailable
from engine.names import StampName
from engine.workers import run_workers

LISTINGS_MAX: Final = 8
HEADS_AT_ONCE: Final = 4
DETAILS_BYTES_MAX: Final = 64 << 20  # held


class _Part(msgspec.Struct, eq=False):
    """The rows of one stamp that may say of some records of a pack what no other one says; `rows` of the keys."""

    head: StampHead
    rows: Rows

    def without(self, gone: Mask) -> _Part:
        (kept,) = (~gone).nonzero()
        head = self.head
        return _Part(_of_head(head, kept), self.rows[kept])


class StampedDays:
    """`LastSeen` from what the systems of one cache stamped of days up to `believed`.

    What was last seen after the day `last` is protected; how much later it was makes no difference, and is not found
    out. `problems`: sentences.
    """

    def __init__(self, stamping: Stamping, believed: int, last: int) -> None:
        self.problems: list[str] = []
        self._stamping, self._believed, self._last = stamping, min(believed, DAY_MAX), last
        self._keys: Column64 = np.empty(0, np.uint64)
        self._newest: Days = np.empty(0, np.uint16)
        self._oldest: Days = np.empty(0, np.uint16)
        self._parts: list[_Part] = []
        self._read_before: set[StampName] = set()
        self._read_first: frozenset[StampName] | None = None  # by the first call of `packs`
        self._again: Column64 = np.empty(0, np.uint64)  # packs that later stamps name
        self._details: dict[StampName, StampDetails | None] = {}
        self._bytes = 0

    async def packs(self, keys: Column64) -> Days:
        """Return for each pack (ascending keys) the day all its records were last seen on; see `LastSeen`.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt (a stamp that counts still cannot be read).
        """
        self._keys = keys
        self._newest, self._oldest = np.zeros(len(keys), np.uint16), np.zeros(len(keys), np.uint16)
        self._parts = []
        self._again = np.empty(0, np.uint64)
        self._read_before.clear()
        self._forget_details()
        await self._read_heads(self._take_up)
        self._read_first = self._read_first or frozenset(self._read_before)
        await anyio.to_thread.run_sync(self._forget_what_is_known)
        protected = self._oldest.astype(np.int64) > self._last
        days = np.where((self._newest == self._oldest) | protected, self._newest, np.uint16(MIXED))
        return np.where(days == MIXED, days, np.minimum(days, np.uint16(DAY_MAX)))

    def newest(self) -> Days:
        """Return for each pack `packs` was asked for the day any of its records was last seen on; 0: none ever was."""
        return self._newest

    async def records(self, keys: Column64, counts: Ints) -> Days:
        """Return the day each of `counts[i]` records of each pack was last seen on; packs `packs` was asked for.

        Raises: StoreUnavailable, StoreRejected.
        """
        at = self._keys.searchsorted(keys)
        assert np.array_equal(self._keys[at], keys), "packs nobody asked for"
        days: Days = np.repeat(self._oldest[at], counts)
        starts = np.cumsum(counts) - counts
        for part in self._parts:
            of = part.rows.searchsorted(at).clip(max=len(part.rows) - 1)
            (into,) = (part.rows[of] == at).nonzero()
            if into.size:
                details = await self._details_of(part.head)
                said = zip(of[into].tolist(), starts[into].tolist(), counts[into].tolist(), strict=True)
                await anyio.to_thread.run_sync(self._say, part.head, details, said, days)
        return np.minimum(days, np.uint16(DAY_MAX))

    async def since(self, keys: Column64) -> Mask:
        """Tell which of these packs (ascending keys) stamps name that were not there yet when `packs` was asked.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt.
        """
        await self._read_heads(self._take_up_later)
        return among(keys, self._again)

    async def later(self, keys: Column64, counts: Ints) -> Days:
        """Return for each record the day that stamps give it which came since the first call of `packs`; 0: none.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt.
        """
        parts: list[_Part] = []

        def take_up(head: StampHead) -> None:
            self._take_up_later(head)
            (rows,) = among(head.packs, keys).nonzero()
            if rows.size:
                parts.append(_Part(_of_head(head, rows), keys.searchsorted(head.packs[rows])))

        self._read_before = set(self._read_first or ())
        await self._read_heads(take_up)
        days, starts = np.zeros(int(counts.sum()), np.uint16), np.cumsum(counts) - counts
        for part in parts:
            details = await self._read_details(part.head)
            said = zip(range(len(part.rows)), starts[part.rows].tolist(), counts[part.rows].tolist(), strict=True)
            await anyio.to_thread.run_sync(self._say, part.head, details, said, days)
        return np.minimum(days, np.uint16(DAY_MAX))

    async def _read_heads(self, take_up: Callable[[StampHead], None]) -> None:
        """Read the heads of all stamps that were not read before."""
        for _ in range(LISTINGS_MAX):
            listed = await self._stamping.listed()
            names = {name for each in listed.values() for name in each}
            new = sorted(names - self._read_before)
            self._read_before.update(new)
            if not await self._read(new, take_up):
                return
        # A writer puts its new stamps before the old ones go: whoever finds one gone has to look again.
        raise StoreUnavailable(f"the stamps in the cache changed {LISTINGS_MAX} times while they were read; try again")

    async def _read(self, names: Iterable[StampName], take_up: Callable[[StampHead], None]) -> bool:
        """Take up the heads of some stamps; True: some of them had gone meanwhile."""
        rest, gone = iter(names), False

        async def work() -> None:
            nonlocal gone
            for name in rest:
                try:
                    head = await self._stamping.head(name)
                except ObjectMissing:
                    gone = True
                except StoreCorrupt as error:
                    if self._last < name.day <= self._believed:
                        raise
                    old = name.day <= self._last
                    why = "it is older than what is protected" if old else "its system's clock ran ahead"
                    self.problems.append(f"{error}; {why}")
                else:
                    take_up(head)

        await run_workers(work, HEADS_AT_ONCE)
        return gone

    def _take_up(self, head: StampHead) -> None:
        if not len(self._keys):
            return
        at = self._keys.searchsorted(head.packs).clip(max=len(self._keys) - 1)
        (known,) = (self._keys[at] == head.packs).nonzero()
        known = known[head.oldest[known] <= self._believed]
        rows, newest, oldest = at[known], head.newest[known], head.oldest[known]
        # Of some records it speaks of days to come: so of those it says nothing, and of others an earlier day.
        oldest[newest > self._believed] = 0
        self._newest[rows] = np.maximum(self._newest[rows], np.minimum(newest, np.uint16(self._believed)))
        self._oldest[rows] = np.maximum(self._oldest[rows], oldest)
        (more,) = (head.details[known] > 0).nonzero()
        if more.size:
            self._parts.append(_Part(_of_head(head, known[more]), rows[more]))

    def _take_up_later(self, head: StampHead) -> None:
        recent = head.newest.astype(np.int64) > self._last
        self._again = distinct(self._again, head.packs[recent & among(head.packs, self._keys)])

    def _forget_what_is_known(self) -> None:
        """Let go of what says no more of a pack than that all of it was seen on a day, or is protected."""
        known = self._oldest.astype(np.int64) > self._last
        parts = [part.without(known[part.rows] | (part.head.newest <= self._oldest[part.rows])) for part in self._parts]
        self._parts = [part for part in parts if len(part.rows)]

    async def _details_of(self, head: StampHead) -> StampDetails | None:
        """Return the details of a stamp; None: they are gone, or damaged."""
        if head.name in self._details:
            return self._details[head.name]
        if self._bytes + head.details_bytes > DETAILS_BYTES_MAX:
            self._forget_details()
        found = await self._read_details(head)
        self._bytes += head.details_bytes if found is not None else 0
        self._details[head.name] = found
        return found

    async def _read_details(self, head: StampHead) -> StampDetails | None:
        try:
            return await self._stamping.details(head)
        except StoreCorrupt as error:
            self.problems.append(f"{error}; all it names counts as seen on the newest day it says of it")
        except ObjectMissing:
            pass  # its writer has said it again elsewhere by now
        return None

    def _forget_details(self) -> None:
        self._details.clear()
        self._bytes = 0

    def _say(
        self, head: StampHead, details: StampDetails | None, said: Iterable[tuple[int, int, int]], days: Days
    ) -> None:
        """Put what a stamp says (its row, first record, number of records) into `days`."""
        for row, start, count in said:
            try:
                seen = details.seen(row).days if details is not None else None
            except StoreCorrupt:
                seen = None
            into = days[start : start + count]
            if seen is None or len(seen) != count:
                seen = head.newest[row : row + 1]
            np.maximum(into, np.where(seen > self._believed, np.uint16(0), seen), out=into)


def _of_head(head: StampHead, rows: Rows) -> StampHead:
    """Return a head with these of its rows only."""
    return msgspec.structs.replace(
        head, packs=head.packs[rows], newest=head.newest[rows], oldest=head.oldest[rows], details=head.details[rows]
    )
