"""The packs of a cache, by what its index lists of them: how many records, how long, and where they lie.

Views are sorted by id, so whatever is asked of packs goes once over all entries, in slices; what is held is a few
columns with a row for each pack, and the records of as many packs as are looked at together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np

from engine.block import DELTA_FLAG, LENGTH_MASK, Mask
from engine.cache.packbits import in_batches
from engine.cache.trimplan import Ints
from engine.columns import U32, Column32, Column64, Rows
from engine.distinct import distinct
from engine.names import PackName
from engine.packtable import KINDS, PACK_ROW, PACK_ROW_BYTES, PackRows, pack_names
from engine.view import View

RECORDS_AT_ONCE: Final = 1 << 22
_SLICE: Final = 1 << 20


class Records(msgspec.Struct, frozen=True, eq=False):
    """The records of some packs, those of one after those of another, each in the order they lie in.

    `packs` int64[g]: rows of the inventory; `counts` int64[g]; for each record `offsets`, `lengths` (bytes), `lo`: the
    first half of its id.
    """

    packs: Ints
    counts: Ints
    offsets: Column32
    lengths: Column32
    lo: Column64


def listed_bytes(views: Sequence[View], removed: Column64) -> int:
    """Return how many bytes the packs take that `views` list, but for those of `removed` keys (ascending)."""
    keys = np.concatenate([np.empty(0, np.uint64), *(view.keys[view.listed()] for view in views)])
    sizes = np.concatenate([np.empty(0, np.uint32), *(view.rows["size"][view.listed()] for view in views)])
    order = keys.argsort(kind="stable")
    keys, sizes = keys[order], sizes[order]
    first = np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)]
    return int(sizes[first & ~np.isin(keys, removed)].sum(dtype=np.int64))


class Inventory:
    """All packs that `views` list, but for those of `removed` keys (ascending)."""

    def __init__(self, views: Sequence[View], removed: Column64) -> None:
        self._views = views
        listed = [np.ascontiguousarray(view.keys[view.listed()]) for view in views]
        keys = distinct(np.empty(0, np.uint64), *listed)
        self.keys: Column64 = keys[~np.isin(keys, removed)]
        self.rows: PackRows = np.zeros(len(self.keys), PACK_ROW)
        self.counts: Ints = np.zeros(len(self.keys), np.int64)
        self.bytes_: Ints = np.zeros(len(self.keys), np.int64)
        self.deltas: Mask = np.zeros(len(self.keys), np.bool_)
        # Listed in two views, a record may be counted twice; two packs of one key are not told apart.
        self.several: Mask = np.zeros(len(self.keys), np.bool_)
        self.doubtful: Mask = np.zeros(len(self.keys), np.bool_)
        self._known: Mask = np.zeros(len(self.keys), np.bool_)
        for view in views:
            self._name(view)
            self._count(view)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def sizes(self) -> Ints:
        """How many bytes each pack takes."""
        return self.rows["size"].astype(np.int64)

    @property
    def data(self) -> Mask:
        """Which packs hold blocks."""
        found: Mask = self.rows["kind"] == KINDS.index("data")
        return found

    def names(self, rows: Ints | Rows) -> list[PackName]:
        """Return the names of the packs at `rows`."""
        return pack_names(self.rows[rows])

    def packs_with(self, lo: Column64) -> Mask:
        """Tell which packs hold a record whose id begins with one of these halves."""
        found: Mask = np.zeros(len(self), np.bool_)
        for view in self._views:
            starts, stops = view.columns.lo.searchsorted(lo), view.columns.lo.searchsorted(lo, "right")
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
                packs = self._map(view)[view.columns.pack[start:stop]]
                found[packs[packs >= 0]] = True
        return found

    def records(self, rows: Ints | Rows) -> Iterator[Records]:
        """Yield the records of the packs at `rows` (ascending), those of a number of packs at a time."""
        for first, stop in in_batches(self.counts[rows], RECORDS_AT_ONCE):
            yield self._records(rows[first:stop])

    def _records(self, rows: Ints | Rows) -> Records:
        wanted = np.full(len(self) + 1, -1, np.int64)
        wanted[rows] = np.arange(len(rows))
        packs: list[Ints] = [np.empty(0, np.int64)]
        offsets: list[Column32] = [np.empty(0, U32)]
        lengths: list[Column32] = [np.empty(0, U32)]
        lo: list[Column64] = [np.empty(0, np.uint64)]
        for view in self._views:
            row_map = wanted[self._map(view)]
            for at in range(0, len(view), _SLICE):
                part = view.columns.part(at, at + _SLICE)
                of = row_map[np.minimum(part.pack, len(view.rows))]
                (here,) = (of >= 0).nonzero()
                packs.append(of[here])
                offsets.append(part.offset[here])
                lengths.append(part.length[here] & U32.type(LENGTH_MASK))
                lo.append(part.lo[here])
        of, at_offset = np.concatenate(packs), np.concatenate(offsets)
        order, begin = _as_they_lie(of, at_offset)
        order = order[begin]
        return Records(
            packs=np.asarray(rows, np.int64),
            counts=np.bincount(of[order], minlength=len(rows)).astype(np.int64),
            offsets=at_offset[order],
            lengths=np.concatenate(lengths)[order],
            lo=np.concatenate(lo)[order],
        )

    def _map(self, view: View) -> Ints:
        """Return the row here of each row of a view's table, and, one more, that of what is in no table; -1: none."""
        if not len(self):
            return np.full(len(view.rows) + 1, -1, np.int64)
        keys = view.keys
        at = self.keys.searchsorted(keys).clip(max=len(self) - 1)
        return np.append(np.where((self.keys[at] == keys) & view.listed(), at, -1), -1)

    def _name(self, view: View) -> None:
        to = self._map(view)[:-1]
        (table,) = (to >= 0).nonzero()
        rows = view.rows[table]
        to = to[table]
        self.several[to] |= self._known[to]
        # Of two packs of one key in one table, too, only one is named.
        self.rows[to[~self._known[to]]] = rows[~self._known[to]]
        self._known[to] = True
        words = PACK_ROW_BYTES // 8
        same = self.rows[to].view(np.uint64).reshape(-1, words) == rows.view(np.uint64).reshape(-1, words)
        self.doubtful[to[~same.all(axis=1)]] = True

    def _count(self, view: View) -> None:
        row_map = self._map(view)
        row_map[row_map < 0] = len(self)
        count = len(self) + 1
        for at in range(0, len(view), _SLICE):
            part = view.columns.part(at, at + _SLICE)
            of = row_map[np.minimum(part.pack, len(view.rows))]
            lengths = part.length & U32.type(LENGTH_MASK)
            self.counts += np.bincount(of, minlength=count)[:-1]
            self.bytes_ += np.bincount(of, lengths.astype(np.float64), count)[:-1].astype(np.int64)
            with_deltas = of[part.length & U32.type(DELTA_FLAG) != 0]
            self.deltas[with_deltas[with_deltas < len(self)]] = True


def _as_they_lie(packs: Ints, offsets: Column32) -> tuple[Rows, Rows]:
    """Return the order of entries by pack and offset, and where in it each record begins: listed twice, it is one."""
    where = packs.astype(np.uint64) << np.uint64(32) | offsets
    order = where.argsort(kind="stable")
    where = where[order]
    (begin,) = np.concatenate([[True], where[1:] != where[:-1]])[: len(where)].nonzero()
    return order, begin
