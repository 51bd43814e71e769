"""Ports of what is noted here of one cache, beside the mirror of its index. All methods are *sync*."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.cache.trimrecord import TrimRecord
from engine.scratch import ScratchFile
from engine.staterecords import Checkpoint, FoundRuns


class LostPacks(NamedTuple):
    """Keys of packs, ascending: those that were not there when it was looked, and those found to be damaged."""

    gone: npt.NDArray[np.uint64]
    damaged: npt.NDArray[np.uint64]


class CheckedPacks(NamedTuple):
    """Keys of packs, ascending, and the day (since 2020-01-01) each was read last."""

    keys: npt.NDArray[np.uint64]
    days: npt.NDArray[np.uint16]


class CacheUpkeep(Protocol):
    """What is noted here of one cache, bound to its store id. All of it can be lost: it is found out again."""

    def lost_packs(self) -> LostPacks:
        """Return the packs the cache's index lists, and that are not relied on all the same."""
        ...

    def set_lost_packs(self, lost: LostPacks) -> None:
        """Remember these packs as lost, and no others. Raises: SessionAborted."""
        ...

    def checked_packs(self) -> CheckedPacks:
        """Return which packs were read whole here, and when."""
        ...

    def set_checked_packs(self, checked: CheckedPacks) -> None:
        """Remember these packs as read, and no others. Raises: SessionAborted."""
        ...

    def checkpoint(self) -> Checkpoint | None:
        """Return how far a verification of this cache came that has not ended."""
        ...

    def set_checkpoint(self, checkpoint: Checkpoint | None) -> None:
        """Remember how far a verification came, durably; None: none is under way.

        What was seen is forgotten if it says there is none. Raises: SessionAborted.
        """
        ...

    def set_seen(self, attempt: str, pieces: Iterable[bytes]) -> None:
        """Note in which records a verification found blocks so far, durably, and nothing else. Raises: SessionAborted.

        Whole once it returns: before, what was noted stands.
        """
        ...

    def seen(self, attempt: str) -> Iterator[bytes]:
        """Return the pieces that were noted for this verification, one after the other.

        Raises: StateCorrupt, sooner or later, where they are not all there, whole and of this verification.
        """
        ...

    def scratch(self) -> ScratchFile:
        """Return a new file for what is too large to be held in memory. Raises: SessionAborted."""
        ...


class TrimNotes(Protocol):
    """The last trimming of one cache (*sync*). It can be lost: the next one makes another."""

    def last(self) -> TrimRecord | None:
        """Return what became of the last one that came to its end; None: there was none, or nobody knows."""
        ...

    def put(self, record: TrimRecord) -> None:
        """Remember this one. Raises: SessionAborted."""
        ...


class HealNotes(Protocol):
    """What of older restore points was found in one cache (*sync*). It can be lost: it is looked for again."""

    def found(self) -> FoundRuns:
        """Return what was noted; nothing if nobody knows."""
        ...

    def put_found(self, found: FoundRuns) -> None:
        """Note this, and nothing else. Raises: SessionAborted."""
        ...
