"""The restore points a vault keeps of one system, and the packs they need.

Points share runs, and a run's pack table is read once, however many points list the run. What is held is 56 bytes for
each pack, some hundred for each run, and less than that for each volume of a point.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, TypeVar

import anyio.to_thread
import msgspec
import numpy as np
from blake3 import blake3

from engine.block import Mask
from engine.columns import Column64, Rows
from engine.errors import FormatTooNew, ObjectMissing, StoreCorrupt, StoreError
from engine.names import PackName, PointId
from engine.note import NoteBody, incomplete_by, open_note
from engine.packtable import KINDS, PACK_ROW_BYTES, PackRows, keys_of, order_of, pack_names, rows_of, sorted_rows
from engine.pagesources import PagesAway
from engine.pagestore import PageReader
from engine.pipeline.lost import Ranges
from engine.pipeline.refill import CacheAway
from engine.ports import ObjectStore
from engine.root import Root, RunDescriptor, open_root, root_header
from engine.runs import RunReader
from engine.signed import OBJECT_BYTES_MAX
from engine.vault.certificate import Certificates
from engine.vault.identity import Identity
from engine.workers import run_workers

READERS: Final = 16  # roots read at once
TABLES: Final = 8  # pack tables read at once
LISTED_AT_ONCE: Final = 1 << 14
JOINED_AT_ONCE: Final = 1 << 16
T = TypeVar("T")
_OUT: Final = ("removed", "superseded")
_TELLING: Final = ("incomplete", *_OUT)


class KeptVolume(msgspec.Struct, frozen=True):
    """A volume at one point; `runs`, oldest first, count in `Kept.runs`."""

    name: str
    blocks: int
    runs: tuple[int, ...]


class KeptPoint(msgspec.Struct, frozen=True):
    """A restore point; `told`: digest of the holes its notes say it has (see `holes_digest`), and when, in ms."""

    id: PointId
    volumes: tuple[KeptVolume, ...]
    told: bytes
    told_ms: int


class Kept(msgspec.Struct):
    """What a vault keeps of one system: points, newest first, and the runs they are made of, without envelopes.

    `digests`: of each run, for ever the same, 16 bytes. `damaged`: keys of packs that notes say do not hold together;
    `broken`: a sentence for each root that cannot be opened; `others`: how many are of another domain, whose keys are
    not here.
    """

    points: list[KeptPoint] = []
    runs: list[RunDescriptor] = []
    digests: list[bytes] = []
    damaged: set[int] = set()
    broken: list[str] = []
    others: int = 0
    problems: list[str] = []
    _numbers: dict[bytes, int] = {}

    def add(self, root: Root, notes: list[NoteBody]) -> None:
        """Take in a point that was opened, and what is noted of it."""
        volumes = tuple(
            KeptVolume(volume.name, volume.blocks, tuple(self._number(run) for run in volume.runs))
            for volume in root.body.volumes
        )
        lacking = incomplete_by(notes)
        told_ms = max((note.time for note in notes if note.kind == "incomplete"), default=0)
        if lacking is not None:
            self.damaged.update(int.from_bytes(key, "little") for key in lacking.damaged)
        told = holes_digest(lacking.holes, lacking.damaged) if lacking is not None else b""
        self.points.append(KeptPoint(root.point, volumes, told, told_ms))

    def _number(self, run: RunDescriptor) -> int:
        bare = msgspec.structs.replace(run, envelope=b"")
        # Where two roots tell different things of one run, each is taken at its word.
        digest = blake3(msgspec.msgpack.encode(bare)).digest(16)
        number = self._numbers.setdefault(digest, len(self.runs))
        if number == len(self.runs):
            self.runs.append(bare)
            self.digests.append(digest)
        return number


def holes_digest(holes: dict[str, Ranges], damaged: Sequence[bytes]) -> bytes:
    """Return what stands for the holes of a point, and the damaged packs they are in: 16 bytes."""
    ordered = {name: [tuple(each) for each in ranges] for name, ranges in sorted(holes.items()) if ranges}
    return blake3(msgspec.msgpack.encode((ordered, sorted(damaged)))).digest(16)


async def read_kept(
    objects: ObjectStore, identity: Identity, certificates: Certificates, near: ObjectStore | None = None
) -> Kept:
    """Read all roots of a system in its vault, but those that were removed or superseded, and their notes.

    `near`: the cache; copies of them that open are read there. Raises: StoreUnavailable, StoreRejected of the vault.
    """
    kept = Kept()
    system = identity.system.hex()
    notes: dict[PointId, list[str]] = defaultdict(list)
    async for info in objects.list(f"note/{system}/"):
        note = PointId.parse_note(info.name)
        if note is not None and note[2] in _TELLING:
            notes[note[1]].append(info.name)
    points = [parsed[1] async for info in objects.list(f"root/{system}/") if (parsed := PointId.parse_root(info.name))]
    found: dict[PointId, tuple[Root, list[NoteBody]]] = {}
    verify, key = certificates.verify_number, identity.listing_key

    def body_of(name: str, data: bytes) -> NoteBody:
        return open_note(name, data, key, verify).body

    def root_of(name: str, data: bytes) -> Root | None:
        return open_root(name, data, key, verify) if root_header(name, data).domain == identity.domain else None

    async def read_notes(point: PointId) -> list[NoteBody]:
        bodies = []
        for name in notes.get(point, ()):
            try:
                bodies.append(await _opened(objects, near, name, body_of))
            except (StoreCorrupt, FormatTooNew, ObjectMissing) as error:
                kept.problems.append(str(error))
        return bodies

    async def read(point: PointId) -> None:
        bodies = await read_notes(point)
        if any(body.kind in _OUT for body in bodies):
            return
        try:
            root = await _opened(objects, near, point.root(identity.system), root_of)
            if root is None:
                kept.others += 1
                return
            if (instead := root.body.stands_for) is not None:
                bodies += await read_notes(instead.point)
            if not any(body.kind in _OUT for body in bodies):
                found[point] = root, bodies
        except ObjectMissing:
            return  # removed since it was listed
        except (StoreCorrupt, FormatTooNew) as error:
            kept.broken.append(str(error))

    points.sort(reverse=True)
    for start in range(0, len(points), READERS * 4):
        part = points[start : start + READERS * 4]
        rest = iter(part)

        async def work(rest: Iterator[PointId] = rest) -> None:
            for point in rest:
                await read(point)

        await run_workers(work, READERS)
        for point in part:
            if (opened := found.pop(point, None)) is not None:
                kept.add(*opened)
    return kept


async def _opened(objects: ObjectStore, near: ObjectStore | None, name: str, open_it: Callable[[str, bytes], T]) -> T:
    """Return what `open_it` makes of an object, of its copy in `near` if that opens.

    Raises: what it raises, ObjectMissing, StoreUnavailable, StoreRejected.
    """
    if near is not None:
        with suppress(StoreError):
            return open_it(name, bytes(await near.get(name, 0, OBJECT_BYTES_MAX + 1)))
    return open_it(name, bytes(await objects.get(name, 0, OBJECT_BYTES_MAX + 1)))


async def tables(kept: Kept, pages: PageReader) -> AsyncGenerator[tuple[int, PackRows | None], None]:
    """Yield the pack table of each run, once; None: it cannot be read anywhere.

    Raises: StoreUnavailable, StoreRejected of the vault.
    """
    for start in range(0, len(kept.runs), TABLES * 4):
        numbers = range(start, min(start + TABLES * 4, len(kept.runs)))
        rest = iter(numbers)
        found: dict[int, PackRows | None] = {}

        async def work(rest: Iterator[int] = rest, found: dict[int, PackRows | None] = found) -> None:
            for number in rest:
                try:
                    found[number] = (await RunReader(pages, kept.runs[number]).table()).rows
                except StoreCorrupt as error:
                    raise_if_away(error)
                    found[number] = None

        await run_workers(work, TABLES)
        for number in numbers:
            yield number, found.pop(number)


def raise_if_away(error: StoreCorrupt) -> None:
    """Raise why pages could not be asked for, unless it is the cache that could not be asked."""
    if isinstance(error, PagesAway) and error.away is not None and not isinstance(error.away, CacheAway):
        raise error.away from error


class Needs:
    """The packs that points need: `rows` sorted by hash, each once, and which of them are `there`."""

    def __init__(self) -> None:
        self.rows: PackRows = rows_of(())
        self.there: Mask = np.zeros(0, np.bool_)
        self._more: list[PackRows] = []
        self._count = 0

    def add(self, rows: PackRows) -> None:
        """Take in a table (*sync*)."""
        self._more.append(rows)
        self._count += len(rows)
        # Taken together once they are as many as what is there, so that each is moved few times.
        if self._count > max(len(self.rows), JOINED_AT_ONCE):
            self._join()

    def close(self) -> None:
        """Say that all tables were added (*sync*)."""
        self._join()
        self.there = np.zeros(len(self.rows), np.bool_)
        self._order = order_of(self.rows)
        # How many packs share the first eight bytes of their hash at most: one, but for forgeries.
        same = np.flatnonzero(np.concatenate(([True], self._order[1:] != self._order[:-1], [True])))
        self._sharing = int(np.diff(same).max()) if len(self.rows) else 0

    def prefixes(self) -> list[str]:
        """Return what is listed to see which of the packs are there."""
        writers = {(int(row["kind"]), row["writer"].tobytes()) for row in np.unique(self.rows[["kind", "writer"]])}
        return [f"{KINDS[kind]}/{writer.hex()}/" for kind, writer in sorted(writers)]

    def see(self, names: Iterable[PackName]) -> None:
        """Note that these packs are there with the size their names say (*sync*)."""
        seen = rows_of(names)
        if not len(seen) or not len(self.rows):
            return
        first = self._order.searchsorted(order_of(seen))
        for step in range(self._sharing):
            at = (first + step).clip(max=len(self.rows) - 1)
            self.there[at[(_words(self.rows[at]) == _words(seen)).all(axis=1)]] = True

    def keys(self) -> Column64:
        """Return the keys of all packs, in the order of `rows`."""
        return np.ascontiguousarray(keys_of(self.rows))

    def names(self, rows: Rows | Mask) -> list[PackName]:
        """Return the names of packs by their rows."""
        return pack_names(self.rows[rows])

    def _join(self) -> None:
        tables = [table for table in (self.rows, *self._more) if len(table)]
        self._more, self._count = [], 0
        if tables:
            self.rows = sorted_rows(np.concatenate(tables) if len(tables) > 1 else tables[0])


async def look(needs: Needs, objects: ObjectStore, told: Callable[[int], None]) -> None:
    """List what is there of the packs that are needed; `told` hears how many were listed so far.

    Raises: StoreUnavailable, StoreRejected.
    """
    listed = 0
    for prefix in needs.prefixes():
        names: list[PackName] = []
        async for info in objects.list(prefix):
            name = PackName.parse(info.name)
            listed += 1
            if name is not None and name.size == info.size:
                names.append(name)
            if len(names) == LISTED_AT_ONCE:
                await anyio.to_thread.run_sync(needs.see, names)
                names = []
                told(listed)
        await anyio.to_thread.run_sync(needs.see, names)
        told(listed)


def _words(rows: PackRows) -> Column64:
    return np.ascontiguousarray(rows).view(np.uint64).reshape(-1, PACK_ROW_BYTES // 8)
