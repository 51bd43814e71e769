"""How much a request carries: little on a slow line, where each must be answered before the call counts as hung."""

from __future__ import annotations

from typing import Final

PIECE_MIN: Final = 32 << 10
PIECE_FIRST: Final = 128 << 10
PIECE_MAX: Final = 1 << 20  # larger ones are slower: measured
QUICK_S: Final = 1.0  # an answer that comes so soon: more may be asked at once
SLOW_S: Final = 4.0


class Pace:
    """The bytes of one request in one direction of a connection, by how long the last ones took."""

    def __init__(self) -> None:
        self.piece_bytes = PIECE_FIRST

    def took(self, count: int, seconds: float) -> None:
        """Learn from a request of `count` bytes that was answered after `seconds`."""
        if seconds > SLOW_S:
            self.piece_bytes = max(PIECE_MIN, min(self.piece_bytes, count) // 2)
        elif seconds < QUICK_S and count >= self.piece_bytes:
            self.piece_bytes = min(PIECE_MAX, self.piece_bytes * 2)
