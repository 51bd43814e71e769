"""One bit a record of each pack of a cache: which of its records were seen.

A record's number in its pack is the rank of its offset among those of all records the pack's writer lists, so every
system numbers alike without reading the pack.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from engine.columns import Column32, Column64, Rows
from engine.distinct import distinct

Bits = npt.NDArray[np.uint8]

_COUNT: Final = struct.Struct("<I")
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


def in_batches(counts: npt.NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Yield (first, stop) of packs with `most` entries together; of one at least, whatever somebody says it has."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(counts):
        done = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(ends.searchsorted(done + most, "right")))
        yield first, stop
        first = stop


def _spread(starts: Rows, lengths: Rows) -> Rows:
    """Return all positions of ranges that start at `starts` and are `lengths` long, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    spread: Rows = np.arange(total, dtype=np.intp) + np.repeat(starts - (ends - lengths), lengths)
    return spread
