"""What is read together: the blocks of one round cut into groups, and each group into jobs of a few requests.

A *group* is a stretch of the volume whose deltas are read first: they say which records their parts lie in. Records of
one day lie in the order of the volume, so the deltas of a group are a few long reads, one for each pack; and most of
the small records that other deltas of the group take parts from lie between them. The large records that are left,
whole blocks and sources alike, are then read in *jobs*, in the order they lie in, up to `JOB_BYTES` with the gaps
between them. A round without deltas is one group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.block import DELTA_FLAG, LENGTH_MASK, Mask, Places
from engine.delta import Delta, Link
from engine.names import PackName
from engine.packread import Extents, Range, requests_for
from engine.seal import RECORD_BYTES_MAX, RECORD_BYTES_MIN

JOB_BYTES: Final = 4 << 20
JOB_BLOCKS: Final = 96
GROUP_BYTES: Final = 3 << 20  # of deltas, without what lies between them
GROUP_DELTAS: Final = 4096
HELD_BYTES: Final = 8 << 20  # of deltas, with what lies between them
GAP_BYTES: Final = 64 << 10
_PACK_STRIDE: Final = 1 << 33  # more than any place in a pack, and than the gap that ends a read

Positions: TypeAlias = npt.NDArray[np.intp]
Numbers: TypeAlias = npt.NDArray[np.int64]
Resolve: TypeAlias = Callable[[int], PackName | None]
# A record: the number of its pack in `Packs`, its offset and length there.
Spot: TypeAlias = tuple[int, int, int]
# What was read, by the number of its pack.
Held: TypeAlias = Mapping[int, Extents]


class Packs:
    """The packs of one round by number, each a pack in one store, so that a record is three numbers."""

    def __init__(self) -> None:
        self._packs: list[tuple[str, PackName]] = []
        self._numbers: dict[tuple[str, PackName], int] = {}
        self._by_key: dict[tuple[str, int], int] = {}

    def __getitem__(self, number: int) -> tuple[str, PackName]:
        return self._packs[number]

    def number(self, store: str, key: int, resolve: Resolve) -> int:
        """Return the number of the pack that `resolve` names for a key, or -1."""
        known = self._by_key.get((store, key))
        if known is None:
            name = resolve(key)
            known = self._by_key[store, key] = -1 if name is None else self._add(store, name)
        return known

    def spot(self, store: str, key: int, offset: int, length: int, resolve: Resolve) -> Spot | None:
        """Return the record at a place, or None where none can be: no such pack, or not so long."""
        number, length = self.number(store, key, resolve), length & LENGTH_MASK
        if number < 0 or not RECORD_BYTES_MIN <= length <= RECORD_BYTES_MAX:
            return None
        return (number, offset, length) if offset + length <= self._packs[number][1].size else None

    def _add(self, store: str, name: PackName) -> int:
        number = self._numbers.setdefault((store, name), len(self._packs))
        if number == len(self._packs):
            self._packs.append((store, name))
        return number


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """Blocks and where their records lie, a column each; `positions` ascend."""

    positions: Positions
    numbers: Numbers
    offsets: Numbers
    lengths: Numbers
    deltas: Mask

    def __getitem__(self, rows: slice | npt.NDArray[np.intp] | Mask) -> Located:
        return Located(
            self.positions[rows], self.numbers[rows], self.offsets[rows], self.lengths[rows], self.deltas[rows]
        )

    def __len__(self) -> int:
        return len(self.positions)

    def spots(self) -> list[Spot]:
        """Return the records as numbers."""
        return list(zip(self.numbers.tolist(), self.offsets.tolist(), self.lengths.tolist(), strict=True))


@dataclass(slots=True, eq=False)
class DeltaWork:
    """A delta whose links are open: what is left is to read its `sources`, one a link (None: nobody knows where)."""

    position: int
    spot: Spot
    delta: Delta
    parts_key: bytes
    links: tuple[Link, ...]
    part_map: bytes
    sources: list[Spot | None] = field(default_factory=list)

    def missing(self, held: Held) -> list[Spot]:
        """Return the sources that are not among what is `held`, the largest first."""
        missing = [spot for spot in self.sources if spot is not None and not holds(held, spot)]
        return sorted(missing, key=lambda spot: -spot[2]) if len(missing) > 1 else missing


@dataclass(slots=True, eq=False)
class Job:
    """Blocks opened together: whole ones, as (position, record), and deltas; `ranges` to be read, by pack."""

    wholes: list[tuple[int, Spot]] = field(default_factory=list)
    deltas: list[DeltaWork] = field(default_factory=list)
    ranges: dict[int, list[Range]] = field(default_factory=dict)

    def add_whole(self, position: int, spot: Spot) -> None:
        """Add a whole block and have its record read."""
        self.wholes.append((position, spot))
        self._read(spot)

    def add_delta(self, delta: DeltaWork, missing: Sequence[Spot]) -> None:
        """Add a delta and have those of its sources read that are `missing`."""
        self.deltas.append(delta)
        for spot in missing:
            self._read(spot)

    def _read(self, spot: Spot) -> None:
        ranges = self.ranges.get(spot[0])
        if ranges is None:
            ranges = self.ranges[spot[0]] = []
        ranges.append(spot[1:])


def holds(held: Held, spot: Spot) -> bool:
    """Tell whether a record is among what is held."""
    extents = held.get(spot[0])
    return extents is not None and extents.cut(spot[1], spot[2]) is not None


def locate(wanted: Positions, places: Places, store: str, packs: Packs, resolve: Resolve) -> Located:
    """Return the blocks at `wanted` with their records at `places` of a store; impossible places are left out."""
    keys, inverse = np.unique(places["pack"], return_inverse=True)
    known = [packs.number(store, key, resolve) for key in keys.tolist()]
    sizes = np.array([packs[number][1].size if number >= 0 else 0 for number in known], np.int64)[inverse]
    numbers = np.array(known, np.int64)[inverse]
    offsets, lengths = places["offset"].astype(np.int64), (places["length"] & LENGTH_MASK).astype(np.int64)
    found = Located(wanted, numbers, offsets, lengths, (places["length"] & DELTA_FLAG) != 0)
    return found[(lengths >= RECORD_BYTES_MIN) & (lengths <= RECORD_BYTES_MAX) & (offsets + lengths <= sizes)]


def groups(located: Located) -> Iterator[Located]:
    """Yield the blocks in groups whose deltas are read together."""
    rows = np.flatnonzero(located.deltas)
    if not len(rows):
        yield located
        return
    read = np.cumsum(located.lengths[rows])
    turns = (read - located.lengths[rows]) // GROUP_BYTES
    counts = np.arange(len(rows)) // GROUP_DELTAS
    fresh = np.flatnonzero((np.diff(turns) != 0) | (np.diff(counts) != 0)) + 1
    for start, stop in pairwise([0, *rows[fresh].tolist(), len(located)]):
        yield located[start:stop]


def by_pack(spots: Sequence[Spot]) -> dict[int, list[Range]]:
    """Return records as ranges, by the number of their pack."""
    ranges: dict[int, list[Range]] = {}
    for number, offset, length in spots:
        ranges.setdefault(number, []).append((offset, length))
    return ranges


def gap_for(ranges: Mapping[int, Sequence[Range]]) -> int:
    """Return how far apart records may lie that are read as one, so that what is read with them stays bounded."""
    read = sum(stop - start for each in ranges.values() for start, stop in requests_for(each, GAP_BYTES))
    return GAP_BYTES if read <= HELD_BYTES else 0


def cut_jobs(wholes: Located, deltas: Sequence[DeltaWork], held: Held) -> Iterator[Job]:
    """Yield the blocks of a group as jobs, in the order in which the largest record that each still needs lies."""
    missing = [delta.missing(held) for delta in deltas]
    mains = [each[0] if each else (-1, 0, 0) for each in missing]
    # Each of the others may bring a gap before it along.
    others = [sum(spot[2] + GAP_BYTES for spot in each[1:]) for each in missing]
    rows = np.array(mains, np.int64).reshape(-1, 3)
    numbers, offsets, lengths = (
        np.concatenate(columns)
        for columns in zip((wholes.numbers, wholes.offsets, wholes.lengths), rows.T, strict=True)
    )
    order = np.lexsort((offsets, numbers))
    costs = _costs(numbers[order], offsets[order], lengths[order])
    costs += np.concatenate((np.zeros(len(wholes), np.int64), np.array(others, np.int64)))[order]
    positions, spots = wholes.positions.tolist(), wholes.spots()
    first = 0
    for stop in _stops(costs):
        job = Job()
        for row in order[first:stop].tolist():
            if row < len(spots):
                job.add_whole(positions[row], spots[row])
            else:
                job.add_delta(deltas[row - len(spots)], missing[row - len(spots)])
        yield job
        first = stop


def _costs(numbers: Numbers, offsets: Numbers, lengths: Numbers) -> Numbers:
    """Return how many bytes reading each record adds to reading those before it, sorted as they lie."""
    stops = numbers * _PACK_STRIDE + offsets + lengths
    before = np.concatenate(([np.int64(-_PACK_STRIDE)], np.maximum.accumulate(stops)[:-1]))
    gaps = numbers * _PACK_STRIDE + offsets - before
    return np.where(gaps <= GAP_BYTES, np.maximum(0, stops - before), lengths)


def _stops(costs: Numbers) -> Iterator[int]:
    """Yield where each job ends, at no more than `JOB_BYTES` and `JOB_BLOCKS`."""
    spent = np.cumsum(costs).tolist()
    first, before = 0, 0
    while first < len(spent):
        stop = bisect_right(spent, before + JOB_BYTES, first)
        first = min(max(stop, first + 1), first + JOB_BLOCKS)
        before = spent[first - 1]
        yield first
