"""Verifications in local history, the real one and the one of the engine's tests: one contract; and damage."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from adapters.state import history
from adapters.state.history import ATTEMPTS_MAX, HistoryFile
from engine.cache.attempt import Attempt
from engine.errors import SessionAborted
from engine.state import CacheHistory
from tests.fakes_state import MemoryCacheHistory

A, B = b"a" * 16, b"b" * 16
ATTEMPTS_KEPT = 5


@pytest.fixture(params=["memory", "file"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CacheHistory]:
    if request.param == "memory":
        yield MemoryCacheHistory(attempts_max=ATTEMPTS_KEPT)
        return
    assert ATTEMPTS_MAX == 1000
    monkeypatch.setattr(history, "ATTEMPTS_MAX", ATTEMPTS_KEPT)
    file = HistoryFile(tmp_path / "history.sqlite", writable=True)
    yield file
    file.close()


def attempt_of(number: int, store: bytes = A, *, completed: bool = True, missing: int = 0) -> Attempt:
    return Attempt(
        attempt=f"{number:032x}", store=store.hex(), started_ms=1000 * number, ended_ms=1000 * number + 5,
        completed=completed, blocks=1000, missing=missing,
    )  # fmt: skip


def test_nothing_is_known_of_a_cache_that_was_never_verified(made: CacheHistory) -> None:
    made.put_attempt(attempt_of(1, B))
    assert list(made.attempts(A, 9)) == []
    assert made.last_completed(A) is made.last_passed(A) is None


def test_the_newest_comes_first_and_caches_are_kept_apart(made: CacheHistory) -> None:
    rows = [attempt_of(1, A), attempt_of(2, B), attempt_of(3, A, missing=500), attempt_of(4, A, completed=False)]
    for row in rows:
        made.put_attempt(row)
    assert list(made.attempts(A, 9)) == [rows[3], rows[2], rows[0]]
    assert list(made.attempts(A, 1)) == [rows[3]]
    assert list(made.attempts(A, 0)) == []
    assert (made.last_completed(A), made.last_passed(A)) == (rows[2], rows[0])
    assert made.last_completed(B) == made.last_passed(B) == rows[1]


def test_what_became_of_one_replaces_it_in_its_place(made: CacheHistory) -> None:
    begun = attempt_of(1, completed=False)
    made.put_attempt(begun)
    made.put_attempt(attempt_of(2))
    ended = msgspec.structs.replace(begun, completed=True, missing=500)
    made.put_attempt(ended)
    assert list(made.attempts(A, 9)) == [attempt_of(2), ended]
    made.put_attempt(msgspec.structs.replace(attempt_of(2), missing=11))
    assert made.last_passed(A) is None


def test_the_order_is_that_of_beginning_whatever_the_clock_said(made: CacheHistory) -> None:
    later = msgspec.structs.replace(attempt_of(2), started_ms=-5, ended_ms=-4)
    made.put_attempt(attempt_of(1))
    made.put_attempt(later)
    assert made.last_completed(A) == made.last_passed(A) == later


def test_the_oldest_go_but_not_the_last_completed_and_the_last_passed(made: CacheHistory) -> None:
    for number in range(1, 4):
        made.put_attempt(attempt_of(number))
    made.put_attempt(attempt_of(4, missing=500))
    for number in range(5, 40):
        made.put_attempt(attempt_of(number, completed=False))
    assert [row.started_ms // 1000 for row in made.attempts(A, 99)] == [39, 38, 37, 36, 35, 4, 3]
    made.put_attempt(attempt_of(40))
    assert [row.started_ms // 1000 for row in made.attempts(A, 99)] == [40, 39, 38, 37, 36]
    for number in range(41, 60):
        made.put_attempt(attempt_of(number, B))
    assert list(made.attempts(A, 99)) == []
    assert len(made.attempts(B, 99)) == ATTEMPTS_KEPT


def test_only_the_first_session_with_a_cache_counts(made: CacheHistory) -> None:
    assert made.first_session_ms(A) is None
    made.note_session(A, 50)
    made.note_session(A, 20)
    made.note_session(B, 70)
    assert (made.first_session_ms(A), made.first_session_ms(B)) == (50, 70)


def test_it_is_still_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "h", writable=True)
    file.put_attempt(attempt_of(1))
    file.note_session(A, 50)
    file.close()
    for writable in (True, False):
        again = HistoryFile(tmp_path / "h", writable=writable)
        assert again.last_passed(A) == attempt_of(1)
        assert again.first_session_ms(A) == 50
        again.close()


def test_the_oldest_caches_are_forgotten_when_there_are_too_many(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "h", writable=True)
    for number in range(history.CACHES_MAX + 20):
        file.note_session(number.to_bytes(16, "big"), number)
        file.note_session(number.to_bytes(16, "big"), 7)
    known = [file.first_session_ms(number.to_bytes(16, "big")) for number in range(history.CACHES_MAX + 20)]
    assert known == [None] * 20 + list(range(20, history.CACHES_MAX + 20))
    file.close()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """Return a file as a version wrote it that knew nothing of verifications."""
    path = tmp_path / "h"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE session (number INTEGER PRIMARY KEY, row BLOB NOT NULL, sum BLOB NOT NULL)")
    return path


def test_a_file_of_an_older_version_has_no_verifications_and_takes_some(older: Path) -> None:
    before = older.read_bytes()
    reader = HistoryFile(older, writable=False)
    assert list(reader.attempts(A, 9)) == []
    assert (reader.last_completed(A), reader.first_session_ms(A)) == (None, None)
    assert list(reader.last(9)) == []
    with pytest.raises(SessionAborted, match="rights"):
        HistoryFile(older, writable=False).put_attempt(attempt_of(1))
    assert older.read_bytes() == before
    writer = HistoryFile(older, writable=True)
    writer.put_attempt(attempt_of(1))
    writer.close()
    reader.close()
    assert list(reader.attempts(A, 9)) == [attempt_of(1)]
    reader.close()


Damage = Callable[[sqlite3.Connection], object]


@pytest.mark.parametrize(
    "damage",
    [
        lambda database: database.execute("UPDATE attempt SET row = zeroblob(9) WHERE number = 2"),
        lambda database: database.execute("UPDATE attempt SET row = 'text' WHERE number = 2"),
        lambda database: database.execute("UPDATE attempt SET sum = x'00' WHERE number = 2"),
    ],
    ids=["zeros", "text", "sum"],
)
def test_a_damaged_row_counts_as_not_there_and_costs_no_other(tmp_path: Path, damage: Damage) -> None:
    path = tmp_path / "h"
    file = HistoryFile(path, writable=True)
    for number in range(1, 4):
        file.put_attempt(attempt_of(number, completed=number < 3))
    file.close()
    with closing(sqlite3.connect(path)) as database, database:
        damage(database)
    assert list(file.attempts(A, 9)) == [attempt_of(3, completed=False), attempt_of(1)]
    assert list(file.attempts(A, 2)) == [attempt_of(3, completed=False), attempt_of(1)]
    assert file.last_completed(A) == file.last_passed(A) == attempt_of(1)
    file.put_attempt(attempt_of(2))
    assert file.last_passed(A) == attempt_of(2)
    file.close()
