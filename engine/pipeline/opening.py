"""How a session opens: which stores are there, what it starts from, and where its point will go.

Rules (DESIGN.md §3.1):
- Points wait in the spool: FALLBACK, also while the vault is there: points are uploaded in order.
- The vault cannot be reached: FALLBACK, at once. It answers and refuses, or is another one: FALLBACK, and an error that
  names what to change. Without a spool both end the session.
- A spool that is configured and cannot be used is a problem of its own; with the vault there, the session goes on.
"""

from __future__ import annotations

from typing import Final

import anyio.to_thread
import msgspec

from engine.errors import ConfigError, SessionAborted, StateCorrupt, StoreError, StoreRejected, StoreUnavailable
from engine.events import EventLog
from engine.exitcodes import FAILED, SOMETHING_MISSING
from engine.names import PointId
from engine.pipeline.beside import lie_beside, published
from engine.pipeline.gate import GatedStore
from engine.pipeline.parent import Parent, Stores, find_parent
from engine.pipeline.report import SessionReport, UploadReport
from engine.pipeline.route import Event, Means, RouteKeeper
from engine.pipeline.setup import SessionSetup
from engine.pipeline.standin import recall
from engine.pipeline.stores import Side, open_side
from engine.ports import ObjectStore
from engine.spool import Spool
from engine.vault.certificate import Certificates
from engine.vault.enrolment import check_enrolment, find_cache
from engine.vault.formatobject import FormatObject, read_format
from engine.vault.publishing import put_back

log = EventLog("session")

SESSIONS_WEIGHED: Final = 5
ROOM_FACTOR: Final = 1.2  # of what the largest of them sent
PROBE_AGAIN_S: Final = 60.0  # a vault that was away so lately is not asked once more at the end of a session


class Opened(msgspec.Struct):
    """What was found: `vault` None: not to be used; `certificates` are those of the domain, as far as known."""

    vault: Side | None
    certificates: Certificates
    parent: Parent


