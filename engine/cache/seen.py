"""What was seen of a cache's packs: first as rows of the views of its index, then as one bit a record of each pack.

Bits of a view are marked at 0.1 µs each and cost one bit an entry; what becomes of them survives that the views change.
All of it lies in files (engine/scratch.py): held are a million rows that were not marked yet, and 16 bytes a pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import LENGTH_MASK, Mask
from engine.cache.packbits import Bits, PackBits, in_batches
from engine.columns import Column32, Column64, Rows
from engine.distinct import distinct
from engine.scratch import MemoryScratch, ScratchFile
from engine.view import View

ENTRIES_AT_ONCE: Final = 1 << 21
PENDING_MAX: Final = 1 << 20
PIECE_BYTES: Final = 1 << 20
_SLICE: Final = 1 << 20
_MARKED_AT_ONCE: Final = 1 << 21  # entries: 256 KiB of bits
_HALF: Final = np.uint64(32)
_ONE: Final = np.uint64(1)
_PACK_BYTES: Final = 16  # what a pack takes in a piece, beside its bits
_KEYS: Final = 1 << 64


class _Run(msgspec.Struct, frozen=True, eq=False):
    """Packs, ascending, whose bits lie one after the other from `at` on; `starts`: where each one's do, one more."""

    keys: Column64
    counts: Column32
    starts: Column32
    at: int


