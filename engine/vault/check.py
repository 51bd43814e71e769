"""The record of one verification of the vault, as local history keeps it; importing it costs no numpy."""

from __future__ import annotations

import msgspec


class VaultCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One verification of the vault: an attempt from its start on, a result only once it is `completed`.

    `check`: 16 random bytes as hex, its name; `store`: the vault's store id as hex; `started_ms`, `ended_ms` since
    1970. `points`: restore points the vault keeps of this system; `damaged_roots` more cannot be opened. `packs`,
    `bytes`: what the points need. Of those packs `missing_packs` are gone, or have a wrong size, and `damaged_packs` do
    not hold together, as far as anyone has read them; `new_packs` of both were not known before. `read_packs`,
    `read_bytes`: what was read this time. `copied_packs`, `filled_blocks`: what was put there again; `incomplete`:
    points that lack blocks now, `holes` blocks in all, each counted for every point. `mended`: points that lacked some
    before, and are whole. `error`: why it ended without being completed.
    """

    check: str
    store: str
    started_ms: int
    ended_ms: int | None = None
    completed: bool = False
    points: int = 0
    damaged_roots: int = 0
    packs: int = 0
    bytes: int = 0
    missing_packs: int = 0
    missing_bytes: int = 0
    damaged_packs: int = 0
    damaged_bytes: int = 0
    new_packs: int = 0
    read_packs: int = 0
    read_bytes: int = 0
    copied_packs: int = 0
    filled_blocks: int = 0
    incomplete: int = 0
    holes: int = 0
    mended: int = 0
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it was completed, and nothing was missing that was not known to lie elsewhere."""
        wrong = (self.damaged_roots, self.new_packs, self.copied_packs, self.filled_blocks, self.incomplete)
        return self.completed and not any(wrong)
