"""Records of local state, which a reader of them gets without numpy: `forebay status` needs no more than these."""

from __future__ import annotations

import msgspec

from engine.cache.attempt import Attempt
from engine.errors import StateCorrupt
from engine.names import PointId


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a volume's map stands at.

    `order`/`incarnation`: the restore point the map is the state of; `root_hash`: BLAKE3 of that root object;
    `vault`, `cache`: store ids (16 bytes; `cache` None without one) the map's places and the missing-block bitmap
    are bound to; `domain` 16 bytes; `volume_bytes`; `generation` of the change tracker; `point`: the encoded
    `VolumePoint` (runs of the parent); `missing_known`: False when the bitmap says nothing (all blocks count as
    missing from the cache); `pages_cached`: the cache holds every page of the point's runs; `unreadable`: block
    numbers that must be candidates again.
    """

    order: int
    incarnation: bytes
    root_hash: bytes
    vault: bytes
    cache: bytes | None
    domain: bytes
    volume_bytes: int
    generation: str | None
    point: bytes
    missing_known: bool
    pages_cached: bool = False
    unreadable: list[int] = []


class Intent(msgspec.Struct, frozen=True, kw_only=True):
    """The journal's one record: the commit that may have happened.

    `root` is the root object's name, `root_hash` its BLAKE3, `heads` what each volume's map will stand at.
    """

    root: str
    root_hash: bytes
    vault: bytes
    heads: dict[str, Head]

    def newest(self) -> Newest:
        """Return what local state ends with once this commit has happened. Raises: StateCorrupt."""
        parsed = PointId.parse_root(self.root)
        if parsed is None:
            raise StateCorrupt(f"the journal names no root: {self.root!r}")
        system, point = parsed
        return Newest(
            order=point.order,
            incarnation=point.incarnation,
            root_hash=self.root_hash,
            vault=self.vault,
            system=system,
        )


class Newest(msgspec.Struct, frozen=True, kw_only=True):
    """The restore point of `system` local state ends with, whichever volumes it has: what a clone shows by."""

    order: int
    incarnation: bytes
    root_hash: bytes
    vault: bytes
    system: bytes


class Compared(msgspec.Struct, frozen=True):
    """How far a volume was compared: all pages before `page`; they had `blocks` non-zero ones, of which `missing`."""

    page: int = 0
    blocks: int = 0
    missing: int = 0
    done: bool = False


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """How far a verification of the cache came: what it goes on from after a pause, a kill or a reboot.

    `seen`: in which records the blocks found so far lie, is noted beside it (`CacheUpkeep.seen`). Where `attempt` is
    completed, what is to be gone on with is the healing of restore points after it (engine/cache/healing.py).
    """

    attempt: Attempt
    volumes: dict[str, Compared] = {}
    seen: bool = False


class FoundStretch(msgspec.Struct, frozen=True, array_like=True):
    """What a run names in the blocks [first, stop): found in `packs`, but for what lacks (`blocks`, `ids`, `places`).

    Columns as in `engine.cache.pointsfound.Stretch`, as bytes.
    """

    first: int
    stop: int
    packs: bytes
    blocks: bytes
    ids: bytes
    places: bytes


class FoundRuns(msgspec.Struct, frozen=True):
    """In which packs of a cache the runs of kept points (16-byte digests) were found."""

    runs: dict[bytes, list[FoundStretch]] = {}


class SessionRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of history: a session that ended. `report` is the JSON document `backup --json` printed."""

    session: str
    started_ms: int
    ended_ms: int
    exit_code: int
    point: str | None
    route: str
    report: str