class SeenPacks:
    """Which records of packs were seen, as bits in a file; for one thread at a time."""

    def __init__(self, scratch: Callable[[], ScratchFile] = MemoryScratch) -> None:
        self._file = scratch()
        self._runs: list[_Run] = []
        self._end = 0

    def __bool__(self) -> bool:
        """Whether there is any pack."""
        return bool(self._runs)

    def add(self, part: PackBits) -> None:
        """Say of these packs, too, what was seen. Raises: SessionAborted."""
        if len(part):
            self._file.write_at(self._end, part.bits.data)
            self._runs.append(_Run(part.keys, part.counts, part.starts().astype(np.uint32), self._end))
            self._end += len(part.bits)

    def pieces(self) -> Iterator[PackBits]:
        """Yield what is set in any part, ascending by pack, some MiB at a time; again from the start if asked again.

        Of a pack that is counted differently, what is set where it is as in the last part. Raises: StateCorrupt.
        """
        size = self._end + _PACK_BYTES * sum(len(run.keys) for run in self._runs)
        # Keys are hashes: pieces of their range are as good as even.
        count = -(-size // PIECE_BYTES)
        bounds = [_KEYS * number // count for number in range(count)]
        for first, stop in zip(bounds, [*bounds[1:], _KEYS], strict=False):
            found = PackBits.together([self._part(run, first, stop) for run in self._runs])
            if len(found):
                yield found

    def keys(self) -> Column64:
        """Return the keys of all packs, ascending."""
        return distinct(np.empty(0, np.uint64), *(run.keys for run in self._runs))

    def records(self) -> int:
        """Return how many records are set."""
        return sum(piece.records for piece in self.pieces())

    def close(self) -> None:
        """Let go of it; safe to call twice."""
        self._runs.clear()
        self._file.close()

    def _part(self, run: _Run, first: int, stop: int) -> PackBits:
        low = int(run.keys.searchsorted(np.uint64(first)))
        high = int(run.keys.searchsorted(np.uint64(stop))) if stop < _KEYS else len(run.keys)
        if low == high:
            return PackBits.none()
        start, end = int(run.starts[low]), int(run.starts[high])
        bits: Bits = np.empty(end - start, np.uint8)
        self._file.read_into(run.at + start, bits.data)
        return PackBits(run.keys[low:high], run.counts[low:high], bits)


class SeenRows:
    """Marks entries of views as seen; for one thread at a time. `gather` once."""

    def __init__(
        self, scratch: Callable[[], ScratchFile] = MemoryScratch, relax: Callable[[], None] = lambda: None
    ) -> None:
        """Call `relax` now and then: it lets go of what of the views was mapped into memory."""
        self._scratch, self._relax = scratch, relax
        self._file: ScratchFile | None = None
        self._starts: dict[View, int] = {}  # of its bits in the file
        self._end = 0
        self._pending: dict[View, list[npt.NDArray[np.uint32 | np.int64]]] = {}
        self._count = 0

    def mark(self, view: View, rows: Rows) -> None:
        """Mark the entries at `rows`, at their fastest in ascending order. Raises: SessionAborted, StateCorrupt."""
        if not rows.size:
            return
        if view not in self._starts:
            self._starts[view] = self._end
            self._end += -(-len(view) // 8)
        self._pending.setdefault(view, []).append(rows.astype(np.uint32 if len(view) <= 1 << 32 else np.int64))
        self._count += len(rows)
        if self._count >= PENDING_MAX:
            self._settle()

    def sizes(self) -> tuple[int, int]:
        """Return how many entries are marked, and the bytes of their records. Raises: SessionAborted, StateCorrupt."""
        self._settle()
        count = size = 0
        for view in self._starts:
            for start, _, seen in self._slices(view):
                lengths = view.columns.length[start : start + _SLICE][seen] & np.uint32(LENGTH_MASK)
                count, size = count + len(lengths), size + int(lengths.sum(dtype=np.int64))
        return count, size

    def gather(self, into: SeenPacks) -> None:
        """Add what is marked, for all packs of which anything is, and let go of it.

        Raises: SessionAborted, StateCorrupt.
        """
        self._settle()
        for view in self._starts:
            for part in self._packs_of(view):
                into.add(part)
        self._starts.clear()
        if self._file is not None:
            self._file.close()

    def _settle(self) -> None:
        """Set the bits of what is pending."""
        if self._file is None and self._pending:
            self._file = self._scratch()
        for view, parts in self._pending.items():
            rows = np.concatenate(parts)
            rows.sort(kind="stable")
            of = rows // _MARKED_AT_ONCE
            ends = np.append(np.flatnonzero(of[1:] != of[:-1]) + 1, len(rows)).tolist()
            for first, stop in zip([0, *ends[:-1]], ends, strict=True):
                start = int(of[first]) * _MARKED_AT_ONCE
                bits = self._bits(view, start, min(_MARKED_AT_ONCE, len(view) - start))
                part = rows[first:stop] - start
                at = part >> 3
                (head,) = np.concatenate([[True], at[1:] != at[:-1]]).nonzero()
                each = np.left_shift(np.uint8(1), (part & 7).astype(np.uint8))
                bits[at[head]] |= np.bitwise_or.reduceat(each, head)
                assert self._file is not None
                self._file.write_at(self._starts[view] + start // 8, bits.data)
        self._pending.clear()
        self._count = 0

    def _bits(self, view: View, start: int, entries: int) -> Bits:
        """Return the bits of so many entries from `start` on, a multiple of eight."""
        assert self._file is not None
        bits: Bits = np.empty(-(-entries // 8), np.uint8)
        self._file.read_into(self._starts[view] + start // 8, bits.data)
        return bits

    def _packs_of(self, view: View) -> Iterator[PackBits]:
        """Yield the packs of a view that have a marked entry, a few million entries of them at a time."""
        counts = np.zeros(len(view.rows), np.int64)
        hit: Mask = np.zeros(len(view.rows), np.bool_)
        for _, packs, seen in self._slices(view):
            counts += np.bincount(packs, minlength=len(counts))
            hit[packs[seen]] = True
        counts[~hit] = 0
        for first, stop in in_batches(counts, ENTRIES_AT_ONCE):
            if entries := int(counts[first:stop].sum()):
                yield _packs_in(view, self._slices(view), first, stop, hit, entries)

    def _slices(self, view: View) -> Iterator[tuple[int, Column32, Mask]]:
        """Yield (first entry, its and the following entries' rows in the pack table, which of them are marked)."""
        for start in range(0, len(view), _SLICE):
            packs = view.columns.pack[start : start + _SLICE]
            bits = self._bits(view, start, len(packs))
            seen = np.unpackbits(bits, count=len(packs), bitorder="little").view(np.bool_)
            good = packs < len(view.rows)
            yield (start, packs, seen) if good.all() else (start, np.where(good, packs, 0), seen & good)
            self._relax()


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
