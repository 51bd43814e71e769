"""Merging sorted columns, streaming over ranges of ids: memory is bounded whatever the inputs hold.

The inputs are taken a step at a time up to a split key none of them has more than a step of entries below. Entries
equal to the split key, of which a crafted input may hold millions, need no sorting and are copied in pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from engine.block import Mask
from engine.packtable import PACK_ROW, PackRows
from engine.view import U32, Column32, Columns, concatenate

MERGE_ENTRIES_MAX: Final = 1 << 17  # entries sorted at a time, over all inputs
DROPPED: Final = 0xFFFFFFFF  # in a row map: entries of this pack are left out


def merge_columns(
    parts: Sequence[Columns], maps: Sequence[Column32], entries_max: int = MERGE_ENTRIES_MAX
) -> Iterator[Columns]:
    """Yield the entries of all parts in ascending order, in chunks of at most `entries_max` entries.

    `maps` gives each part's pack rows their rows in a common table (`join_tables`).
    """
    step = max(1, entries_max // max(1, len(parts)))
    rest = [(part, row_map) for part, row_map in zip(parts, maps, strict=True) if part.entries]
    while rest:
        ahead = [(part.lo[step], part.hi[step]) for part, _ in rest if part.entries > step]
        if not ahead:
            yield concatenate([map_rows(part, row_map) for part, row_map in rest])
            return
        lo, hi = min(ahead)
        cuts = [part.part(0, step).bound(lo, hi, "left") for part, _ in rest]
        if any(cuts):
            yield concatenate(
                [map_rows(part.part(0, cut), row_map) for (part, row_map), cut in zip(rest, cuts, strict=True)]
            )
        after = []
        for (part, row_map), cut in zip(rest, cuts, strict=True):
            stop = part.bound(lo, hi, "right")
            for start in range(cut, stop, step):
                yield map_rows(part.part(start, min(stop, start + step)), row_map)
            after.append((part.part(stop, part.entries), row_map))
        rest = [(part, row_map) for part, row_map in after if part.entries]


def map_rows(columns: Columns, row_map: Column32) -> Columns:
    """Return the entries whose pack `row_map` keeps, with the rows it gives them; copied only as far as needed.

    Rows outside the map (a damaged mirror) are left out.
    """
    bounded = np.append(row_map, U32.type(DROPPED))
    pack = bounded[np.minimum(columns.pack, len(row_map))]
    kept = pack != DROPPED
    columns = columns._replace(pack=pack)
    return columns if kept.all() else columns.take(np.flatnonzero(kept))


def count_kept(columns: Columns, row_map: Column32) -> int:
    """Return how many entries `map_rows` would keep."""
    bounded = np.append(row_map, U32.type(DROPPED)) != DROPPED
    return sum(
        int(bounded[np.minimum(columns.pack[start : start + MERGE_ENTRIES_MAX], len(row_map))].sum())
        for start in range(0, columns.entries, MERGE_ENTRIES_MAX)
    )


def join_tables(tables: Sequence[PackRows], dropped: Sequence[Mask]) -> tuple[PackRows, list[Column32]]:
    """Return the union of pack tables, and for each of them the new row of each of its rows (DROPPED if masked).

    Rows count as the same only if they are so in every field: a table from a neighbour must not change what is
    known of someone else's pack.
    """
    kept = [table[~mask] for table, mask in zip(tables, dropped, strict=True)]
    joined = np.concatenate(kept) if kept else np.zeros(0, PACK_ROW)
    # Fixed width: the zero bytes NumPy strips from the end of strings change neither order nor equality.
    raw = np.ascontiguousarray(joined).view(f"S{PACK_ROW.itemsize}").reshape(-1)
    _, first, inverse = np.unique(raw, return_index=True, return_inverse=True)
    maps, at = [], 0
    for mask in dropped:
        row_map = np.full(len(mask), DROPPED, U32)
        count = int((~mask).sum())
        row_map[~mask] = inverse[at : at + count]
        at += count
        maps.append(row_map)
    return joined[first], maps
