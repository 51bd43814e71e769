"""The record of one verification of the cache, as local history keeps it; importing it costs no numpy."""

from __future__ import annotations

from typing import Final

import msgspec

_BLOCK_BYTES: Final = 65_536  # `engine.block.BLOCK_BYTES`, whose module takes numpy


class PointsHealed(msgspec.Struct, frozen=True, kw_only=True):
    """What healing put back for restore points that are kept, out of the vault, after a verification.

    `completed`: it came to its end; `points`: how many were looked at. `missing`: different blocks that only they need
    (not what is on the volumes) and the cache lacked; `healed` of them lie there now; `no_room`: for so many there is
    no room within the cache's bounds. `put_bytes` were put, `read_bytes` read from the vault. `error`: why it was not
    completed.
    """

    completed: bool = False
    points: int = 0
    missing: int = 0
    healed: int = 0
    no_room: int = 0
    put_bytes: int = 0
    read_bytes: int = 0
    error: str | None = None


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One verification: an attempt from its start on, a result only once it is `completed`.

    `attempt`: 16 random bytes as hex, its name; `store`: the cache's store id as hex, 16 bytes; `started_ms`,
    `ended_ms` since 1970 (`ended_ms` None: it runs, is paused, or was cut off and goes on). `blocks`: non-zero blocks
    of the system's volumes that were compared, each counted for every place in a volume it stands at; `missing` of
    them were not in the cache, those of damaged packs included. `deep_packs`, `deep_bytes`: what was read of the
    cache's packs; `damaged_packs`, `damaged_bytes` of that was damaged. `healed_since`: of `missing`, what re-checks
    after it found again. `unique`: of the blocks that were found, how many different ones; they take about
    `sealed_bytes` in the cache (what was found before a kill or a reboot counts with the average of the rest); 0: not
    known. `oldest_day`: the least day (since 2020-01-01) on which this system saw any record last that is there still;
    0: not known. `error`: why it ended without being completed.
    """

    attempt: str
    store: str
    started_ms: int
    ended_ms: int | None = None
    completed: bool = False
    blocks: int = 0
    missing: int = 0
    deep_packs: int = 0
    deep_bytes: int = 0
    damaged_packs: int = 0
    damaged_bytes: int = 0
    healed_since: int = 0
    unique: int = 0
    sealed_bytes: int = 0
    oldest_day: int = 0
    points: PointsHealed | None = None
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it was completed and found at most 1 % missing (DESIGN.md §3.4); healing does not change that."""
        return self.completed and few(self.missing, self.blocks)

    @property
    def missing_now(self) -> int:
        """Of the blocks that were missing, how many no re-check has found since."""
        return max(0, self.missing - self.healed_since)


def ratios(blocks: int, missing: int, unique: int, sealed_bytes: int) -> tuple[float | None, float | None]:
    """Return how many times smaller deduplication and compression make what was found; None: not known.

    The names are those of `Attempt`. Sealing has its price: what does not compress gets a little larger.
    """
    found = max(0, blocks - missing)
    if not found or not unique:
        return None, None
    return found / unique, unique * _BLOCK_BYTES / sealed_bytes if sealed_bytes else None


def few(missing: int, blocks: int) -> bool:
    """Return whether at most 1 % of `blocks` are missing."""
    return missing * 100 <= blocks
