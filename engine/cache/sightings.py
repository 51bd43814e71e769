"""What a verification has seen so far: what it noted at its last checkpoint, and what it found since then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from engine.cache.comparison import Comparison
from engine.cache.packbits import PackBits
from engine.cache.seen import SeenPacks
from engine.columns import Column64
from engine.distinct import among
from engine.errors import StateCorrupt
from engine.staterecords import Checkpoint
from engine.upkeep import CacheUpkeep


class Sightings:
    """The records in which one verification (`attempt`) found blocks; `noted`: some before its last checkpoint."""

    def __init__(self, upkeep: CacheUpkeep, attempt: str, comparison: Comparison, *, noted: bool) -> None:
        self._upkeep, self._attempt, self.comparison, self._noted = upkeep, attempt, comparison, noted
        self._count = self._bytes = 0

    def bytes_of(self, records: int) -> int:
        """Return how many bytes so many of them have, if they are as large as those found since the last pause."""
        return self._bytes * records // self._count if self._count else 0

    def so_far(self) -> SeenPacks:
        """Return all of them, once for all that was found since the last time. Raises: StateCorrupt, SessionAborted."""
        found = SeenPacks(self._upkeep.scratch)
        if self._noted:
            for piece in _noted(self._upkeep, self._attempt):
                found.add(piece)
        count, size = self.comparison.seen.sizes()
        self._count, self._bytes = self._count + count, self._bytes + size
        self.comparison.gather(found)
        return found

    def note(self) -> None:
        """Note them durably, for a checkpoint that says so. Raises: StateCorrupt, SessionAborted."""
        with closing(self.so_far()) as found:
            self._upkeep.set_seen(self._attempt, (piece.encode() for piece in found.pieces()))
        self._noted = True


def lies_elsewhere(point: Checkpoint, upkeep: CacheUpkeep, present: Column64) -> bool:
    """Tell whether a pack of which a verification noted something is not among those `present` any more.

    Then what it had seen may lie elsewhere, or nowhere. Raises: StateCorrupt.
    """
    pieces = _noted(upkeep, point.attempt.attempt) if point.seen else ()
    return any(not among(piece.keys, present).all() for piece in pieces)


def goes_on(point: Checkpoint, upkeep: CacheUpkeep, store: bytes) -> bool:
    """Tell whether a verification of a cache can go on from `point`: whether what it had seen is known still."""
    try:
        for _ in _noted(upkeep, point.attempt.attempt) if point.seen else ():
            pass
    except StateCorrupt:
        return False
    return not point.attempt.completed and point.attempt.store == store.hex()


def _noted(upkeep: CacheUpkeep, attempt: str) -> Iterator[PackBits]:
    """Yield what a verification noted. Raises: StateCorrupt, while it is read."""
    for piece in upkeep.seen(attempt):
        try:
            yield PackBits.decode(piece)
        except ValueError as error:
            raise StateCorrupt(f"what verification {attempt} had seen cannot be read: {error}") from error
