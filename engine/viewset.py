"""The views of one index: what is searched, in which order, and which of it a filter allows to pass over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import numpy as np

from engine.block import PLACE, Ids, Mask, Places
from engine.columns import Column64, Rows
from engine.distinct import distinct
from engine.idfilter import GROUPS_MAX, IDS_MAX, IdFilter
from engine.packtable import PACK_ROW_BYTES
from engine.view import View

# Ids put by this session that a filter has room for; more make it let more through.
_FRESH_EXPECTED: Final = 1 << 18
_SORTED_MIN: Final = 256
_ROWS_COMPARED: Final = 1 << 16


def lists_any(views: Iterable[View], keys: Column64) -> Mask:
    """Tell of which of these packs there are entries in any of `views`."""
    listed: Mask = np.zeros(len(keys), np.bool_)
    for view in views:
        listed |= view.lists_packs(keys)
    return listed


class ViewSet(msgspec.Struct, frozen=True, eq=False):
    """What is looked up, replaced as a whole: `fresh` packs that no fragment lists yet, own and foreign views.

    Ids are looked for in fresh packs only if `gate` lets them through for group 0, and in a view of `groups` only if
    it does so for its group. `weighed`: whether it was found that having them there pays.
    """

    fresh: tuple[View, ...]
    own: tuple[View, ...]
    foreign: tuple[View, ...]
    gate: IdFilter
    groups: Mapping[View, int] = {}
    weighed: bool = False

    @classmethod
    def of(cls, fresh: Sequence[View], own: Sequence[View], foreign: Sequence[View]) -> ViewSet:
        """Return these views, with only fresh packs behind the gate."""
        gate = IdFilter(_FRESH_EXPECTED)
        for view in fresh:
            gate.add(view.columns.lo, view.columns.hi)
        return cls(tuple(fresh), tuple(own), tuple(foreign), gate, weighed=not own and not foreign)

    def mine(self) -> tuple[View, ...]:
        """Return the views of this system's packs."""
        return (*self.fresh, *self.own)

    def all(self) -> tuple[View, ...]:
        """Return all views, own ones first."""
        return (*self.fresh, *self.own, *self.foreign)

    def search(self, ids: Ids, places: Places, *, own_only: bool) -> None:
        """Fill in `places` for the ids that are found."""
        if len(ids) < _SORTED_MIN:
            self._find(np.ascontiguousarray(ids[:, 0]), np.ascontiguousarray(ids[:, 1]), places, own_only)
            return
        # Ascending, so that neighbouring ids are looked for in neighbouring pages of every column.
        order = np.ascontiguousarray(ids[:, 0]).argsort()
        found = np.zeros(len(ids), PLACE)
        self._find(ids[order, 0], ids[order, 1], found, own_only)
        places[order] = found

    def _find(self, lo: Column64, hi: Column64, places: Places, own_only: bool) -> None:
        may = self.gate.may_hold(lo, hi)
        left: Mask | None = None  # None: all of them
        for view in self.mine() if own_only else self.all():
            group = self.groups.get(view, 0 if view in self.fresh else None)
            if group is not None:
                (asked,) = may[group].nonzero()
            elif left is not None:
                (asked,) = left.nonzero()
            else:
                asked = np.arange(len(lo))
            found = view.find(lo[asked], hi[asked]) if asked.size else None
            if found is None:
                continue
            which = asked[found.which]
            for name, values in zip(PLACE.names or (), found[1:], strict=True):
                places[name][which] = values
            left = np.ones(len(lo), np.bool_) if left is None else left
            left[which] = False
            may[:, which] = False

    def locate(self, lo: Column64, hi: Column64, *, own_only: bool) -> tuple[Mask, list[tuple[View, Rows]]]:
        """Return which of the ids (`lo` ascending) may be relied on somewhere, and in which rows of which views.

        For many ids, most of which are there: no filter is asked.
        """
        there: Mask = np.zeros(len(lo), np.bool_)
        places: list[tuple[View, Rows]] = []
        for view in self.mine() if own_only else self.all():
            (asked,) = (~there).nonzero()
            found = view.find_rows(lo[asked], hi[asked]) if asked.size else None
            if found is not None:
                which, rows, _, _ = found
                there[asked[which]] = True
                places.append((view, rows))
        return there, places

    def gated(self) -> ViewSet:
        """Return the own and foreign views that are not too large behind a gate of their own, without fresh packs."""
        groups: dict[View, int] = {}
        ids = _FRESH_EXPECTED
        for view in sorted((*self.own, *self.foreign), key=len):
            ids += len(view)
            if ids <= IDS_MAX:
                groups[view] = 1 + len(groups) % (GROUPS_MAX - 1)
        gate = IdFilter(_FRESH_EXPECTED + sum(map(len, groups)), 1 + max(groups.values(), default=0))
        for view, group in groups.items():
            gate.add(view.columns.lo, view.columns.hi, group)
        return msgspec.structs.replace(self, fresh=(), gate=gate, groups=groups, weighed=True)

    def behind(self, gated: ViewSet) -> ViewSet:
        """Return `gated`, of the same own and foreign views, with the fresh packs of this set."""
        for view in self.fresh:
            gated.gate.add(view.columns.lo, view.columns.hi)
        return msgspec.structs.replace(gated, fresh=self.fresh)

    def with_pack(self, view: View, fresh: Sequence[View]) -> ViewSet:
        """Return this with other fresh packs: `view` is new among them."""
        self.gate.add(view.columns.lo, view.columns.hi)
        return msgspec.structs.replace(self, fresh=tuple(fresh))


class Beside(msgspec.Struct, frozen=True, eq=False):
    """Packs that lie beside a store and may be relied on all the same.

    `keys`: theirs, ascending; `own`, `foreign`: views in which everything else is barred.
    """

    keys: Column64
    own: tuple[View, ...] = ()
    foreign: tuple[View, ...] = ()


def bar_ambiguous(own: Sequence[View], foreign: Sequence[View]) -> None:
    """Rely on no foreign pack whose key is that of another pack.

    A place names its pack by eight bytes of the hash, and what a foreign table lists need not exist: so another
    pack, an own one even, could be made to seem to hold what a liar says.
    """
    if not foreign:
        return
    keys = np.concatenate([view.keys for view in (*own, *foreign)])
    keys.sort()
    twice = distinct(keys[1:][keys[1:] == keys[:-1]])
    for start in range(0, len(twice), _ROWS_COMPARED):
        part = twice[start : start + _ROWS_COMPARED]
        first = np.zeros((len(part), PACK_ROW_BYTES // 8), np.uint64)
        doubtful: Mask = np.zeros(len(part), np.bool_)
        for view in (*own, *foreign):
            which, rows = view.pack_rows(part)
            words = rows.view(np.uint64).reshape(-1, PACK_ROW_BYTES // 8)
            known = first[which].any(axis=1)
            first[which[~known]] = words[~known]
            doubtful[which[(words != first[which]).any(axis=1)]] = True
        for view in foreign:
            view.bar_packs(part[doubtful])
