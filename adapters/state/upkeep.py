"""What is noted of one cache: packs it lost, packs that were read, how far its verification came. Always whole files.

None is believed when it is damaged: the next verification finds out again what they said.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from adapters.state.atomic import read_pieces, read_struct, write_pieces, write_struct
from adapters.state.files import Disk, StateFile
from engine.errors import StateCorrupt
from engine.staterecords import Checkpoint
from engine.upkeep import CheckedPacks, LostPacks

_LOST_MAGIC: Final = b"FBLOST\x00\x01"
_CHECKED_MAGIC: Final = b"FBCHKD\x00\x01"
_CHECKPOINT_MAGIC: Final = b"FBVRFY\x00\x01"
_SEEN_MAGIC: Final = b"FBSEEN\x00\x01"


class _Lost(msgspec.Struct, frozen=True):
    gone: bytes
    damaged: bytes


class _Checked(msgspec.Struct, frozen=True):
    keys: bytes
    days: bytes


class UpkeepFiles:
    """The files `<store id>.lost`, `.checked`, `.verify` and `.seen` beside the mirror (implements `CacheUpkeep`)."""

    def __init__(self, folder: Path, store: bytes, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._lost, self._checked, self._checkpoint, self._seen = (
            folder / f"{store.hex()}.{kind}" for kind in ("lost", "checked", "verify", "seen")
        )

    def lost_packs(self) -> LostPacks:
        """Return the packs that were found lost; none if nobody knows."""
        try:
            found = read_struct(self._lost, _LOST_MAGIC, _Lost, self._disk) or _Lost(b"", b"")
            return LostPacks(np.frombuffer(found.gone, "<u8"), np.frombuffer(found.damaged, "<u8"))
        except (StateCorrupt, ValueError):
            return LostPacks(np.empty(0, "<u8"), np.empty(0, "<u8"))

    def set_lost_packs(self, lost: LostPacks) -> None:
        """Remember these packs as lost, and no others. Raises: SessionAborted."""
        known = self.lost_packs()
        if np.array_equal(lost.gone, known.gone) and np.array_equal(lost.damaged, known.damaged):
            return
        self._disk.make_folder(self._folder)
        value = _Lost(lost.gone.astype("<u8").tobytes(), lost.damaged.astype("<u8").tobytes())
        write_struct(self._lost, _LOST_MAGIC, value, self._disk)

    def checked_packs(self) -> CheckedPacks:
        """Return which packs were read whole here, and when; none if nobody knows."""
        try:
            found = read_struct(self._checked, _CHECKED_MAGIC, _Checked, self._disk) or _Checked(b"", b"")
            keys, days = np.frombuffer(found.keys, "<u8"), np.frombuffer(found.days, "<u2")
            if len(keys) == len(days):
                return CheckedPacks(keys, days)
        except (StateCorrupt, ValueError):
            pass
        return CheckedPacks(np.empty(0, "<u8"), np.empty(0, "<u2"))

    def set_checked_packs(self, checked: CheckedPacks) -> None:
        """Remember these packs as read, and no others. Raises: SessionAborted."""
        self._disk.make_folder(self._folder)
        value = _Checked(checked.keys.astype("<u8").tobytes(), checked.days.astype("<u2").tobytes())
        write_struct(self._checked, _CHECKED_MAGIC, value, self._disk)

    def checkpoint(self) -> Checkpoint | None:
        """Return how far a verification came that has not ended; None: there is none, or nobody knows."""
        try:
            return read_struct(self._checkpoint, _CHECKPOINT_MAGIC, Checkpoint, self._disk)
        except StateCorrupt:
            return None

    def set_checkpoint(self, checkpoint: Checkpoint | None) -> None:
        """Remember how far a verification came; None: none is under way.

        What was seen is forgotten if it says there is none. Raises: SessionAborted.
        """
        self._disk.make_folder(self._folder)
        if checkpoint is None:
            self._disk.remove(self._checkpoint)
            self._disk.sync_folder(self._folder)
        else:
            write_struct(self._checkpoint, _CHECKPOINT_MAGIC, checkpoint, self._disk)
        if checkpoint is None or not checkpoint.seen:
            self._disk.remove(self._seen)

    def set_seen(self, attempt: str, pieces: Iterable[bytes]) -> None:
        """Note in which records a verification found blocks so far, and nothing else. Raises: SessionAborted."""
        self._disk.make_folder(self._folder)
        write_pieces(self._seen, _SEEN_MAGIC, chain([attempt.encode()], pieces), self._disk)

    def seen(self, attempt: str) -> Iterator[bytes]:
        """Return the pieces that were noted for this verification. Raises: StateCorrupt, while they are read."""
        pieces = read_pieces(self._seen, _SEEN_MAGIC, self._disk)
        if next(pieces, b"") != attempt.encode():
            raise StateCorrupt(f"{self._seen} tells of another verification")
        yield from pieces

    def scratch(self) -> StateFile:
        """Return a new file for what is too large to be held in memory. Raises: SessionAborted."""
        self._disk.make_folder(self._folder)
        return self._disk.scratch(self._folder)
