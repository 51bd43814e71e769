"""Digests of the sixteen 4 KiB parts of blocks: what tells a delta which parts changed (engine/parts.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_digest

from engine.block import BLOCK_BYTES, PART_BYTES, PART_SLICES, PARTS

PartDigests: TypeAlias = npt.NDArray[np.uint64]  # shape (k, 16)


def part_digests(contents: Sequence[memoryview], seed: int) -> PartDigests:
    """Return xxh3_64 under `seed` of each part of `contents` (1..65536 bytes each) as `uint64[k, 16]`.

    A short part is hashed as long as it is; parts beyond the end of a short block have digest 0.
    """
    # One flat loop over small C calls, 3.5 µs a block: whatever wraps a part in an object of its own costs more.
    digest = xxh3_64_digest
    digests = b"".join([digest(content[part], seed) for content in contents for part in PART_SLICES])
    # The library's byte form is big-endian.
    found: PartDigests = np.frombuffer(digests, dtype=">u8").astype(np.uint64).reshape(-1, PARTS)
    for position, content in enumerate(contents):
        if len(content) < BLOCK_BYTES:
            found[position, -(-len(content) // PART_BYTES) :] = 0
    return found
