"""The state directory: its lock, what it remembers, and that a flipped bit in any of its files shows."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from adapters.state.directory import NO_INCARNATION, SESSIONS_MAX, StateDirectory
from adapters.state.files import Disk, StateFile
from engine.errors import ForebayError, SessionAborted, SessionRunning, StateCorrupt
from engine.ports import AckLog, MirrorFiles
from engine.state import History, Intent, Newest, SessionRow, StateStore, VolumeState
from tests.adapters.state.fakes_disk import WHOLE, entries_of, head_of, numbers

STORE = bytes(range(16))
HOLDER = (
    "import sys; from adapters.state.directory import StateDirectory\n"
    "state = StateDirectory.open(sys.argv[1]); print('held', flush=True); sys.stdin.read()"
)


def row_of(number: int) -> SessionRow:
    return SessionRow(
        session=f"{number:032x}",
        started_ms=number,
        ended_ms=number + 1,
        exit_code=0,
        point=None,
        route="VAULT",
        report="{}",
    )


def holder(path: Path) -> subprocess.Popen[str]:
    """Return a process that holds the lock of the state directory at `path`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_it_is_the_port_the_engine_asks_for(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path / "state") as directory:
        state: StateStore = directory
        history: History = directory.history
        mirror: MirrorFiles = state.mirror(STORE)
        acks: AckLog = state.acks(STORE)
        assert (mirror.names(), acks.read(), list(history.last(9))) == ([], [], [])
        assert (state.intent(), state.newest(), state.open_sessions()) == (None, None, [])
        assert state.volume("a") is state.volume("a")
        assert state.volume("a") is not state.volume("b")


def test_a_second_session_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(SessionRunning, match=rf"\(process {process.pid}\).*{tmp_path}"):
            StateDirectory.open(tmp_path)
        process.kill()
    with StateDirectory.open(tmp_path), pytest.raises(SessionRunning, match=f"process {os.getpid()}"):
        StateDirectory.open(tmp_path)
    StateDirectory.open(tmp_path).close()


def test_an_opening_that_fails_lets_go_of_the_lock(tmp_path: Path) -> None:
    (tmp_path / "lock.pid").mkdir()
    with pytest.raises(SessionAborted, match=r"lock\.pid"):
        StateDirectory.open(tmp_path)
    (tmp_path / "lock.pid").rmdir()
    StateDirectory.open(tmp_path).close()


def test_a_path_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ForebayError, match="file"):
        StateDirectory.open(tmp_path / "file")
    with pytest.raises(ForebayError, match="file"):
        StateDirectory.open(tmp_path / "file" / "below")


