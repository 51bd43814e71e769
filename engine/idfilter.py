"""A filter in front of many sorted columns: tells in which of them an id may be, mostly none, touching none of them.

Ids are hashes, so their own bits serve as the filter's hash functions: the first half of an id chooses a word of 64
bits, the second half four bits of it, other ones for each group of columns (a blocked Bloom filter). So an id costs
one place in memory, for all groups at once. With 32 bits an id 0.1 % of the new ids pass for a group, with 16 bits
0.6 %. Whoever crafts ids can make more pass: that costs time and nothing else.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from engine.block import Mask
from engine.columns import Column64

WORDS_LOG2_MIN: Final = 10
WORDS_LOG2_MAX: Final = 21  # 16 MiB
IDS_MAX: Final = 3 << (WORDS_LOG2_MAX + 1)  # more let too many pass
GROUPS_MAX: Final = 16
_IDS_A_WORD: Final = 2
_CHUNK: Final = 1 << 16

_ONE: Final = np.uint64(1)
_SIX: Final = np.uint64(63)
# Two bits of a word for each value of twelve bits of an id, a row for each group.
_VALUES: Final = np.arange(4096, dtype=np.uint64)
_PAIRS: Final = np.stack(
    [
        (_ONE << (((_VALUES >> np.uint64(6)) + shift) & _SIX)) | (_ONE << ((_VALUES + shift) & _SIX))
        for shift in np.arange(0, 4 * GROUPS_MAX, 4, dtype=np.uint64)
    ]
)
_FIRST: Final = np.uint64(52)
_SECOND: Final = np.uint64(40)
_PAIR_MASK: Final = np.uint64(4095)


class IdFilter:
    """Which ids may be in which of `groups` groups.

    Asking may overlap with one `add`: what it adds counts once it has returned.
    """

    def __init__(self, ids_expected: int, groups: int = 1) -> None:
        """Make room for `ids_expected` ids at 32 bits each, within 16 MiB; at most 16 groups."""
        assert 0 < groups <= GROUPS_MAX
        log2 = (max(1, ids_expected // _IDS_A_WORD) - 1).bit_length()
        log2 = min(WORDS_LOG2_MAX, max(WORDS_LOG2_MIN, log2))
        self._words = np.zeros(1 << log2, dtype=np.uint64)
        self._shift = np.uint64(64 - log2)
        self._pairs = _PAIRS[:groups]

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self._words.nbytes

    def add(self, lo: Column64, hi: Column64, group: int = 0) -> None:
        """Add ids to a group by their halves, `lo` ascending."""
        pairs = self._pairs[group]
        for start in range(0, len(lo), _CHUNK):
            at = lo[start : start + _CHUNK] >> self._shift
            # Ascending, so those of one word stand side by side.
            first = np.flatnonzero(np.concatenate([[True], at[1:] != at[:-1]]))
            one, other = _pairs_of(hi[start : start + _CHUNK])
            self._words[at[first]] |= np.bitwise_or.reduceat(pairs.take(one) | pairs.take(other), first)

    def may_hold(self, lo: Column64, hi: Column64) -> Mask:
        """Tell, per group and id, whether it may have been added: bool[groups, n], never False for one that was."""
        one, other = _pairs_of(hi)
        bits = self._pairs.take(one, axis=1)
        bits |= self._pairs.take(other, axis=1)
        may: Mask = (self._words.take((lo >> self._shift).view(np.int64)) & bits) == bits
        return may


def _pairs_of(hi: Column64) -> tuple[Column64, Column64]:
    return (hi >> _FIRST).view(np.int64), (hi >> _SECOND & _PAIR_MASK).view(np.int64)
