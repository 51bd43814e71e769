"""What was seen of a cache's packs: first as rows of the views of its index, then as one bit a record of each pack.

A record's number in its pack is the rank of its offset among those of all records the pack's writer lists, so every
system numbers alike without reading the pack. Bits of a view are marked at 0.1 µs each and cost one bit an entry; what
becomes of them survives that the views change.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
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
_ONE: Final = np.uint64(1)
_BYTES_AT_ONCE: Final = 1 << 20


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
        starts, lengths = self.starts()[rows], (self.counts[rows].astype(np.int64) + 7) // 8
        bits: Bits = np.empty(int(lengths.sum()), np.uint8)
        done = 0
        for first, stop in in_batches(lengths, _BYTES_AT_ONCE):
            part = self.bits[_spread(starts[first:stop], lengths[first:stop])]
            bits[done : done + len(part)] = part
            done += len(part)
        return PackBits(self.keys[rows], self.counts[rows], bits)

    @classmethod
    def together(cls, parts: Sequence[PackBits]) -> PackBits:
        """Return what is set in any; of a pack that is counted differently, what is set where it is as in the last."""
        keys = distinct(np.empty(0, np.uint64), *(part.keys for part in parts))
        counts = np.zeros(len(keys), np.uint32)
        for part in parts:
            counts[keys.searchsorted(part.keys)] = part.counts
        starts = cls(keys, counts, np.empty(0, np.uint8)).starts()
        bits: Bits = np.zeros(int(starts[-1]), np.uint8)
        for part in parts:
            at = keys.searchsorted(part.keys)
            (same,) = (counts[at] == part.counts).nonzero()
            mine = part.take(same) if len(same) < len(part) else part
            into, whence = starts[at[same]], mine.starts()
            lengths = np.diff(whence)
            # A position takes eight times what it stands for.
            for first, stop in in_batches(lengths, _BYTES_AT_ONCE):
                bits[_spread(into[first:stop], lengths[first:stop])] |= mine.bits[whence[first] : whence[stop]]
        return cls(keys, counts, bits)

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
        """Return what is marked, for all packs of which anything is, and forget it: of a large cache one is enough."""
        parts: list[PackBits] = []
        while self._marked:
            view = next(iter(self._marked))
            marked = self._marked.pop(view)
            parts += _packs_of(view, marked, self._relax)
            del marked
        return PackBits.together(parts)


def _packs_of(view: View, marked: Bits, relax: Callable[[], None]) -> Iterator[PackBits]:
    """Yield the packs of a view that have a marked entry, a few million entries of them at a time."""
    counts = np.zeros(len(view.rows), np.int64)
    hit: Mask = np.zeros(len(view.rows), np.bool_)
    for _, packs, seen in _slices(view, marked, relax):
        counts += np.bincount(packs, minlength=len(counts))
        hit[packs[seen]] = True
    counts[~hit] = 0
    for first, stop in in_batches(counts, ENTRIES_AT_ONCE):
        if entries := int(counts[first:stop].sum()):
            yield _packs_in(view, _slices(view, marked, relax), first, stop, hit, entries)


def in_batches(counts: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of packs with `most` entries together; of one at least, whatever somebody says it has."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(ends.searchsorted(done + most, "right")))
        yield first, stop
        first = stop


def _slices(view: View, marked: Bits, relax: Callable[[], None]) -> Iterator[tuple[int, Column32, Mask]]:
    """Yield (first entry, its and the following entries' rows in the pack table, which of them are marked)."""
    for start in range(0, len(view), _SLICE):
        packs = view.columns.pack[start : start + _SLICE]
        seen = np.unpackbits(marked[start >> 3 :][: _SLICE >> 3], bitorder="little")[: len(packs)].view(np.bool_)
        good = packs < len(view.rows)
        yield (start, packs, seen) if good.all() else (start, np.where(good, packs, 0), seen & good)
        relax()


def _packs_in(
    view: View, slices: Iterator[tuple[int, Column32, Mask]], first: int, stop: int, hit: Mask, entries: int
) -> PackBits:
    """Return the marked packs among the rows [first, stop) of the pack table, which have so many entries."""
    # One word an entry, which sorts as they lie: row of its pack, offset, whether it is marked.
    words = np.empty(entries, np.uint64)
    filled = 0
    for start, packs, seen in slices:
        (here,) = ((packs >= first) & (packs < stop)).nonzero()
        here = here[hit[packs[here]]]
        part = words[filled : filled + len(here)]
        np.subtract(packs[here], first, out=part, casting="unsafe")
        part <<= _HALF
        part |= view.columns.offset[start : start + _SLICE][here]
        part <<= _ONE
        part |= seen[here]
        filled += len(here)
    words.sort()
    # Listed twice, it is one record; the last one of it is marked if any is.
    last: Mask = np.ones(len(words), np.bool_)
    np.greater(words[1:] ^ words[:-1], _ONE, out=last[:-1])
    words = words[last]
    seen = words & _ONE != 0
    words >>= _HALF + _ONE
    table = words.astype(np.intp)
    (head,) = np.concatenate([[True], table[1:] != table[:-1]]).nonzero()
    counts = np.diff(np.append(head, len(table)))
    lengths = (counts + 7) // 8
    starts = np.cumsum(lengths) - lengths
    flat = np.zeros(int(lengths.sum()) * 8, np.bool_)
    into = np.repeat(starts * 8 - head, counts)
    into += np.arange(len(table))
    flat[into] = seen
    bits = PackBits(view.keys[table[head] + first], counts.astype(np.uint32), np.packbits(flat, bitorder="little"))
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
