"""Blocks that a hop acts on: those of its works that changed, are sent again, or that the cache lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from engine.bits import any_along
from engine.block import Mask, Refs
from engine.state import Pages

Positions: TypeAlias = npt.NDArray[np.intp]


class Blocks(msgspec.Struct):
    """k blocks on `pages`, a row each: block i is entry `bit_of[i]` of `pages[page_of[i]]`.

    `refs`, `old_refs`: as it is now and in the map (uint8[k, 48]); `changed`: whether they differ; `forced`: the vault
    is asked about it again although it does not; `caches`: the cache is to be asked about it. `gone`: bool[pages, 64],
    entries of the map that are a hole now, beside the k blocks.
    """

    pages: Pages
    page_of: Positions
    bit_of: Positions
    refs: Refs
    old_refs: Refs
    contents: Sequence[memoryview]
    changed: Mask
    forced: Mask
    caches: Mask
    gone: Mask

    @property
    def staged(self) -> Mask:
        """Which of them the session stages in the map."""
        return self.changed | self.forced

    @property
    def to_store(self) -> Mask:
        """Which of those are not zero: the vault has to have them."""
        return self.staged & any_along(self.refs)


def joined(parts: Sequence[Blocks]) -> Blocks:
    """Return several as one; no page may be in two of them."""
    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0, *(len(part.pages) for part in parts[:-1])])
    return Blocks(
        np.concatenate([part.pages for part in parts]),
        np.concatenate([part.page_of + first for part, first in zip(parts, firsts.tolist(), strict=True)]),
        np.concatenate([part.bit_of for part in parts]),
        np.concatenate([part.refs for part in parts]),
        np.concatenate([part.old_refs for part in parts]),
        [content for part in parts for content in part.contents],
        np.concatenate([part.changed for part in parts]),
        np.concatenate([part.forced for part in parts]),
        np.concatenate([part.caches for part in parts]),
        np.concatenate([part.gone for part in parts]),
    )
