"""Sorted columns of ids and where their records lie, and the packs that hold the sources of deltas among them.

The columns of index fragments and of the mirror's merges lie in memory-mapped files: what is done to all of them is
done in slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

U32: Final = np.dtype("<u4")
U64: Final = np.dtype("<u8")
ENTRY_BYTES: Final = 2 * U64.itemsize + 3 * U32.itemsize  # of all five columns
Column32: TypeAlias = npt.NDArray[np.uint32]
Column64: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.intp]


class Columns(NamedTuple):
    """The five columns of n entries, sorted by (lo, hi): halves of the id, row in the pack table, offset, length."""

    lo: Column64
    hi: Column64
    pack: Column32
    offset: Column32
    length: Column32

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self.lo)

    def part(self, start: int, stop: int) -> Columns:
        """Return the entries in [start, stop), without copying."""
        at = slice(start, stop)
        return Columns(self.lo[at], self.hi[at], self.pack[at], self.offset[at], self.length[at])

    def take(self, rows: Rows) -> Columns:
        """Return a copy of the entries at `rows`."""
        return Columns(self.lo[rows], self.hi[rows], self.pack[rows], self.offset[rows], self.length[rows])

    def bound(self, lo: np.uint64, hi: np.uint64, side: str) -> int:
        """Return where the id (lo, hi) would be inserted, before ("left") or after ("right") entries equal to it."""
        start, stop = int(self.lo.searchsorted(lo, "left")), int(self.lo.searchsorted(lo, "right"))
        return start + int(self.hi[start:stop].searchsorted(hi, "left" if side == "left" else "right"))


class SourceRows(NamedTuple):
    """The packs that hold the sources of deltas: pairs (entry, row in the pack table), ascending, as two columns."""

    entry: Column32
    pack: Column32

    def part(self, start: int, stop: int) -> SourceRows:
        """Return a copy of the pairs of the entries in [start, stop), which are counted from `start`."""
        first, last = self.entry.searchsorted(np.array([start, stop], U32)).tolist()
        return SourceRows(self.entry[first:last] - U32.type(start), self.pack[first:last])

    def renumbered(self, ranks: Rows) -> SourceRows:
        """Return the pairs, once each, with entry e as ranks[e]; those of entries with a negative rank are left out."""
        entry = ranks[self.entry]
        kept = np.flatnonzero(entry >= 0)
        joined = entry[kept].astype(U64) << _HALF | self.pack[kept]
        joined.sort()
        joined = joined[np.concatenate([[True], joined[1:] != joined[:-1]])[: len(joined)]]
        return SourceRows((joined >> _HALF).astype(U32), (joined & _LOW).astype(U32))

    def find(self, rows: Rows) -> tuple[Rows, Column32]:
        """Return pairs (position in `rows`, row in the pack table) for all sources of the entries at `rows`."""
        wanted = rows.astype(U32)
        starts = self.entry.searchsorted(wanted, "left")
        # Not less than none, whatever order a damaged file has them in.
        counts = np.maximum(self.entry.searchsorted(wanted, "right") - starts, 0)
        which = np.repeat(np.arange(len(rows)), counts)
        at = np.arange(len(which)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return which, self.pack[at]


class Listing(NamedTuple):
    """Entries, and the source rows of the deltas among them."""

    columns: Columns
    sources: SourceRows

    @property
    def entries(self) -> int:
        """How many entries there are."""
        return self.columns.entries

    def part(self, start: int, stop: int) -> Listing:
        """Return the entries in [start, stop); of the columns nothing is copied."""
        sources = self.sources.part(start, stop) if len(self.sources.entry) else NO_SOURCES
        return Listing(self.columns.part(start, stop), sources)

    def take(self, rows: Rows) -> Listing:
        """Return a copy of the entries at `rows`, in that order; none of `rows` may stand twice."""
        sources = NO_SOURCES
        if len(self.sources.entry):
            ranks = np.full(self.entries, -1, np.intp)
            ranks[rows] = np.arange(len(rows))
            sources = self.sources.renumbered(ranks)
        return Listing(self.columns.take(rows), sources)


# Guessing where ids lie pays in columns and for batches of this length, and in long columns always.
_GUESSED_MIN: Final = 1 << 15
_GUESSED_KEYS_MIN: Final = 32
_GUESSED_ALWAYS_MIN: Final = 1 << 23
_GUESSES: Final = 3
_WINDOW: Final = np.arange(-8, 8)
_IDS: Final = 2.0**64
NO_SOURCES: Final = SourceRows(np.empty(0, U32), np.empty(0, U32))
_HALF: Final = np.uint64(32)
_LOW: Final = np.uint64(0xFFFFFFFF)


def lower_bound(column: Column64, keys: Column64) -> Rows:
    """Return, for each key, the first position in the ascending `column` that is not less; `keys` in any order.

    Halves of ids are evenly distributed: a guess among n entries is off by √n or so, and each further one by the
    root of that. So an id costs two places of a column of any length to look at instead of log2(n), most of which
    nothing would have in memory. Where the guesses are wrong (somebody crafted ids) it is searched in halves.
    """
    if len(column) < (_GUESSED_MIN if len(keys) >= _GUESSED_KEYS_MIN else _GUESSED_ALWAYS_MIN):
        return column.searchsorted(keys)
    scale = len(column) / _IDS
    at = (keys * scale).astype(np.intp)
    for _ in range(_GUESSES):
        at += ((keys - column.take(at, mode="clip")).view(np.int64) * scale).astype(np.intp)
    reached = (column.take(at[:, None] + _WINDOW, mode="clip") >= keys[:, None]).argmax(axis=1)
    at += reached
    at += _WINDOW[0]
    # 0: the first one in the window is reached already, or none is.
    (lost,) = (reached == 0).nonzero()
    if lost.size:
        at[lost] = column.searchsorted(keys[lost])
    return at


def sort_order(lo: Column64, hi: Column64) -> Rows:
    """Return the rows in order of (lo, hi); fast where few ids share their first half."""
    order: Rows = np.argsort(lo, kind="stable")
    ordered = lo[order]
    if bool((ordered[1:] == ordered[:-1]).any()):
        order = np.lexsort((hi, lo))
    return order


def concatenate(parts: Sequence[Listing]) -> Listing:
    """Return the entries of all parts, sorted."""
    joined = Listing(
        Columns(
            np.concatenate([part.columns.lo for part in parts]),
            np.concatenate([part.columns.hi for part in parts]),
            np.concatenate([part.columns.pack for part in parts]),
            np.concatenate([part.columns.offset for part in parts]),
            np.concatenate([part.columns.length for part in parts]),
        ),
        _joined_sources(parts),
    )
    return joined.take(sort_order(joined.columns.lo, joined.columns.hi))


def _joined_sources(parts: Sequence[Listing]) -> SourceRows:
    if not any(len(part.sources.entry) for part in parts):
        return NO_SOURCES
    base, entries = 0, []
    for part in parts:
        entries.append(part.sources.entry + U32.type(base))
        base += part.entries
    return SourceRows(np.concatenate(entries), np.concatenate([part.sources.pack for part in parts]))
