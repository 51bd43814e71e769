"""The backlog: the restore points of one system that lie in its spool, and how they leave it (DESIGN.md §3.3).

A point leaves in an order in which every step may be the last one the machine ever does, so that nothing ever names
what is gone: its root first, then the packs no other spooled point lists, index fragments before them. What an
interruption leaves behind is found by `sweep`. There are no locks here: whoever changes the backlog holds the one of
the state directory.

Which packs a point needs is what the tables of its runs list. A run whose pages are not in the spool was mostly written
to the vault, before the vault was lost; but they may have vanished here: then what the session of the point wrote stays
with it. A run of the spool whose table cannot be read, or one that was never seen in the vault, might need anything: as
long as a point has one, no pack is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TypeAlias

import anyio.to_thread
import msgspec

from engine.block import Bytes
from engine.errors import ObjectMissing, StoreCorrupt, StoreError
from engine.fragment import FRAGMENT_READ_MAX, open_fragment
from engine.index import PackIndex
from engine.names import FragmentName, PackName, PointId
from engine.note import NoteBody, open_note, own_note
from engine.pack import PACK_HEADER_BYTES, session_of
from engine.packread import PackReads
from engine.packtable import KINDS, pack_names, rows_from_bytes
from engine.pagesources import PagesAway, PageSources, PageStore
from engine.ports import ObjectInfo, ObjectStore
from engine.root import Root, RunDescriptor, open_root
from engine.runs import RunReader
from engine.signed import OBJECT_BYTES_MAX
from engine.stage import flush
from engine.vault.certificate import Certificates
from engine.vault.enrolment import check_spool
from engine.vault.formatobject import read_format
from engine.vault.identity import Identity


class PointPacks(msgspec.Struct, frozen=True):
    """The packs a point needs. `listed`: all that its runs list, those only the vault has included.

    `unread`: sentences about runs whose table opens nowhere. `certain`: none of those runs lies in the spool, or may
    have lain there, so that nothing in the spool is needed besides `listed`, unless pages have vanished there
    (`doubt`). `away`: why a store
    that may have a table could not be asked.
    """

    listed: frozenset[PackName]
    unread: tuple[str, ...] = ()
    certain: bool = True
    away: StoreError | None = None
    doubt: _Doubt | None = None


class _Doubt(msgspec.Struct, frozen=True):
    """What tells runs that lie in the vault from one whose pages have vanished in the spool.

    `runs`: those whose table opens nowhere; `session`: 16 bytes, which made the point, `ended`: those whose packs it
    may rely on besides; `pages`: packs of pages in the spool that the point lists.
    """

    runs: frozenset[bytes]
    session: bytes
    ended: tuple[bytes, ...]
    pages: tuple[PackName, ...]


Published: TypeAlias = Callable[[Sequence[PackName]], bool]


class _Needed(msgspec.Struct, frozen=True):
    """What the points of the spool need: these packs, and what those in doubt may need."""

    listed: frozenset[PackName]
    doubts: tuple[_Doubt, ...]


class Spool:
    """The backlog of one system; get it by `open`.

    Methods raise StoreUnavailable and StoreRejected where they ask the spool.
    """

    def __init__(
        self,
        objects: ObjectStore,
        identity: Identity,
        certificates: Certificates,
        also: Sequence[ObjectStore] = (),
        published: Published | None = None,
    ) -> None:
        self.objects, self.identity = objects, identity
        self._published = published
        self._sent_runs = set[bytes]()  # of which `published` said so
        self._certificates = certificates
        self._stores = [objects, *also]
        self._tables: dict[bytes, frozenset[PackName]] = {}  # by run

    @classmethod
    async def open(
        cls,
        objects: ObjectStore,
        identity: Identity,
        where: str = "",
        *,
        also: Sequence[ObjectStore] = (),
        published: Published | None = None,
    ) -> Spool:
        """Open the spool this system has adopted; `where` names its place in sentences.

        `also`: further stores, such as the vault, from which pages of a run's table may be read. `published` (*sync*)
        tells whether all these packs are known to have got to the vault; None: nobody knows, they are taken to have.

        Raises: StoreUnavailable (away), StoreRejected (no spool), StoreCorrupt, FormatTooNew, ConfigError (not the
        adopted one).
        """
        check_spool(identity, await read_format(objects, "spool", "write"), where)
        own = Certificates(identity.domain, identity.vault_public, [identity.certified()], [])
        return cls(objects, identity, await own.refresh(objects), also, published)

    async def points(self) -> list[PointId]:
        """Return the spooled points, oldest first; one with a `removed` note is none, its root only outlived it."""
        found = await self._roots()
        removed = await self._removed(found)
        return [point for point in found if point not in removed]

    async def root(self, point: PointId) -> tuple[Root, bytes]:
        """Return a spooled point's root, opened, and its bytes. Raises: ObjectMissing, StoreCorrupt, FormatTooNew."""
        name = point.root(self.identity.system)
        data = bytes(await self.objects.get(name, 0, OBJECT_BYTES_MAX + 1))
        root = open_root(name, data, self.identity.listing_key, self._certificates.verify_number)
        if root.domain != self.identity.domain:
            raise StoreCorrupt(name, "it belongs to another domain than this system's")
        return root, data

    async def packs_of(self, point: PointId, root: Root | None = None) -> PointPacks:
        """Return the packs a spooled point needs; `root`: its own, if that is known already.

        Raises: as `root`, if that does not open.
        """
        return await self._packs_of(point, await self.packs(), root)

    async def packs(self) -> dict[PackName, str]:
        """Return this system's packs that lie in the spool with the right size, each with its object's name."""
        return {pack: info.name for pack, info in (await self._objects_of_packs()).items() if pack.size == info.size}

    async def held(self) -> set[PackName]:
        """Return this system's packs of which something lies in the spool, whatever its size."""
        return {*await self._objects_of_packs()}

    async def _objects_of_packs(self) -> dict[PackName, ObjectInfo]:
        """Return what lies there under the names of this system's packs, whatever its size."""
        found: dict[PackName, ObjectInfo] = {}
        for kind in KINDS:
            async for info in self.objects.list(f"{kind}/{self.identity.system.hex()}/"):
                pack = PackName.parse(info.name)
                if pack is not None and (pack not in found or pack.size == info.size):
                    found[pack] = info
        return found

    async def fragments(self) -> dict[FragmentName, frozenset[PackName]]:
        """Return this system's index fragments in the spool with the packs whose records each lists.

        One that does not open lists none: whoever uses the index reports it.
        """
        found: dict[FragmentName, frozenset[PackName]] = {}
        async for info in self.objects.list(f"index/{self.identity.system.hex()}/"):
            name = FragmentName.parse(info.name)
            if name is None or info.size > FRAGMENT_READ_MAX:
                continue
            try:
                data = await self.objects.get(info.name, 0, FRAGMENT_READ_MAX)
                found[name] = await anyio.to_thread.run_sync(self._packs_in, name, data)
            except StoreCorrupt:
                found[name] = frozenset()
            except ObjectMissing:
                continue
        return found

    async def notes(self) -> dict[PointId, list[str]]:
        """Return the names of this system's notes by the point they are about, which may be in the spool no more."""
        found: dict[PointId, list[str]] = {}
        async for info in self.objects.list(f"note/{self.identity.system.hex()}/"):
            if parsed := PointId.parse_note(info.name):
                found.setdefault(parsed[1], []).append(info.name)
        return {point: sorted(names) for point, names in sorted(found.items())}

    async def remove(self, point: PointId, root: Root | None = None) -> int:
        """Take a point that was uploaded out of the spool, its notes included; return the bytes that got free.

        `root`: its own, if the spool's does not open.
        """
        notes = (await self.notes()).get(point, [])
        return await self._leave(point, notes, root)

    async def delete(self, point: PointId, now_ms: int, text: str = "") -> int:
        """Delete a point that was never uploaded; return the bytes that got free.

        A `removed` note stays and travels with the next upload. Once it is there the point is gone, however this ends.
        """
        name, data = own_note(NoteBody(kind="removed", time=now_ms, text=text), point, self.identity)
        await self.objects.put(name, data)
        await flush(self.objects)
        return await self._leave(point, ())

    async def drop_notes(self, names: Iterable[str]) -> None:
        """Remove notes that were uploaded."""
        for name in names:
            await self.objects.delete(name)
        await flush(self.objects)

    async def sweep(self, open_sessions: Collection[bytes] = ()) -> int:
        """Finish what was interrupted: points that were deleted, packs that no point lists; return the bytes freed.

        Packs of `open_sessions` (16-byte ids) stay: the next session goes on from them.
        """
        found = await self._roots()
        if removed := await self._removed(found):
            for point in removed:
                await self.objects.delete(point.root(self.identity.system))
            await flush(self.objects)
        needed = await self._needed()
        if needed is None:
            return 0
        packs = await self._objects_of_packs()
        unlisted = {pack: info for pack, info in packs.items() if pack not in needed.listed}
        return await self._drop(await self._unneeded(unlisted, needed, open_sessions))

    async def _roots(self) -> list[PointId]:
        names = [info.name async for info in self.objects.list(f"root/{self.identity.system.hex()}/")]
        return sorted(parsed[1] for parsed in map(PointId.parse_root, names) if parsed is not None)

    async def _removed(self, points: Collection[PointId]) -> set[PointId]:
        """Return those of `points` that have a `removed` note which opens."""
        removed: set[PointId] = set()
        for point, names in (await self.notes()).items() if points else ():
            for name in names if point in points else ():
                try:
                    data = bytes(await self.objects.get(name, 0, OBJECT_BYTES_MAX + 1))
                    note = open_note(name, data, self.identity.listing_key, self._certificates.verify_number)
                except (StoreCorrupt, ObjectMissing):
                    continue
                if note.body.kind == "removed":
                    removed.add(point)
        return removed

    async def _packs_of(self, point: PointId, present: Collection[PackName], root: Root | None = None) -> PointPacks:
        root = root or (await self.root(point))[0]
        listed: set[PackName] = set()
        unread: list[str] = []
        away: StoreError | None = None
        certain = True
        shut: list[bytes] = []
        for volume in root.body.volumes:
            for run in volume.runs:
                near = pack_names(rows_from_bytes(run.table_packs))
                listed.update(near)
                try:
                    listed |= await self._listed(run)
                except StoreError as error:
                    shut.append(run.run)
                    unread.append(f"volume {volume.name!r} of restore point {point}: {error}")
                    away = (error.away if isinstance(error, PagesAway) else None) or away
                    certain &= not any(pack in present for pack in near) and await self._in_vault(run.run, near)
        pages = tuple(pack for pack in present if pack.kind == "page" and pack in listed)
        doubt = _Doubt(frozenset(shut), root.body.session, tuple(root.body.ended), pages) if shut else None
        return PointPacks(frozenset(listed), tuple(unread), certain, away, doubt)

    async def _in_vault(self, run: bytes, packs: Sequence[PackName]) -> bool:
        """Tell whether what a run needs and is not here may be taken to lie in the vault, not to have vanished."""
        if self._published is None or run in self._sent_runs:
            return True
        if sent := await anyio.to_thread.run_sync(self._published, packs):
            self._sent_runs.add(run)
        return sent

    async def _listed(self, run: RunDescriptor) -> frozenset[PackName]:
        if run.run not in self._tables:
            stores = [PageStore(PackReads(objects, PackIndex()).read) for objects in self._stores]
            pages = PageSources(stores, self.identity.keys.pages)
            self._tables[run.run] = frozenset((await RunReader(pages, run).table()).names())
        return self._tables[run.run]

    async def _needed(self) -> _Needed | None:
        """Return what the points of the spool need; None: not all that a point needs is known."""
        listed: set[PackName] = set()
        doubts: list[_Doubt] = []
        older: set[bytes] = set()  # runs of the points before
        present = await self.packs()
        for point in await self.points():
            try:
                root = (await self.root(point))[0]
                packs = await self._packs_of(point, present, root)
            except ObjectMissing:
                continue
            except StoreCorrupt:
                return None
            if not packs.certain:
                return None
            listed |= packs.listed
            if packs.doubt is not None and not packs.doubt.runs <= older:
                doubts.append(packs.doubt)
            older.update(run.run for volume in root.body.volumes for run in volume.runs)
        return _Needed(frozenset(listed), tuple(doubts))

    async def _leave(self, point: PointId, notes: Iterable[str], root: Root | None = None) -> int:
        try:
            listed = (await self.packs_of(point, root)).listed
        except (StoreCorrupt, ObjectMissing):
            listed = frozenset()  # what it needed is not known any more: `sweep` finds what nobody lists
        await self.objects.delete(point.root(self.identity.system))
        await self.drop_notes(notes)
        if (needed := await self._needed()) is None:
            return 0
        packs = await self._objects_of_packs()
        going = {pack: info for pack, info in packs.items() if pack in listed and pack not in needed.listed}
        return await self._drop(await self._unneeded(going, needed))

    async def _drop(self, packs: Collection[PackName]) -> int:
        """Delete the index fragments that list none but these packs, then the packs: an index must not name ghosts."""
        present = await self._objects_of_packs()
        going = present.keys() & packs
        left = {pack for pack, info in present.items() if pack.size == info.size} - going
        if not left:  # nor is there anything a damaged fragment could name
            names = [info.name async for info in self.objects.list(f"index/{self.identity.system.hex()}/")]
        elif going:
            fragments = (await self.fragments()).items()
            names = [str(name) for name, listed in fragments if listed and left.isdisjoint(listed)]
        else:
            return 0
        for name in names:
            await self.objects.delete(name)
        await flush(self.objects)
        for pack in going:
            await self.objects.delete(present[pack].name)
        await flush(self.objects)
        return sum(present[pack].size for pack in going)

    async def _unneeded(
        self, packs: Mapping[PackName, ObjectInfo], needed: _Needed, open_sessions: Collection[bytes] = ()
    ) -> list[PackName]:
        """Return those of these unlisted packs that no session and no point may need."""
        whole = [pack for pack, info in packs.items() if info.size == pack.size]
        torn = [pack for pack, info in packs.items() if info.size != pack.size]
        if not needed.doubts and not open_sessions:
            return torn + whole
        written = {pack: await self._session(packs[pack].name) for pack in whole}
        data = {session for pack, session in written.items() if pack.kind == "data"}
        kept = set(open_sessions)
        for doubt in needed.doubts:
            kept.add(doubt.session)
            # A point lists what its session wrote, unless its own pages are gone: then nothing of its packs is known.
            if doubt.session in data or not await self._wrote_any(doubt):
                kept.update(doubt.ended)
        return torn + [pack for pack, session in written.items() if session not in kept]

    async def _wrote_any(self, doubt: _Doubt) -> bool:
        for pack in doubt.pages:
            if await self._session(str(pack)) == doubt.session:
                return True
        return False

    async def _session(self, name: str) -> bytes:
        try:
            return session_of(await self.objects.get(name, 0, PACK_HEADER_BYTES))
        except ObjectMissing:
            return b""

    def _packs_in(self, name: FragmentName, data: Bytes) -> frozenset[PackName]:
        fragment = open_fragment(name, data, None, None)
        rows = {int(row) for row in set(fragment.columns.pack.tolist())}
        return frozenset(pack for row, pack in enumerate(pack_names(fragment.rows)) if row in rows)
