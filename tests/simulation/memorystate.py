"""The local state of one system in memory: the same port as the state directory, none of its durability."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from engine.cache.trimrecord import TrimRecord
from engine.scratch import MemoryScratch
from engine.state import Checkpoint, FoundRuns, Intent, Newest, SessionRow
from engine.upkeep import CheckedPacks, LostPacks
from tests.engine.fakes_packs import MemoryAcks, MemoryMirror
from tests.fakes_state import MemoryCacheHistory, MemoryVolumeState
from tests.simulation.clockwork import chance


class MemoryUpkeep:
    """CacheUpkeep in memory."""

    def __init__(self) -> None:
        self._lost = LostPacks(np.empty(0, np.uint64), np.empty(0, np.uint64))
        self._checked = CheckedPacks(np.empty(0, np.uint64), np.empty(0, np.uint16))
        self._checkpoint: Checkpoint | None = None
        self._seen: tuple[str, tuple[bytes, ...]] | tuple[()] = ()

    def lost_packs(self) -> LostPacks:
        return self._lost

    def set_lost_packs(self, lost: LostPacks) -> None:
        self._lost = lost

    def checked_packs(self) -> CheckedPacks:
        return self._checked

    def set_checked_packs(self, checked: CheckedPacks) -> None:
        self._checked = checked

    def checkpoint(self) -> Checkpoint | None:
        return self._checkpoint

    def set_checkpoint(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint
        if checkpoint is None or not checkpoint.seen:
            self._seen = ()

    def set_seen(self, attempt: str, pieces: Iterable[bytes]) -> None:
        self._seen = (attempt, tuple(pieces))

    def seen(self, attempt: str) -> Iterator[bytes]:
        assert self._seen
        known, pieces = self._seen
        assert known == attempt
        yield from pieces

    def scratch(self) -> MemoryScratch:
        return MemoryScratch()


class MemoryTrimNotes:
    """TrimNotes in memory."""

    def __init__(self) -> None:
        self._last: TrimRecord | None = None

    def last(self) -> TrimRecord | None:
        return self._last

    def put(self, record: TrimRecord) -> None:
        self._last = record


class MemoryHealNotes:
    """HealNotes in memory."""

    def __init__(self) -> None:
        self._found = FoundRuns()

    def found(self) -> FoundRuns:
        return self._found

    def put_found(self, found: FoundRuns) -> None:
        self._found = found


class MemoryHistory(MemoryCacheHistory):
    """History and CacheHistory in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[SessionRow] = []
        self._checked: dict[bytes, set[bytes]] = {}
        self._bad: dict[bytes, dict[int, set[str]]] = {}

    def add(self, row: SessionRow) -> None:
        self.rows.append(row)

    def last(self, count: int) -> Sequence[SessionRow]:
        return self.rows[: -count - 1 : -1]

    def checked_packs(self, store: bytes) -> set[bytes]:
        return self._checked.setdefault(store, set())

    def add_checked_packs(self, store: bytes, hashes: Sequence[bytes]) -> None:
        self.checked_packs(store).update(hashes)

    def bad_packs(self, store: bytes) -> dict[int, set[str]]:
        return self._bad.setdefault(store, {})

    def add_bad_packs(self, store: bytes, keys: Sequence[int], healed: Sequence[str] = ()) -> None:
        for key in keys:
            self.bad_packs(store).setdefault(key, set()).update(healed)


class MemoryState:
    """StateStore in memory."""

    def __init__(self) -> None:
        self.incarnation = chance.randbytes(8)
        self.history = MemoryHistory()
        self.volumes: dict[str, MemoryVolumeState] = {}
        self.mirrors: dict[bytes, MemoryMirror] = {}
        self._acks: dict[bytes, MemoryAcks] = {}
        self._upkeep: dict[bytes, MemoryUpkeep] = {}
        self._trims: dict[bytes, MemoryTrimNotes] = {}
        self._heals: dict[bytes, MemoryHealNotes] = {}
        self._newest: Newest | None = None
        self._intent: Intent | None = None
        self._open: list[bytes] = []

    def renew_incarnation(self) -> bytes:
        self.incarnation = chance.randbytes(8)
        return self.incarnation

    def newest(self) -> Newest | None:
        return self._newest

    def set_newest(self, newest: Newest) -> None:
        self._newest = newest

    def clear_newest(self) -> None:
        self._newest = None

    def volume(self, name: str) -> MemoryVolumeState:
        return self.volumes.setdefault(name, MemoryVolumeState())

    def mirror(self, store: bytes) -> MemoryMirror:
        return self.mirrors.setdefault(store, MemoryMirror())

    def acks(self, store: bytes) -> MemoryAcks:
        return self._acks.setdefault(store, MemoryAcks())

    def upkeep(self, store: bytes) -> MemoryUpkeep:
        return self._upkeep.setdefault(store, MemoryUpkeep())

    def trim_notes(self, store: bytes) -> MemoryTrimNotes:
        return self._trims.setdefault(store, MemoryTrimNotes())

    def heal_notes(self, store: bytes) -> MemoryHealNotes:
        return self._heals.setdefault(store, MemoryHealNotes())

    def intent(self) -> Intent | None:
        return self._intent

    def write_intent(self, intent: Intent) -> None:
        self._intent = intent

    def clear_intent(self) -> None:
        self._intent = None

    def open_sessions(self) -> list[bytes]:
        return list(self._open)

    def begin_session(self, session: bytes) -> None:
        self._open.append(session)

    def end_sessions(self) -> None:
        self._open.clear()
