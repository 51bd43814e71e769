"""A view: sorted entries and the table of their packs, open for look-ups. Fragments, their merges and fresh packs are.

The columns of a view usually lie in a memory-mapped file, so a view of any size costs RAM only for its packs.
Ids come from the store: two that share their first eight bytes, or one listed a million times, are possible, and
only make a look-up slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from engine.acks import PackAck
from engine.block import DELTA_FLAG, PLACE, Mask, Places
from engine.columns import NO_SOURCES, U32, U64, Column64, Columns, Listing, Rows, SourceRows, concatenate, sort_order
from engine.pack import FinishedPack
from engine.packtable import PackRows, join_tables, rows_of

# Of an id listed more often than this in one view, the rest is not looked at.
PLACES_MAX: Final = 256
_SLICE: Final = 1 << 18


def keys_of(rows: PackRows) -> Column64:
    """Return the 8-byte pack keys of table rows, as places hold them."""
    return np.ascontiguousarray(rows["hash"][:, :8]).view(U64).reshape(-1)


class View:
    """Entries and the table of their packs, open for look-ups from any thread.

    `own`: written by this system, so its deltas may be relied on if their sources are known. Entries of a barred
    pack, own deltas with a source in one, and entries with a row no table has (a damaged mirror) are passed over.
    A pack is *listed* here if it has entries; the table also names packs that only hold sources. `listed`: which
    rows of the table are; None: found out when it matters.
    """

    __slots__ = ("_barred", "_key_order", "_listed", "_sorted_keys", "columns", "keys", "own", "rows", "sources")

    def __init__(
        self, columns: Columns, rows: PackRows, own: bool, sources: SourceRows = NO_SOURCES, listed: Mask | None = None
    ) -> None:
        self.columns, self.rows, self.own = columns, rows, own
        # Other systems' deltas are never relied on: their sources are never searched.
        self.sources = sources._replace(entry=np.ascontiguousarray(sources.entry)) if own else sources
        self.keys = keys_of(rows)
        self._key_order = np.argsort(self.keys, kind="stable").astype(U32)
        self._sorted_keys = self.keys[self._key_order]
        self._barred: Mask = np.zeros(len(rows), dtype=np.bool_)
        self._listed = listed

    def __len__(self) -> int:
        return self.columns.entries

    @property
    def listing(self) -> Listing:
        """The entries, with the sources of deltas that may be relied on."""
        return Listing(self.columns, self.sources if self.own else NO_SOURCES)

    def bar_packs(self, keys: Column64) -> None:
        """Pass over the entries of these packs, and own deltas with a source in them, from now on."""
        self._barred |= np.isin(self.keys, keys)

    def bar_writers(self, writers: set[bytes]) -> None:
        """Pass over the entries of all packs of these writers, and own deltas on them, from now on."""
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
        plain &= self.usable(rows)
        for position in np.flatnonzero(~plain):
            candidates = self.rows_of(lo[which[position]], hi[which[position]])
            usable = candidates[self.usable(candidates)]
            rows[position] = usable[0] if usable.size else -1
        found = rows >= 0
        return which[found], rows[found]

    def find_exact(self, lo: Column64, hi: Column64, places: Places) -> Rows:
        """Return, for each id, the row of the entry at exactly that place, barred or not; -1: there is none."""
        rows: Rows = np.full(len(lo), -1, np.intp)
        if not self.columns.entries:
            return rows
        at: Rows = self.columns.lo.searchsorted(lo)
        which = np.flatnonzero(self.columns.lo.take(at, mode="clip") == lo)
        for position in which.tolist():
            candidates = self.rows_of(lo[position], hi[position])
            same = candidates[self.places(candidates) == places[position]]
            rows[position] = same[0] if same.size else -1
        return rows

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

    def usable(self, rows: Rows) -> Mask:
        """Tell which of the entries at `rows` may be relied on."""
        pack = self.columns.pack[rows]
        usable: Mask = pack < len(self.keys)
        usable[usable] = ~self._barred[pack[usable]]
        delta = np.flatnonzero(self.columns.length[rows] & U32.type(DELTA_FLAG))
        if delta.size:
            # Only its writer can vouch for a delta's sources.
            usable[delta] &= self._usable_sources(rows[delta]) if self.own else False
        return usable

    def sources_of(self, rows: Rows) -> tuple[Rows, Column64, Mask]:
        """Return the packs that hold the sources of the own deltas at `rows`, barred or not.

        That is pairs (position in `rows`, pack key), and a mask of the deltas whose sources are all known.
        """
        which, packs = self.sources.find(rows)
        known: Mask = np.zeros(len(rows), np.bool_)
        known[which] = True
        known[which[packs >= len(self.keys)]] = False
        kept = known[which]
        return which[kept], self.keys[packs[kept]], known

    def own_packs(self, keys: Column64, writer: bytes) -> tuple[Rows, PackRows]:
        """Return pairs (which of `keys`, table row) of the packs of `writer` listed here and not barred."""
        starts = self._sorted_keys.searchsorted(keys, "left")
        counts = self._sorted_keys.searchsorted(keys, "right") - starts
        which = np.repeat(np.arange(len(keys)), counts)
        at = np.arange(len(which)) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
        table = self._key_order[at]
        good = self.listed()[table] & ~self._barred[table]
        good &= (self.rows["writer"][table] == np.frombuffer(writer, np.uint8)).all(axis=1)
        return which[good], self.rows[table[good]]

    def pack_rows(self, key: int) -> PackRows:
        """Return the table rows of the packs with this key: none, one, or several by a freak or forgery."""
        start = int(self._sorted_keys.searchsorted(np.uint64(key), "left"))
        stop = int(self._sorted_keys.searchsorted(np.uint64(key), "right"))
        return self.rows[self._key_order[start:stop]]

    def holds_packs(self, keys: Column64) -> Mask:
        """Tell which of these packs the table names, for entries or for sources."""
        return _within(keys, self._sorted_keys)

    def lists_packs(self, keys: Column64) -> Mask:
        """Tell of which of these packs there are entries here."""
        return _within(keys, self._sorted_keys[self.listed()[self._key_order]])

    def count_packs(self, writer: bytes) -> int:
        """Return how many packs of this writer there are entries of."""
        of_writer = (self.rows["writer"] == np.frombuffer(writer, np.uint8)).all(axis=1)
        return int(np.count_nonzero(of_writer & self.listed()))

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
        gone: Mask = np.zeros(len(self.keys), np.bool_)
        for other in others:
            gone |= other.lists_packs(self.keys)
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

    def barred(self, rows: Rows) -> Mask:
        """Tell which of the entries at `rows` are not to be relied on because of what was barred."""
        delta = np.flatnonzero(self.columns.length[rows] & U32.type(DELTA_FLAG)) if self.own else _NONE
        barred = self._barred[self.columns.pack[rows]]
        if delta.size:
            barred[delta] |= ~self._usable_sources(rows[delta])
        return barred

    def _usable_sources(self, rows: Rows) -> Mask:
        which, packs = self.sources.find(rows)
        usable: Mask = np.zeros(len(rows), np.bool_)
        usable[which] = True
        inside = packs < len(self.keys)
        bad = ~inside
        bad[inside] = self._barred[packs[inside]]
        usable[which[bad]] = False
        return usable


_NONE: Final[Rows] = np.empty(0, dtype=np.intp)


def view_of_pack(pack: FinishedPack | PackAck) -> View:
    """Return the view of one own pack."""
    order = sort_order(pack.ids[:, 0], pack.ids[:, 1])
    names = {source.hash: source for _, source in pack.sources}
    names[pack.name.hash] = pack.name
    rows = rows_of(names.values())
    row_of = {row["hash"].tobytes(): position for position, row in enumerate(rows)}
    home = row_of[pack.name.hash]
    sources = NO_SOURCES
    if pack.sources:
        ranks = np.empty(len(order), np.intp)
        ranks[order] = np.arange(len(order))
        entry = np.array([entry for entry, _ in pack.sources], U32)
        sources = SourceRows(entry, np.array([row_of[source.hash] for _, source in pack.sources], U32))
        sources = sources.renumbered(ranks)
    columns = Columns(
        pack.ids[order, 0], pack.ids[order, 1], np.full(len(order), home, U32), pack.offsets[order], pack.lengths[order]
    )
    listed = np.arange(len(rows)) == home
    return View(columns, rows, own=True, sources=sources, listed=listed)


def join_views(views: Sequence[View]) -> View:
    """Return one view, in memory, of the entries of several own ones."""
    rows, maps = join_tables([view.rows for view in views], [np.zeros(len(view.rows), np.bool_) for view in views])
    listed: Mask = np.zeros(len(rows), np.bool_)
    parts = []
    for view, row_map in zip(views, maps, strict=True):
        listed[row_map[view.listed()]] = True
        columns = view.columns._replace(pack=row_map[view.columns.pack])
        parts.append(Listing(columns, view.sources._replace(pack=row_map[view.sources.pack])))
    joined = concatenate(parts)
    return View(joined.columns, rows, True, joined.sources, listed)


def _within(keys: Column64, ascending: Column64) -> Mask:
    if not len(ascending):
        return np.zeros(len(keys), np.bool_)
    held: Mask = ascending.take(ascending.searchsorted(keys), mode="clip") == keys
    return held
