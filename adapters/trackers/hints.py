"""Hints files: changed extents that another tool wrote down (docs/HINTS.md has the format).

A hint says where to look, never what is there. Whatever is wrong with the file, the answer is the same: nothing is
known, the whole volume is compared, and the user is told why.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
import numpy as np
import numpy.typing as npt

from engine.ports import Changes

LINE_BYTES_MAX: Final = 4096
LINES_MAX: Final = 20_000_000
GENERATION_CHARS_MAX: Final = 256
EXTENTS_MAX: Final = 200_000  # of more the smallest gaps are closed: some blocks are looked at in vain
CHUNK_LINES: Final = 100_000
_INT64_MAX: Final = (1 << 63) - 1

_Generation = Annotated[str, msgspec.Meta(min_length=1, max_length=GENERATION_CHARS_MAX)]
_Bytes = Annotated[int, msgspec.Meta(ge=0, le=_INT64_MAX)]
_Extents = npt.NDArray[np.int64]  # shape (n, 2): start, stop


class _Head(msgspec.Struct):
    generation: _Generation
    since: _Generation | None
    extents: _Bytes | None = None


class _Extent(msgspec.Struct):
    offset: _Bytes
    length: Annotated[int, msgspec.Meta(ge=1, le=_INT64_MAX)]


class _BadHints(Exception):
    """The file is not what docs/HINTS.md describes; the message is a sentence's end."""


class HintsTracker:
    """A ChangeTracker over the hints file `path` of a volume; `volume_bytes` tells its size at the time it is asked."""

    def __init__(self, path: Path, volume_bytes: Callable[[], int]) -> None:
        self._path, self._volume_bytes = path, volume_bytes
        self._head_of = msgspec.json.Decoder(_Head).decode
        self._extent_of = msgspec.json.Decoder(_Extent).decode

    def changes(self, generation: str | None) -> Changes:
        """See `ChangeTracker.changes`. Without a `generation` a missing file is no problem: it is yet to be made.

        Raises: SourceError if the volume's size cannot be told.
        """
        try:
            if not stat.S_ISREG(self._path.stat().st_mode):
                raise _BadHints("is no file")
            with self._path.open("rb") as file:
                return self._read(file, generation)
        except FileNotFoundError:
            missing = (
                f"hints file {self._path} does not exist: the whole volume was compared; check the tool that writes it"
            )
            return Changes(None, None, None if generation is None else missing)
        except OSError as error:
            return self._distrusted(f"cannot be read ({error.strerror})")
        except _BadHints as error:
            return self._distrusted(str(error))

    def _distrusted(self, reason: str) -> Changes:
        problem = f"hints file {self._path} {reason}: the whole volume was compared; check the tool that writes it"
        return Changes(None, None, problem)

    def _read(self, file: BinaryIO, generation: str | None) -> Changes:
        try:
            head = self._head_of(file.readline(LINE_BYTES_MAX))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _BadHints(f"has a wrong first line ({error})") from error
        if generation is None:
            return Changes(None, head.generation)
        if head.since != generation:
            problem = (
                f"hints file {self._path} lists the changes since {head.since!r}, the newest point is of"
                f" {generation!r}: the whole volume was compared"
            )
            return Changes(None, head.generation, problem)
        volume_bytes = self._volume_bytes()
        merged, count = np.empty((0, 2), np.int64), 0
        for extents in self._chunks(file, volume_bytes):
            count += len(extents)
            merged = _merged(np.concatenate([merged, extents]))
        if head.extents is not None and head.extents != count:
            raise _BadHints(f"has {count} extents and says it has {head.extents}")
        return Changes([(start, stop - start) for start, stop in merged.tolist()], head.generation)

    def _chunks(self, file: BinaryIO, volume_bytes: int) -> Iterator[_Extents]:
        """Yield the extents, checked, some at a time."""
        rows: list[tuple[int, int]] = []
        number = 1
        while line := file.readline(LINE_BYTES_MAX):
            number += 1
            if number > LINES_MAX:
                raise _BadHints(f"has more than {LINES_MAX} lines")
            try:
                extent = self._extent_of(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise _BadHints(f"has a wrong line {number} ({error})") from error
            stop = extent.offset + extent.length
            if stop > volume_bytes:
                raise _BadHints(f"reaches beyond the volume's {volume_bytes} bytes in line {number}")
            rows.append((extent.offset, stop))
            if len(rows) == CHUNK_LINES:
                yield np.array(rows, np.int64)
                rows.clear()
        if rows:
            yield np.array(rows, np.int64)


def _merged(extents: _Extents) -> _Extents:
    """Sort and merge extents (at least one), and close the smallest gaps while they are more than EXTENTS_MAX."""
    extents = extents[np.argsort(extents[:, 0], kind="stable")]
    reached = np.maximum.accumulate(extents[:, 1])
    gaps = extents[1:, 0] - reached[:-1]
    apart = gaps > 0
    excess = int(np.count_nonzero(apart)) + 1 - EXTENTS_MAX
    if excess > 0:
        apart = gaps > np.partition(gaps[apart], excess - 1)[excess - 1]
    opens = np.flatnonzero(np.concatenate([[True], apart]))
    closes = np.concatenate([opens[1:], [len(extents)]]) - 1
    return np.stack([extents[opens, 0], reached[closes]], axis=1)