class Opening:
    """Opens the stores of one session. `gated` is the vault behind the gate."""

    def __init__(self, setup: SessionSetup, report: SessionReport, route: RouteKeeper, gated: GatedStore) -> None:
        self._setup, self._report, self._route, self._gated = setup, report, route, gated
        self.spool: Spool | None = None
        self._spool_format: FormatObject | None = None
        self._cache_format: FormatObject | None = None
        self.backlog: list[PointId] = []
        self.fell_back = False  # from a vault that was away, lost, or refused
        self._away_s: float | None = None
        self._order_min = 0  # of the point, after all that stores have shown

    async def open_spool(self) -> None:
        """Find out whether there is a spool to fall back to, and what waits in it."""
        settings = self._setup.spool
        if settings is None:
            return
        identity = self._setup.identity
        try:
            if identity.spool is None:
                raise ConfigError("this system has not adopted it: run 'forebay init'")
            await settings.objects.probe()
            self._spool_format = await read_format(settings.objects, "spool", "write")
            known = published(self._setup)
            self.spool = await Spool.open(settings.objects, identity, settings.where, published=known)
            await self.spool.sweep(self._open_sessions())
            self.backlog = await self.spool.points()
        except (StoreError, ConfigError) as error:
            self.spool = None
            sentence = f"the spool {settings.where} cannot be used: {error}; there is nothing to fall back to"
            self._report.problems.append(sentence)
            self._report.exit_code = SOMETHING_MISSING
            log.error("spool_failed", component="spool", error=str(error))

    def _open_sessions(self) -> list[bytes]:
        try:
            return self._setup.state.open_sessions()
        except StateCorrupt:
            return []  # the session that begins tells it; what an interrupted one left in the spool is sent again

    async def open(self) -> Opened:
        """Open what there is to begin with. Raises: ForebayError."""
        setup = self._setup
        found: FormatObject | None = None
        certificates: Certificates | None = None
        # Where the session is in the fallback already, it looks for what the vault knows no more.
        if self._route.route != "FALLBACK":
            try:
                # One try: a vault that is away is said so at once, not after all retries; nor is it waited for where
                # points wait in the spool.
                await setup.vault.probe()
                if setup.lock is not None:
                    await setup.lock.vault.check_lock()
                vault = setup.vault if self.backlog else self._gated
                marker = await read_format(vault, "vault", "write")
                self._same_vault(marker.store)
                certificates = await check_enrolment(vault, setup.identity)
                found = marker
            except (StoreError, ConfigError) as error:
                if self.spool is None:
                    raise
                self.fall_back(error)
            if found is not None and self.backlog:
                found = found if await self._make_room() else None
        if found is not None and self.backlog:
            self._report.fallback = "earlier points wait in the spool, and points are uploaded in order"
            self._route.on(Event.BACKLOG, Means(window=False, spool=True))
        if found is not None and certificates is not None:
            if self._route.route == "VAULT":
                return await self._opened(found, self._gated, certificates)
            # In the fallback what the vault has is of use, and losing it costs nothing: no gate, no waiting.
            try:
                return await self._opened(found, setup.vault, certificates)
            except StoreError as error:
                self._report.problems.append(f"{error}; the session goes on without what the vault has")
                log.warning("vault_away", component="vault", error=str(error))
        return await self._opened(None, None, await self._known_certificates())

    async def _opened(
        self, found: FormatObject | None, vault: ObjectStore | None, certificates: Certificates
    ) -> Opened:
        """Find the parent and open the vault, if it is to be used. Raises: StoreError, StateCorrupt."""
        setup, identity = self._setup, self._setup.identity
        names = [source.name for source in setup.volumes]
        spool = setup.spool.objects if setup.spool is not None and self.spool is not None else None
        cache = await self._cache_there()
        # Before the index is opened: a cloned state gets its new incarnation here, and fragments carry it.
        stores = Stores(identity.vault, vault, identity.spool, spool, cache)
        parent = Parent(order_min=self._order_min)
        try:
            await find_parent(setup.state, names, identity, certificates, stores, parent)
        finally:  # what a vault showed before it was lost, or refused, still counts
            self._order_min = parent.next_order(0)
        side = None
        if found is not None and vault is not None:
            side = await self.side(found, vault, certificates)
        self._report.problems += parent.problems
        return Opened(side, certificates, parent)

    async def _make_room(self) -> bool:
        """Upload the backlog first where the spool may be too small for another point; False: the vault cannot be used.

        Raises: SessionAborted, StateCorrupt, StoreError.
        """
        settings = self._setup.spool
        assert settings is not None
        assert self.spool is not None
        needed, left = await anyio.to_thread.run_sync(self._usual_bytes), await settings.objects.left_bytes()
        if left >= needed:
            return True
        if (paused := settings.paused()) is not None:
            raise SessionAborted(
                f"the spool {settings.where} has {left >> 20} MiB left, and a session may need {needed >> 20} MiB; "
                f"what waits in it cannot make room: {paused}"
            )
        log.info("backlog_first", component="spool", left_bytes=left, needed_bytes=needed, points=len(self.backlog))
        from engine.pipeline.upload import Upload  # imported where it is used: a session without a spool begins earlier

        upload = Upload(self._setup)
        try:
            await upload.open()
            await upload.all()
        except (StoreUnavailable, StoreRejected) as error:
            self.fall_back(error)
            return False
        finally:
            self.hear(upload.report)
            self.backlog = await self.spool.points()
        return True

    def hear(self, upload: UploadReport) -> None:
        """Take what an upload did into the session's report."""
        self._report.uploaded += upload.uploaded
        self._report.problems += upload.problems
        if upload.lost or any(each.holes for each in upload.uploaded):
            self._report.exit_code = FAILED

    def _usual_bytes(self) -> int:
        """Return what a session may need in the spool, by the largest of the last ones (*sync*)."""
        largest = 0
        try:
            rows = self._setup.history.last(SESSIONS_WEIGHED)
        except StateCorrupt:
            return 0  # whoever writes this session into it repairs it
        for row in rows:
            try:
                report = msgspec.json.decode(row.report, type=SessionReport)
            except msgspec.MsgspecError:
                continue  # of another version
            sent = sum(volume.vault_bytes for volume in report.volumes.values()) + report.metadata_bytes
            largest = max(largest, sent)
        return round(largest * ROOM_FACTOR)

    def fall_back(self, error: StoreError | ConfigError) -> None:
        """Take note that the vault is used no more, and why; the route leads to the spool from here on."""
        away = isinstance(error, StoreUnavailable)
        self.fell_back = True
        if self._route.route in ("VAULT", "RECONNECTING"):
            self._route.on(Event.LOST if away else Event.REFUSED, Means(window=False, spool=True))
        if away:
            self._away_s = self._setup.clock.monotonic()
            self._report.fallback = str(error)
            self._report.problems.append(f"{error}; the session went on into the spool")
            log.warning("vault_away", component="vault", error=str(error))
        else:
            sentence = f"the vault refuses: {error}; the session went on into the spool, put this right for its upload"
            self._report.fallback = f"the vault refuses: {error}"
            self._report.problems.append(sentence)
            log.error("vault_refused", component="vault", error=str(error))

    def away_lately(self) -> bool:
        """Tell whether the vault was found to be away only just now."""
        return self._away_s is not None and self._setup.clock.monotonic() - self._away_s < PROBE_AGAIN_S

    async def side(self, found: FormatObject, objects: ObjectStore, certificates: Certificates) -> Side:
        """Open a pack store; what is wrong in it goes into the report. Raises: StoreError, StateCorrupt."""
        setup = self._setup
        side, problems = await open_side(
            found,
            objects,
            setup.identity,
            setup.state,
            certificates,
            own_only=setup.own_only,
            distrust=setup.full,
        )
        self._report.problems += problems
        if found.kind == "vault" and (problem := await anyio.to_thread.run_sync(recall, setup, side.packs)):
            self._report.problems.append(problem)
        return side

    async def spool_side(self, certificates: Certificates, sent: frozenset[int] = frozenset()) -> Side:
        """Open the spool's pack store, and what may be relied on beside it; `sent`: by this session, to the vault.

        Raises: StoreError, StateCorrupt.
        """
        setup = self._setup
        assert self._spool_format is not None
        assert setup.spool is not None
        try:
            # What goes there is to be restored from there, with the passphrase alone.
            await put_back(setup.spool.objects, setup.identity)
        except StoreRejected as error:
            self._report.problems.append(f"spool: {error}; what is in it cannot be restored without vault or cache")
        side = await self.side(self._spool_format, setup.spool.objects, certificates)
        volumes = [setup.state.volume(source.name) for source in setup.volumes] if not setup.full else []
        beside = await anyio.to_thread.run_sync(
            lie_beside,
            setup.state,
            setup.identity.vault,
            setup.identity.keys,
            setup.identity.system,
            volumes,
            side.packs.own_views(),
            sent,
        )
        await side.packs.rely_beside(beside)
        return side

    def _same_vault(self, store: bytes) -> None:
        if store != self._setup.identity.vault:
            raise StoreRejected(
                "the vault is not the one this system was enrolled in; check [vault] url, "
                "or move the identity file away (and keep it) and run 'forebay init' to enrol in this one"
            )

    async def _known_certificates(self) -> Certificates:
        """Return what is known of the domain's systems while the vault is away: what the cache has, and this one."""
        identity = self._setup.identity
        own = identity.certified()
        if self._setup.cache is not None:
            try:
                await self._setup.cache.objects.probe()  # one try, instead of all that a cache gets
                known = await Certificates.load(self._setup.cache.objects, identity.domain, identity.vault_public)
                return Certificates(identity.domain, identity.vault_public, [*known.all(), own], known.problems)
            except StoreError:
                pass  # the cache's own opening tells what is wrong with it
        return Certificates(identity.domain, identity.vault_public, [own], [])

    async def _cache_there(self) -> ObjectStore | None:
        """Return the cache if it is this system's, for its copies of roots."""
        setup = self._setup
        if setup.cache is None:
            return None
        try:
            await self.cache_format()
        except StoreError:
            return None  # as above
        return setup.cache.objects

    async def cache_format(self) -> FormatObject:
        """Return the format object of the cache, which is asked until it is found once. Raises: as `find_cache`."""
        assert self._setup.cache is not None
        if self._cache_format is None:
            self._cache_format = await find_cache(self._setup.cache.objects, self._setup.identity)
        return self._cache_format
