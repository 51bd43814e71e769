"""Merging sorted entries, streaming over ranges of ids: memory is bounded whatever the columns hold.

The inputs are taken a step at a time up to a split key none of them has more than a step of entries below. Entries
equal to the split key, of which a crafted input may hold millions, need no sorting and are copied in pieces. Source
rows go with their entries; only those of own deltas are kept, of which each has few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from engine.columns import U32, Column32, Columns, Listing, concatenate
from engine.packtable import DROPPED

MERGE_ENTRIES_MAX: Final = 1 << 16  # entries sorted at a time, over all inputs


def merge_listings(
    parts: Sequence[tuple[Listing, Column32]], entries_max: int = MERGE_ENTRIES_MAX
) -> Iterator[Listing]:
    """Yield the entries of all parts in ascending order, in chunks of at most `entries_max` entries.

    With each part comes what gives its pack rows their rows in a common table (`JoinedTable`).
    """
    step = max(1, entries_max // max(1, len(parts)))
    rest = [(part, row_map, 0) for part, row_map in parts if part.entries]
    while rest:
        ahead = [
            (part.columns.lo[at + step], part.columns.hi[at + step]) for part, _, at in rest if part.entries - at > step
        ]
        if not ahead:
            yield concatenate([map_rows(part.part(at, part.entries), row_map) for part, row_map, at in rest])
            return
        lo, hi = min(ahead)
        cuts = [at + part.columns.part(at, at + step).bound(lo, hi, "left") for part, _, at in rest]
        below = [map_rows(part.part(at, cut), row_map) for (part, row_map, at), cut in zip(rest, cuts, strict=True)]
        if any(piece.entries for piece in below):
            yield concatenate(below)
        after = []
        for (part, row_map, _), cut in zip(rest, cuts, strict=True):
            stop = cut + part.columns.part(cut, part.entries).bound(lo, hi, "right")
            for start in range(cut, stop, step):
                yield map_rows(part.part(start, min(stop, start + step)), row_map)
            after.append((part, row_map, stop))
        rest = [(part, row_map, at) for part, row_map, at in after if at < part.entries]


def map_rows(listing: Listing, row_map: Column32) -> Listing:
    """Return the entries whose pack `row_map` keeps, with the rows it gives them; copied only as far as needed.

    Entries with rows outside the map (a damaged mirror) are left out. A source row outside it stays outside every
    table: a delta must not seem to have fewer sources than it has.
    """
    bounded = np.append(row_map, U32.type(DROPPED))
    pack = bounded[np.minimum(listing.columns.pack, len(row_map))]
    kept = pack != DROPPED
    sources = listing.sources._replace(pack=bounded[np.minimum(listing.sources.pack, len(row_map))])
    listing = Listing(listing.columns._replace(pack=pack), sources)
    return listing if kept.all() else listing.take(np.flatnonzero(kept))


def count_kept(columns: Columns, row_map: Column32) -> int:
    """Return how many entries `map_rows` would keep."""
    bounded = np.append(row_map, U32.type(DROPPED)) != DROPPED
    return sum(
        int(bounded[np.minimum(columns.pack[start : start + MERGE_ENTRIES_MAX], len(row_map))].sum())
        for start in range(0, columns.entries, MERGE_ENTRIES_MAX)
    )


def count_kept_sources(listing: Listing, row_map: Column32) -> int:
    """Return how many source rows `map_rows` would keep."""
    bounded = np.append(row_map, U32.type(DROPPED)) != DROPPED
    count = 0
    for start in range(0, len(listing.sources.entry), MERGE_ENTRIES_MAX):
        entry = listing.sources.entry[start : start + MERGE_ENTRIES_MAX]
        count += int(bounded[np.minimum(listing.columns.pack[entry], len(row_map))].sum())
    return count


def in_order(listing: Listing) -> bool:
    """Tell whether entries and source rows ascend, as a merge needs them to: a damaged file's may not."""
    columns, sources = listing
    for start in range(0, columns.entries, MERGE_ENTRIES_MAX):
        part = columns.part(max(start - 1, 0), start + MERGE_ENTRIES_MAX)
        same = part.lo[1:] == part.lo[:-1]
        if bool((part.lo[1:] < part.lo[:-1]).any()) or bool((same & (part.hi[1:] < part.hi[:-1])).any()):
            return False
    for start in range(0, len(sources.entry), MERGE_ENTRIES_MAX):
        entry = sources.entry[max(start - 1, 0) : start + MERGE_ENTRIES_MAX]
        if bool((entry[1:] < entry[:-1]).any()) or int(entry[-1]) >= columns.entries:
            return False
    return True
