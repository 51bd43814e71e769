"""How large local state can become, and whether its disk has room for that."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapters.config import Config


def bytes_per_block(config: Config) -> int:
    """Return how many bytes local state holds at most for a block that is not zero.

    That is its entry in the block map and in the index mirror of each store; with deltas, what is known of its parts
    and, where its record is a delta, of where they lie. Checksums and bitmaps are a fraction of a byte.
    """
    from engine.fragment import Layout
    from engine.parts import ORIGINS, PART_ENTRY
    from engine.state import ENTRY

    index = (Layout(entries=2, packs=0, covers=0).table - Layout(entries=0, packs=0, covers=0).table) // 2
    stores = 1 + (config.active_cache is not None) + (config.spool is not None)
    parts = PART_ENTRY.itemsize + ORIGINS.itemsize if config.vault.delta else 0
    return ENTRY.itemsize + stores * index + parts


def room_missing(folder: Path, existing: Path, bytes_max: int, spool: Path | None = None) -> int:
    """Return how many bytes the disk of `existing` lacks for local state in `folder` to grow to `bytes_max`.

    What lies there already counts as room, but for a `spool` in it. Raises: OSError.
    """
    return max(0, bytes_max - _held(folder, spool) - shutil.disk_usage(existing).free)


def _held(folder: Path, without: Path | None) -> int:
    """Return the bytes that files under `folder` take on its disk; 0 if it is not there or not to be looked at."""
    held = 0
    for path, folders, names in os.walk(folder):
        if without is not None:
            folders[:] = [name for name in folders if Path(path, name) != without]
        for name in names:
            try:
                status = os.lstat(os.path.join(path, name))
            except OSError:
                continue
            if sys.platform == "win32":
                held += status.st_size  # what a sparse file takes is not told there
            else:
                held += status.st_blocks * 512
    return held
