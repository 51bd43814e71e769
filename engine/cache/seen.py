"""What was seen of a cache's packs: first as rows of the views of its index, then as one bit a record of each pack.

A record's number in its pack is the rank of its offset among those of all records the pack's writer lists, so every
system numbers alike without reading the pack. Bits of a view are marked at 0.1 µs each and cost one bit an entry; what
becomes of them survives that the views change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import LENGTH_MASK, Mask
from engine.columns import Column32, Column64, Rows
from engine.distinct import distinct
from engine.view import View

Bits = npt.NDArray[np.uint8]

ENTRIES_AT_ONCE: Final = 1 << 21
_SLICE: Final = 1 << 20
_COUNT: Final = struct.Struct("<I")
_HALF: Final = np.uint64(32)


class PackBits(msgspec.Struct, frozen=True, eq=False):
    """For each of n packs, one bit a record. `keys` ascending; `counts` of records; `bits`: each pack from a byte on.

    Bit i of a pack is bit i % 8 of its byte i // 8; those behind its last record are 0.
    """

    keys: Column64
    counts: Column32
    bits: Bits

    @classmethod
    def none(cls) -> PackBits:
        """Return the bits of no pack."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.uint8))

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def records(self) -> int:
        """How many records are set."""
        return int(np.bitwise_count(self.bits).sum())

    def starts(self) -> Rows:
        """Return where the bytes of each pack begin, and, one more, where the last one ends."""
        lengths = (self.counts.astype(np.intp) + 7) // 8
        return np.concatenate([np.zeros(1, np.intp), np.cumsum(lengths, dtype=np.intp)])

    def take(self, rows: Rows) -> PackBits:
        """Return the packs at `rows`, ascending."""
        starts = self.starts()
        return PackBits(
            self.keys[rows], self.counts[rows], self.bits[_spread(starts[rows], starts[rows + 1] - starts[rows])]
        )

    def union(self, newer: PackBits) -> PackBits:
        """Return what is set in either; of a pack that has another count of records in `newer`, what is set there."""
        keys = distinct(self.keys, newer.keys)
        counts = np.zeros(len(keys), np.uint32)
        counts[keys.searchsorted(self.keys)] = self.counts
        counts[keys.searchsorted(newer.keys)] = newer.counts
        out = PackBits(keys, counts, np.empty(0, np.uint8))
        starts = out.starts()
        bits = np.zeros(int(starts[-1]), np.uint8)
        for part in (self, newer):
            at = keys.searchsorted(part.keys)
            (same,) = (counts[at] == part.counts).nonzero()
            mine = part.take(same) if len(same) < len(part) else part
            lengths = np.diff(mine.starts())
            bits[_spread(starts[at[same]], lengths)] |= mine.bits
        return PackBits(keys, counts, bits)

    def encode(self) -> bytes:
        """Return it as bytes: count | keys | counts | bits, little-endian."""
        return b"".join([_COUNT.pack(len(self)), self.keys.tobytes(), self.counts.tobytes(), self.bits.tobytes()])

    @classmethod
    def decode(cls, data: bytes) -> PackBits:
        """Return what `encode` made. Raises: ValueError."""
        try:
            (count,) = _COUNT.unpack_from(data)
            keys = np.frombuffer(data, "<u8", count, _COUNT.size)
            counts = np.frombuffer(data, "<u4", count, _COUNT.size + 8 * count)
        except struct.error as error:
            raise ValueError("it is cut") from error
        found = cls(keys, counts, np.frombuffer(data, np.uint8, offset=_COUNT.size + 12 * count))
        if len(found.bits) != found.starts()[-1] or bool((keys[1:] <= keys[:-1]).any()):
            raise ValueError("its counts do not fit its length, or it is not in order")
        return found


