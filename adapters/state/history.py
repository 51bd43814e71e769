"""History in SQLite: sessions that ended, verifications, packs opened once or turned out to be bad, and locks.

Journal mode TRUNCATE with `synchronous = FULL`: one short transaction a session, durable when it returns (in mode
DELETE, SQLite does not wait for the journal's removal, so that a power failure could undo the last one). WAL would
add two files that a reader without the right to write cannot open, and wins nothing at this rate. All tables are
bounded. SQLite checks no content: each row of history carries a checksum of its own. A file of an older version lacks
tables: who writes makes them, to who only looks they are empty.

A file that turns out damaged while it is open for writing is moved aside (`history.sqlite.damaged`): the call that
found it fails, the next one begins a new file. A damaged history must not be what ends backups.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import xxhash

from adapters.state.files import StateFile, read_failed, write_failed
from engine.cache.attempt import Attempt
from engine.errors import ForebayError, SessionAborted, StateCorrupt
from engine.names import PackName
from engine.staterecords import SessionRow
from engine.vault.check import VaultCheck

R = TypeVar("R", SessionRow, Attempt, VaultCheck)
SESSIONS_MAX: Final = 1000  # the newest are kept
CHECKED_PACKS_MAX: Final = 1_000_000  # over all stores; the newest are kept
ATTEMPTS_MAX: Final = 1000  # over all caches; the newest are kept, and those health is told by
VAULT_CHECKS_MAX: Final = 1000  # over all vaults; the newest are kept
CACHES_MAX: Final = 100  # whose first session is remembered; the newest are kept
BAD_PACKS_MAX: Final = 100_000  # rows: a pack, and one for each volume healed of it; the newest are kept
STAND_INS_MAX: Final = 100_000  # over all stores; the newest are kept
_BUSY_S: Final = 10.0
_ADVICE: Final = "remove it: only the list of past sessions is lost"
_UNFINISHED: Final = ("SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_CANTINIT", "SQLITE_CANTOPEN")
_SCHEMA: Final = {
    "session": "(number INTEGER PRIMARY KEY, row BLOB NOT NULL, sum BLOB NOT NULL)",
    "checked_pack": "(number INTEGER PRIMARY KEY, store BLOB NOT NULL, hash BLOB NOT NULL, UNIQUE (store, hash))",
    # `volume`: healed of the pack; "" is the pack itself. `key`: the first 8 bytes of its hash.
    "bad_pack": "(number INTEGER PRIMARY KEY, store BLOB NOT NULL, key BLOB NOT NULL, volume TEXT NOT NULL, "
    "UNIQUE (store, key, volume))",
    "stand_in": "(number INTEGER PRIMARY KEY, store BLOB NOT NULL, damaged TEXT NOT NULL, name TEXT NOT NULL, "
    "UNIQUE (store, damaged))",
    # `keys`: of objects that are locked until this day, 8 bytes each; day 0 has the day of the last whole look instead.
    "lock_until": "(store BLOB NOT NULL, day INTEGER NOT NULL, keys BLOB NOT NULL, sum BLOB NOT NULL, "
    "PRIMARY KEY (store, day))",
    # `outcome`: 0 no result, 1 completed, 2 passed.
    "attempt": "(number INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, store TEXT NOT NULL, outcome INTEGER NOT NULL, "
    "row BLOB NOT NULL, sum BLOB NOT NULL)",
    "vault_check": "(number INTEGER PRIMARY KEY, store TEXT NOT NULL, row BLOB NOT NULL, sum BLOB NOT NULL)",
    "cache_session": "(number INTEGER PRIMARY KEY, store BLOB NOT NULL UNIQUE, first_ms INTEGER NOT NULL)",
}


class HistoryFile:
    """The file `history.sqlite` (`History`, `StandInNotes`, `CacheHistory`, `VaultHistory` and `LockNotes`).

    Safe to call from several threads.
    """

    def __init__(self, path: Path, *, writable: bool) -> None:
        self._path, self._writable = path, writable
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def add(self, row: SessionRow) -> None:
        """Record a session; of more than 1,000 the oldest goes. Raises: StateCorrupt, SessionAborted."""
        body = msgspec.msgpack.encode(row)
        with self._opened() as database, database:
            database.execute("INSERT INTO session (row, sum) VALUES (?, ?)", (body, _sum(body)))
            database.execute(
                "DELETE FROM session WHERE number <= (SELECT max(number) FROM session) - ?", (SESSIONS_MAX,)
            )

    def last(self, count: int) -> Sequence[SessionRow]:
        """Return up to `count` sessions, newest first. Raises: StateCorrupt."""
        with self._opened() as database:
            found = database.execute("SELECT row, sum FROM session ORDER BY number DESC LIMIT ?", (count,)).fetchall()
        return [self._row(body, checksum) for body, checksum in found]

    def checked_packs(self, store: bytes) -> set[bytes]:
        """Return the hashes (32 bytes) of foreign packs whose records this system has opened once."""
        with self._opened() as database:
            return {found for (found,) in database.execute("SELECT hash FROM checked_pack WHERE store = ?", (store,))}

    def add_checked_packs(self, store: bytes, hashes: Sequence[bytes]) -> None:
        """Remember foreign packs as opened once; of more than 1,000,000 the oldest go.

        Raises: StateCorrupt, SessionAborted.
        """
        with self._opened() as database, database:
            database.executemany(
                "INSERT OR IGNORE INTO checked_pack (store, hash) VALUES (?, ?)", [(store, known) for known in hashes]
            )
            database.execute(
                "DELETE FROM checked_pack WHERE number <= (SELECT max(number) FROM checked_pack) - ?",
                (CHECKED_PACKS_MAX,),
            )

    def bad_packs(self, store: bytes) -> dict[int, set[str]]:
        """Return the keys of packs that turned out to be bad, each with the volumes healed of it.

        Raises: StateCorrupt.
        """
        found: dict[int, set[str]] = {}
        with self._opened() as database:
            for key, volume in database.execute("SELECT key, volume FROM bad_pack WHERE store = ?", (store,)):
                healed = found.setdefault(int.from_bytes(key, "little"), set())
                if volume:
                    healed.add(volume)
        return found

    def add_bad_packs(self, store: bytes, keys: Sequence[int], healed: Sequence[str] = ()) -> None:
        """Remember packs as bad, and volumes as healed of them; of more than 100,000 rows the oldest go.

        Raises: StateCorrupt, SessionAborted.
        """
        rows = [(store, key.to_bytes(8, "little"), volume) for key in keys for volume in ("", *healed)]
        with self._opened() as database, database:
            database.executemany("INSERT OR IGNORE INTO bad_pack (store, key, volume) VALUES (?, ?, ?)", rows)
            database.execute(
                "DELETE FROM bad_pack WHERE number <= (SELECT max(number) FROM bad_pack) - ?", (BAD_PACKS_MAX,)
            )

    def stand_ins(self, store: bytes) -> dict[PackName, PackName]:
        """See `StandInNotes.stand_ins`; a row that names no packs counts as none."""
        with self._opened() as database:
            rows = database.execute("SELECT damaged, name FROM stand_in WHERE store = ?", (store,)).fetchall()
        parsed = [(PackName.parse(damaged), PackName.parse(name)) for damaged, name in rows]
        return {damaged: name for damaged, name in parsed if damaged is not None and name is not None}

    def add_stand_in(self, store: bytes, damaged: PackName, name: PackName) -> None:
        """See `StandInNotes.add_stand_in`; of more than 100,000 the oldest are forgotten."""
        with self._opened() as database, database:
            database.execute(
                "INSERT OR REPLACE INTO stand_in (store, damaged, name) VALUES (?, ?, ?)",
                (store, str(damaged), str(name)),
            )
            database.execute(
                "DELETE FROM stand_in WHERE number <= (SELECT max(number) FROM stand_in) - ?", (STAND_INS_MAX,)
            )

    def locks(self, store: bytes) -> tuple[int, dict[int, bytes]]:
        """See `LockNotes.locks`; a damaged row counts as none."""
        with self._opened() as database:
            rows = database.execute("SELECT day, keys, sum FROM lock_until WHERE store = ?", (store,)).fetchall()
        found = {day: keys for day, keys, checksum in rows if checksum == _sum(keys)}
        return int.from_bytes(found.pop(0, b""), "little"), found

    def add_locks(self, store: bytes, until: int, keys: bytes, *, looked: int, today: int) -> None:
        """See `LockNotes.add_locks`: one row for each day, so there are as many as days a lock may last."""
        with self._opened() as database, database:
            database.execute("DELETE FROM lock_until WHERE day BETWEEN 1 AND ?", (today - 1,))
            known = database.execute(
                "SELECT keys, sum FROM lock_until WHERE store = ? AND day = ?", (store, until)
            ).fetchone()
            if known is not None and known[1] == _sum(known[0]):
                keys = known[0] + keys
            rows = [(store, 0, looked.to_bytes(8, "little")), (store, until, keys)]
            database.executemany(
                "INSERT OR REPLACE INTO lock_until (store, day, keys, sum) VALUES (?, ?, ?, ?)",
                [(*row, _sum(row[2])) for row in rows],
            )

    def put_attempt(self, attempt: Attempt) -> None:
        """See `CacheHistory.put_attempt`; of more than 1,000 the oldest go, not those health rests on."""
        body = msgspec.msgpack.encode(attempt)
        outcome = int(attempt.completed) + int(attempt.passed)
        with self._opened() as database, database:
            database.execute(
                "INSERT INTO attempt (name, store, outcome, row, sum) VALUES (?, ?, ?, ?, ?) ON CONFLICT (name) "
                "DO UPDATE SET store = excluded.store, outcome = excluded.outcome, row = excluded.row, "
                "sum = excluded.sum",
                (attempt.attempt, attempt.store, outcome, body, _sum(body)),
            )
            database.execute(
                "DELETE FROM attempt WHERE number <= (SELECT max(number) FROM attempt) - ?1 AND number NOT IN ("
                "SELECT coalesce(max(number), 0) FROM attempt WHERE store = ?2 AND outcome >= 1 UNION ALL "
                "SELECT coalesce(max(number), 0) FROM attempt WHERE store = ?2 AND outcome = 2)",
                (ATTEMPTS_MAX, attempt.store),
            )

    def attempts(self, store: bytes, count: int) -> Sequence[Attempt]:
        """See `CacheHistory.attempts`."""
        return self._attempts(store, 0, count)

    def last_completed(self, store: bytes) -> Attempt | None:
        """See `CacheHistory.last_completed`."""
        return next((each for each in self._attempts(store, 1, 1) if each.completed), None)

    def last_passed(self, store: bytes) -> Attempt | None:
        """See `CacheHistory.last_passed`."""
        return next((each for each in self._attempts(store, 2, 1) if each.passed), None)

    def put_vault_check(self, check: VaultCheck) -> None:
        """See `VaultHistory.put_vault_check`; of more than 1,000 the oldest go."""
        body = msgspec.msgpack.encode(check)
        with self._opened() as database, database:
            database.execute(
                "INSERT INTO vault_check (store, row, sum) VALUES (?, ?, ?)", (check.store, body, _sum(body))
            )
            database.execute(
                "DELETE FROM vault_check WHERE number <= (SELECT max(number) FROM vault_check) - ?", (VAULT_CHECKS_MAX,)
            )

    def vault_checks(self, store: bytes, count: int) -> Sequence[VaultCheck]:
        """See `VaultHistory.vault_checks`; what is damaged counts as not there."""
        with self._opened() as database:
            rows = database.execute(
                "SELECT row, sum FROM vault_check WHERE store = ? ORDER BY number DESC LIMIT ?", (store.hex(), count)
            ).fetchall()
        decoded = (_decoded(body, checksum, VaultCheck) for body, checksum in rows)
        return [check for check in decoded if check is not None]

    def note_session(self, store: bytes, ended_ms: int) -> None:
        """See `CacheHistory.note_session`; of more than 100 caches the oldest are forgotten."""
        with self._opened() as database, database:
            database.execute("INSERT OR IGNORE INTO cache_session (store, first_ms) VALUES (?, ?)", (store, ended_ms))
            database.execute(
                "DELETE FROM cache_session WHERE number <= (SELECT max(number) FROM cache_session) - ?", (CACHES_MAX,)
            )

    def first_session_ms(self, store: bytes) -> int | None:
        """See `CacheHistory.first_session_ms`."""
        with self._opened() as database:
            found = database.execute("SELECT first_ms FROM cache_session WHERE store = ?", (store,)).fetchone()
        return found[0] if found is not None and isinstance(found[0], int) else None

    def _attempts(self, store: bytes, outcome: int, count: int) -> list[Attempt]:
        """Return up to `count` undamaged verifications with at least this outcome, newest first."""
        found: list[Attempt] = []
        with self._opened() as database:
            for body, checksum in database.execute(
                "SELECT row, sum FROM attempt WHERE store = ? AND outcome >= ? ORDER BY number DESC",
                (store.hex(), outcome),
            ):
                if len(found) == count:
                    break
                if (attempt := _decoded(body, checksum, Attempt)) is not None:
                    found.append(attempt)
        return found

    def close(self) -> None:
        """Release the file; it is opened again when used."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Hold the one connection, with SQLite's errors renamed."""
        with self._lock:
            try:
                if self._database is None:
                    self._database = self._connect()
                yield self._database
            except sqlite3.Error as error:
                renamed = self._renamed(error)
                if self._writable and isinstance(renamed, StateCorrupt):
                    raise self._moved_aside(error) from error
                raise renamed from error

    def _moved_aside(self, error: sqlite3.Error) -> ForebayError:
        """Give the damaged file up, so that the next call begins a new one; return what to tell of it."""
        if self._database is not None:
            self._database.close()
            self._database = None
        aside = self._path.with_name(self._path.name + ".damaged")
        try:
            self._path.replace(aside)
            self._path.with_name(self._path.name + "-journal").unlink(missing_ok=True)
        except OSError as failure:
            return write_failed(self._path, failure)
        return StateCorrupt(
            f"{self._path} is damaged ({error}): it was moved to {aside}, and a new list of past sessions is begun; "
            "remove it once nobody wants to look at it"
        )

    def _connect(self) -> sqlite3.Connection:
        if not self._writable:
            return self._connect_to_look()
        StateFile(self._path, writable=True).close()  # made here, so that it is the owner's alone
        database = sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = TRUNCATE")
            database.execute("PRAGMA synchronous = FULL")
            _make_tables(database)
        except sqlite3.Error:
            database.close()
            raise
        return database

    def _connect_to_look(self) -> sqlite3.Connection:
        if not self._path.exists():
            database = sqlite3.connect(":memory:", check_same_thread=False)
            _make_tables(database)
            return database
        database = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
        try:
            database.execute(f"PRAGMA busy_timeout = {int(_BUSY_S * 1000)}")
            _make_missing_tables(database)  # looks for a transaction to roll back
        except sqlite3.Error as error:
            database.close()
            if error.sqlite_errorname not in _UNFINISHED:
                raise
            return self._rolled_back_copy()
        return database

    def _rolled_back_copy(self) -> sqlite3.Connection:
        """Return a copy in memory: a crash left a transaction to roll back, and nothing may be changed here."""
        memory = sqlite3.connect(":memory:", check_same_thread=False)
        try:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / self._path.name
                for suffix in ("", "-journal"):
                    shutil.copyfile(f"{self._path}{suffix}", f"{copy}{suffix}")
                with closing(sqlite3.connect(copy)) as database:
                    _make_tables(database)
                    database.backup(memory)
        except OSError as error:
            memory.close()
            raise read_failed(self._path, error) from error
        except sqlite3.Error:
            memory.close()
            raise
        return memory

    def _row(self, body: bytes, checksum: bytes) -> SessionRow:
        row = _decoded(body, checksum, SessionRow)
        if row is None:
            raise StateCorrupt(f"{self._path} is damaged: a session's row does not match its checksum; {_ADVICE}")
        return row

    def _renamed(self, error: sqlite3.Error) -> ForebayError:
        name = getattr(error, "sqlite_errorname", "")
        if name == "SQLITE_FULL":
            return SessionAborted(f"the disk of the state directory is full: {self._path} could not be written")
        if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
            return SessionAborted(f"{self._path} is held by another program: let it close the file")
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
            return SessionAborted(f"{self._path} could not be opened ({error}): check rights and disk there")
        return StateCorrupt(f"{self._path} is damaged ({error}); {_ADVICE}")


def _make_tables(database: sqlite3.Connection) -> None:
    with database:
        for name, columns in _SCHEMA.items():
            database.execute(f"CREATE TABLE IF NOT EXISTS {name} {columns}")


def _make_missing_tables(database: sqlite3.Connection) -> None:
    """Put empty tables beside a file that may not be changed, for those an older version did not know."""
    known = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if missing := _SCHEMA.keys() - known:
        database.execute("PRAGMA temp_store = MEMORY")
        for name in missing:
            database.execute(f"CREATE TEMP TABLE {name} {_SCHEMA[name]}")
    database.execute("PRAGMA query_only = ON")  # or a row that nobody would ever see could be put into them


def _decoded(body: bytes, checksum: bytes, kind: type[R]) -> R | None:
    """Return a row's record; None: it is damaged."""
    try:
        return msgspec.msgpack.decode(body, type=kind) if checksum == _sum(body) else None
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
        return None


def _sum(body: bytes) -> bytes:
    return xxhash.xxh3_64_digest(body)
