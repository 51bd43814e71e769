"""History in SQLite: sessions that ended, foreign packs opened once, packs that turned out to be bad, and locks.

Journal mode TRUNCATE with `synchronous = FULL`: one short transaction a session, durable when it returns (in mode
DELETE, SQLite does not wait for the journal's removal, so that a power failure could undo the last one). WAL would
add two files that a reader without the right to write cannot open, and wins nothing at this rate. All tables are
bounded. SQLite checks no content: each row of history carries a checksum of its own.

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
from typing import Final

import msgspec
import xxhash

from adapters.state.files import StateFile, read_failed, write_failed
from engine.errors import ForebayError, SessionAborted, StateCorrupt
from engine.staterecords import SessionRow

SESSIONS_MAX: Final = 1000  # the newest are kept
CHECKED_PACKS_MAX: Final = 1_000_000  # over all stores; the newest are kept
BAD_PACKS_MAX: Final = 100_000  # rows: a pack, and one for each volume healed of it; the newest are kept
_BUSY_S: Final = 10.0
_ADVICE: Final = "remove it: only the list of past sessions is lost"
_UNFINISHED: Final = ("SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_CANTINIT", "SQLITE_CANTOPEN")
_SCHEMA: Final = (
    "CREATE TABLE IF NOT EXISTS session (number INTEGER PRIMARY KEY, row BLOB NOT NULL, sum BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS checked_pack "
    "(number INTEGER PRIMARY KEY, store BLOB NOT NULL, hash BLOB NOT NULL, UNIQUE (store, hash))",
    # `volume`: healed of the pack; "" is the pack itself. `key`: the first 8 bytes of its hash.
    "CREATE TABLE IF NOT EXISTS bad_pack (number INTEGER PRIMARY KEY, store BLOB NOT NULL, key BLOB NOT NULL, "
    "volume TEXT NOT NULL, UNIQUE (store, key, volume))",
    # `keys`: of objects that are locked until this day, 8 bytes each; day 0 has the day of the last whole look instead.
    "CREATE TABLE IF NOT EXISTS lock_until (store BLOB NOT NULL, day INTEGER NOT NULL, keys BLOB NOT NULL, "
    "sum BLOB NOT NULL, PRIMARY KEY (store, day))",
)


class HistoryFile:
    """The file `history.sqlite` (implements `History` and `LockNotes`); safe to call from several threads."""

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
            database.execute("SELECT number FROM session LIMIT 1").fetchone()  # looks for a transaction to roll back
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
        try:
            if checksum == _sum(body):
                return msgspec.msgpack.decode(body, type=SessionRow)
        except (msgspec.MsgspecError, UnicodeDecodeError, TypeError):
            pass
        raise StateCorrupt(f"{self._path} is damaged: a session's row does not match its checksum; {_ADVICE}")

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
        for statement in _SCHEMA:
            database.execute(statement)


def _sum(body: bytes) -> bytes:
    return xxhash.xxh3_64_digest(body)