def test_looking_needs_no_lock_and_changes_nothing(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path / "none", lock=False) as empty:
        assert empty.incarnation == NO_INCARNATION
        assert (empty.intent(), empty.newest(), empty.open_sessions()) == (None, None, [])
        assert (empty.mirror(STORE).names(), empty.acks(STORE).read()) == ([], [])
        assert empty.volume("a").head is None
        assert list(empty.history.last(3)) == []
        assert empty.history.checked_packs(STORE) == set()
    assert not (tmp_path / "none").exists()
    filled(tmp_path / "a")
    with StateDirectory.open(tmp_path / "a") as session:
        before = snapshot(tmp_path / "a")
        with StateDirectory.open(tmp_path / "a", lock=False) as looking:
            assert looking.incarnation == session.incarnation
            assert looking.volume("data").head == head_of(1, 640)
            assert list(looking.history.last(1)) == [row_of(1)]
            assert looking.open_sessions() == [b"s" * 16]
            assert bytes(looking.mirror(STORE).open("index/a")) == b"fragment"
            assert looking.acks(STORE).read() == [b"one", b"two"]
        assert snapshot(tmp_path / "a") == before


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_everything_is_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        filled(tmp_path / "a")
    finally:
        os.umask(before)
    if os.name == "posix":
        shared = [path for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")) if path.stat().st_mode & 0o077]
        assert shared == []


def test_the_incarnation_stays_until_it_is_renewed(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path / "a") as state:
        first = state.incarnation
        assert len(first) == 8
        assert first != NO_INCARNATION
    with StateDirectory.open(tmp_path / "a") as state:
        assert state.incarnation == first
        second = state.renew_incarnation()
        assert second == state.incarnation != first
    with StateDirectory.open(tmp_path / "a", lock=False) as state:
        assert state.incarnation == second
    with StateDirectory.open(tmp_path / "b") as state:
        assert state.incarnation not in (first, second)


def test_the_intent_is_kept_until_it_is_cleared(tmp_path: Path) -> None:
    intent = Intent(root="root/x", root_hash=b"h" * 32, vault=STORE, heads={"a": head_of(1, 9), "b": head_of(1, 0)})
    with StateDirectory.open(tmp_path) as state:
        state.write_intent(intent)
        assert state.intent() == intent
    with StateDirectory.open(tmp_path) as state:
        assert state.intent() == intent
        state.clear_intent()
        state.clear_intent()
        assert state.intent() is None
    assert StateDirectory.open(tmp_path, lock=False).intent() is None


def test_a_sealed_set_is_kept_only_for_an_open_intent(tmp_path: Path) -> None:
    for intended in (True, False):
        filled(tmp_path / str(intended))
        with StateDirectory.open(tmp_path / str(intended)) as state:
            if not intended:
                state.clear_intent()
            state.volume("data")
        with StateDirectory.open(tmp_path / str(intended)) as state:
            assert state.volume("data").staged_pages().tolist() == ([3, 4] if intended else [])


def test_sessions_are_open_until_a_root_names_them(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path) as state:
        for number in (1, 2, 1):
            state.begin_session(bytes([number]) * 16)
        assert state.open_sessions() == [b"\2" * 16, b"\1" * 16]
    with StateDirectory.open(tmp_path) as state:
        assert len(state.open_sessions()) == 2
        state.end_sessions()
        assert state.open_sessions() == []


def test_open_sessions_are_bounded(tmp_path: Path) -> None:
    with StateDirectory.open(tmp_path) as state:
        for number in range(SESSIONS_MAX + 2):
            state.begin_session(number.to_bytes(16, "big"))
        assert len(state.open_sessions()) == SESSIONS_MAX
        assert state.open_sessions()[0] == (2).to_bytes(16, "big")


def test_the_newest_point_is_remembered(tmp_path: Path) -> None:
    newest = Newest(order=(1 << 64) - 1, incarnation=b"i" * 8, root_hash=b"h" * 32, vault=STORE, system=bytes(16))
    with StateDirectory.open(tmp_path) as state:
        state.set_newest(newest)
    assert StateDirectory.open(tmp_path, lock=False).newest() == newest


def filled(path: Path) -> None:
    """Make a state directory with something in every file: one commit, a second one interrupted before its apply."""
    with StateDirectory.open(path) as state:
        volume = state.volume("data")
        for page in (0, 3, 7):
            volume.stage(page, WHOLE, entries_of(page + 1))
        volume.sync_staged()
        volume.apply(head_of(1, 640))
        volume.stage(3, 0xFF, entries_of(20))
        volume.stage(4, WHOLE, entries_of(21))
        volume.set_missing(numbers(3), np.array([6], dtype=np.uint64))
        volume.sync_missing()
        volume.sync_staged()
        state.write_intent(Intent(root="root", root_hash=b"h" * 32, vault=STORE, heads={"data": head_of(2, 640)}))
        state.set_newest(Newest(order=1, incarnation=b"i" * 8, root_hash=b"h" * 32, vault=STORE, system=bytes(16)))
        state.begin_session(b"s" * 16)
        state.history.add(row_of(1))
        state.history.add_checked_packs(STORE, [b"p" * 32])
        state.mirror(STORE).publish("index/a", b"fragment")
        state.acks(STORE).append(b"one")
        state.acks(STORE).append(b"two")


def map_of(volume: VolumeState) -> tuple[list[int], bytes]:
    """Return the used pages and all pages of a map."""
    return volume.used_pages(0, 10).tolist(), volume.read(numbers(*range(10))).tobytes()


NO_MAP: object = ([], bytes(10 * 4096))


def observed(path: Path) -> dict[str, object]:
    """Return all that can be learned from a state directory, with what is damaged as the kind of its error."""
    seen: dict[str, object] = {}
    with StateDirectory.open(path) as state:
        volume = state.volume("data")
        seen["incarnation"] = state.incarnation
        seen["head"] = volume.head if volume.problem is None else StateCorrupt
        readings: dict[str, Callable[[], object]] = {
            "map": lambda: map_of(volume),
            "staged": lambda: [volume.current(numbers(page)).tobytes() for page in volume.staged_pages()],
            "missing": lambda: volume.missing(numbers(*range(10))).tolist(),
            "intent": state.intent,
            "newest": state.newest,
            "sessions": state.open_sessions,
            "history": lambda: list(state.history.last(5)),
            "packs": lambda: state.history.checked_packs(STORE),
            "acks": lambda: state.acks(STORE).read(),
            "applied": lambda: volume.apply(head_of(2, 640)),
            "map then": lambda: map_of(volume),
        }
        for name, reading in readings.items():
            try:
                seen[name] = reading()
            except StateCorrupt:
                seen[name] = StateCorrupt
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "state"
    filled(path)
    return path


FILES = (
    "incarnation newest journal sessions volumes/*/head volumes/*/map volumes/*/map.sums volumes/*/missing"
    " volumes/*/staged volumes/*/staged.masks volumes/*/staged.sums volumes/*/staged.seal index/*.acks"
)


def test_the_flipped_files_are_all_there_are(whole: Path) -> None:
    named = {path for pattern in FILES.split() for path in whole.glob(pattern)}
    others = {path.relative_to(whole).parts[0] for path in whole.rglob("*") if path.is_file() and path not in named}
    # The lock and SQLite's journal are empty, fragments sealed; rows of history and files of parts have own tests.
    assert others == {"lock", "history.sqlite", "history.sqlite-journal", "index", "volumes"}


@pytest.mark.parametrize("pattern", FILES.split())
def test_a_flipped_bit_shows(whole: Path, tmp_path: Path, pattern: str) -> None:
    shutil.copytree(whole, tmp_path / "right")
    right, chance = observed(tmp_path / "right"), random.Random(pattern)
    (source,) = whole.glob(pattern)
    raw = source.read_bytes()
    places = range(len(raw) * 8) if len(raw) < 20 else sorted(chance.sample(range(len(raw) * 8), 30))
    for place in places:
        shutil.copytree(whole, tmp_path / "flipped")
        flipped = bytearray(raw)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / "flipped" / source.relative_to(whole)).write_bytes(flipped)
        seen = observed(tmp_path / "flipped")
        assert seen != right or is_unused(source, place // 8), place
        assert not_allowed(seen, right) == [], place
        shutil.rmtree(tmp_path / "flipped")


def not_allowed(seen: dict[str, object], right: dict[str, object]) -> list[str]:
    """Name what a damaged state may not show: neither the truth, nor an error, nor nothing, nor the cautious side."""
    cautious: dict[str, list[object]] = {
        "incarnation": [seen["incarnation"]],  # a new one: the state counts as another one's
        "missing": [[WHOLE] * 10],
        "acks": [[], [b"one"]],
        "staged": [[]],  # what was sealed is dropped
        "map then": [right["map"]],
    }
    if seen["head"] is StateCorrupt:
        cautious |= {"map": [NO_MAP], "map then": [NO_MAP], "staged": [[], seen["staged"]]}
    wrong = [
        name
        for name, value in seen.items()
        if value != right[name] and value is not StateCorrupt and value not in cautious.get(name, [])
    ]
    if seen["applied"] is None and seen["map then"] != right["map then"] and seen["map then"] is not StateCorrupt:
        wrong.append("the map after an apply that claims to have worked")
    return wrong


def is_unused(path: Path, offset: int) -> bool:
    """Tell whether a byte belongs to a page that is not staged: what lies there is never read."""
    width = {"staged": 4096, "staged.sums": 8}.get(path.name)
    return width is not None and offset // width not in (3, 4)


@pytest.mark.parametrize("pattern", FILES.split())
def test_a_cut_off_file_shows(whole: Path, tmp_path: Path, pattern: str) -> None:
    shutil.copytree(whole, tmp_path / "right")
    right = observed(tmp_path / "right")
    (source,) = whole.glob(pattern)
    size = source.stat().st_size
    for length in {0, 1, size // 2, size - 1}:
        shutil.copytree(whole, tmp_path / "cut")
        (tmp_path / "cut" / source.relative_to(whole)).write_bytes(source.read_bytes()[:length])
        wrong = not_allowed(observed(tmp_path / "cut"), right)
        # A bitmap cut down to zeros says nothing: it is not checked against anything else.
        is_gone = source.name == "missing" and not any(source.read_bytes()[:length])
        assert wrong == (["missing"] if is_gone else []), length
        shutil.rmtree(tmp_path / "cut")


def test_damage_is_told_in_a_sentence_with_the_name(tmp_path: Path) -> None:
    filled(tmp_path)
    for name in ("journal", "sessions", "newest"):
        (tmp_path / name).write_bytes(b"nonsense")
    with StateDirectory.open(tmp_path) as state:
        with pytest.raises(StateCorrupt, match="journal is damaged"):
            state.intent()
        with pytest.raises(StateCorrupt, match="sessions is damaged"):
            state.open_sessions()
        with pytest.raises(StateCorrupt, match="newest is damaged"):
            state.newest()
        assert state.volume("data").head == head_of(1, 640)
        state.clear_intent()
        state.end_sessions()
        assert (state.intent(), state.open_sessions()) == (None, [])


class CountingFile(StateFile):
    """A file of a `CountingDisk`."""

    syncs = 0

    def sync(self) -> None:
        CountingFile.syncs += 1


class CountingDisk(Disk):
    """A disk that only counts how often it is waited for."""

    def open(self, path: Path, *, writable: bool) -> StateFile:
        return CountingFile(path, writable=writable)

    def sync_folder(self, path: Path) -> None:
        CountingFile.syncs += 1


def test_a_session_that_changes_nothing_waits_for_the_disk_no_more_often_than_it_must(tmp_path: Path) -> None:
    filled(tmp_path)
    CountingFile.syncs = 0
    with StateDirectory.open(tmp_path, disk=CountingDisk()) as state:
        state.clear_intent()
        state.begin_session(b"t" * 16)
        volume = state.volume("data")
        volume.discard_staged()
        before = CountingFile.syncs
        volume.forget_parts()
        volume.sync_staged()
        volume.apply(head_of(2, 640))
        assert CountingFile.syncs - before == 4  # seal and head
        state.write_intent(Intent(root="root", root_hash=b"h" * 32, vault=STORE, heads={}))
        state.set_newest(Newest(order=1, incarnation=b"i" * 8, root_hash=b"h" * 32, vault=STORE, system=bytes(16)))
        state.clear_intent()
        state.end_sessions()
        assert CountingFile.syncs - before == 10
    with StateDirectory.open(tmp_path) as state:
        assert state.volume("data").head == head_of(2, 640)
        assert map_of(state.volume("data"))[0] == [0, 3, 7]
        assert state.open_sessions() == []