class SeenRows:
    """Marks entries of views as seen; for one thread at a time."""

    def __init__(self, relax: Callable[[], None] = lambda: None) -> None:
        """Call `relax` now and then: it lets go of what of the views was mapped into memory."""
        self._marked: dict[View, Bits] = {}
        self._relax = relax

    def mark(self, view: View, rows: Rows) -> None:
        """Mark the entries at `rows`, at their fastest in ascending order."""
        if not rows.size:
            return
        if bool((rows[1:] < rows[:-1]).any()):
            rows = np.sort(rows)
        if view not in self._marked:
            self._marked[view] = np.zeros(-(-len(view) // 8), np.uint8)
        at = rows >> 3
        first = np.flatnonzero(np.concatenate([[True], at[1:] != at[:-1]]))
        bits = np.left_shift(np.uint8(1), (rows & 7).astype(np.uint8))
        self._marked[view][at[first]] |= np.bitwise_or.reduceat(bits, first)

    def sizes(self) -> tuple[int, int]:
        """Return how many entries are marked, and the bytes of their records."""
        count = size = 0
        for view, marked in self._marked.items():
            for start, _, seen in _slices(view, marked, self._relax):
                lengths = view.columns.length[start : start + _SLICE][seen] & np.uint32(LENGTH_MASK)
                count, size = count + len(lengths), size + int(lengths.sum(dtype=np.int64))
        return count, size

    def packs(self) -> PackBits:
        """Return what is marked, for all packs of which anything is."""
        found = PackBits.none()
        for view, marked in self._marked.items():
            for part in _packs_of(view, marked, self._relax):
                found = found.union(part)
        return found


def _packs_of(view: View, marked: Bits, relax: Callable[[], None]) -> Iterator[PackBits]:
    """Yield the packs of a view that have a marked entry, a few million entries of them at a time."""
    counts = np.zeros(len(view.rows), np.int64)
    hit: Mask = np.zeros(len(view.rows), np.bool_)
    for _, packs, seen in _slices(view, marked, relax):
        counts += np.bincount(packs, minlength=len(counts))
        hit[packs[seen]] = True
    counts[~hit] = 0
    for first, stop in in_batches(counts, ENTRIES_AT_ONCE):
        if counts[first:stop].any():
            yield _packs_in(view, _slices(view, marked, relax), first, stop, hit)


def in_batches(counts: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of packs with `most` entries together; of one at least, whatever somebody says it has."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(ends.searchsorted(done + most, "right")))
        yield first, stop
        first = stop


def as_they_lie(packs: Rows | npt.NDArray[np.int64], offsets: Column32) -> tuple[Rows, Rows]:
    """Return the order of entries by pack and offset, and where in it each record begins: listed twice, it is one."""
    where = packs.astype(np.uint64) << _HALF | offsets
    order = where.argsort(kind="stable")
    where = where[order]
    (begin,) = np.concatenate([[True], where[1:] != where[:-1]])[: len(where)].nonzero()
    return order, begin


def _slices(view: View, marked: Bits, relax: Callable[[], None]) -> Iterator[tuple[int, Column32, Mask]]:
    """Yield (first entry, its and the following entries' rows in the pack table, which of them are marked)."""
    for start in range(0, len(view), _SLICE):
        packs = view.columns.pack[start : start + _SLICE]
        seen = np.unpackbits(marked[start >> 3 :][: _SLICE >> 3], bitorder="little")[: len(packs)].view(np.bool_)
        good = packs < len(view.rows)
        yield (start, packs, seen) if good.all() else (start, np.where(good, packs, 0), seen & good)
        relax()


def _packs_in(view: View, slices: Iterator[tuple[int, Column32, Mask]], first: int, stop: int, hit: Mask) -> PackBits:
    """Return the marked packs among the rows [first, stop) of the pack table."""
    tables: list[Rows] = []
    offsets: list[Column32] = []
    seen_there: list[Mask] = []
    for start, packs, seen in slices:
        (here,) = ((packs >= first) & (packs < stop)).nonzero()
        here = here[hit[packs[here]]]
        tables.append(packs[here].astype(np.intp))
        offsets.append(view.columns.offset[start : start + _SLICE][here])
        seen_there.append(seen[here])
    table = np.concatenate(tables)
    order, begin = as_they_lie(table, np.concatenate(offsets))
    seen = np.logical_or.reduceat(np.concatenate(seen_there)[order], begin)
    table = table[order[begin]]
    (head,) = np.concatenate([[True], table[1:] != table[:-1]]).nonzero()
    counts = np.diff(np.append(head, len(table)))
    rank = np.arange(len(table)) - np.repeat(head, counts)
    lengths = (counts + 7) // 8
    starts = np.cumsum(lengths) - lengths
    flat = np.zeros(int(lengths.sum()) * 8, np.bool_)
    flat[np.repeat(starts * 8, counts) + rank] = seen
    bits = PackBits(view.keys[table[head]], counts.astype(np.uint32), np.packbits(flat, bitorder="little"))
    return _ordered(bits)


def _ordered(packs: PackBits) -> PackBits:
    order = packs.keys.argsort(kind="stable")
    ordered = packs.take(order)
    (first,) = np.concatenate([[True], ordered.keys[1:] != ordered.keys[:-1]]).nonzero()
    return ordered if len(first) == len(ordered) else ordered.take(first)


def _spread(starts: Rows, lengths: Rows) -> Rows:
    """Return all positions of ranges that start at `starts` and are `lengths` long, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    spread: Rows = np.arange(total, dtype=np.intp) + np.repeat(starts - (ends - lengths), lengths)
    return spread
