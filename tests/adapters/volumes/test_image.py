"""Image files as volumes: exact bytes from any thread, holes known, and sentences where they cannot be read."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from adapters.volumes.open import open_volume, volume_bytes
from engine.errors import SourceError, SourceGone
from engine.ports import VolumeReader

BLOCK = 65536
TIB = 1 << 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.img"


def read(reader: VolumeReader, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    reader.read_into(offset, memoryview(buffer))
    return bytes(buffer)


@pytest.mark.parametrize("size", [0, 1, 4095, BLOCK, BLOCK + 1, 5 * BLOCK - 512, 1_000_003])
def test_every_byte_of_any_size_is_read(path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    path.write_bytes(content)
    reader = open_volume("data", path)
    assert (reader.name, reader.size_bytes, volume_bytes("data", path)) == ("data", size, size)
    assert read(reader, 0, size) == content
    assert read(reader, size // 3, size - size // 3) == content[size // 3 :]
    assert sum(length for _, length in reader.data_extents(0, size)) == size
    reader.close()
    reader.close()


def test_many_threads_read_at_once(path: Path) -> None:
    content = random.Random(1).randbytes(200 * 4096)
    path.write_bytes(content)
    reader = open_volume("data", path)
    chosen = random.Random(2)
    ranges = [(start, chosen.randrange(1, 9000)) for start in chosen.choices(range(len(content) - 9000), k=2000)]
    with ThreadPoolExecutor(8) as threads:
        for (offset, length), got in zip(ranges, threads.map(lambda pair: read(reader, *pair), ranges), strict=True):
            assert got == content[offset : offset + length]
    reader.close()


@pytest.mark.parametrize(("offset", "length"), [(90, 11), (100, 1), (1000, 5)])
def test_reading_beyond_the_end_names_volume_and_offset(path: Path, offset: int, length: int) -> None:
    path.write_bytes(bytes(100))
    reader = open_volume("data", path)
    with pytest.raises(SourceError, match=r"'data'.* at offset .*shrunk") as caught:
        read(reader, offset, length)
    assert caught.value.offset == max(100, offset)
    reader.close()


def test_a_volume_that_shrinks_is_gone_and_its_end_is_no_hole(path: Path) -> None:
    path.write_bytes(b"x" * (4 * BLOCK))
    reader = open_volume("data", path)
    os.truncate(path, BLOCK)
    assert read(reader, 0, BLOCK) == b"x" * BLOCK
    with pytest.raises(SourceGone, match="shrunk"):
        read(reader, 0, 2 * BLOCK)
    with pytest.raises(SourceGone, match="shrunk"):
        list(reader.data_extents(0, 4 * BLOCK))
    reader.close()


def test_a_volume_that_grows_keeps_the_size_it_was_opened_with(path: Path) -> None:
    path.write_bytes(b"x" * BLOCK)
    reader = open_volume("data", path)
    os.truncate(path, 4 * BLOCK)
    assert reader.size_bytes == BLOCK
    assert list(reader.data_extents(0, 4 * BLOCK)) == [(0, BLOCK)]
    reader.close()


def test_a_file_removed_while_it_is_open_can_still_be_read(path: Path) -> None:
    path.write_bytes(b"x" * BLOCK)
    reader = open_volume("data", path)
    path.unlink()
    assert read(reader, 0, BLOCK) == b"x" * BLOCK
    reader.close()


def test_a_closed_volume_gives_an_error(path: Path) -> None:
    path.write_bytes(b"x" * BLOCK)
    reader = open_volume("data", path)
    reader.close()
    with pytest.raises(SourceError, match="'data'"):
        read(reader, 0, 1)


def test_all_outside_the_extents_is_zero_and_neighbours_are_merged(path: Path) -> None:
    chosen = random.Random(3)
    size = 300 * BLOCK + 777
    pieces = {chosen.randrange(300) for _ in range(60)} | {10, 11, 12, 300}
    with path.open("wb") as file:
        file.truncate(size)
        for piece in pieces:
            file.seek(piece * BLOCK)
            file.write(b"d" * min(BLOCK, size - piece * BLOCK))
    reader = open_volume("data", path)
    for start, stop in [
        (0, size),
        (0, 2 * size),
        (5 * BLOCK + 1, 200 * BLOCK - 1),
        (11 * BLOCK, 11 * BLOCK + 1),
        (9, 9),
    ]:
        extents = list(reader.data_extents(start, stop))
        position = start
        for offset, length in extents:
            assert length > 0
            assert offset > position or offset == position == start
            assert read(reader, position, offset - position) == bytes(offset - position)
            position = offset + length
        assert position <= min(stop, size) or start == stop
        rest = max(0, min(stop, size) - position)
        assert read(reader, position, rest) == bytes(rest)
    reader.close()


def test_a_sparse_volume_of_one_tebibyte_has_the_extents_that_were_written(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(TIB)
        for offset in (0, TIB // 2, TIB - BLOCK):
            file.seek(offset)
            file.write(b"x" * BLOCK)
    reader = open_volume("data", path)
    assert list(reader.data_extents(0, TIB)) == [(0, BLOCK), (TIB // 2, BLOCK), (TIB - BLOCK, BLOCK)]
    assert list(reader.data_extents(TIB // 4, TIB // 2 + 10)) == [(TIB // 2, 10)]
    assert read(reader, TIB - BLOCK, BLOCK) == b"x" * BLOCK
    reader.close()


def test_what_is_no_volume_gets_a_sentence(tmp_path: Path, path: Path) -> None:
    with pytest.raises(SourceGone, match=r"'data': it cannot be read: .*disk.img does not exist: check"):
        open_volume("data", path)
    with pytest.raises(SourceGone, match="is a folder: give"):
        open_volume("data", tmp_path)
    os.mkfifo(path)
    with pytest.raises(SourceGone, match="is no file: give"):
        open_volume("data", path)
    with pytest.raises(SourceGone, match="is no file: give"):
        open_volume("data", Path("/dev/null"))
    with pytest.raises(SourceGone, match="cannot be opened: Not a directory"):
        open_volume("data", path / "below")


def test_no_right_gets_a_sentence(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"secret")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceGone, match=r"no right to read .*disk.img: run as a user who may"):
        open_volume("data", path)
