"""A view: sorted entries and the table of their packs, open for look-ups. Fragments, their merges and fresh packs are.

The columns of a view usually lie in a memory-mapped file, so a view of any size costs RAM only for its packs.
Ids come from the store: two that share their first eight bytes, or one listed a million times, are possible, and
only make a look-up slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from engine.acks import PackAck, SourceTable
from engine.block import DELTA_FLAG, PLACE, Mask, Places
from engine.columns import (
    NO_SOURCES,
    U32,
    Column32,
    Column64,
    Columns,
    Listing,
    Rows,
    SourceRows,
    concatenate,
    lower_bound,
    sort_order,
)
from engine.names import PackName
from engine.pack import FinishedPack
from engine.packtable import KINDS, JoinedTable, PackRows, keys_of, pack_names, rows_of

# Of an id listed more often than this in one view, the rest is not looked at.
PLACES_MAX: Final = 256
_SLICE: Final = 1 << 18


class Found(NamedTuple):
    """Ids that were found: their positions among those asked for, and a place to rely on for each, as columns."""

    which: Rows
    pack: Column64
    offset: Column32
    length: Column32


class View:
    """Entries and the table of their packs, open for look-ups from any thread.

    `own`: written by this system, so its deltas may be relied on if their sources are known. Entries of a barred
    pack, own deltas with a source in one, and entries with a row no table has (a damaged mirror) are passed over.
    A pack is *listed* here if it has entries; the table also names packs that only hold sources. `listed`: which
    rows of the table are; None: found out when it matters.

    Opening a view reads nothing of it. What is held for its packs, 12 bytes each, is made when they are looked up.
    """

    __slots__ = ("_barred", "_counts", "_listed", "_sorted", "columns", "keys", "own", "rows", "sources")

    def __init__(
        self, columns: Columns, rows: PackRows, own: bool, sources: SourceRows = NO_SOURCES, listed: Mask | None = None
    ) -> None:
        self.columns, self.rows, self.own = columns, rows, own
        # Other systems' deltas are never relied on: their sources are never searched.
        self.sources = sources._replace(entry=np.ascontiguousarray(sources.entry)) if own else sources
        self.keys: Column64 = keys_of(rows)
        self._sorted: tuple[Column64, Column32] | None = None
        self._barred: Mask | None = None
        self._listed = listed
        self._counts: dict[bytes, int] = {}

    def __len__(self) -> int:
        return self.columns.entries

    @property
    def listing(self) -> Listing:
        """The entries, with the sources of deltas that may be relied on."""
        return Listing(self.columns, self.sources if self.own else NO_SOURCES)

    def bar_packs(self, keys: Column64) -> None:
        """Pass over the entries of these packs, and own deltas with a source in them, from now on."""
        self._bar(self._rows_with(keys)[1])

    def bar_writers(self, writers: set[bytes]) -> None:
        """Pass over the entries of all packs of these writers, and own deltas on them, from now on."""
        for writer in writers:
            self._bar(np.flatnonzero(self._of_writer(writer)))

    def find(self, lo: Column64, hi: Column64) -> Found | None:
        """Return a place to rely on for each id that has one here; None: there is none."""
        found = self.find_rows(lo, hi)
        if found is None:
            return None
        which, rows, pack, length = found
        return Found(which, self.keys[pack], self.columns.offset.take(rows), length)

    def find_rows(self, lo: Column64, hi: Column64) -> tuple[Rows, Rows, Column32, Column32] | None:
        """Return, for each id that has an entry to rely on, its position and the row of the entry; None: none has.

        And of these entries what was looked at, row in the table of the packs and length; the table is not touched.
        """
        columns = self.columns
        if not columns.entries:
            return None
        at = lower_bound(columns.lo, lo)
        (which,) = (columns.lo.take(at, mode="clip") == lo).nonzero()
        if not which.size:
            return None
        rows = at[which]
        same = columns.hi.take(rows) == hi[which]
        pack, length = columns.pack.take(rows), columns.length.take(rows)
        # The usual case, for the whole batch at once: the first entry there may be relied on.
        plain = self._barred is None and int(length.max()) < DELTA_FLAG and int(pack.max()) < len(self.rows)
        if not plain or np.count_nonzero(same) < len(same):
            same &= self.usable(rows)
            # Few ids have entries besides: where packs are gone by the thousand, the others are not looked at singly.
            alone = columns.lo.take(rows + 1, mode="clip") != lo[which]
            alone |= rows + 1 == columns.entries
            rows[alone & ~same] = -1
            for position in np.flatnonzero(~(same | alone)).tolist():
                candidates = self.rows_of(lo[which[position]], hi[which[position]])
                usable = candidates[self.usable(candidates)]
                rows[position] = usable[0] if usable.size else -1
            which, rows = which[rows >= 0], rows[rows >= 0]
            if not which.size:
                return None
            pack, length = columns.pack.take(rows), columns.length.take(rows)
        return which, rows, pack, length

    def find_exact(self, lo: Column64, hi: Column64, places: Places) -> Rows:
        """Return, for each id, the row of the entry at exactly that place, barred or not; -1: there is none."""
        columns = self.columns
        rows: Rows = np.full(len(lo), -1, np.intp)
        if not columns.entries:
            return rows
        at = lower_bound(columns.lo, lo)
        (which,) = (columns.lo.take(at, mode="clip") == lo).nonzero()
        first, wanted = at[which], places[which]
        exact = (columns.hi[first] == hi[which]) & (columns.pack[first] < len(self.rows))
        exact[exact] = self.places(first[exact]) == wanted[exact]
        rows[which[exact]] = first[exact]
        for position in which[~exact].tolist():
            candidates = self.rows_of(lo[position], hi[position])
            same = candidates[self.places(candidates) == places[position]]
            rows[position] = same[0] if same.size else -1
        return rows

    def rows_of(self, lo: np.uint64, hi: np.uint64) -> Rows:
        """Return the rows of all entries of one id, barred or not, at most PLACES_MAX."""
        columns = self.columns
        start = int(columns.lo.searchsorted(lo))
        if start == columns.entries or columns.lo[start] != lo:
            return _NONE
        same = columns.hi[start : int(columns.lo.searchsorted(lo, "right"))]
        first, last = start + int(same.searchsorted(hi, "left")), start + int(same.searchsorted(hi, "right"))
        rows: Rows = np.arange(first, min(last, first + PLACES_MAX), dtype=np.intp)
        return rows[columns.pack[rows] < len(self.rows)]

    def places(self, rows: Rows) -> Places:
        """Return the places of the entries at `rows`."""
        places = np.empty(len(rows), dtype=PLACE)
        places["pack"] = self.keys[self.columns.pack[rows]]
        places["offset"], places["length"] = self.columns.offset[rows], self.columns.length[rows]
        return places

    def usable(self, rows: Rows) -> Mask:
        """Tell which of the entries at `rows` may be relied on."""
        usable = self._open(self.columns.pack[rows])
        delta = np.flatnonzero(self.columns.length[rows] & U32.type(DELTA_FLAG))
        if delta.size:
            # Only its writer can vouch for a delta's sources.
            usable[delta] &= self._usable_sources(rows[delta]) if self.own else False
        return usable

    def barred(self, rows: Rows) -> Mask:
        """Tell which of the entries at `rows` are not to be relied on, but for another system's deltas."""
        barred = ~self._open(self.columns.pack[rows])
        delta = np.flatnonzero(self.columns.length[rows] & U32.type(DELTA_FLAG)) if self.own else _NONE
        if delta.size:
            barred[delta] |= ~self._usable_sources(rows[delta])
        return barred

    def sources_of(self, rows: Rows) -> tuple[Rows, Column64, Mask]:
        """Return the packs that hold the sources of the own deltas at `rows`, barred or not.

        That is pairs (position in `rows`, pack key), and a mask of the deltas whose sources are all known.
        """
        which, packs = self.sources.find(rows)
        known: Mask = np.zeros(len(rows), np.bool_)
        known[which] = True
        known[which[packs >= len(self.rows)]] = False
        kept = known[which]
        return which[kept], self.keys[packs[kept]], known

    def own_packs(self, keys: Column64, writer: bytes) -> tuple[Rows, PackRows]:
        """Return pairs (which of `keys`, table row) of the packs of `writer` listed here and not barred."""
        which, table = self._rows_with(keys)
        good = self.listed()[table] & self._open(table) & (self.rows["kind"][table] < len(KINDS))
        good &= (self.rows["writer"][table] == np.frombuffer(writer, np.uint8)).all(axis=1)
        return which[good], self.rows[table[good]]

    def pack_rows(self, keys: Column64) -> tuple[Rows, PackRows]:
        """Return pairs (which of `keys`, table row) of all packs with these keys."""
        which, table = self._rows_with(keys)
        good = self.rows["kind"][table] < len(KINDS)
        return which[good], self.rows[table[good]]

    def names_of(self, key: int) -> list[PackName]:
        """Return the packs with this key: one or none, or several by a freak or forgery."""
        ascending, order = self._by_key()
        start = int(ascending.searchsorted(np.uint64(key)))
        if start == len(ascending) or int(ascending[start]) != key:
            return []
        rows = self.rows[order[start : int(ascending.searchsorted(np.uint64(key), "right"))]]
        return pack_names(rows[rows["kind"] < len(KINDS)])

    def lists_packs(self, keys: Column64) -> Mask:
        """Tell of which of these packs there are entries here."""
        which, table = self._rows_with(keys)
        held: Mask = np.zeros(len(keys), np.bool_)
        held[which[self.listed()[table]]] = True
        return held

    def holds(self, keys: Column64) -> Mask:
        """Tell of which of these packs there are entries here, and they are not barred."""
        which, table = self._rows_with(keys)
        held: Mask = np.zeros(len(keys), np.bool_)
        held[which[self.listed()[table] & self._open(table)]] = True
        return held

    def count_packs(self, writer: bytes) -> int:
        """Return how many packs of this writer there are entries of."""
        if writer not in self._counts:
            self._counts[writer] = int(np.count_nonzero(self._of_writer(writer) & self.listed()))
        return self._counts[writer]

    def listed(self) -> Mask:
        """Tell which rows of the table are of packs with entries here, not only of packs that hold sources."""
        if self._listed is None:
            listed: Mask = np.ones(len(self.rows), np.bool_)
            for start in range(0, len(self.sources.pack), _SLICE):
                packs = self.sources.pack[start : start + _SLICE]
                listed[packs[packs < len(listed)]] = False
            if not listed.all():
                for start in range(0, len(self), _SLICE):
                    packs = self.columns.pack[start : start + _SLICE]
                    listed[packs[packs < len(listed)]] = True
            self._listed = listed
        return self._listed

    def without_packs(self, *others: View) -> View:
        """Return this view less the entries of packs that `others` list; itself if they list none of them."""
        keys = np.ascontiguousarray(self.keys)
        gone: Mask = np.zeros(len(keys), np.bool_)
        for other in others:
            gone |= other.lists_packs(keys)
        gone &= self.listed()
        if not gone.any():
            return self
        left = self.listing.take(np.flatnonzero(~gone[self.columns.pack]))
        listed = self.listed() & ~gone
        # A pack that is listed elsewhere may hold sources of what stays.
        kept = listed.copy()
        kept[left.sources.pack] = True
        row_map = (np.cumsum(kept) - 1).astype(U32)
        columns = left.columns._replace(pack=row_map[left.columns.pack])
        sources = left.sources._replace(pack=row_map[left.sources.pack])
        return View(columns, self.rows[kept], self.own, sources, listed[kept])

    def _usable_sources(self, rows: Rows) -> Mask:
        which, packs = self.sources.find(rows)
        usable: Mask = np.zeros(len(rows), np.bool_)
        usable[which] = True
        usable[which[~self._open(packs)]] = False
        return usable

    def _open(self, table: Column32 | Rows) -> Mask:
        """Tell which of these rows of the table there are, and are not barred."""
        there: Mask = table < len(self.rows)
        if self._barred is not None:
            there[there] = ~self._barred[table[there]]
        return there

    def _bar(self, table: Rows) -> None:
        if table.size:
            barred: Mask = np.zeros(len(self.rows), np.bool_) if self._barred is None else self._barred.copy()
            barred[table] = True
            self._barred = barred

    def _of_writer(self, writer: bytes) -> Mask:
        of_writer: Mask = (self.rows["writer"] == np.frombuffer(writer, np.uint8)).all(axis=1)
        return of_writer

    def _by_key(self) -> tuple[Column64, Column32]:
        """Return the keys of the table, ascending, and the row of each."""
        if self._sorted is None:
            order = np.argsort(self.keys, kind="stable").astype(U32)
            self._sorted = self.keys[order], order
        return self._sorted

    def _rows_with(self, keys: Column64) -> tuple[Rows, Rows]:
        """Return pairs (which of `keys`, row of the table)."""
        ascending, order = self._by_key()
        starts = ascending.searchsorted(keys, "left")
        counts = ascending.searchsorted(keys, "right") - starts
        which = np.repeat(np.arange(len(keys)), counts)
        at = np.arange(len(which)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        return which, order[at].astype(np.intp)


_NONE: Final[Rows] = np.empty(0, dtype=np.intp)


def view_of_pack(pack: FinishedPack | PackAck) -> View:
    """Return the view of one own pack."""
    order = sort_order(pack.ids[:, 0], pack.ids[:, 1])
    table = SourceTable.of(pack)
    rows = rows_of([pack.name, *table.packs])
    row_of = {name.hash: at for at, name in enumerate(pack_names(rows))}
    home = row_of[pack.name.hash]
    sources = NO_SOURCES
    if pack.sources:
        ranks = np.empty(len(order), np.intp)
        ranks[order] = np.arange(len(order))
        row_map = np.array([row_of[name.hash] for name in table.packs], U32)
        sources = SourceRows(table.entry, row_map[table.pack]).renumbered(ranks)
    columns = Columns(
        pack.ids[order, 0], pack.ids[order, 1], np.full(len(order), home, U32), pack.offsets[order], pack.lengths[order]
    )
    listed = np.arange(len(rows)) == home
    return View(columns, rows, own=True, sources=sources, listed=listed)


def join_views(views: Sequence[View]) -> View:
    """Return one view, in memory, of the entries of several own ones."""
    table = JoinedTable([view.rows for view in views])
    listed: Mask = np.zeros(len(table), np.bool_)
    parts = []
    for view, row_map in zip(views, table.maps, strict=True):
        listed[row_map[view.listed()]] = True
        columns = view.columns._replace(pack=row_map[view.columns.pack])
        parts.append(Listing(columns, view.sources._replace(pack=row_map[view.sources.pack])))
    joined = concatenate(parts)
    return View(joined.columns, table.rows(), True, joined.sources, listed)
