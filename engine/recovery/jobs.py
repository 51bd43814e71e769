"""What is read together: the blocks of one round cut into groups, and each group into jobs of a few requests.

A *group* is a stretch of the volume whose deltas are read first: they say which records their parts lie in. Records of
one day lie in the order of the volume, so the deltas of a group are a few long reads, one for each pack; and most of
the small records that other deltas of the group take parts from lie between them. The large records that are left,
whole blocks and sources alike, are then read in *jobs*, in the order they lie in, up to `JOB_BYTES` with the gaps
between them, one stretch of the volume after the other. A round without deltas is one group.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.block import DELTA_FLAG, ID_BYTES, LENGTH_MASK, Mask, Places
from engine.delta import Delta
from engine.names import PackName
from engine.packread import GAP_BYTES, Extents, Range
from engine.seal import RECORD_BYTES_MAX, RECORD_BYTES_MIN

JOB_BYTES: Final = 6 << 20
JOB_BLOCKS: Final = 128
# Blocks given one after the other, whatever packs they lie in: few enough to wait until they can be written in their
# own order (writer.py), enough to be read in long ranges. Records of one day lie in the order of the volume.
STRETCH_BLOCKS: Final = 256
GROUP_DELTAS: Final = 4096
HELD_BYTES: Final = 10 << 20  # of the deltas of a group, with what lies between them
HELD_GAP_BYTES: Final = 256 << 10  # so far apart they are still read as one: most of what lies between is needed too
_PACK_STRIDE: Final = 1 << 33  # more than any place in a pack, and than the gap that ends a read

Positions: TypeAlias = npt.NDArray[np.intp]
Numbers: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = npt.NDArray[np.intp] | Mask | slice
Resolve: TypeAlias = Callable[[int], PackName | None]
# A record: the number of its pack in `Packs`, its offset and length there.
Spot: TypeAlias = tuple[int, int, int]
_NOTHING: Final = (-1, 0, 0)  # a record that need not be read
# What was read, by the number of its pack.
Held: TypeAlias = Mapping[int, Extents]


class Spots(NamedTuple):
    """Records, a column each for the number of the pack (-1: none), the offset and the length."""

    numbers: Numbers
    offsets: Numbers
    lengths: Numbers

    def at(self, rows: Rows) -> Spots:
        """Return some of them."""
        return Spots(self.numbers[rows], self.offsets[rows], self.lengths[rows])

    def missing(self, held: Held) -> Mask:
        """Tell which of them are still to be read."""
        missing: Mask = self.numbers >= 0
        for number, extents in held.items():
            mine = np.flatnonzero(self.numbers == number)
            missing[mine[extents.cover(self.offsets[mine], self.lengths[mine])]] = False
        return missing

    def listed(self) -> list[Spot]:
        """Return them one by one."""
        return list(zip(self.numbers.tolist(), self.offsets.tolist(), self.lengths.tolist(), strict=True))


class Packs:
    """The packs of one round by number, each a pack in one store, so that a record is three numbers."""

    def __init__(self) -> None:
        self._packs: list[tuple[str, PackName]] = []
        self.names: list[str] = []  # of the packs as objects, by number
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

    def spots(self, store: str, places: Places, resolve: Resolve) -> Spots:
        """Return the records at `places` of a store; pack -1 where none can be: no such pack, or not so long."""
        keys, inverse = np.unique(places["pack"], return_inverse=True)
        known = [self.number(store, key, resolve) for key in keys.tolist()]
        sizes = np.array([self._packs[number][1].size if number >= 0 else 0 for number in known], np.int64)[inverse]
        offsets, lengths = places["offset"].astype(np.int64), (places["length"] & LENGTH_MASK).astype(np.int64)
        fits = (lengths >= RECORD_BYTES_MIN) & (lengths <= RECORD_BYTES_MAX) & (offsets + lengths <= sizes)
        return Spots(np.where(fits, np.array(known, np.int64)[inverse], -1), offsets, lengths)

    def _add(self, store: str, name: PackName) -> int:
        number = self._numbers.setdefault((store, name), len(self._packs))
        if number == len(self._packs):
            self._packs.append((store, name))
            self.names.append(str(name))
        return number


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """Blocks and where their records lie; `positions` ascend."""

    positions: Positions
    spots: Spots
    deltas: Mask

    def __getitem__(self, rows: Rows) -> Located:
        return Located(self.positions[rows], self.spots.at(rows), self.deltas[rows])

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(slots=True, eq=False)
class DeltaWork:
    """A delta whose links are open (dtype LINK, one a source): what is left is to read its `sources`.

    `sources`: where each of them is read; pack -1: nobody knows.
    """

    position: int
    spot: Spot
    delta: Delta
    parts_key: bytes
    links: bytes
    part_map: bytes
    sources: Sequence[Spot] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Sources:
    """Where the sources of a group's deltas lie, those of one delta after the other, and which are not held yet.

    `bounds`: those of delta i are bounds[i] to bounds[i + 1].
    """

    bounds: Numbers
    spots: Spots
    missing: Mask

    @classmethod
    def of(cls, works: Sequence[DeltaWork], spots: Spots, held: Held) -> Sources:
        """Return where the sources of `works` lie, in their order, and tell each of `works`."""
        bounds = np.cumsum([0, *(len(work.delta.ids) // ID_BYTES for work in works)])
        listed, ends = spots.listed(), bounds.tolist()
        for at, work in enumerate(works):
            work.sources = listed[ends[at] : ends[at + 1]]
        return cls(bounds, spots, spots.missing(held))

    def mains(self) -> tuple[Spots, Numbers]:
        """Return the largest missing source of each delta (pack -1: none), and what the others cost to read."""
        rows, owners = np.flatnonzero(self.missing), np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        owners = owners[rows]
        spots = self.spots.at(rows)
        order = np.lexsort((-spots.lengths, owners))
        having, first = np.unique(owners[order], return_index=True)
        mains = Spots(*np.array([_NOTHING], np.int64).T.repeat(len(self.bounds) - 1, axis=1))
        for column, values in zip(mains, spots.at(order[first]), strict=True):
            column[having] = values
        # Each of the others may bring a gap before it along.
        others = np.bincount(owners, spots.lengths + GAP_BYTES, len(self.bounds) - 1).astype(np.int64)
        others[having] -= mains.lengths[having] + GAP_BYTES
        return mains, others


@dataclass(slots=True, eq=False)
class Job:
    """Blocks opened together, as they lie; whole ones as (position, record). `ranges`: what to read, by pack."""

    blocks: list[tuple[int, Spot] | DeltaWork] = field(default_factory=list)
    ranges: dict[int, list[Range]] = field(default_factory=dict)

    def add_whole(self, position: int, spot: Spot, *, missing: bool) -> None:
        """Add a whole block and have its record read if it is `missing`."""
        self.blocks.append((position, spot))
        if missing:
            self._read(spot)

    def add_delta(self, delta: DeltaWork, missing: Sequence[bool]) -> None:
        """Add a delta and have those of its sources read that are `missing`."""
        self.blocks.append(delta)
        for spot, wanted in zip(delta.sources, missing, strict=True):
            if wanted:
                self._read(spot)

    def _read(self, spot: Spot) -> None:
        ranges = self.ranges.get(spot[0])
        if ranges is None:
            ranges = self.ranges[spot[0]] = []
        ranges.append(spot[1:])


def locate(wanted: Positions, places: Places, store: str, packs: Packs, resolve: Resolve) -> Located:
    """Return the blocks at `wanted` with their records at `places` of a store; impossible places are left out."""
    spots = packs.spots(store, places, resolve)
    return Located(wanted, spots, (places["length"] & DELTA_FLAG) != 0)[spots.numbers >= 0]


def groups(located: Located) -> Iterator[Located]:
    """Yield the blocks in groups whose deltas are read together, with what lies between them."""
    rest = [located]
    while rest:
        group = rest.pop()
        rows = np.flatnonzero(group.deltas)
        if len(rows) > 1 and (len(rows) > GROUP_DELTAS or _read_bytes(group.spots.at(rows)) > HELD_BYTES):
            middle = int(rows[len(rows) // 2])
            rest += [group[middle:], group[:middle]]
        else:
            yield group


def _read_bytes(spots: Spots) -> int:
    """Return how many bytes reading deltas takes, with the gaps that are read along."""
    order = np.lexsort((spots.offsets, spots.numbers))
    return int(_costs(spots.at(order), HELD_GAP_BYTES).sum())


def by_pack(spots: Sequence[Spot]) -> dict[int, list[Range]]:
    """Return records as ranges, by the number of their pack."""
    ranges: dict[int, list[Range]] = {}
    for number, offset, length in spots:
        ranges.setdefault(number, []).append((offset, length))
    return ranges


def cut_jobs(wholes: Located, deltas: Sequence[DeltaWork], sources: Sources, held: Held) -> Iterator[Job]:
    """Yield the blocks of a group as jobs: stretch by stretch, in each as the largest record each still needs lies."""
    to_read = wholes.spots.missing(held)
    nearest = Spots(
        *(np.where(to_read, column, nothing) for column, nothing in zip(wholes.spots, _NOTHING, strict=True))
    )
    mains, others = sources.mains()
    spots = Spots(*map(np.concatenate, zip(nearest, mains, strict=True)))
    stretches = np.concatenate((wholes.positions, [work.position for work in deltas])).astype(np.int64)
    stretches //= STRETCH_BLOCKS
    # Records of one pack that different stretches need are as far apart as those of two packs.
    spots = spots._replace(numbers=stretches * (spots.numbers.max(initial=-1) + 2) + spots.numbers + 1)
    order = np.lexsort((spots.offsets, spots.numbers))
    costs = _costs(spots.at(order), GAP_BYTES) + np.concatenate((np.zeros(len(wholes), np.int64), others))[order]
    positions, listed, whole_missing = wholes.positions.tolist(), wholes.spots.listed(), to_read.tolist()
    missing, bounds = sources.missing.tolist(), sources.bounds.tolist()
    first = 0
    for stop in _stops(costs):
        job = Job()
        for row in order[first:stop].tolist():
            if row < len(listed):
                job.add_whole(positions[row], listed[row], missing=whole_missing[row])
            else:
                at = row - len(listed)
                job.add_delta(deltas[at], missing[bounds[at] : bounds[at + 1]])
        yield job
        first = stop


def _costs(spots: Spots, gap_bytes: int) -> Numbers:
    """Return how many bytes reading each record adds to reading those before it, sorted as they lie."""
    numbers, offsets, lengths = spots
    stops = numbers * _PACK_STRIDE + offsets + lengths
    before = np.concatenate(([np.int64(-2 * _PACK_STRIDE)], np.maximum.accumulate(stops)[:-1]))
    gaps = numbers * _PACK_STRIDE + offsets - before
    return np.where(gaps <= gap_bytes, np.maximum(0, stops - before), lengths)


def _stops(costs: Numbers) -> Iterator[int]:
    """Yield where each job ends, at no more than `JOB_BYTES` and `JOB_BLOCKS`."""
    spent = np.cumsum(costs).tolist()
    first, before = 0, 0
    while first < len(spent):
        stop = bisect_right(spent, before + JOB_BYTES, first)
        first = min(max(stop, first + 1), first + JOB_BLOCKS)
        before = spent[first - 1]
        yield first
