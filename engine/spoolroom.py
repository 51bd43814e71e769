"""How much of its disk a spool takes: for the session that fills it, and for whoever tells how full it is."""

from __future__ import annotations

from typing import Final

WARN_SHARE: Final = 0.8  # of what it may take: from there on it is said that it fills up
RESERVE_BYTES: Final = 64 << 20  # left for those who share the disk: it mostly is the machine's own


def left_on_disk(free_bytes: int) -> int:
    """Return how much a spool may take of what its disk has left."""
    return max(0, free_bytes - RESERVE_BYTES)
