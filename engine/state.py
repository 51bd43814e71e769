"""Ports of local state and the shape of a map: everything under `state_dir` but the identity can be rebuilt.

A volume's map is one `ENTRY` per block (64 bytes) in pages of 64 entries, so that one page is one batch. The
session stages changed pages beside the map; the staged pages are the redo log of the commit: they are made
durable before the root is put and applied after it (DESIGN.md §4, Commit). All methods are *sync*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.block import BATCH_BLOCKS, PLACE
from engine.cache.attempt import Attempt
from engine.names import PackName
from engine.parts import Origins, PartEntries
from engine.ports import AckLog, MirrorFiles
from engine.staterecords import Checkpoint as Checkpoint
from engine.staterecords import Compared as Compared
from engine.staterecords import FoundRuns as FoundRuns
from engine.staterecords import Head as Head
from engine.staterecords import Intent as Intent
from engine.staterecords import Newest as Newest
from engine.staterecords import SessionRow as SessionRow
from engine.upkeep import CacheUpkeep, HealNotes, TrimNotes
from engine.vault.check import VaultCheck

# The ref of a block and the place of its record in the vault. All zero: a zero block.
ENTRY: Final = np.dtype([("ref", "u1", (48,)), ("place", PLACE)])
PAGE_ENTRIES: Final = BATCH_BLOCKS

Entries: TypeAlias = npt.NDArray[np.void]  # dtype ENTRY, shape (pages, 64)
Pages: TypeAlias = npt.NDArray[np.int64]  # ascending page numbers, shape (n,)
Masks: TypeAlias = npt.NDArray[np.uint64]  # one bit per entry of a page, bit i = entry i, shape (n,)


class PartState(Protocol):
    """What is known of the parts of a volume's blocks, beside its map (engine/parts.py).

    A hint that can be lost without harm: what is damaged or missing reads as zero. `VolumeState.apply` lays what is
    staged over it, `discard_staged` and `forget` drop it with the rest.
    """

    def parts(self, pages: Pages) -> tuple[PartEntries, Origins]:
        """Return what is known of the blocks of `pages`, by the map without staged changes, shape (pages, 64).

        Entries (and their origins) whose place is not that of the map are zero.
        """
        ...

    def stage_parts(self, page: int, mask: int, parts: PartEntries, origins: Origins | None) -> None:
        """Stage entries (shape (64,)) of a page where `mask` has a bit; `origins` None: none of them is of a delta.

        Later calls replace earlier ones: whoever stages other content for a block stages its parts again, too. Blocks
        that are staged without parts lose what was known of theirs. Safe to call from several threads for different
        pages. Raises: StateCorrupt (also for a full disk).
        """
        ...

    def forget_parts(self) -> None:
        """Discard everything known and staged of parts."""
        ...


class VolumeState(PartState, Protocol):
    """The local map of one volume and what a session has staged beside it."""

    @property
    def head(self) -> Head | None:
        """What the map stands at; None: there is no map (never was, or it was lost)."""
        ...

    def read(self, pages: Pages) -> Entries:
        """Return the map's entries of `pages`, checksums checked. Raises: StateCorrupt."""
        ...

    def used_pages(self, first: int, stop: int) -> Pages:
        """Return the pages in [first, stop) whose entries are not all zero, by the map without staged changes."""
        ...

    def stage(self, page: int, mask: int, entries: Entries) -> None:
        """Stage entries (shape (64,)) of a page where `mask` has a bit; later calls add to and replace earlier ones.

        Safe to call from several threads for different pages. Raises: StateCorrupt (also for a full disk).
        """
        ...

    def staged_pages(self) -> Pages:
        """Return the pages with staged entries, ascending."""
        ...

    def read_staged(self, pages: Pages) -> tuple[Masks, Entries]:
        """Return masks and entries staged for `pages`; entries outside the mask are undefined."""
        ...

    def current(self, pages: Pages) -> Entries:
        """Return the map's entries with staged ones laid over them."""
        ...

    def sync_staged(self) -> None:
        """Make what is staged durable, with checksums, so that `apply` works after a crash. Raises: StateCorrupt."""
        ...

    def discard_staged(self) -> None:
        """Forget what is staged."""
        ...

    def forget(self) -> None:
        """Discard the map, its head, its bitmap and what is staged: the volume's state counts as lost."""
        ...

    def apply(self, head: Head) -> None:
        """Lay what is staged over the map, durably, then set the head; idempotent until it has returned.

        Pages beyond `head.volume_bytes` are dropped. Raises: StateCorrupt.
        """
        ...

    def missing(self, pages: Pages) -> Masks:
        """Return, per page, which blocks the cache is known to lack (bit set = missing)."""
        ...

    def missing_pages(self, first: int, stop: int) -> Pages:
        """Return the pages in [first, stop) with at least one missing bit."""
        ...

    def set_missing(self, pages: Pages, masks: Masks) -> None:
        """Replace the missing bits of `pages`; durable after `sync_missing`. Raises: StateCorrupt."""
        ...

    def sync_missing(self) -> None:
        """Make the missing-block bitmap durable. Raises: StateCorrupt."""
        ...

    def amend(self, head: Head) -> None:
        """Replace the head by one of the same point that says other things of the cache, durably.

        Raises: StateCorrupt, SessionAborted.
        """
        ...


