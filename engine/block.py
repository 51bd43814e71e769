"""Geometry of blocks, and refs: the 48 bytes that name and open a block (DESIGN.md §1, §5; docs/FORMAT.md).

Blocks are handled in batches of 64, never one by one across a thread hop: refs of a batch are one
`uint8[n, 48]` array, ids one `uint64[n, 2]` array (the 16 bytes of each id read as two little-endian
integers, which is also the order in which indexes are sorted), places one array of `PLACE`.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from blake3 import blake3

BLOCK_BYTES: Final = 65536
PART_BYTES: Final = 4096
PARTS: Final = BLOCK_BYTES // PART_BYTES
PART_SLICES: Final = tuple(slice(part * PART_BYTES, (part + 1) * PART_BYTES) for part in range(PARTS))
SOURCES_MAX: Final = 4  # of a delta
BATCH_BLOCKS: Final = 64
BATCH_BYTES: Final = BATCH_BLOCKS * BLOCK_BYTES
ID_BYTES: Final = 16
KEY_BYTES: Final = 32
REF_BYTES: Final = ID_BYTES + KEY_BYTES

# Where a sealed record lies: the first 8 bytes of its pack's BLAKE3 name read as a little-endian integer, the
# record's offset in the pack, and its length with DELTA_FLAG set for a delta. All zero: no place.
PLACE: Final = np.dtype([("pack", "<u8"), ("offset", "<u4"), ("length", "<u4")])
DELTA_FLAG: Final = 1 << 31
LENGTH_MASK: Final = DELTA_FLAG - 1

Bytes: TypeAlias = bytes | bytearray | memoryview
Refs: TypeAlias = npt.NDArray[np.uint8]  # shape (n, 48)
Ids: TypeAlias = npt.NDArray[np.uint64]  # shape (n, 2)
Places: TypeAlias = npt.NDArray[np.void]  # dtype PLACE, shape (n,)
Mask: TypeAlias = npt.NDArray[np.bool_]


def blocks_in(volume_bytes: int) -> int:
    """Return how many blocks a volume of `volume_bytes` has; the last one may be short."""
    return -(-volume_bytes // BLOCK_BYTES)


def block_length(block: int, volume_bytes: int) -> int:
    """Return the length in bytes of block number `block` of a volume of `volume_bytes`."""
    return max(0, min(BLOCK_BYTES, volume_bytes - block * BLOCK_BYTES))


def ref_of(subkey: bytes, content: Bytes) -> bytes:
    """Return the 48-byte ref of `content` under the domain's 32-byte `subkey` (blocks or pages)."""
    return bytes(blake3(content, key=subkey).digest(REF_BYTES))


def ids_of(refs: Refs) -> Ids:
    """Return the ids of `refs` (`uint8[n, 48]`) as `uint64[n, 2]`, a copy."""
    return np.ascontiguousarray(refs[:, :ID_BYTES]).view("<u8").reshape(-1, 2)


def ids_from_bytes(data: bytes) -> Ids:
    """Return concatenated 16-byte ids as `uint64[n, 2]`."""
    return np.frombuffer(data, dtype="<u8").reshape(-1, 2)


def zero_mask(batch: Bytes) -> Mask:
    """Tell, for a buffer of whole blocks, which of them are all zero; one pass over the batch."""
    words = np.frombuffer(batch, dtype=np.uint64).reshape(-1, BLOCK_BYTES // 8)
    # Most non-zero blocks show it in their first words: the full scan runs only over the rest, where they lie.
    zero: Mask = np.logical_not(words[:, :64].any(axis=1))
    for block in np.flatnonzero(zero).tolist():
        zero[block] = not np.bitwise_or.reduce(words[block])
    return zero
