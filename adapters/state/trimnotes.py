"""What the last trimming of a cache told: one small file, always whole; a damaged one counts as none."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapters.state.atomic import read_struct, write_struct
from adapters.state.files import Disk
from engine.cache.trimrecord import TrimRecord
from engine.errors import StateCorrupt

_MAGIC: Final = b"FBTRIM\x00\x01"


class TrimFile:
    """The file `<store id>.trim` beside the mirror (implements `TrimNotes`)."""

    def __init__(self, folder: Path, store: bytes, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._path = folder / f"{store.hex()}.trim"

    def last(self) -> TrimRecord | None:
        """Return what became of the last one; None: there was none, or nobody knows."""
        try:
            return read_struct(self._path, _MAGIC, TrimRecord, self._disk)
        except StateCorrupt:
            return None

    def put(self, record: TrimRecord) -> None:
        """Remember this one. Raises: SessionAborted."""
        self._disk.make_folder(self._folder)
        write_struct(self._path, _MAGIC, record, self._disk)
