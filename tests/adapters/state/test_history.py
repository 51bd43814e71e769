"""History: bounded, durable, readable beside a session, and honest about damage."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from adapters.state import history
from adapters.state.history import SESSIONS_MAX, HistoryFile
from engine.errors import SessionAborted, StateCorrupt
from engine.names import PackName
from engine.state import SessionRow

A, B = b"a" * 16, b"b" * 16


def row_of(number: int) -> SessionRow:
    return SessionRow(
        session=f"{number:032x}",
        started_ms=number,
        ended_ms=number + 5,
        exit_code=number % 5,
        point=f"point {number}" if number % 2 else None,
        route="VAULT",
        report=f'{{"figure": {number}}}',
    )


def test_the_newest_session_comes_first(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "h", writable=True)
    for number in range(5):
        file.add(row_of(number))
    assert file.last(2) == [row_of(4), row_of(3)]
    file.close()
    assert HistoryFile(tmp_path / "h", writable=True).last(99) == [row_of(number) for number in (4, 3, 2, 1, 0)]
    assert file.last(0) == []
    file.close()


def test_the_oldest_session_goes_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SESSIONS_MAX == 1000
    monkeypatch.setattr(history, "SESSIONS_MAX", 7)
    file = HistoryFile(tmp_path / "h", writable=True)
    for number in range(20):
        file.add(row_of(number))
    assert [row.started_ms for row in file.last(100)] == list(range(19, 12, -1))
    file.close()


def test_checked_packs_are_kept_by_store(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "h", writable=True)
    file.add_checked_packs(A, [b"1" * 32, b"2" * 32, b"1" * 32])
    file.add_checked_packs(B, [b"3" * 32])
    file.add_checked_packs(A, [b"2" * 32])
    file.add_checked_packs(A, [])
    assert file.checked_packs(A) == {b"1" * 32, b"2" * 32}
    assert file.checked_packs(B) == {b"3" * 32}
    file.close()


def test_what_stands_in_for_damaged_packs_is_kept_by_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = [PackName("data", A, bytes([number]) * 32, 900 + number) for number in range(4)]
    file = HistoryFile(tmp_path / "h", writable=True)
    file.add_stand_in(A, packs[0], packs[1])
    file.add_stand_in(B, packs[0], packs[3])
    file.add_stand_in(A, packs[0], packs[2])
    assert (file.stand_ins(A), file.stand_ins(B)) == ({packs[0]: packs[2]}, {packs[0]: packs[3]})
    monkeypatch.setattr(history, "STAND_INS_MAX", 1)
    file.add_stand_in(A, packs[1], packs[1])
    assert (file.stand_ins(A), file.stand_ins(B)) == ({packs[1]: packs[1]}, {})
    file.close()


def test_the_oldest_checked_packs_go_when_there_are_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "CHECKED_PACKS_MAX", 10)
    file = HistoryFile(tmp_path / "h", writable=True)
    for number in range(30):
        file.add_checked_packs(A, [bytes([number]) * 32])
    assert file.checked_packs(A) == {bytes([number]) * 32 for number in range(20, 30)}
    file.close()


def test_a_reader_beside_a_session_sees_what_is_done(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "h", writable=True)
    file.add(row_of(1))
    reader = HistoryFile(tmp_path / "h", writable=False)
    assert reader.last(9) == [row_of(1)]
    file.add(row_of(2))
    assert reader.last(9) == [row_of(2), row_of(1)]
    with pytest.raises(SessionAborted, match="rights"):
        reader.add(row_of(3))
    reader.close()
    file.close()


def test_looking_for_a_history_that_is_not_there_makes_none(tmp_path: Path) -> None:
    reader = HistoryFile(tmp_path / "h", writable=False)
    assert reader.last(9) == []
    assert reader.checked_packs(A) == set()
    reader.close()
    assert list(tmp_path.iterdir()) == []


def interrupted(path: Path) -> None:
    """Leave a database as a killed process does: in the middle of a transaction that has reached the file."""
    path.mkdir()
    file = HistoryFile(path / "before", writable=True)
    for number in range(200):
        file.add(row_of(number))
    file.close()
    database = sqlite3.connect(path / "before")
    database.execute("PRAGMA cache_size = 2")
    database.execute("BEGIN")
    database.execute("UPDATE session SET sum = zeroblob(8)")
    for suffix in ("", "-journal"):
        shutil.copyfile(path / f"before{suffix}", path / f"h{suffix}")
    database.close()


def test_a_transaction_a_crash_cut_off_is_not_seen(tmp_path: Path) -> None:
    interrupted(tmp_path / "a")
    before = {each.name: each.read_bytes() for each in (tmp_path / "a").iterdir()}
    assert before["h"] != before["before"]
    reader = HistoryFile(tmp_path / "a" / "h", writable=False)
    assert reader.last(1000) == [row_of(number) for number in range(199, -1, -1)]
    reader.close()
    assert {each.name: each.read_bytes() for each in (tmp_path / "a").iterdir()} == before
    writer = HistoryFile(tmp_path / "a" / "h", writable=True)
    assert len(writer.last(1000)) == 200
    writer.close()


def test_a_damaged_row_is_noticed(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "h", writable=True)
    file.add(row_of(1))
    file.close()
    raw = (tmp_path / "h").read_bytes()
    assert raw.count(b'{"figure": 1}') == 1
    (tmp_path / "h").write_bytes(raw.replace(b'{"figure": 1}', b'{"figure": 3}'))
    with pytest.raises(StateCorrupt, match="does not match its checksum; remove it"):
        file.last(1)
    file.close()


@pytest.mark.parametrize("writable", [True, False])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, writable: bool) -> None:
    (tmp_path / "h").write_bytes(b"nonsense" * 1000)
    file = HistoryFile(tmp_path / "h", writable=writable)
    with pytest.raises(StateCorrupt, match=r"h is damaged .* remove it"):
        file.last(1)
    file.close()


def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "h").mkdir()
    file = HistoryFile(tmp_path / "h", writable=True)
    with pytest.raises(SessionAborted, match=os.sep + "h"):
        file.last(1)
    file.close()


def test_locks_are_kept_by_store_and_day_until_they_end(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "history.sqlite", writable=True)
    assert file.locks(A) == (0, {})
    file.add_locks(A, 100, b"1" * 16, looked=40, today=40)
    file.add_locks(A, 100, b"2" * 8, looked=41, today=41)
    file.add_locks(A, 101, b"3" * 8, looked=42, today=42)
    file.add_locks(B, 101, b"", looked=42, today=42)
    assert file.locks(A) == (42, {100: b"1" * 16 + b"2" * 8, 101: b"3" * 8})
    assert file.locks(B) == (42, {101: b""})
    file.add_locks(B, 160, b"4" * 8, looked=101, today=101)
    assert file.locks(A) == (42, {101: b"3" * 8})
    file.close()


def test_a_damaged_row_of_locks_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    file = HistoryFile(path, writable=True)
    file.add_locks(A, 100, b"1" * 8, looked=40, today=40)
    file.close()
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE lock_until SET keys = ?", (b"2" * 8,))
    assert file.locks(A) == (0, {})
    file.add_locks(A, 100, b"3" * 8, looked=41, today=41)
    assert file.locks(A) == (41, {100: b"3" * 8})
    file.close()
