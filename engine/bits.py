"""Masks of a page's 64 entries, as one `uint64` a page, and as rows of booleans."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from engine.block import BATCH_BLOCKS, Mask
from engine.state import Masks


def rows_of(masks: Masks) -> Mask:
    """Return `bool[n, 64]` for `uint64[n]`: column i is bit i."""
    raw = np.ascontiguousarray(masks, dtype="<u8").view(np.uint8).reshape(-1, 8)
    return np.unpackbits(raw, axis=1, bitorder="little").view(np.bool_)


def masks_of(rows: Mask) -> Masks:
    """Return `uint64[n]` for `bool[n, 64]`."""
    packed = np.packbits(rows.reshape(-1, BATCH_BLOCKS), axis=1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u8").reshape(-1)


def any_along(values: npt.NDArray[Any]) -> Mask:
    """Return where any value along the last axis is not zero: of refs, which blocks are not zero."""
    return np.asarray(values.any(axis=-1), dtype=np.bool_)
