"""Sorted columns of ids and where their records lie: what index fragments, their merges and fresh packs all are.

The columns of a view usually lie in a memory-mapped file, so a view of any size costs RAM only for its packs.
Ids come from the store: two that share their first eight bytes, or one listed a million times, are possible, and
only make a look-up slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.block import DELTA_FLAG, PLACE, Ids, Mask, Places
from engine.packtable import PackRows

U32: Final = np.dtype("<u4")
U64: Final = np.dtype("<u8")
Column32: TypeAlias = npt.NDArray[np.uint32]
Column64: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.intp]

# Of an id listed more often than this in one view, the rest is not looked at.
PLACES_MAX: Final = 256


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


def sort_order(lo: Column64, hi: Column64) -> Rows:
    """Return the rows in order of (lo, hi); fast where few ids share their first half."""
    order: Rows = np.argsort(lo, kind="stable")
    ordered = lo[order]
    if bool((ordered[1:] == ordered[:-1]).any()):
        order = np.lexsort((hi, lo))
    return order


def concatenate(parts: Sequence[Columns]) -> Columns:
    """Return the entries of all parts, sorted."""
    joined = Columns(
        np.concatenate([part.lo for part in parts]),
        np.concatenate([part.hi for part in parts]),
        np.concatenate([part.pack for part in parts]),
        np.concatenate([part.offset for part in parts]),
        np.concatenate([part.length for part in parts]),
    )
    return joined.take(sort_order(joined.lo, joined.hi))


def keys_of(rows: PackRows) -> Column64:
    """Return the 8-byte pack keys of table rows, as places hold them."""
    return np.ascontiguousarray(rows["hash"][:, :8]).view(U64).reshape(-1)


class View:
    """Entries and the table of their packs, open for look-ups from any thread.

    `own`: written by this system, so its deltas may be relied on. Entries of a barred pack, or with a row no table
    has (a damaged mirror), are passed over.
    """

    __slots__ = ("_barred", "_key_order", "_sorted_keys", "columns", "keys", "own", "rows")

    def __init__(self, columns: Columns, rows: PackRows, own: bool) -> None:
        self.columns, self.rows, self.own = columns, rows, own
        self.keys = keys_of(rows)
        self._key_order = np.argsort(self.keys, kind="stable").astype(U32)
        self._sorted_keys = self.keys[self._key_order]
        self._barred: Mask = np.zeros(len(rows), dtype=np.bool_)

    def __len__(self) -> int:
        return self.columns.entries

    def bar_packs(self, keys: Column64) -> None:
        """Pass over the entries of these packs from now on."""
        self._barred |= np.isin(self.keys, keys)

    def bar_writers(self, writers: set[bytes]) -> None:
        """Pass over the entries of all packs of these writers from now on."""
        for writer in writers:
            self._barred |= (self.rows["writer"] == np.frombuffer(writer, np.uint8)).all(axis=1)

    def find(self, lo: Column64, hi: Column64) -> tuple[Rows, Rows]:
        """Return (which of the ids were found, the row to rely on for each); `lo` sorted makes it faster."""
        columns = self.columns
        at: Rows = columns.lo.searchsorted(lo)
        hit = columns.lo.take(at, mode="clip") == lo if columns.entries else np.zeros(len(lo), np.bool_)
        if not hit.any():
            return _NONE, _NONE
        which = np.flatnonzero(hit)
        rows = at[which]
        # The usual case, for the whole batch at once: the id stands here once, and its pack may be relied on.
        plain = columns.hi[rows] == hi[which]
        plain &= columns.lo.take(rows + 1, mode="clip") != lo[which]
        plain |= (columns.hi[rows] == hi[which]) & (rows + 1 == columns.entries)
        plain &= self._usable(rows)
        for position in np.flatnonzero(~plain):
            candidates = self.rows_of(lo[which[position]], hi[which[position]])
            usable = candidates[self._usable(candidates)]
            rows[position] = usable[0] if usable.size else -1
        found = rows >= 0
        return which[found], rows[found]

    def rows_of(self, lo: np.uint64, hi: np.uint64) -> Rows:
        """Return the rows of all entries of one id, barred or not, at most PLACES_MAX."""
        start, stop = self.columns.bound(lo, hi, "left"), self.columns.bound(lo, hi, "right")
        rows: Rows = np.arange(start, min(stop, start + PLACES_MAX), dtype=np.intp)
        return rows[self.columns.pack[rows] < len(self.keys)]

    def places(self, rows: Rows) -> Places:
        """Return the places of the entries at `rows`."""
        places = np.empty(len(rows), dtype=PLACE)
        places["pack"] = self.keys[self.columns.pack[rows]]
        places["offset"], places["length"] = self.columns.offset[rows], self.columns.length[rows]
        return places

    def barred(self, rows: Rows) -> Mask:
        """Tell which of the entries at `rows` lie in barred packs."""
        return self._barred[self.columns.pack[rows]]

    def pack_rows(self, key: int) -> PackRows:
        """Return the table rows of the packs with this key: none, one, or several by a freak or forgery."""
        start = int(self._sorted_keys.searchsorted(np.uint64(key), "left"))
        stop = int(self._sorted_keys.searchsorted(np.uint64(key), "right"))
        return self.rows[self._key_order[start:stop]]

    def holds_packs(self, keys: Column64) -> Mask:
        """Tell which of these packs the table names."""
        at = self._sorted_keys.searchsorted(keys)
        if not len(self.keys):
            return np.zeros(len(keys), np.bool_)
        held: Mask = self._sorted_keys.take(at, mode="clip") == keys
        return held

    def without_packs(self, *others: View) -> View:
        """Return this view less the packs that `others` name; itself if they name none."""
        listed: Mask = np.zeros(len(self.keys), np.bool_)
        for other in others:
            listed |= other.holds_packs(self.keys)
        if not listed.any():
            return self
        row_map = (np.cumsum(~listed) - 1).astype(U32)
        columns = self.columns.take(np.flatnonzero(~listed[self.columns.pack]))
        return View(columns._replace(pack=row_map[columns.pack]), self.rows[~listed], self.own)

    def _usable(self, rows: Rows) -> Mask:
        pack = self.columns.pack[rows]
        usable: Mask = pack < len(self.keys)
        usable[usable] = ~self._barred[pack[usable]]
        if not self.own:
            # Only its writer can vouch for a delta's sources.
            usable &= self.columns.length[rows] & U32.type(DELTA_FLAG) == 0
        return usable


_NONE: Final[Rows] = np.empty(0, dtype=np.intp)


def view_of_pack(ids: Ids, offsets: Column32, lengths: Column32, row: PackRows) -> View:
    """Return the view of one own pack: its entries in record order, `row` its single table row."""
    order = sort_order(ids[:, 0], ids[:, 1])
    pack = np.zeros(len(order), U32)
    return View(Columns(ids[order, 0], ids[order, 1], pack, offsets[order], lengths[order]), row, own=True)


def join_views(views: Sequence[View]) -> View:
    """Return one view, in memory, of the entries of several own ones; their tables are put one after the other."""
    base = 0
    parts = []
    for view in views:
        columns = view.columns
        parts.append(columns._replace(pack=columns.pack + U32.type(base)))
        base += len(view.rows)
    return View(concatenate(parts), np.concatenate([view.rows for view in views]), own=True)
