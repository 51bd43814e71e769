"""Reading round bad ranges, for volumes with `on_read_error = "skip"`."""

from __future__ import annotations

from engine.block import BLOCK_BYTES, PART_BYTES
from engine.errors import SourceError, SourceGone
from engine.ports import VolumeReader


def read_with_skips(reader: VolumeReader, offset: int, buffer: memoryview) -> list[tuple[int, int]]:
    """Fill `buffer` from `offset`; zero what cannot be read, and return it as ascending, merged (offset, length).

    A range that fails is read again block by block, and a block that fails part by part, so that a bad sector
    costs one part and only a few slow attempts.

    Raises: SourceGone: the volume as a whole is not there, which is no bad range.
    """
    bad: list[tuple[int, int]] = []
    _read(reader, offset, buffer, (BLOCK_BYTES, PART_BYTES), bad)
    return bad


def _read(
    reader: VolumeReader, offset: int, buffer: memoryview, steps: tuple[int, ...], bad: list[tuple[int, int]]
) -> None:
    try:
        reader.read_into(offset, buffer)
    except SourceGone:
        raise
    except SourceError:
        if not steps:
            buffer[:] = bytes(len(buffer))
            _add(bad, offset, len(buffer))
            return
        step, stop = steps[0], offset + len(buffer)
        start = offset
        while start < stop:
            end = min(stop, (start // step + 1) * step)
            _read(reader, start, buffer[start - offset : end - offset], steps[1:], bad)
            start = end


def _add(bad: list[tuple[int, int]], offset: int, length: int) -> None:
    if bad and sum(bad[-1]) == offset:
        bad[-1] = (bad[-1][0], bad[-1][1] + length)
    else:
        bad.append((offset, length))
