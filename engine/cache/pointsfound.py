"""What of the runs of kept points was found in a cache, and in which of its packs: that is not looked for again.

    a run that is gone through → stretches of it: the packs its blocks were found in, and what was lacking
    the same run at the next verification → of a stretch all of whose packs are relied on still, what was lacking is
    looked up again; the rest of the run is gone through

Neither runs nor packs ever change: so as long as the cache's index relies on those packs, the blocks are in them. A
pack that was trimmed, vanished or turned out to be damaged takes the stretches with it that were found in it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final

import msgspec
import numpy as np

from engine.block import DELTA_FLAG, ID_BYTES, PLACE, Ids, Mask, Places, ids_from_bytes
from engine.columns import U64, Column64
from engine.distinct import distinct
from engine.index import PackIndex
from engine.page import BLOCKS_MAX
from engine.pipeline.lost import NO_IDS
from engine.staterecords import FoundRuns, FoundStretch

STRETCH_BLOCKS: Final = 1 << 16  # of a run, about: as many leaves as have them
LACKING_MAX: Final = 1 << 10  # a stretch that lacks more is gone through again
NOTED_BYTES_MAX: Final = 16 << 20  # what does not fit is gone through again
_ROW_BYTES: Final = 8 + ID_BYTES + PLACE.itemsize


class Stretch(msgspec.Struct, eq=False):
    """What a run names in [first, stop): found in `packs` (keys, ascending), but for these blocks, which lack."""

    first: int
    stop: int
    packs: Column64
    blocks: Column64
    ids: Ids
    places: Places

    @classmethod
    def at(cls, first: int) -> Stretch:
        """Return one that nothing is in yet."""
        return cls(first, first, np.empty(0, U64), np.empty(0, U64), NO_IDS, np.zeros(0, PLACE))

    @property
    def noted_bytes(self) -> int:
        """What it takes to note it."""
        return 8 * len(self.packs) + _ROW_BYTES * len(self.blocks) + 64


class PointsFound:
    """The stretches of runs (16-byte digests) that were found in the cache of `index`; `noted`: as it was before.

    `kept`: the runs that count. Methods are *sync*, and called one at a time.
    """

    def __init__(self, index: PackIndex, noted: FoundRuns, kept: Collection[bytes]) -> None:
        self._index = index
        self._runs = {run: list(_stretches(noted.runs.get(run, []))) for run in kept}
        self._noted = noted

    def check(self) -> None:
        """Forget the stretches that lie in packs on which the cache's index relies no more."""
        packs = distinct(np.empty(0, U64), *(each.packs for run in self._runs.values() for each in run))
        gone = packs[~self._index.holds(packs)]
        if gone.size:
            for run, stretches in self._runs.items():
                self._runs[run] = [each for each in stretches if not np.isin(each.packs, gone).any()]

    def known(self, run: bytes) -> list[Stretch]:
        """Return what is known of a run, ascending; what it lacked is looked up again."""
        still = []
        for stretch in self._runs[run]:
            packs, lacks, sure = self.look(stretch.ids)
            if not lacks.all():
                stretch.packs = distinct(stretch.packs, packs)
                stretch.blocks, stretch.ids = stretch.blocks[lacks], stretch.ids[lacks]
                stretch.places = stretch.places[lacks]
            if sure:
                still.append(stretch)
        self._runs[run] = still
        return list(still)

    def unknown(self, run: bytes) -> list[tuple[int, int]]:
        """Return the blocks of a run that are to be gone through: [first, stop), ascending."""
        starts = [0, *(each.stop for each in self._runs[run])]
        stops = [*(each.first for each in self._runs[run]), BLOCKS_MAX]
        return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]

    def note(self, run: bytes, stretch: Stretch) -> None:
        """Note what a stretch was found in, if there is room for it."""
        taken = sum(each.noted_bytes for stretches in self._runs.values() for each in stretches)
        if taken + stretch.noted_bytes <= NOTED_BYTES_MAX and len(stretch.blocks) <= LACKING_MAX:
            self._runs[run] = sorted([*self._runs[run], stretch], key=lambda each: each.first)

    def forget(self, run: bytes) -> None:
        """Forget what is known of a run."""
        self._runs[run] = []

    def look(self, ids: Ids) -> tuple[Column64, Mask, bool]:
        """Return the packs in which blocks lie, which of them lack, and whether those packs are all it takes.

        That they are not known to be is so of deltas whose sources nobody here knows.
        """
        places = self._index.lookup(ids)
        lacks: Mask = places["length"] == 0
        packs = distinct(np.ascontiguousarray(places["pack"][~lacks]))
        (deltas,) = (places["length"] & np.uint32(DELTA_FLAG) != 0).nonzero()
        if not deltas.size:
            return packs, lacks, True
        _, sources, known = self._index.delta_sources(ids[deltas], places[deltas])
        return distinct(packs, sources), lacks, bool(known.all())

    def noted(self) -> FoundRuns | None:
        """Return what is to be noted; None: nothing has changed."""
        found = FoundRuns(
            {
                run: [
                    FoundStretch(
                        each.first, each.stop, each.packs.astype(U64).tobytes(), each.blocks.astype(U64).tobytes(),
                        each.ids.astype(U64).tobytes(), each.places.tobytes(),
                    )
                    for each in stretches
                ]
                for run, stretches in self._runs.items()
                if stretches
            }
        )  # fmt: skip
        return found if found != self._noted else None


def _stretches(noted: list[FoundStretch]) -> Iterator[Stretch]:
    """Yield what was noted of a run, up to where it makes no sense."""
    end = 0
    for each in noted:
        count = len(each.blocks) // 8
        fits = (len(each.blocks), len(each.ids), len(each.places)) == (
            8 * count,
            ID_BYTES * count,
            PLACE.itemsize * count,
        )
        if not fits or len(each.packs) % 8 or not end <= each.first < each.stop <= BLOCKS_MAX:
            return
        end = each.stop
        yield Stretch(
            each.first, each.stop, np.frombuffer(each.packs, U64), np.frombuffer(each.blocks, U64),
            ids_from_bytes(each.ids), np.frombuffer(each.places, PLACE),
        )  # fmt: skip
