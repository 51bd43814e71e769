"""What of older restore points was found in a cache: one file, always whole; a damaged one says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapters.state.atomic import read_struct, write_struct
from adapters.state.files import Disk
from engine.errors import StateCorrupt
from engine.staterecords import FoundRuns

_MAGIC: Final = b"FBFOUN\x00\x01"


class HealFile:
    """The file `<store id>.found` beside the mirror (implements `HealNotes`)."""

    def __init__(self, folder: Path, store: bytes, disk: Disk) -> None:
        self._folder, self._disk = folder, disk
        self._path = folder / f"{store.hex()}.found"

    def found(self) -> FoundRuns:
        """Return what was noted; nothing if nobody knows."""
        try:
            return read_struct(self._path, _MAGIC, FoundRuns, self._disk) or FoundRuns()
        except StateCorrupt:
            return FoundRuns()

    def put_found(self, found: FoundRuns) -> None:
        """Note this, and nothing else. Raises: SessionAborted."""
        self._disk.make_folder(self._folder)
        write_struct(self._path, _MAGIC, found, self._disk)