class History(Protocol):
    """Sessions that ended, newest first, and small facts that outlive them."""

    def add(self, row: SessionRow) -> None:
        """Record a session. Raises: StateCorrupt."""
        ...

    def last(self, count: int) -> Sequence[SessionRow]:
        """Return up to `count` sessions, newest first. Raises: StateCorrupt."""
        ...

    def checked_packs(self, store: bytes) -> set[bytes]:
        """Return the hashes (32 bytes) of foreign packs whose records this system has opened once."""
        ...

    def add_checked_packs(self, store: bytes, hashes: Sequence[bytes]) -> None:
        """Remember foreign packs as opened once. Raises: StateCorrupt."""
        ...

    def bad_packs(self, store: bytes) -> dict[int, set[str]]:
        """Return the keys of packs that turned out to be gone or damaged, each with the volumes healed of it."""
        ...

    def add_bad_packs(self, store: bytes, keys: Sequence[int], healed: Sequence[str] = ()) -> None:
        """Remember packs as bad, and that the volumes `healed` lean on them no longer. Raises: StateCorrupt."""
        ...


class StandInNotes(Protocol):
    """Packs that turned out damaged in a store, and those that hold the same records at the same offsets."""

    def stand_ins(self, store: bytes) -> dict[PackName, PackName]:
        """Return which pack of the store stands in for which one; for itself: it is whole again.

        Raises: StateCorrupt.
        """
        ...

    def add_stand_in(self, store: bytes, damaged: PackName, name: PackName) -> None:
        """Remember `name` as what stands in for `damaged`, in place of any other.

        Raises: StateCorrupt, SessionAborted.
        """
        ...


class CacheHistory(Protocol):
    """Verifications of caches; bounded, but the newest result of a cache and its last passed one are always kept.

    "Last" is in the order in which attempts began here, whatever the clock said. What is damaged counts as not there.
    """

    def put_attempt(self, attempt: Attempt) -> None:
        """Record a verification, durably, or what became of it: one of the same name keeps its place in the order.

        Raises: StateCorrupt, SessionAborted.
        """
        ...

    def attempts(self, store: bytes, count: int) -> Sequence[Attempt]:
        """Return up to `count` verifications of the cache `store` (16 bytes), newest first. Raises: StateCorrupt."""
        ...

    def last_completed(self, store: bytes) -> Attempt | None:
        """Return the newest one of `store` that was completed. Raises: StateCorrupt."""
        ...

    def last_passed(self, store: bytes) -> Attempt | None:
        """Return the newest one of `store` that passed. Raises: StateCorrupt."""
        ...

    def note_session(self, store: bytes, ended_ms: int) -> None:
        """Remember that a session with the cache `store` ended; only the first one counts.

        Raises: StateCorrupt, SessionAborted.
        """
        ...

    def first_session_ms(self, store: bytes) -> int | None:
        """Return when the first session with the cache `store` ended; None: there was none. Raises: StateCorrupt."""
        ...


