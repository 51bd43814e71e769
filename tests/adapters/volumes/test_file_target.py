"""Files as restore targets: sparse, whole or not there, and never at the cost of what was there before."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import directio
from adapters.volumes import writing
from adapters.volumes.open import open_target
from adapters.volumes.targets import PARTIAL_SUFFIX, FileTarget
from engine.errors import RestoreError
from tests.adapters.disks import tmpfs

BLOCK = 65536
MIB = 1 << 20
TIB = 1 << 40


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "restored.img"


def test_a_restore_gives_the_exact_bytes_and_nothing_else(path: Path) -> None:
    target = open_target(path, 3 * BLOCK + 5, overwrite=False)
    target.write(BLOCK, [b"b" * BLOCK])
    target.zero(2 * BLOCK, BLOCK + 5)
    assert not path.exists()
    target.finish()
    target.abandon()
    assert path.read_bytes() == bytes(BLOCK) + b"b" * BLOCK + bytes(BLOCK + 5)
    assert os.listdir(path.parent) == [path.name]


def test_an_empty_volume_gives_an_empty_file(path: Path) -> None:
    open_target(path, 0, overwrite=False).finish()
    assert path.read_bytes() == b""


def test_zeros_of_one_tebibyte_take_no_room(path: Path) -> None:
    target = open_target(path, TIB, overwrite=False)
    target.zero(0, TIB // 2)
    target.write(TIB // 2, [b"x" * BLOCK])
    target.zero(TIB // 2 + BLOCK, TIB // 2 - BLOCK)
    target.zero(0, TIB // 2)
    target.finish()
    found = path.stat()
    assert found.st_size == TIB
    assert found.st_blocks * 512 < 2 * BLOCK


RANGES = st.lists(st.tuples(st.booleans(), st.integers(0, 5 * BLOCK), st.integers(0, 2 * BLOCK)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 5 * BLOCK), ranges=RANGES)
def test_any_order_of_writes_and_zeros_is_kept(
    tmp_path_factory: pytest.TempPathFactory, size: int, ranges: list[tuple[bool, int, int]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "restored.img"
    target, expected = FileTarget(path, size, overwrite=False), bytearray(size)
    for number, (is_zero, offset, length) in enumerate(ranges, 1):
        start = min(offset, size)
        length = min(length, size - start)
        data = bytes(length) if is_zero else bytes([number]) * length
        target.zero(start, length) if is_zero else target.write(start, [data])
        expected[start : start + length] = data
    target.finish()
    assert path.read_bytes() == bytes(expected)


def test_many_threads_write_at_once(path: Path) -> None:
    content = random.Random(1).randbytes(100 * 4096)
    target = open_target(path, len(content), overwrite=False)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda at: target.write(at, [content[at : at + 4096]]), range(0, len(content), 4096)))
    target.finish()
    assert path.read_bytes() == content


def test_many_pieces_are_written_whole_even_a_little_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [random.Random(number).randbytes(1 + number * 700 % 5000) for number in range(1200)]
    content = b"".join(pieces)
    whole, turns = os.pwritev, count()

    def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        if next(turns) % 2:
            return whole(fd, buffers, offset)
        return os.pwrite(fd, b"".join(buffers)[: 1 + next(turns) % 4000], offset)

    monkeypatch.setattr(os, "pwritev", short)
    target = open_target(path, len(content) + 50, overwrite=False)
    target.write(25, pieces)
    target.write(0, [])
    target.write(3, [b"", b"x", b""])
    target.finish()
    assert path.read_bytes() == bytes(3) + b"x" + bytes(21) + content + bytes(25)


def test_what_was_written_is_written_out_as_it_goes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, offset, length, advice: told.append((offset, length)))
    monkeypatch.setattr(writing, "BEHIND_BYTES", 3 * BLOCK)
    monkeypatch.setattr(directio, "DIRECT_BYTES_MIN", 1 << 40)
    target = open_target(path, 2000 * BLOCK, overwrite=False)
    for number in (2, 0, 1, 3, 4):
        target.write(number * BLOCK, [bytes(BLOCK)])
    assert told == [(0, 3 * BLOCK)]
    target.write(1999 * BLOCK, [bytes(BLOCK)])
    assert told == [(0, 3 * BLOCK)]  # too far apart: the system would look at everything between
    target.write(5 * BLOCK, [bytes(BLOCK)] * 150)
    assert told == [(0, 3 * BLOCK), (3 * BLOCK, 1997 * BLOCK)]
    target.finish()


def test_a_file_that_exists_is_refused_and_stays(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(RestoreError, match="exists: choose another path, or give --overwrite"):
        open_target(path, 100, overwrite=False)
    assert path.read_bytes() == b"precious"
    assert os.listdir(path.parent) == [path.name]


def test_a_file_is_replaced_only_by_finish(path: Path) -> None:
    path.write_bytes(b"precious")
    target = open_target(path, 100, overwrite=True)
    target.write(0, [b"x" * 100])
    assert path.read_bytes() == b"precious"
    target.abandon()
    assert path.read_bytes() == b"precious"
    target = open_target(path, 100, overwrite=True)
    target.write(0, [b"y" * 100])
    target.finish()
    assert path.read_bytes() == b"y" * 100
    assert os.listdir(path.parent) == [path.name]


def test_a_file_that_comes_to_exist_meanwhile_is_kept_and_so_is_the_restore(path: Path) -> None:
    target = open_target(path, 3, overwrite=False)
    target.write(0, [b"new"])
    path.write_bytes(b"precious")
    with pytest.raises(RestoreError, match="came to exist during the restore; all data is in"):
        target.finish()
    target.abandon()
    assert path.read_bytes() == b"precious"
    assert Path(f"{path}{PARTIAL_SUFFIX}").read_bytes() == b"new"


def test_a_partial_file_of_a_killed_restore_is_written_anew(path: Path) -> None:
    Path(f"{path}{PARTIAL_SUFFIX}").write_bytes(b"z" * 1000)
    target = open_target(path, 10, overwrite=False)
    target.finish()
    assert path.read_bytes() == bytes(10)


def test_two_restores_to_one_file_are_refused(path: Path) -> None:
    first = open_target(path, 10, overwrite=False)
    first.write(0, [b"first"])
    with pytest.raises(RestoreError, match="is being written by another restore"):
        open_target(path, 10, overwrite=False)
    first.finish()
    assert path.read_bytes() == b"first" + bytes(5)


def test_what_cannot_be_a_target_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(RestoreError, match="is a folder: name a file in it"):
        open_target(tmp_path, 10, overwrite=True)
    with pytest.raises(RestoreError, match="does not exist: make it"):
        open_target(tmp_path / "no" / "file", 10, overwrite=False)
    with pytest.raises(RestoreError, match="neither a file nor a block device"):
        open_target(Path("/dev/null"), 10, overwrite=True)
    (tmp_path / f"x{PARTIAL_SUFFIX}").mkdir()
    with pytest.raises(RestoreError, match="cannot be made: Is a directory"):
        open_target(tmp_path / "x", 10, overwrite=False)


def test_a_link_is_not_followed_by_the_partial_file(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    Path(f"{path}{PARTIAL_SUFFIX}").symlink_to(victim)
    with pytest.raises(RestoreError, match="cannot be made"):
        open_target(path, 10, overwrite=False)
    assert victim.read_bytes() == b"precious"


def test_a_range_outside_the_volume_is_a_bug(path: Path) -> None:
    target = open_target(path, 100, overwrite=False)
    for offset, length in [(99, 2), (-1, 1), (101, 0)]:
        with pytest.raises(AssertionError):
            target.write(offset, [bytes(length)])
        with pytest.raises(AssertionError):
            target.zero(offset, length)
    target.abandon()


@pytest.mark.root
def test_a_full_disk_is_a_sentence_and_leaves_nothing_after_abandon(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "small", MIB) as where:
        path = where / "restored.img"
        target = open_target(path, 8 * MIB, overwrite=False)
        with pytest.raises(RestoreError, match=r"writing 4194304 bytes at offset 0 of .* failed: No space left"):
            target.write(0, [b"x" * (4 * MIB)])
        target.abandon()
        target.abandon()
        assert os.listdir(where) == []
