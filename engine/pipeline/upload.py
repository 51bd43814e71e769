"""The upload of the backlog: spooled points go to the vault, oldest first, one at a time (DESIGN.md §3.3).

    packs the point lists and the spool has → index fragment → all it lists is there, by listing; what is gone is filled
    in from the cache → notes → root, byte for byte → local state knows → the point leaves the spool

Every step may be the last one the machine ever does: packs that were acknowledged are known to the ack log of the vault
and not sent again, a root that was put is put again with the same bytes. One bad point never blocks the rest: what no
store has is published as holes; what needs a cache that is away, or whose name another point in the vault has, waits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

import anyio.to_thread
import msgspec
from blake3 import blake3

from engine.errors import (
    ConfigError,
    ContentDiffers,
    ObjectMissing,
    StateCorrupt,
    StoreCorrupt,
    StoreError,
    StoreRejected,
    StoreUnavailable,
)
from engine.events import EventLog
from engine.names import PackName, PointId
from engine.note import NoteBody, open_note, own_note
from engine.pipeline.beside import published
from engine.pipeline.filling import Filling
from engine.pipeline.kept import not_kept
from engine.pipeline.locking import Locking
from engine.pipeline.refill import CacheAway
from engine.pipeline.report import Uploaded, UploadReport
from engine.pipeline.sending import Sending
from engine.pipeline.setup import SessionSetup
from engine.pipeline.standin import recall
from engine.pipeline.standroot import NameTaken, ToPut, to_put
from engine.pipeline.stores import Side, open_side
from engine.root import Root, open_root
from engine.signed import OBJECT_BYTES_MAX
from engine.spool import PointPacks, Spool
from engine.vault.certificate import Certificates
from engine.vault.enrolment import check_enrolment, find_cache
from engine.vault.formatobject import FormatObject, read_format

log = EventLog("upload")

# Asked between packs; True: somebody else needs the state directory, or the user wants a pause.
Stop: TypeAlias = Callable[[], bool]


class Within(msgspec.Struct, frozen=True):
    """What a session has open while it has an upload make room; `vault`, `cache` None: it has not."""

    spool: Side
    vault: Side | None = None
    cache: Side | None = None


class Upload:
    """Uploads the backlog of one system; hold the lock of its state directory.

    `report` may be watched. `stop` is asked between packs.
    """

    def __init__(self, setup: SessionSetup, stop: Stop = lambda: False) -> None:
        assert setup.spool is not None
        self._setup, self._stop = setup, stop
        self._objects = setup.spool.objects
        self.report = UploadReport()
        self._vault: Side | None = None
        self._spool_side: Side | None = None
        self._spool: Spool | None = None
        self._certificates: Certificates | None = None
        self._cache: Side | None = None
        self._cache_away: StoreUnavailable | None = None
        self._sending: Sending | None = None
        self._waiting: set[PointId] = set()
        self._in_session = False

    @property
    def sent_bytes(self) -> int:
        """Bytes of packs that were put."""
        return self._sending.sent_bytes if self._sending is not None else 0

    async def anything(self) -> bool:
        """Tell whether points, or notes to points that were deleted, wait in the spool; the vault is not asked.

        What an interruption left in the spool is swept. Raises: StoreError, StateCorrupt, ConfigError (the spool is not
        the adopted one).
        """
        setup = self._setup
        assert setup.spool is not None
        spool = await Spool.open(self._objects, setup.identity, setup.spool.where, published=published(setup))
        await spool.sweep(await anyio.to_thread.run_sync(setup.state.open_sessions))
        self.report.left = len(await spool.points())
        return self.report.left > 0 or bool(await spool.notes())

    async def open(self, within: Within | None = None) -> Spool:
        """Open vault, spool and cache, or take those a session has open. Return the backlog.

        Raises: StoreError, ConfigError (the vault shows other keys), StateCorrupt.
        """
        setup = self._setup
        await setup.vault.probe()
        if setup.lock is not None:
            await setup.lock.vault.check_lock()
        found = await read_format(setup.vault, "vault", "write")
        if found.store != setup.identity.vault:
            raise ConfigError("the vault is not the one this system was enrolled in; check [vault] url")
        self._certificates = await check_enrolment(setup.vault, setup.identity)
        self._vault = within.vault if within is not None and within.vault is not None else await self._side(found)
        if within is not None:
            self._spool_side, self._cache = within.spool, within.cache
        else:
            self._spool_side = await self._side(await read_format(self._objects, "spool", "write"))
            self._cache = await self._cache_side()
        self._in_session = within is not None
        also = [side.objects for side in (self._vault, self._cache) if side is not None]
        assert setup.spool is not None
        where, known = setup.spool.where, published(setup)
        self._spool = await Spool.open(self._objects, setup.identity, where, also=also, published=known)
        self._sending = Sending(
            setup, self._vault, self._spool_side, self._known(), self._stopping, self.report.problems
        )
        return self._spool

    async def all(self) -> None:
        """Upload every point. Raises: StoreError, StateCorrupt, SessionAborted."""
        while await self.oldest():
            pass
        if not self.report.stopped:
            await self._loose_notes()

    async def oldest(self) -> bool:
        """Upload the oldest point that can be; False: there is none, or it was to stop. Raises: as `all`."""
        spool = self._opened()[2]
        points = await spool.points()
        self.report.left = len(points)
        rest = [point for point in points if point not in self._waiting]
        if not rest or self._stopping():
            return False
        try:
            await self._publish(rest[0])
        except CacheAway as error:
            reason = (
                f"it needs what the vault lost, and the cache, which may have it, is away ({error}); connect it, or "
                "set [cache] enabled = false to have the point published as it is"
            )
        except NameTaken:
            reason = (
                "the vault has another one of that name, made before local state was rolled back, or by a copy of "
                "this machine; it can be restored from there"
            )
        else:
            self.report.left -= 0 if self.report.stopped else 1
            return not self.report.stopped
        self._waiting.add(rest[0])
        self.report.problems.append(f"restore point {rest[0]} waits in the spool: {reason}")
        return True

    async def _publish(self, point: PointId) -> None:
        (vault, _, spool), sending = self._opened(), self._sends()
        began_ms = self._setup.clock.now_ms()
        sending.sent.clear()
        root, data = await self._root(spool, point)
        if root is None:
            return
        put = await to_put(vault.objects, self._setup, self._known(), root, data)
        packs = await spool.packs_of(point, root)
        if packs.away is not None:
            raise packs.away
        count, size = await sending.send(spool, packs)
        if self.report.stopped:
            return
        await vault.packs.publish_index()
        await vault.packs.flush()
        holes = await self._complete(point, root, packs)
        await self._put_notes((await spool.notes()).get(point, ()))
        await vault.recheck()
        await vault.objects.put(put.point.root(self._setup.identity.system), put.data)
        await vault.packs.flush()
        await anyio.to_thread.run_sync(self._in_vault, point, put)
        damaged = [name for name in packs.listed if vault.packs.stand_in(name) != name]
        # Blocks come to lie elsewhere with the next session; pages, where runs that need them are merged.
        await self._heal_later([name.key for name in damaged if name.kind == "data"])
        # Whoever writes to the spool now finds there what is about to leave it: it lies in the vault from here on.
        await self._relied_on_in_vault(packs.listed)
        await spool.remove(point, root)
        if (lock := self._setup.lock) is not None:
            locking = Locking(self._setup, lock, began_ms, self.report.problems)
            await locking.after_upload(packs.listed, sending.sent)
        stands_as = self._stands_as(point, put)
        self.report.uploaded.append(Uploaded(str(point), count, size, holes, stands_as))
        log.info("point_uploaded", point=str(point), packs=count, bytes=size, incomplete=bool(holes))

    async def _root(self, spool: Spool, point: PointId) -> tuple[Root | None, bytes]:
        """Return a spooled root and its bytes; one that opens nowhere leaves the backlog, and is told."""
        try:
            return await spool.root(point)
        except (StoreCorrupt, ObjectMissing) as error:
            damaged = error
        copy = await self._cached(point.root(self._setup.identity.system))
        if copy is not None:
            try:
                name = point.root(self._setup.identity.system)
                return open_root(name, copy, self._setup.identity.listing_key, self._known().verify_number), copy
            except StoreCorrupt:
                pass
        await self._give_up_state(damaged)
        self.report.problems.append(f"{damaged}; restore point {point} is lost, nobody can open it any more")
        self.report.lost.append(str(point))
        await spool.delete(point, self._setup.clock.now_ms(), "its root was damaged in the spool")
        return None, b""

    def _stands_as(self, point: PointId, put: ToPut) -> str | None:
        """Tell of a point that got another name, and return that."""
        if put.point == point:
            return None
        name = point.root(self._setup.identity.system)
        self.report.problems.append(
            f"object {name} in the vault is not what was put there: it was damaged or forged; the restore point was "
            f"put as {put.point}: look at the disk or server"
        )
        log.warning("damaged_root_replaced", component="vault", point=str(point), by=str(put.point))
        return str(put.point)

    async def _complete(self, point: PointId, root: Root, packs: PointPacks) -> dict[str, list[tuple[int, int]]]:
        """See that all the point lists is in the vault; fill in what is gone, and say in a note what cannot be."""
        (vault, spooled, spool), sending = self._opened(), self._sends()
        absent = await sending.absent(packs.listed)
        whole = (await spool.packs()).keys() - sending.damaged if absent else ()
        if name := next((name for name in absent if name in whole), None):
            raise not_kept(str(name))  # it was sent a moment ago
        if not absent and not packs.unread:
            return {}
        filling = Filling(self._setup, vault, spooled, self._cache, self._known(), self._cache_away)
        filled = await filling.fill(root, absent, sending.damaged)
        if filled.unread:
            await self._give_up_state("the block map of a restore point in the spool is lost")
        self.report.problems += [f"restore point {point}: {problem}" for problem in filled.problems]
        await self._heal_later([name.key for name in filled.left])
        if filled.holes:
            lost = sum(count for ranges in filled.holes.values() for _, count in ranges)
            text = f"{lost} blocks that are lost could not be filled in from the cache"
            self.report.problems.append(f"restore point {point} is published incomplete: {text}")
            await self._put_note(point, filled.holes, text)
        return filled.holes

    async def _give_up_state(self, reason: object) -> None:
        """See that no map which stands at what is lost is used again. Raises: StoreRejected (one is in use)."""
        if self._in_session:
            raise StoreRejected(f"{reason}; this is dealt with after the session")
        await anyio.to_thread.run_sync(self._setup.state.renew_incarnation)

    async def _put_note(self, point: PointId, holes: dict[str, list[tuple[int, int]]], text: str) -> None:
        identity = self._setup.identity
        name, data = own_note(
            NoteBody(kind="incomplete", time=self._setup.clock.now_ms(), text=text, holes=holes), point, identity
        )
        await self._opened()[0].objects.put(name, data)

    async def _loose_notes(self) -> None:
        """Upload the notes to points that are in the spool no more, such as those that were deleted there."""
        vault, _, spool = self._opened()
        waiting = {*await spool.points()}
        names = [name for point, each in (await spool.notes()).items() if point not in waiting for name in each]
        if names:
            await self._put_notes(names)
            await vault.packs.flush()
            await spool.drop_notes(names)

    async def _put_notes(self, names: Collection[str]) -> None:
        vault = self._opened()[0]
        for name in names:
            try:
                data = bytes(await self._objects.get(name))
            except ObjectMissing:
                continue
            try:
                await vault.objects.put(name, data)
            except ContentDiffers as error:
                await self._put_note_anew(name, data, error)

    async def _put_note_anew(self, name: str, data: bytes, refused: ContentDiffers) -> None:
        """Put a note whose name in the vault has rotted away: it is named after its bytes, so sealed anew."""
        identity, vault = self._setup.identity, self._opened()[0]
        try:
            note = open_note(name, data, identity.listing_key, self._known().verify_number)
        except StoreCorrupt:
            there = bytes(await vault.objects.get(name, 0, OBJECT_BYTES_MAX + 1))
            try:
                open_note(name, there, identity.listing_key, self._known().verify_number)
            except StoreCorrupt:
                self.report.problems.append(f"{refused}; what the note says is lost: it is damaged in the spool, too")
            return
        await vault.objects.put(*own_note(note.body, note.point, identity))
        self.report.problems.append(f"{refused}; the note was put under another name")

    def _in_vault(self, point: PointId, put: ToPut) -> None:
        """Have local state look for a point in the vault from now on, also if its commit was cut off (*sync*)."""
        state, identity = self._setup.state, self._setup.identity
        intent, newest = state.intent(), state.newest()
        if intent is not None and intent.root == point.root(identity.system):
            root, digest = put.point.root(identity.system), blake3(put.data).digest()
            state.write_intent(msgspec.structs.replace(intent, root=root, root_hash=digest, vault=identity.vault))
        if newest is not None and PointId(newest.order, newest.incarnation) == point:
            state.set_newest(msgspec.structs.replace(newest, vault=identity.vault))

    async def _relied_on_in_vault(self, packs: Collection[PackName]) -> None:
        _, spooled, _ = self._opened()
        await spooled.packs.lies_beside_now([name.key for name in packs])

    async def _heal_later(self, keys: Sequence[int]) -> None:
        """Have the next sessions send again what they have in these packs, and rely on them no more."""
        history, vault = self._setup.history, self._setup.identity.vault
        try:
            if keys:
                await anyio.to_thread.run_sync(history.add_bad_packs, vault, keys)
        except StateCorrupt as error:
            self.report.problems.append(f"{error}; run 'forebay backup --full' to send what the vault lost again")

    async def _cached(self, name: str) -> bytes | None:
        if self._setup.cache is None:
            return None
        try:
            return bytes(await self._setup.cache.objects.get(name, 0, OBJECT_BYTES_MAX + 1))
        except StoreError:
            return None

    async def _cache_side(self) -> Side | None:
        """Return the cache, to fill from what the vault lost; one that cannot be used is none."""
        setup = self._setup
        if setup.cache is None:
            return None
        try:
            return await self._side(await find_cache(setup.cache.objects, setup.identity))
        except StoreError as error:
            self._cache_away = error if isinstance(error, StoreUnavailable) else None
            self.report.problems.append(f"cache: {error}; what the vault lost cannot be filled in from it")
            return None

    async def _side(self, found: FormatObject) -> Side:
        setup = self._setup
        cache = setup.cache.objects if setup.cache is not None else setup.vault
        objects = {"vault": setup.vault, "spool": self._objects, "cache": cache}[found.kind]
        side, problems = await open_side(
            found,
            objects,
            setup.identity,
            setup.state,
            self._known(),
            own_only=setup.own_only,
        )
        self.report.problems += problems
        if found.kind == "vault" and (problem := await anyio.to_thread.run_sync(recall, setup, side.packs)):
            self.report.problems.append(problem)
        return side

    def _known(self) -> Certificates:
        assert self._certificates is not None
        return self._certificates

    def _stopping(self) -> bool:
        if not self.report.stopped and self._stop():
            self.report.stopped = True
        return self.report.stopped

    def _sends(self) -> Sending:
        assert self._sending is not None
        return self._sending

    def _opened(self) -> tuple[Side, Side, Spool]:
        assert self._vault is not None
        assert self._spool_side is not None
        assert self._spool is not None
        return self._vault, self._spool_side, self._spool