class VaultHistory(Protocol):
    """Verifications of vaults; bounded: the newest are kept."""

    def put_vault_check(self, check: VaultCheck) -> None:
        """Record a verification of a vault, durably. Raises: StateCorrupt, SessionAborted."""
        ...

    def vault_checks(self, store: bytes, count: int) -> Sequence[VaultCheck]:
        """Return up to `count` verifications of the vault `store` (16 bytes), newest first. Raises: StateCorrupt."""
        ...


class LockNotes(Protocol):
    """Until when objects of a vault are locked, as far as this system saw to it; all of it can be lost."""

    def locks(self, store: bytes) -> tuple[int, dict[int, bytes]]:
        """Return the day all that a point needs was looked at last (0: never), and keys by the day their lock ends.

        Days count from 1970-01-01; keys are 8 bytes each, one after the other. Raises: StateCorrupt.
        """
        ...

    def add_locks(self, store: bytes, until: int, keys: bytes, *, looked: int, today: int) -> None:
        """Remember `keys` as locked until day `until`, and the day of the last look; forget what ended before `today`.

        Raises: StateCorrupt, SessionAborted.
        """
        ...


class StateStore(Protocol):
    """The state directory of one system, held under its lock by at most one session."""

    @property
    def incarnation(self) -> bytes:
        """The random 8 bytes of this state directory."""
        ...

    def renew_incarnation(self) -> bytes:
        """Choose a new incarnation (the state was cloned or rolled back). Raises: StateCorrupt."""
        ...

    def newest(self) -> Newest | None:
        """Return the restore point this state ends with. Raises: StateCorrupt."""
        ...

    def set_newest(self, newest: Newest) -> None:
        """Record, durably, the restore point this state ends with. Raises: StateCorrupt."""
        ...

    def clear_newest(self) -> None:
        """Forget, durably, which restore point this state ends with."""
        ...

    def volume(self, name: str) -> VolumeState:
        """Return the state of the volume configured as `name`, opened once."""
        ...

    def mirror(self, store: bytes) -> MirrorFiles:
        """Return the index mirror of the store with this id."""
        ...

    def acks(self, store: bytes) -> AckLog:
        """Return the log of acknowledged packs of the store with this id."""
        ...

    def upkeep(self, store: bytes) -> CacheUpkeep:
        """Return what is noted of the cache with this id."""
        ...

    def trim_notes(self, store: bytes) -> TrimNotes:
        """Return what is noted of the last trimming of the cache with this id."""
        ...

    def heal_notes(self, store: bytes) -> HealNotes:
        """Return what is noted of older points in the cache with this id."""
        ...

    def intent(self) -> Intent | None:
        """Return the open intent, if a commit may have been interrupted. Raises: StateCorrupt."""
        ...

    def write_intent(self, intent: Intent) -> None:
        """Make the intent durable. Raises: StateCorrupt."""
        ...

    def clear_intent(self) -> None:
        """Remove the intent, durably."""
        ...

    def open_sessions(self) -> list[bytes]:
        """Return the ids (16 bytes) of sessions that were begun and not ended by a published root."""
        ...

    def begin_session(self, session: bytes) -> None:
        """Record, durably, that a session has begun: it may leave packs behind. Raises: StateCorrupt."""
        ...

    def end_sessions(self) -> None:
        """Forget all open sessions: a published root names them as ended."""
        ...
