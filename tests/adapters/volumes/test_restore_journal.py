"""The journal behind a growing file: the last record or the one before it, whatever a crash leaves; else none."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.volumes.journal import RECORD_BYTES_MAX, SLOT_BYTES, RestoreJournal
from adapters.volumes.open import open_target
from adapters.volumes.targets import PARTIAL_SUFFIX
from engine.block import Bytes
from engine.errors import RestoreError

BLOCK = 65536


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "restored.img"


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        yield fd
    finally:
        os.close(fd)


def journal(fd: int, size_bytes: int = 3 * BLOCK + 5) -> RestoreJournal:
    def write(offset: int, pieces: Sequence[Bytes]) -> None:
        os.pwrite(fd, b"".join(pieces), offset)

    return RestoreJournal(fd, size_bytes, write)


def grown(fd: int, size_bytes: int = 3 * BLOCK + 5) -> RestoreJournal:
    made = journal(fd, size_bytes)
    os.ftruncate(fd, made.file_bytes)
    return made


def test_the_newest_record_is_what_is_read(fd: int) -> None:
    made = grown(fd)
    assert made.read() == b""
    for number in range(5):
        assert made.write(b"record %d" % number)
        assert journal(fd).read() == b"record %d" % number
    again = journal(fd)
    assert again.read() == b"record 4"
    assert again.write(b"later")
    assert journal(fd).read() == b"later"


def test_it_lies_behind_the_volume(fd: int) -> None:
    made = grown(fd)
    os.pwrite(fd, b"\xff" * (3 * BLOCK + 5), 0)
    made.write(b"x" * RECORD_BYTES_MAX)
    made.write(b"y" * RECORD_BYTES_MAX)
    assert os.pread(fd, 3 * BLOCK + 5, 0) == b"\xff" * (3 * BLOCK + 5)
    assert os.fstat(fd).st_size == made.file_bytes
    assert journal(fd).read() == b"y" * RECORD_BYTES_MAX


def test_a_record_that_does_not_fit_is_not_kept(fd: int) -> None:
    made = grown(fd)
    made.write(b"before")
    assert not made.write(bytes(RECORD_BYTES_MAX + 1))
    assert journal(fd).read() == b"before"


@settings(max_examples=60, deadline=None)
@given(records=st.integers(1, 4), flips=st.lists(st.integers(0, 2 * SLOT_BYTES - 1), min_size=1, max_size=6))
def test_a_torn_or_flipped_slot_leaves_the_other_one(
    tmp_path_factory: pytest.TempPathFactory, records: int, flips: list[int]
) -> None:
    path = tmp_path_factory.mktemp("torn") / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        made = grown(fd)
        content = [bytes([number + 1]) * (SLOT_BYTES // 2) for number in range(records)]
        for record in content:
            made.write(record)
        hit = set()
        for flip in flips:
            offset = made.file_bytes - 2 * SLOT_BYTES + flip
            (byte,) = os.pread(fd, 1, offset)
            os.pwrite(fd, bytes([byte ^ 0x40]), offset)
            hit.add(flip // SLOT_BYTES)
        found = journal(fd).read()
        allowed = {b"", *content[-2:]}
        assert found in allowed
        newest_slot = records % 2
        if newest_slot not in hit:
            assert found == content[-1]
        elif records > 1 and 1 - newest_slot not in hit:
            assert found in content[-2:]
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [0, 1, 2 * SLOT_BYTES, 3 * BLOCK + 5])
def test_a_file_of_another_length_has_none(fd: int, size: int) -> None:
    made = grown(fd)
    made.write(b"record")
    os.ftruncate(fd, size)
    assert journal(fd).read() == b""


def test_no_room_for_a_record_does_not_end_a_restore(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = grown(fd)
    made.write(b"before")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        for _ in range(3):
            assert not made.write(b"after")
    assert journal(fd).read() == b"before"
    # What a full disk tore lies where the record before the last one did, however often it is tried.
    os.pwrite(fd, b"torn", made.file_bytes - 2 * SLOT_BYTES)
    assert journal(fd).read() == b"before"
    assert made.write(b"room again")
    assert journal(fd).read() == b"room again"

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        made.write(b"after")


def test_a_restore_that_was_abandoned_goes_on_where_it_was(path: Path) -> None:
    content = random.Random(2).randbytes(5 * BLOCK + 11)
    first = open_target(path, len(content), overwrite=False)
    assert first.begun() == b""
    first.write(0, [content[: 3 * BLOCK]])
    first.keep(b"three blocks")
    first.write(4 * BLOCK, [b"z" * BLOCK])  # not kept: written, or zeroed, again
    first.abandon()
    assert not path.exists()
    second = open_target(path, len(content), overwrite=False)
    assert second.begun() == b"three blocks"
    second.zero(4 * BLOCK, BLOCK)
    second.write(3 * BLOCK, [content[3 * BLOCK :]])
    second.finish()
    second.abandon()
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]


def test_zeros_reach_what_an_interrupted_restore_wrote(path: Path) -> None:
    first = open_target(path, 8 * BLOCK, overwrite=False)
    first.keep(b"nothing yet")
    first.write(6 * BLOCK, [b"z" * BLOCK])
    first.abandon()
    second = open_target(path, 8 * BLOCK, overwrite=False)
    second.zero(0, 8 * BLOCK)
    second.finish()
    assert path.read_bytes() == bytes(8 * BLOCK)


def test_a_restore_of_something_else_begins_anew(path: Path) -> None:
    first = open_target(path, 3 * BLOCK, overwrite=False)
    first.write(0, [b"o" * 3 * BLOCK])
    first.keep(b"other")
    first.abandon()
    second = open_target(path, 3 * BLOCK, overwrite=False)
    second.restart()
    assert second.begun() == b""
    second.write(BLOCK, [b"n" * BLOCK])
    second.finish()
    assert path.read_bytes() == bytes(BLOCK) + b"n" * BLOCK + bytes(BLOCK)


@pytest.mark.parametrize("size", [2 * BLOCK, 4 * BLOCK])
def test_a_partial_file_of_a_volume_of_another_size_is_written_anew(path: Path, size: int) -> None:
    first = open_target(path, 3 * BLOCK, overwrite=False)
    first.write(0, [b"o" * 3 * BLOCK])
    first.keep(b"other")
    first.abandon()
    second = open_target(path, size, overwrite=False)
    assert second.begun() == b""
    second.finish()
    assert path.read_bytes() == bytes(size)


def test_nothing_is_left_of_a_restore_that_kept_nothing(path: Path) -> None:
    target = open_target(path, 3 * BLOCK, overwrite=False)
    target.write(0, [b"x" * BLOCK])
    target.abandon()
    assert os.listdir(path.parent) == []


def test_a_partial_file_somebody_else_may_write_to_is_not_believed(path: Path, tmp_path: Path) -> None:
    first = open_target(path, BLOCK, overwrite=False)
    first.write(0, [b"x" * BLOCK])
    first.keep(b"all")
    first.abandon()
    partial = Path(f"{path}{PARTIAL_SUFFIX}")
    os.link(partial, tmp_path / "another name")
    target = open_target(path, BLOCK, overwrite=False)
    assert target.begun() == b""
    target.finish()
    assert path.read_bytes() == bytes(BLOCK)


def test_a_sync_that_fails_is_an_error_in_words(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = open_target(path, BLOCK, overwrite=False)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(RestoreError, match=r"how far the restore is could not be kept in .*: Input/output error"):
            target.keep(b"x")
    target.abandon()
