"""Index mirrors and logs of acknowledged packs: whole or not there, whatever a crash left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.state.files import Disk, StateFile
from adapters.state.fragments import ENTRY_BYTES_MAX, AckFile, MirrorFolder
from engine.block import Bytes
from engine.errors import SessionAborted, StateCorrupt
from tests.adapters.state.fakes_disk import MachineDied, PlannedDisk, SeekingDisk, die, fill_up

NAME = f"index/{'a' * 32}/{'b' * 16}-00000001"


def mirror(path: Path, disk: Disk | None = None) -> MirrorFolder:
    return MirrorFolder(path / "mirror", disk or Disk(), writable=True)


def log(path: Path, disk: Disk | None = None) -> AckFile:
    return AckFile(path / "index" / "log.acks", disk or Disk(), writable=True)


@pytest.mark.parametrize("disk", [Disk(), SeekingDisk()], ids=["positioned", "seeking"])
def test_a_fragment_is_seen_once_it_is_published(tmp_path: Path, disk: Disk) -> None:
    files = mirror(tmp_path, disk)
    view = files.create(NAME, 100_000)
    assert len(view) == 100_000
    assert not any(view)
    view[5:9] = b"here"
    assert files.names() == []
    with pytest.raises(StateCorrupt, match="could not be read"):
        files.open(NAME)
    files.publish(NAME, view)
    assert files.names() == [NAME]
    found = mirror(tmp_path).open(NAME)
    assert found.readonly
    assert bytes(found) == bytes(5) + b"here" + bytes(100_000 - 9)


def test_a_view_that_is_still_looked_at_is_published_as_well(tmp_path: Path) -> None:
    files = mirror(tmp_path)
    view = files.create("a", 64)
    words = np.frombuffer(view, dtype=np.uint64)
    view[:3] = b"abc"
    files.publish("a", view)
    assert bytes(files.open("a")) == b"abc" + bytes(61)
    assert words.size == 8
    assert mirror(tmp_path).names() == ["a"]


def test_bytes_are_published_as_they_are(tmp_path: Path) -> None:
    files = mirror(tmp_path)
    files.publish("b", b"two")
    files.publish("a", memoryview(b"one"))
    files.publish("empty", files.create("empty", 0))
    assert files.names() == ["a", "b", "empty"]
    assert [bytes(files.open(name)) for name in files.names()] == [b"one", b"two", b""]
    files.publish("a", b"other")
    assert bytes(files.open("a")) == b"other"


def test_removing_is_done_when_nothing_is_left(tmp_path: Path) -> None:
    files = mirror(tmp_path)
    files.publish("a", b"one")
    files.remove("a")
    files.remove("a")
    assert files.names() == []


def test_what_was_never_published_is_swept(tmp_path: Path) -> None:
    mirror(tmp_path).create("a", 5000)
    assert [path.name for path in (tmp_path / "mirror").iterdir()] == [".new-a"]
    assert mirror(tmp_path).names() == []
    assert list((tmp_path / "mirror").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "..", "../a", "a/../b", "/a", "a/", "A", "a+b", "a\\b", ".new-a", "a" * 201, "a\n"]
)
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    files = mirror(tmp_path)
    for refused in (
        lambda: files.publish(name, b""),
        lambda: files.create(name, 5),
        lambda: files.open(name),
        lambda: files.remove(name),
    ):
        with pytest.raises(StateCorrupt, match="cannot be the name"):
            refused()
    assert list((tmp_path / "mirror").iterdir()) == []


def test_foreign_files_in_the_folder_are_no_fragments(tmp_path: Path) -> None:
    files = mirror(tmp_path)
    (tmp_path / "mirror" / "Thumbs.db").write_bytes(b"")
    assert files.names() == []


def test_a_full_disk_is_met_when_a_fragment_is_created_not_when_it_is_filled(tmp_path: Path) -> None:
    disk = PlannedDisk(tmp_path / "mirror")
    files = mirror(tmp_path, disk)
    disk.at, disk.plan = disk.count + 2, fill_up
    with pytest.raises(SessionAborted, match="full"):
        files.create("a", 5000)
    assert list((tmp_path / "mirror").iterdir()) == []


@pytest.mark.parametrize("mapped", [True, False])
def test_dying_while_publishing_leaves_all_or_nothing(tmp_path: Path, mapped: bool) -> None:
    at, died, seen = 0, True, set()
    while died:
        at += 1
        disk = PlannedDisk(tmp_path / str(at) / "mirror")
        files = mirror(tmp_path / str(at), disk)
        data: memoryview | bytes = b"x" * 5000
        if mapped:
            data = files.create("a", 5000)
            data[:] = b"x" * 5000
        disk.at, disk.plan = disk.count + at, die
        try:
            files.publish("a", data)
            died = False
        except MachineDied:
            pass
        again = mirror(tmp_path / str(at))
        seen.add(tuple(bytes(again.open(name)) for name in again.names()))
    assert seen == {(), (b"x" * 5000,)}


def test_acknowledged_packs_are_read_in_their_order(tmp_path: Path) -> None:
    acks = log(tmp_path)
    assert acks.read() == []
    for entry in (b"one", b"", b"three" * 1000):
        acks.append(entry)
    assert acks.read() == [b"one", b"", b"three" * 1000]
    assert log(tmp_path).read() == [b"one", b"", b"three" * 1000]
    acks.clear()
    assert acks.read() == log(tmp_path).read() == []
    acks.append(b"four")
    assert log(tmp_path).read() == [b"four"]


def test_an_entry_has_a_bound(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="longer"):
        log(tmp_path).append(bytes(ENTRY_BYTES_MAX + 1))


def test_a_torn_tail_is_dropped_and_appending_goes_on_after_it(tmp_path: Path) -> None:
    acks = log(tmp_path)
    for entry in (b"one", b"two"):
        acks.append(entry)
    raw = (tmp_path / "index" / "log.acks").read_bytes()
    for length in range(len(raw)):
        (tmp_path / "index" / "log.acks").write_bytes(raw[:length])
        again = log(tmp_path)
        kept = again.read()
        assert kept == ([b"one"] if length >= len(raw) // 2 else [])
        again.append(b"three")
        again.append(b"four")
        assert again.read() == log(tmp_path).read() == [*kept, b"three", b"four"]


def test_entries_behind_a_damaged_one_do_not_come_back(tmp_path: Path) -> None:
    acks = log(tmp_path)
    for entry in (b"one", b"two", b"six"):
        acks.append(entry)
    acks.close()
    path = tmp_path / "index" / "log.acks"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3 - 1] ^= 1
    path.write_bytes(raw)
    again = log(tmp_path)
    again.append(b"new")
    assert again.read() == [b"new"]


class HalfWriting(StateFile):
    """A file whose second write gets half of its bytes to the disk before that is full."""

    writes = 0

    def write_at(self, offset: int, data: Bytes) -> None:
        type(self).writes += 1
        if self.writes == 2:
            super().write_at(offset, bytes(data)[: len(data) // 2])
            fill_up()
        super().write_at(offset, data)


class HalfDisk(Disk):
    """A disk of `HalfWriting` files."""

    def open(self, path: Path, *, writable: bool) -> StateFile:
        return HalfWriting(path, writable=writable)


def test_a_disk_that_fills_up_within_an_entry_loses_that_entry_only(tmp_path: Path) -> None:
    HalfWriting.writes = 0
    acks = log(tmp_path, HalfDisk())
    acks.append(b"one")
    with pytest.raises(SessionAborted, match="full"):
        acks.append(b"two")
    assert acks.read() == [b"one"]
    acks.append(b"three")
    assert acks.read() == log(tmp_path).read() == [b"one", b"three"]


@settings(deadline=None)  # files on a busy machine
@given(
    entries=st.lists(st.binary(max_size=40), max_size=6),
    damage=st.one_of(
        st.tuples(st.just("cut"), st.integers(0, 300)),
        st.tuples(st.just("flip"), st.integers(0, 2400)),
        st.tuples(st.just("tail"), st.integers(0, 60)),
    ),
)
def test_whatever_happened_to_the_log_only_whole_first_entries_are_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[bytes], damage: tuple[str, int]
) -> None:
    path = tmp_path_factory.mktemp("log")
    acks = log(path)
    for entry in entries:
        acks.append(entry)
    acks.close()
    file = path / "index" / "log.acks"
    raw = bytearray(file.read_bytes() if file.exists() else b"")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(bytes(damaged(raw, *damage)))
    found = log(path).read()
    assert found == entries[: len(found)]
    assert damage[0] != "tail" or found == entries


def damaged(raw: bytearray, kind: str, where: int) -> Iterator[int]:
    """Yield the bytes of a log that was cut off, got a bit flipped or a tail of rubbish."""
    if kind == "cut":
        raw = raw[:where]
    elif kind == "flip" and raw:
        raw[where // 8 % len(raw)] ^= 1 << where % 8
    elif kind == "tail":
        raw = raw + b"\xff" * where
    yield from raw
