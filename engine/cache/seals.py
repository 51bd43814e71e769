"""Opening the records of packs that are read, as far as this system has the refs: its newest maps have ids and keys.

The hash in a pack's name says that its bytes are those somebody wrote; only opening a record shows that they are the
block. The packs that are read are taken together until they have half a million records, and for those the maps are
gone through once: so that takes 50 MiB of memory, however large volumes and packs are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from engine.bits import any_along
from engine.block import ID_BYTES, LENGTH_MASK, Bytes, Ids, Mask, ids_of
from engine.cache.comparison import READ_PAGES, WINDOW_PAGES, Stopped
from engine.columns import Column64
from engine.delta import open_parts, parse_delta
from engine.errors import StoreCorrupt
from engine.names import PackName
from engine.pack import PackEntries
from engine.pipeline.lost import Wanted
from engine.seal import WHOLE, open_whole, parse_header
from engine.state import VolumeState
from engine.subkeys import record_keys
from engine.view import View

RECORDS_AT_ONCE: Final = 1 << 19
_SLICE: Final = 1 << 20
_SHOWN: Final = 5


class BadRecords(msgspec.Struct, frozen=True):
    """What did not open of one pack: where the records begin, their bytes in all, and how many were `tried`."""

    offsets: list[int]
    bytes: int
    tried: int

    def sentence(self) -> str:
        """Return what is to be said of them."""
        shown = ", ".join(map(str, self.offsets[:_SHOWN]))
        more = f" and {len(self.offsets) - _SHOWN} more" if len(self.offsets) > _SHOWN else ""
        return (
            f"{len(self.offsets)} of {self.tried} records in it that this system has the keys of do not open, "
            f"{self.bytes} bytes, at offset {shown}{more}"
        )


def in_groups(
    views: Sequence[View], wanted: Column64, relax: Callable[[], None] = lambda: None, at_once: int = RECORDS_AT_ONCE
) -> Iterator[tuple[Column64, Ids]]:
    """Yield the packs of `wanted` (keys, in this order), some at a time, with the ids that `views` list of them.

    At least one pack at a time, and of more no more than have `at_once` records (*sync*).
    """
    order = wanted.argsort(kind="stable")
    ascending = wanted[order]
    counts = np.zeros(len(wanted), np.int64)
    for view in views:
        of, listed = _positions(view, ascending)
        for start in range(0, len(view), _SLICE):
            rows = _known(view, start)
            tally = np.bincount(rows, minlength=len(listed))
            np.add.at(counts, order[of[listed]], tally[listed])
            relax()
    ends = np.cumsum(counts)
    first = 0
    while first < len(wanted):
        done = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(ends.searchsorted(done + at_once, "right")))
        yield wanted[first:stop], _ids_of(views, wanted[first:stop], relax)
        first = stop


def _ids_of(views: Sequence[View], packs: Column64, relax: Callable[[], None]) -> Ids:
    ascending = np.sort(packs)
    found: list[Ids] = [np.empty((0, 2), np.uint64)]
    for view in views:
        _, listed = _positions(view, ascending)
        for start in range(0, len(view), _SLICE) if listed.any() else ():
            (at,) = listed[_known(view, start)].nonzero()
            at += start
            found.append(np.stack((view.columns.lo[at], view.columns.hi[at]), axis=1))
            relax()
    return np.concatenate(found)


def _positions(view: View, ascending: Column64) -> tuple[npt.NDArray[np.intp], Mask]:
    """Return for each pack of a view where it stands in `ascending`, and whether it does; one more: of no pack."""
    keys = np.append(view.keys, np.uint64(0))
    at = ascending.searchsorted(keys).clip(max=max(len(ascending) - 1, 0))
    listed: Mask = ascending[at] == keys if len(ascending) else np.zeros(len(keys), np.bool_)
    listed[-1] = False
    return at, listed


def _known(view: View, start: int) -> npt.NDArray[np.intp]:
    """Return the rows in the pack table of a slice of entries; behind the last one where it has no such row."""
    return view.columns.pack[start : start + _SLICE].astype(np.intp).clip(max=len(view.keys))


class Seals:
    """The keys of those blocks of the newest state of volumes whose ids were gathered last; for one thread at a time.

    `blocks_subkey`: of the domain; `stopping` is asked now and then.
    """

    def __init__(
        self, states: Sequence[VolumeState], blocks_subkey: bytes, stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self._states = [state for state in states if state.head is not None]
        self._subkey, self._stopping = blocks_subkey, stopping
        self._wanted = Wanted([])
        self._refs: npt.NDArray[np.uint8] = np.empty((0, 48), np.uint8)

    def gather(self, ids: Ids) -> None:
        """Go through the maps once, and keep the refs of those of `ids` that they have (*sync*).

        Raises: Stopped, StateCorrupt.
        """
        self._wanted = Wanted([ids])
        self._refs = np.zeros((len(self._wanted), 48), np.uint8)
        for state in self._states:
            window = 0
            end = -(-(state.head.volume_bytes if state.head is not None else 0) // (1 << 22))
            while window < end and not self._wanted.all_found():
                used = state.used_pages(window, min(window + WINDOW_PAGES, end))
                for start in range(0, len(used), READ_PAGES):
                    if self._stopping():
                        raise Stopped
                    self._take(state.read(used[start : start + READ_PAGES])["ref"])
                window += WINDOW_PAGES

    def _take(self, refs: npt.NDArray[np.uint8]) -> None:
        chosen = refs[any_along(refs)]
        rows = self._wanted.rows(ids_of(chosen))
        mine = rows >= 0
        self._refs[rows[mine]] = chosen[mine]
        self._wanted.found[rows[mine]] = True

    def bad_in(self, name: PackName, data: Bytes, entries: PackEntries) -> BadRecords:
        """Open what there are refs for of a pack (*sync*); `entries` say where its records lie."""
        rows = self._wanted.rows(entries.ids)
        known = np.flatnonzero((rows >= 0) & self._wanted.found[rows]) if len(self._wanted) else rows[:0]
        view, where = memoryview(data), str(name)
        offsets: list[int] = []
        bytes_ = 0
        for at in known.tolist():
            offset, length = int(entries.offsets[at]), int(entries.lengths[at]) & LENGTH_MASK
            try:
                self._open(self._refs[rows[at]].tobytes(), view[offset : offset + length], where)
            except StoreCorrupt:
                offsets.append(offset)
                bytes_ += length
        return BadRecords(offsets, bytes_, len(known))

    def _open(self, ref: bytes, record: Bytes, where: str) -> None:
        if parse_header(record, where).kind == WHOLE:
            open_whole(ref, record, self._subkey, where)
            return
        # A delta's other parts lie elsewhere; what travels in it shows whether these bytes are whole.
        delta = parse_delta(record, where)
        if delta.id != ref[:ID_BYTES]:
            raise StoreCorrupt(where, "another record lies where the one looked for should be")
        open_parts(delta, record_keys(ref[ID_BYTES:])[0], where)
