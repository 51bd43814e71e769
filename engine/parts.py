"""Parts: what local state knows of the sixteen 4 KiB parts of a block, and where each lies literally in the vault.

Digests are 64-bit xxh3 under a secret seed. An entry counts only where its `place` is the one in the block map: a place
names one record, so what was left by a crash or another setting is never believed. What is staged has no place yet but
an expectation: any whole record, or exactly the delta this session made; `bind` settles it once places are known.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.block import DELTA_FLAG, ID_BYTES, KEY_BYTES, PARTS, PLACE, SOURCES_MAX, Mask

# `place`: of the record the block's parts were taken from, or the expectation of a staged entry: pack and offset 0,
# `length` 0 for a whole record, else the length of the delta made with DELTA_FLAG. `whole_bytes`: how long a whole
# record of the block is thought to be; 0: unknown.
PART_ENTRY: Final = np.dtype([("digests", "<u8", (PARTS,)), ("place", PLACE), ("whole_bytes", "<u4"), ("spare", "<u4")])
# A record that a delta takes parts from: its public id, its *parts* key (never its *links* key), its place.
SOURCE: Final = np.dtype([("id", "u1", (ID_BYTES,)), ("parts_key", "u1", (KEY_BYTES,)), ("place", PLACE)])
# Of a block whose record is a delta: the delta's own map (0..3: in that source, 255: in the record itself, 254: beyond
# the end) and its sources. All zero for a whole record, which holds every part.
ORIGINS: Final = np.dtype([("map", "u1", (PARTS,)), ("sources", SOURCE, (SOURCES_MAX,))])

PartEntries: TypeAlias = npt.NDArray[np.void]  # dtype PART_ENTRY, shape (pages, 64)
Origins: TypeAlias = npt.NDArray[np.void]  # dtype ORIGINS, shape (pages, 64)


def same_place(left: npt.NDArray[np.void], right: npt.NDArray[np.void]) -> Mask:
    """Tell where two arrays of places (dtype PLACE, same shape) are equal and not empty."""
    same: Mask = (left["pack"] == right["pack"]) & (left["offset"] == right["offset"])
    same &= (left["length"] == right["length"]) & (left["length"] != 0)
    return same


def delta_expectation(record: bytes) -> int:
    """Return the `length` a staged entry expects of its place if this delta is what the block is sent as."""
    return len(record) | DELTA_FLAG


def bind(places: npt.NDArray[np.void], parts: PartEntries) -> Mask:
    """Give staged `parts` their final `places` (same shape), in place; zero those that do not meet their expectation.

    Returns which were bound.
    """
    wanted = parts["place"]["length"]
    delta = (places["length"] & np.uint32(DELTA_FLAG)) != 0
    met: Mask = np.where(delta, wanted == places["length"], wanted == 0) & (places["length"] != 0)
    parts["place"] = places
    parts[~met] = np.zeros((), PART_ENTRY)
    return met
