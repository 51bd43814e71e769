"""Files of local state: at offsets, sparse, and with the system's errors said in our words."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adapters.state.atomic import read_struct, write_atomic, write_struct
from adapters.state.directory import StateDirectory
from adapters.state.files import Disk, StateFile, read_failed, write_failed
from engine.errors import SessionAborted, StateCorrupt
from engine.state import VolumeState
from tests.adapters.state.fakes_disk import WHOLE, MachineDied, PlannedDisk, die, entries_of, fill_up, head_of, numbers

MAGIC = b"TESTTEST"
SPACE = 4 << 20


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.ENOSPC, SessionAborted, "is full"),
        (errno.EDQUOT, SessionAborted, "is full"),
        (errno.EACCES, SessionAborted, "may not be written"),
        (errno.EPERM, SessionAborted, "may not be written"),
        (errno.EROFS, SessionAborted, "may not be written"),
        (errno.EIO, SessionAborted, "could not be written"),
        (errno.ENOENT, SessionAborted, "could not be written"),
    ],
)
def test_what_the_system_says_to_a_write(number: int, error: type[Exception], words: str) -> None:
    said = write_failed(Path("dir/map"), OSError(number, os.strerror(number)))
    assert type(said) is error
    assert words in str(said)
    assert str(Path("dir/map")) in str(said)


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (errno.EACCES, SessionAborted, "may not be read"),
        (errno.EPERM, SessionAborted, "may not be read"),
        (errno.EIO, StateCorrupt, "counts as lost"),
        (errno.ENOENT, StateCorrupt, "counts as lost"),
        (errno.ENOSPC, StateCorrupt, "counts as lost"),
    ],
)
def test_what_the_system_says_to_a_read(number: int, error: type[Exception], words: str) -> None:
    said = read_failed(Path("dir/map"), OSError(number, os.strerror(number)))
    assert type(said) is error
    assert words in str(said)
    assert str(Path("dir/map")) in str(said)


@pytest.mark.parametrize("seeking", [False, True])
def test_a_file_reads_what_was_written_and_zeros_around_it(tmp_path: Path, seeking: bool) -> None:
    file = StateFile(tmp_path / "f", writable=True, seeking=seeking)
    file.write_at(10_000, b"abc")
    buffer = bytearray(b"?" * 8)
    file.read_into(9_998, memoryview(buffer))
    assert buffer == b"\0\0abc\0\0\0"
    file.allocate(0, 3 << 20)
    assert file.size() == 3 << 20
    file.read_into(9_998, memoryview(buffer))
    assert buffer == b"\0\0abc\0\0\0"
    file.truncate(10_001)
    file.sync()
    file.read_into(9_998, memoryview(buffer))
    assert buffer == b"\0\0a\0\0\0\0\0"
    file.close()
    file.close()
    missing = StateFile(tmp_path / "none", writable=False, seeking=seeking)
    missing.read_into(0, memoryview(buffer))
    assert missing.size() == 0
    assert not any(buffer)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("by_power", [False, True])
def test_an_atomic_file_is_the_old_one_or_the_new_one(tmp_path: Path, by_power: bool) -> None:
    at, died, seen = 0, True, set()
    while died:
        at += 1
        folder = tmp_path / str(at)
        folder.mkdir()
        disk = PlannedDisk(folder)
        write_atomic(folder / "f", b"old" * 1000, disk)
        disk.at, disk.plan = disk.count + at, die
        try:
            write_atomic(folder / "f", b"new" * 2000, disk)
            died = False
        except MachineDied:
            if by_power:
                disk.power_cut(random.Random(at))
        seen.add((folder / "f").read_bytes())
    assert seen == {b"old" * 1000, b"new" * 2000}


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    disk = PlannedDisk(tmp_path / "d")
    (tmp_path / "d").mkdir()
    write_atomic(tmp_path / "d" / "f", b"old", disk)
    for at in (1, 2, 3, 4):
        disk.at, disk.plan = disk.count + at, fill_up
        with pytest.raises(SessionAborted, match="full"):
            write_atomic(tmp_path / "d" / "f", b"new", disk)
        assert {path.name: path.read_bytes() for path in (tmp_path / "d").iterdir()} == {"f": b"old"}


class Thing(msgspec.Struct, frozen=True):
    count: int


class Other(msgspec.Struct, frozen=True):
    count: str


def test_a_struct_is_read_as_what_it_is_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert read_struct(path, MAGIC, Thing) is None
    write_struct(path, MAGIC, Thing(7))
    assert read_struct(path, MAGIC, Thing) == Thing(7)
    with pytest.raises(StateCorrupt, match="cannot be understood"):
        read_struct(path, MAGIC, Other)
    with pytest.raises(StateCorrupt, match="does not start"):
        read_struct(path, b"OTHEROTH", Thing)
    raw = path.read_bytes()
    for place in range(len(raw) * 8):
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(StateCorrupt, match="f is damaged"):
            read_struct(path, MAGIC, Thing)
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(StateCorrupt, match="f is damaged"):
            read_struct(path, MAGIC, Thing)


@pytest.fixture
def small() -> Iterator[Path]:
    """Yield the folder of a real file system of 4 MiB.

    It is not below pytest's own folder: a mount that a dying process leaves there breaks every later run's tidying.
    """
    folder = Path(tempfile.mkdtemp(prefix="forebay-small-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SPACE}", "forebay-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def fill(folder: Path, left: int) -> None:
    """Fill a file system up to `left` free bytes."""
    (folder / "filler").write_bytes(bytes(max(0, shutil.disk_usage(folder).free - left)))


def stage_all(volume: VolumeState, pages: range) -> None:
    for page in pages:
        volume.stage(page, WHOLE, entries_of(page))


@pytest.mark.root
def test_a_session_on_a_really_full_disk_leaves_the_map_as_it_was(small: Path) -> None:
    with StateDirectory.open(small / "state") as state:
        volume = state.volume("data")
        for page in range(100):
            volume.stage(page, WHOLE, entries_of(page + 1))
        volume.sync_staged()
        volume.apply(head_of(1, 1 << 20))
        with pytest.raises(SessionAborted, match=r"the disk of the state directory is full.*staged"):
            stage_all(volume, range(200, 2000))
        volume.discard_staged()
        assert volume.used_pages(0, 1 << 14).tolist() == list(range(100))
        assert (volume.read(numbers(99))[0] == entries_of(100)).all()


@pytest.mark.root
@pytest.mark.parametrize("left", range(0, 300_000, 20_000))
def test_an_apply_on_a_really_full_disk_changes_nothing_and_works_later(small: Path, left: int) -> None:
    with StateDirectory.open(small / "state") as state:
        volume = state.volume("data")
        for page in range(100):
            volume.stage(page, WHOLE, entries_of(page + 1))
        volume.sync_staged()
        volume.apply(head_of(1, 1 << 20))
        for page in (*range(50), *range(5000, 5100)):
            volume.stage(page, WHOLE, entries_of(7))
        volume.sync_staged()
        fill(small, left)
        with pytest.raises(SessionAborted, match="the disk of the state directory is full"):
            volume.apply(head_of(2, 1 << 20))
        assert volume.head == head_of(1, 1 << 20)
        assert volume.used_pages(0, 1 << 14).tolist() == list(range(100))
        assert (volume.read(numbers(0, 49))[1] == entries_of(50)).all()
        (small / "filler").unlink()
        volume.apply(head_of(2, 1 << 20))
        assert volume.used_pages(0, 1 << 14).tolist() == [*range(100), *range(5000, 5100)]
        assert (volume.read(np.arange(5000, 5100, dtype=np.int64)) == entries_of(7)).all()


@pytest.mark.root
@pytest.mark.parametrize("left", range(400_000, 430_000, 4096))
def test_an_apply_begins_only_where_it_can_end(small: Path, left: int) -> None:
    with StateDirectory.open(small / "state") as state:
        volume = state.volume("data")
        stage_all(volume, range(5000, 5100))
        volume.sync_staged()
        fill(small, left)
        try:
            volume.apply(head_of(1, 1 << 20))
        except SessionAborted:
            assert list(small.glob("state/volumes/*/head.next")) == []
            assert volume.head is None
        else:
            assert volume.used_pages(0, 1 << 14).tolist() == list(range(5000, 5100))


@pytest.mark.root
def test_a_mirror_and_a_log_on_a_really_full_disk(small: Path) -> None:
    with StateDirectory.open(small / "state") as state:
        mirror, acks = state.mirror(b"m" * 16), state.acks(b"m" * 16)
        acks.append(b"one")
        mirror.publish("a", b"fragment")
        fill(small, 100_000)
        with pytest.raises(SessionAborted, match="full"):
            mirror.create("b", 200_000)
        with pytest.raises(SessionAborted, match="full"):
            mirror.publish("a", bytes(200_000))
        with pytest.raises(SessionAborted, match="full"):
            acks.append(bytes(200_000))
        assert bytes(mirror.open("a")) == b"fragment"
        assert mirror.names() == ["a"]
        acks.append(b"two")
        assert acks.read() == [b"one", b"two"]


def test_folders_are_made_with_those_above_them(tmp_path: Path) -> None:
    Disk().make_folder(tmp_path / "a" / "b" / "c")
    Disk().make_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    assert Disk().names(tmp_path / "a" / "none") == []
