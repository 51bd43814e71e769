"""The index of one pack store: where the record of an id lies, and which blocks are on their way to it.

Look-ups run in worker threads, in batches, against a tuple of views that is replaced as a whole; only claims and
changes take the lock. A claim is how each block is sent once: of all threads that find the store without an id,
exactly one is told to send it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, cast

import numpy as np
import numpy.typing as npt

from engine.acks import PackAck
from engine.block import DELTA_FLAG, ID_BYTES, PLACE, Ids, Mask, Places, ids_from_bytes
from engine.columns import U32, Column64, Rows
from engine.distinct import among, distinct
from engine.idfilter import IDS_MAX
from engine.names import PackName
from engine.pack import FinishedPack
from engine.packtable import PackRows, pack_names
from engine.view import PLACES_MAX, View, join_views, view_of_pack
from engine.viewset import ViewSet, bar_ambiguous

# The filter is built once so many ids have been asked for that building it pays, in ids held per id asked.
_FILTER_PAYS: Final = 64
_IDENT: Final = np.dtype((np.void, ID_BYTES))


class PackIndex:
    """Thread-safe. `own_only`: look-ups see this system's own packs and nothing else (`share = "own"`)."""

    def __init__(self, *, own_only: bool = False) -> None:
        self._own_only = own_only
        self._lock = threading.Lock()
        self._views = ViewSet.of((), (), ())
        self._asked = 0
        self._claimed: set[bytes] = set()
        self._barred_packs: set[int] = set()
        self._barred_writers: set[bytes] = set()
        self._stand_ins: dict[int, int] = {}

    @property
    def own_only(self) -> bool:
        """Whether look-ups see own packs only."""
        return self._own_only

    def filter_bytes(self) -> int:
        """Return how much memory the filter in front of the views takes."""
        return self._views.gate.nbytes

    def lookup(self, ids: Ids) -> Places:
        """Return where each id may be relied on to lie; length 0: nowhere.

        Own packs come first; barred packs are passed over, and so are deltas of other systems, and own ones whose
        sources are not known or lie in barred packs.
        """
        count = len(ids)
        places = np.zeros(count, dtype=PLACE)
        if not count:
            return places
        views = self._views
        if not views.weighed:
            self._weigh_filter(views, count)
        views.search(ids, places, own_only=self._own_only)
        return places

    def locate(self, lo: Column64, hi: Column64) -> tuple[Mask, list[tuple[View, Rows]]]:
        """Tell which of the ids may be relied on somewhere, and in which rows of which views; `lo` ascends.

        The same answer as `lookup`, for many ids most of which are there.
        """
        return self._views.locate(lo, hi, own_only=self._own_only)

    def bars(self, pack_key: int) -> bool:
        """Tell whether nothing in the packs of this key is relied on."""
        return pack_key in self._barred_packs

    def holds(self, keys: Column64) -> Mask:
        """Tell which of these packs are relied on, as far as `lookup` would."""
        views = self._views
        held: Mask = np.zeros(len(keys), np.bool_)
        for view in views.mine() if self._own_only else views.all():
            held |= view.holds(keys)
        return held

    def absent(self, present: Column64) -> Column64:
        """Return the keys of all packs that are listed but not among `present` (ascending)."""
        absent: list[Column64] = [np.empty(0, np.uint64)]
        with self._lock:
            for view in self._views.all():
                keys = view.keys[view.listed()]
                gone = keys[~among(keys, present)]
                if gone.size:
                    absent.append(np.ascontiguousarray(gone))
        return distinct(*absent)

    def claim(self, ids: Ids) -> tuple[Places, Mask]:
        """Look up ids and claim those that are neither there nor on their way.

        Returns (places as `lookup`, mask of the ids this caller must now send). An id that stands several times in
        `ids` is claimed at its first position only. A claim ends when a pack lists the id, or by `release`.
        """
        views = self._views
        places = self.lookup(ids)
        claimed: Mask = np.zeros(len(ids), dtype=np.bool_)
        absent = np.flatnonzero(places["length"] == 0)
        if not absent.size:
            return places, claimed
        with self._lock:
            if self._views is not views:
                # A pack came in between: what it lists is claimed no longer, so it would be sent again.
                late = np.zeros(len(absent), dtype=PLACE)
                self._views.search(ids[absent], late, own_only=True)
                places[absent] = late
                absent = absent[late["length"] == 0]
            idents = _idents(ids[absent])
            new = set(idents) - self._claimed
            self._claimed |= new
        if len(new) == len(idents):
            claimed[absent] = True
            return places, claimed
        for row, ident in zip(absent.tolist(), idents, strict=True):
            if ident in new:
                new.remove(ident)
                claimed[row] = True
        return places, claimed

    def release(self, ids: Ids) -> None:
        """End the claims on these ids, where there are any: they will not be sent after all."""
        idents = _idents(ids)
        with self._lock:
            self._claimed.difference_update(idents)

    def add_pack(self, pack: FinishedPack | PackAck) -> None:
        """List a pack the store has acknowledged; ends the claims on its ids."""
        view = view_of_pack(pack)
        key = np.array([pack.name.key], np.uint64)
        idents = _idents(pack.ids)
        with self._lock:
            views = self._views
            for other in views.foreign:
                other.bar_packs(key)
            self._bar_in([view])
            fresh = [*views.fresh, view]
            # Neighbours of like size are joined, so that there are few and each entry is copied few times.
            while len(fresh) > 1 and len(fresh[-2]) <= 2 * len(fresh[-1]):
                fresh[-2:] = [join_views(fresh[-2:])]
                self._bar_in(fresh[-1:])
            self._views = views.with_pack(view, fresh)
            self._claimed.difference_update(idents)

    def install(self, own: Sequence[View], foreign: Sequence[View]) -> None:
        """Replace the mirror's views; packs in memory that own views list leave memory."""
        with self._lock:
            kept = [view.without_packs(*own) for view in self._views.fresh]
            fresh = [view for view in kept if len(view)]
            self._bar_in([*own, *foreign, *fresh])
            bar_ambiguous([*own, *fresh], foreign)
            self._views, self._asked = ViewSet.of(fresh, own, foreign), 0

    def bar(self, pack_keys: Iterable[int] = (), writers: Iterable[bytes] = ()) -> None:
        """Rely on nothing in these packs, nor in any pack of these writers, for the rest of the session.

        Nor on deltas that have a source there.
        """
        with self._lock:
            self._barred_packs.update(pack_keys)
            self._barred_writers.update(writers)
            self._bar_in(self._views.all())

    def rely_instead(self, stand_ins: Mapping[int, int]) -> None:
        """Rely on nothing in damaged packs, by key; what lies there lies at the same offsets in those given.

        One that stands in for itself is relied on if it is listed again.
        """
        self._stand_ins.update(stand_ins)
        with self._lock:
            self._barred_packs.difference_update(stand_ins)
        self.bar(damaged for damaged, key in stand_ins.items() if damaged != key)

    def distrust_others(self) -> None:
        """Let look-ups see this system's own packs only from now on."""
        self._own_only = True

    def all_places(self, ident: bytes) -> Places:
        """Return every known place of the id (16 bytes): own first, barred last, deltas included, none twice."""
        (lo, hi) = ids_from_bytes(ident)[0]
        found: list[Places] = []
        barred: list[Places] = []
        for view in self._views.all():
            rows = view.rows_of(lo, hi)
            if rows.size:
                shut = view.barred(rows)
                found.append(view.places(rows[~shut]))
                barred.append(view.places(rows[shut]))
        if not found:
            return np.zeros(0, dtype=PLACE)
        unique = dict.fromkeys(place.tobytes() for part in (*found, *barred) for place in part)
        return np.frombuffer(b"".join(list(unique)[:PLACES_MAX]), dtype=PLACE)

    def packs_of_key(self, key: int) -> list[PackName]:
        """Return every pack known under this key: one, none, or several by a freak or forgery; own ones first."""
        found: dict[PackName, None] = {}
        for view in self._views.all():
            found.update(dict.fromkeys(view.names_of(key)))
        return list(found)

    def pack_name(self, key: int) -> PackName | None:
        """Return the pack a place's key stands for, or None if it is unknown."""
        packs = self.packs_of_key(key)
        return packs[0] if packs else None

    def pack_names(self, keys: npt.NDArray[np.uint64]) -> list[PackName | None]:
        """Return, for each key, the pack it stands for or None."""
        unique, inverse = np.unique(keys, return_inverse=True)
        names: list[PackName | None] = [None] * len(unique)
        _name(names, (view.pack_rows(unique) for view in self._views.all()))
        return [names[position] for position in inverse.tolist()]

    def views(self) -> tuple[View, ...]:
        """Return all that is looked up in, own views first."""
        return self._views.all()

    def count_packs(self, writers: set[bytes]) -> int:
        """Return how many packs of these writers are known: what a listing of them has to go through at least."""
        return sum(view.count_packs(writer) for view in self._views.all() for writer in writers)

    def own_packs(self, keys: Column64, writer: bytes) -> list[PackName | None]:
        """Return, for each key, the pack of that key if `writer`, this system, wrote it; else None.

        None, too, if it is barred, or if no fragment of this system and no pack put since lists it.
        """
        unique, inverse = np.unique(keys, return_inverse=True)
        names: list[PackName | None] = [None] * len(unique)
        _name(names, (view.own_packs(unique, writer) for view in self._views.mine()))
        return [names[position] for position in inverse.tolist()]

    def delta_sources(self, ids: Ids, places: Places) -> tuple[Rows, Column64, Mask]:
        """Return where the sources of own deltas lie: pairs (position, key of a pack that holds a source).

        And a mask of the positions that are answered: all but those whose place is of a delta that no own view
        knows at exactly this place, or knows without its sources. What is barred does not matter here.
        """
        answered: Mask = places["length"] & U32.type(DELTA_FLAG) == 0
        if self._stand_ins:
            places = self._standing(places)
        positions: list[Rows] = []
        keys: list[Column64] = []
        for view in self._views.mine():
            open_ = np.flatnonzero(~answered)
            if not open_.size:
                break
            rows = view.find_exact(ids[open_, 0], ids[open_, 1], places[open_])
            found = np.flatnonzero(rows >= 0)
            if found.size:
                which, packs, known = view.sources_of(rows[found])
                positions.append(open_[found[which]])
                keys.append(packs)
                answered[open_[found[known]]] = True
        if not positions:
            return np.empty(0, np.intp), np.empty(0, np.uint64), answered
        return np.concatenate(positions), np.concatenate(keys), answered

    def _standing(self, places: Places) -> Places:
        """Return the places with the packs that stand in for damaged ones."""
        standing = places.copy()
        for damaged, key in self._stand_ins.items():
            standing["pack"][places["pack"] == damaged] = key
        return standing

    def _bar_in(self, views: Sequence[View]) -> None:
        if self._barred_packs or self._barred_writers:
            packs = np.fromiter(self._barred_packs, np.uint64, len(self._barred_packs))
            for view in views:
                view.bar_packs(packs)
                view.bar_writers(self._barred_writers)

    def _weigh_filter(self, views: ViewSet, count: int) -> None:
        """Count what was asked, and build the filter when it pays; the one thread that does so works for all."""
        with self._lock:
            self._asked += count
            held = sum(len(view) for view in views.all() if len(view) <= IDS_MAX)
            if self._asked * _FILTER_PAYS < held:
                return
            self._asked = -(1 << 62)
        gated = views.gated()
        with self._lock:
            now = self._views
            if now.own is views.own and now.foreign is views.foreign:
                self._views = now.behind(gated)


def _name(names: list[PackName | None], found: Iterable[tuple[Rows, PackRows]]) -> None:
    """Name what is not named yet; `found`: pairs (position in `names`, table row)."""
    for which, rows in found:
        for position, name in zip(which.tolist(), pack_names(rows), strict=True):
            names[position] = names[position] or name


def _idents(ids: Ids) -> list[bytes]:
    """Return the ids as 16 bytes each."""
    return cast("list[bytes]", ids.reshape(-1).view(_IDENT).tolist())
