"""The catalogue of restore points: what vault, spool and cache say there is, and what they have lost.

Rules (DESIGN.md §5, Root and Rollback):
- A root that exists and does not open is *damaged*: it is listed with its name and the reason, never left out.
- `latest` is the greatest (order, incarnation) over vault, spool and cache that has the volume. If a greater root is
  damaged in every place, if it was superseded by one that is gone, or if local state knows of a greater one, then
  `latest` fails and names it: an older point is never passed off as the latest.
- A point that lies in the spool and not in the vault is *spooled*: it waits for its upload.
- A root may stand for one that is damaged in the vault: it is the same point under another name. The notes to both
  count for it, and whoever asks for the damaged one is given it.
- A point that its successor or local state names, that has no `removed` note and that neither vault nor spool holds,
  is *lost*, and said to be; as long as the spool cannot be read, only that it may be.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, TypeAlias

import anyio

from engine.errors import ConfigError, RestoreError, StoreCorrupt
from engine.names import PointId
from engine.note import NoteBody, incomplete_by
from engine.recovery.access import SystemAccess
from engine.recovery.places import SPOOL, VAULT, Places
from engine.root import PreviousRoot, Root, VolumePoint
from engine.state import Newest

State: TypeAlias = Literal["ok", "incomplete", "superseded", "damaged", "spooled"]

LATEST: Final = "latest"
PREFIX_MIN: Final = 4
READERS: Final = 16  # roots read at once
_LATEST_CHUNK: Final = 4
_SHOWN_MAX: Final = 5
_POINT = re.compile(r"[0-9a-f]{1,16}(-[0-9a-f]{0,16})?")
_HASH_UNKNOWN: Final = bytes(32)  # what a session names when the root before it was gone already


@dataclass(slots=True)
class Names:
    """What the listings of one system say: roots with their size per place, notes with the places that hold them."""

    access: SystemAccess
    roots: dict[PointId, dict[str, int]] = field(default_factory=dict)
    notes: dict[PointId, dict[str, list[str]]] = field(default_factory=dict)

    def is_kept(self, point: PointId) -> bool:
        """Tell whether the root of a point lies where it counts: in the vault, or in the spool until it is uploaded."""
        return bool(self.roots.get(point, {}).keys() & {VAULT, SPOOL})


@dataclass(slots=True)
class Point:
    """One restore point; `root` is None if it is damaged in every place.

    `where`: the places that hold it whole (of a damaged point: that hold it at all); `holes`: per volume, ranges
    (first block, count) that cannot be given back, by the last of its `incomplete` notes.
    """

    access: SystemAccess
    id: PointId
    root: Root | None
    where: list[str]
    state: State = "ok"
    problems: list[str] = field(default_factory=list)
    holes: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    held: bool = False
    removed: bool = False
    superseded: bool = False

    @property
    def name(self) -> str:
        """The name of the root object."""
        return self.id.root(self.access.system)

    @property
    def instead_of(self) -> PreviousRoot | None:
        """The root this one stands for."""
        return self.root.body.stands_for if self.root is not None else None

    def stands_for(self, other: Point | PointId) -> bool:
        """Tell whether this is that very point, under a name of its own since its root is damaged in the vault."""
        instead = self.instead_of
        if instead is None or isinstance(other, PointId):
            return instead is not None and instead.point == other
        return instead.point == other.id and (other.root is None or other.root.hash == instead.hash)

    def stood_for_by(self, other: Point) -> None:
        """Take note that `other` is this point, and the one that counts."""
        if self.root is None:
            self.problems.append(f"restore point {other.id} is the same, and whole")
        else:
            self.superseded, self.state = True, "superseded"

    def require_root(self) -> Root:
        """Return the root. Raises: StoreCorrupt naming the object if it is damaged in every place."""
        if self.root is None:
            raise StoreCorrupt(
                self.name, "the restore point cannot be opened in any place: " + "; ".join(self.problems)
            )
        return self.root

    def volume(self, name: str) -> VolumePoint:
        """Return one volume of the point. Raises: ConfigError naming those it has; StoreCorrupt."""
        body = self.require_root().body
        volume = body.volume(name)
        if volume is None:
            has = ", ".join(one.name for one in body.volumes) or "none"
            raise ConfigError(f"restore point {self.id} has no volume {name!r}; it has: {has}")
        return volume


@dataclass(frozen=True, slots=True)
class LostPoint:
    """A point the vault had and has no more (or another one in its stead); `where` still holds it."""

    access: SystemAccess
    id: PointId
    reason: str
    where: list[str]


class Catalogue:
    """The restore points of systems, over all places that are there.

    `newest`: the point local state ends with, if it is bound to this vault, and the system it is of.
    """

    def __init__(self, places: Places, newest: tuple[bytes, Newest] | None = None) -> None:
        self._places = places
        self._newest = newest
        self._limiter = anyio.CapacityLimiter(READERS)

    async def names(self, access: SystemAccess) -> Names:
        """List the roots and notes of a system. Raises: StoreError if no place is left."""
        names = Names(access)
        system = access.system.hex()
        for place, rows in (await self._places.listing(f"root/{system}/")).items():
            for row in rows:
                parsed = PointId.parse_root(row.name)
                if parsed is not None:
                    names.roots.setdefault(parsed[1], {})[place] = row.size
        for place, rows in (await self._places.listing(f"note/{system}/")).items():
            for row in rows:
                note = PointId.parse_note(row.name)
                if note is not None:
                    names.notes.setdefault(note[1], {}).setdefault(row.name, []).append(place)
        return names

    async def load(self, names: Names, ids: Collection[PointId]) -> list[Point]:
        """Open roots and notes of the points `ids`; return them newest first. Raises: StoreError without a place."""
        found: dict[PointId, Point] = {}

        async def load_one(point: PointId) -> None:
            async with self._limiter:
                found[point] = await self._load(names, point)

        ordered = sorted(ids, reverse=True)
        for start in range(0, len(ordered), READERS * 64):
            async with anyio.create_task_group() as group:
                for point in ordered[start : start + READERS * 64]:
                    group.start_soon(load_one, point)
        self._places.require()
        for one in found.values():
            same = found.get(one.instead_of.point) if one.instead_of is not None else None
            if same is not None and one.stands_for(same):
                same.stood_for_by(one)
        return [found[point] for point in ordered]

    async def find(self, names: Names, text: str, volume: str | None = None) -> Point:
        """Return the point `text` means: `latest` (with `volume`), or an unambiguous prefix of its id.

        Raises: ConfigError (unknown, ambiguous), RestoreError and StoreCorrupt (see the rules above); StoreError.
        """
        if text == LATEST:
            return await self._latest(names, volume)
        wanted = text.strip().lower()
        if len(wanted) < PREFIX_MIN or not _POINT.fullmatch(wanted):
            raise ConfigError(
                f"{text!r} is no restore point: give '{LATEST}', or at least {PREFIX_MIN} characters of an id that "
                "'forebay points' lists"
            )
        matches = sorted(point for point in names.roots if str(point).startswith(wanted))
        asked = matches[0] if matches else PointId.parse(wanted)
        standing = await self._standing_for(names, asked) if asked is not None else None
        if standing is not None and {*matches} <= {asked, standing.id}:
            return standing
        if not matches:
            raise ConfigError(
                f"system {names.access.name!r} has no restore point {text!r} in {self._searched()}; "
                "'forebay points' lists those there are"
            )
        if len(matches) > 1:
            shown = ", ".join(str(point) for point in matches[-_SHOWN_MAX:])
            raise ConfigError(f"{text!r} means {len(matches)} restore points: give more of the id; the newest: {shown}")
        (point,) = await self.load(names, matches)
        return point

    async def _standing_for(self, names: Names, asked: PointId) -> Point | None:
        """Return the point that stands for `asked`, whatever is left of that; None: there is none."""
        near = [point for point in asked.stand_ins() if point in names.roots]
        if not near:
            return None
        loaded = await self.load(names, [*near, *([asked] if asked in names.roots else [])])
        original = next((point for point in loaded if point.id == asked), None)
        return next((point for point in loaded if point.stands_for(original or asked)), None)

    async def _latest(self, names: Names, volume: str | None) -> Point:
        known: set[str] = set()
        standing: list[Point] = []
        ordered = sorted(names.roots, reverse=True)
        newest = self._newest_of(names)
        for start in range(0, len(ordered), _LATEST_CHUNK):
            for point in await self.load(names, ordered[start : start + _LATEST_CHUNK]):
                if point.removed or any(one.stands_for(point) for one in standing):
                    continue
                body = point.require_root().body
                standing += [point] if body.stands_for is not None else []
                known |= {one.name for one in body.volumes}
                if volume is not None and body.volume(volume) is None:
                    continue
                if newest is not None and newest > point.id and await self._is_lost(names, newest):
                    raise RestoreError(
                        f"the latest restore point {newest} is not in {self._searched()}, though local state "
                        f"ends with it; to restore an older one, name it (the newest there is: {point.id})"
                    )
                if point.superseded:
                    raise RestoreError(
                        f"the newest restore point {point.id} was superseded by one that is not in "
                        f"{self._searched()}; to restore it nevertheless, name it"
                    )
                if self._places.is_aside(VAULT) and newest != point.id:
                    near = " and ".join(place.name for place in self._places.usable())
                    has = "have" if " " in near else "has"
                    self._places.problems.add(
                        f"restore point {point.id} is the latest the {near} {has}; the vault may hold a newer one"
                    )
                return point
        if volume is not None and known:
            raise ConfigError(
                f"no restore point of system {names.access.name!r} in {self._searched()} has a volume {volume!r}; "
                f"they have: {', '.join(sorted(known))}"
            )
        raise ConfigError(f"system {names.access.name!r} has no restore points in {self._searched()}")

    async def lost(self, names: Names, points: Sequence[Point]) -> list[LostPoint]:
        """Return the points the vault has lost, oldest first; nothing is said of a vault that is not there.

        `points`: all of the system's, loaded. A successor that names another content than the vault holds, and
        a root only the cache has, count as lost, too. Raises: StoreError if no place is left.
        """
        if self._places.get(VAULT) is None:
            return []
        loaded = {point.id: point for point in points}
        lost: dict[PointId, str] = {}
        stood = {instead.point: instead.hash for point in points if (instead := point.instead_of) is not None}
        for wanted, digest, who in self._expected(names, points):
            found = loaded.get(wanted)
            if wanted in stood and digest in (stood[wanted], _HASH_UNKNOWN):
                continue
            if found is None or not names.is_kept(wanted):
                lost.setdefault(wanted, f"the vault has lost it: {who}")
            elif found.root is not None and digest not in (found.root.hash, _HASH_UNKNOWN):
                lost.setdefault(wanted, f"the vault holds another root in its stead: {who}")
        for point in names.roots:
            if not names.is_kept(point) and point not in stood:
                lost.setdefault(point, "the vault has lost it: only the cache still has it")
        gone = [
            LostPoint(names.access, point, lost[point], sorted(names.roots.get(point, {}).keys() - {VAULT}))
            for point in sorted(lost)
            if not await self._is_removed(names, point)
        ]
        if not self._places.is_aside(SPOOL):
            return gone
        unsure = [one for one in gone if not names.is_kept(one.id)]
        for one in unsure:
            self._places.problems.add(
                f"restore point {one.id} is not in the vault: it may lie in the spool, which is not used"
            )
        return [one for one in gone if one not in unsure]

    def _expected(self, names: Names, points: Iterable[Point]) -> Iterable[tuple[PointId, bytes, str]]:
        """Yield (point, hash of its root, who says that it exists)."""
        for point in points:
            previous = point.root.body.previous if point.root is not None else None
            if previous is not None:
                yield previous.point, previous.hash, f"restore point {point.id} follows on it"
        newest = self._newest_of(names)
        if newest is not None and self._newest is not None:
            yield newest, self._newest[1].root_hash, "local state ends with it"

    def _newest_of(self, names: Names) -> PointId | None:
        if self._newest is None or self._newest[0] != names.access.system:
            return None
        return PointId(self._newest[1].order, self._newest[1].incarnation)

    async def _is_lost(self, names: Names, point: PointId) -> bool:
        return point not in names.roots and not await self._is_removed(names, point)

    async def _is_removed(self, names: Names, point: PointId) -> bool:
        notes, _ = await self._notes(names, point, ("removed",))
        return bool(notes)

    async def _load(self, names: Names, point: PointId) -> Point:
        sizes = names.roots[point]
        root_name = point.root(names.access.system)
        reading = await self._places.read(
            root_name, sizes, lambda data: (names.access.open_root(root_name, data), len(data))
        )
        loaded = Point(names.access, point, None, sorted(sizes), problems=reading.sentences())
        notes, problems = await self._notes(names, point)
        if reading.value is None:
            loaded.state = "damaged"
        else:
            loaded.root, size = reading.value
            if (instead := loaded.instead_of) is not None:
                found = await self._notes(names, instead.point)
                notes, problems = notes + found[0], problems + found[1]
            # The copies are not all opened; of another size, one is surely not the same.
            for place in [place for place in sizes if sizes[place] != size and place not in reading.failed]:
                loaded.problems.append(
                    f"{place}: object {root_name} is damaged: it has {sizes[place]} bytes instead of {size}"
                )
                reading.failed[place] = StoreCorrupt(root_name, "its size is wrong")
            if not names.is_kept(point) and self._places.get(VAULT) is not None:
                loaded.problems.append(f"object {root_name} is not in the vault; a copy of it is used")
            loaded.where = [place for place in loaded.where if place not in reading.failed]
        loaded.problems += problems
        _apply(loaded, notes)
        if loaded.state == "ok" and SPOOL in sizes and VAULT not in sizes:
            loaded.state = "spooled"
        return loaded

    async def _notes(
        self, names: Names, point: PointId, kinds: Collection[str] = ()
    ) -> tuple[list[NoteBody], list[str]]:
        """Return the notes to a point (of `kinds`, if given) that open, and what is wrong with the others."""
        bodies: list[NoteBody] = []
        problems: list[str] = []
        for name, holders in sorted(names.notes.get(point, {}).items()):
            parsed = PointId.parse_note(name)
            if parsed is None or (kinds and parsed[2] not in kinds):
                continue
            reading = await self._places.read(name, holders, partial(names.access.open_note, name))
            problems += reading.sentences()
            if reading.value is not None:
                bodies.append(reading.value.body)
        return bodies, problems

    def _searched(self) -> str:
        return " or ".join(place.title for place in reversed(self._places.usable()))


def _apply(point: Point, notes: Sequence[NoteBody]) -> None:
    """Let what the notes say show in the point's state."""
    lacking = incomplete_by(notes)
    if lacking is not None:
        point.holes = {volume: list(holes) for volume, holes in lacking.holes.items()}
        point.problems.append(f"incomplete: {lacking.text or 'blocks that the vault lost could not be filled in'}")
    for note in notes:
        point.superseded |= note.kind == "superseded"
        point.held |= note.kind == "held"
        point.removed |= note.kind == "removed"
    if point.root is None:
        return
    if lacking is not None:
        point.state = "incomplete"
    elif point.superseded:
        point.state = "superseded"
