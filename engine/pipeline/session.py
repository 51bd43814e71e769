"""A session: one run of a backup job, from the stores' markers to the commit. Read this file from `Session.run` down.

spool, vault, parent, cache (opening.py) → volumes and where their candidates are → delivery (delivery.py)
→ the cache is trimmed (cache/trimjob.py) → the backlog is uploaded, if there is one and the vault is there (upload.py).

A session that loses its vault goes on into the spool: from its first candidate on (`restart`), or with what the vault
does not have yet (`resume`, target.py).
"""

from __future__ import annotations

import random
import secrets
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread
import msgspec

from engine.errors import (
    ConfigError,
    ForebayError,
    SessionAborted,
    StateCorrupt,
    StoreError,
    StoreUnavailable,
)
from engine.events import EventLog
from engine.exitcodes import DONE, IN_SPOOL, SOMETHING_MISSING, of_error
from engine.pipeline.bounded import SpoolFull
from engine.pipeline.commit import CacheSide
from engine.pipeline.delivery import Delivery
from engine.pipeline.gate import GatedStore, Outage, ReconnectGate, VaultLost, VaultRefused
from engine.pipeline.opening import Opened, Opening
from engine.pipeline.parent import Parent
from engine.pipeline.report import SessionReport, iso_time
from engine.pipeline.route import Event, Means, Route, RouteKeeper
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.pipeline.target import Target
from engine.pipeline.transmit import Transmitter, first_cause
from engine.pipeline.volume import Manner, VolumeRun, VolumeSource, open_run
from engine.ports import VolumeReader
from engine.state import SessionRow
from engine.vault.certificate import Certificates

# Imported where they are used: a session without a spool or a cache begins earlier.
if TYPE_CHECKING:
    from engine.pipeline.upload import Upload

log = EventLog("session")


class Session:
    """One session; `run` once. `report` and `transmitter` may be watched while it runs."""

    def __init__(self, setup: SessionSetup) -> None:
        self.setup = setup
        self.id = secrets.token_bytes(16)
        self.started_ms = setup.clock.now_ms()
        self.report = SessionReport(session=self.id.hex(), started=iso_time(self.started_ms))
        self.runs: list[VolumeRun] = []
        self.transmitter: Transmitter | None = None
        self.phase = "opening the stores"
        self._chance = random.Random(setup.seed)
        self._cache = CacheSide()
        self._readers: dict[str, VolumeReader] = {}
        self._route = RouteKeeper("VAULT", self._route_changed)
        self._gate = ReconnectGate(setup.vault.probe, setup.reconnect, setup.clock, self._chance, self._route)
        self._vault = GatedStore(setup.vault, self._gate)
        self._making_room: Upload | None = None
        self._parent: Parent | None = None  # of the last attempt
        self._certificates: Certificates | None = None  # likewise
        self._opening = Opening(setup, self.report, self._route, self._vault)

    @property
    def outage(self) -> Outage | None:
        """What the session waits for while the vault is lost; None: it does not."""
        return self._gate.outage

    @property
    def after_outage(self) -> str:
        """What happens if the vault does not come back in time."""
        return self._gate.then

    @property
    def vault_lost(self) -> bool:
        """Whether the vault was away, was lost or refused, and nothing has got there since."""
        return self._opening.fell_back and not self.report.uploaded

    async def run(self) -> SessionReport:
        """Do the session and return its report; what ended it is in the report, and it is recorded in history.

        Raises: only what no session can end with (bugs, cancellation).
        """
        started = self.setup.clock.monotonic()
        try:
            await self._opening.open_spool()
            self._gate.spool = self._opening.spool is not None
            await self._attempt()
        except* ForebayError as group:
            error = first_cause(group)
            self.report.error = str(error)
            self.report.exit_code = of_error(error)
            if self._route.route != "ABORTED":
                self._route.on(Event.FAILED, Means(window=False, spool=False))
            log.error("session_failed", error=str(error))
            if isinstance(error, SpoolFull):
                await self._clear_spool()
        finally:
            for reader in self._readers.values():
                reader.close()
        await self._trim_cache()
        await self._upload_backlog()
        self.report.seconds = round(self.setup.clock.monotonic() - started, 3)
        await anyio.to_thread.run_sync(self._record)
        return self.report

    async def _trim_cache(self) -> None:
        """Keep the cache within its bounds; what was backed up stands, whatever becomes of that."""
        setup, cache, side = self.setup, self.setup.cache, self._cache.side
        if cache is None or cache.trim is None or side is None or isinstance(self._cache.gave_up, StoreUnavailable):
            return
        from engine.cache.trimjob import TrimSetup, trim_side
        from engine.cache.trimrecord import document_of

        assert self._certificates is not None
        self.phase = "trimming the cache"
        trimming = TrimSetup(
            identity=setup.identity,
            state=setup.state,
            clock=setup.clock,
            policy=cache.trim,
            device=cache.device,
            pack_bytes=setup.lane.pack_bytes,
        )
        try:
            self.report.trim = document_of(await trim_side(trimming, side, self._certificates))
        except (StoreError, StateCorrupt, SessionAborted) as error:
            self.report.problems.append(f"cache: {error}; it was not trimmed to its end, the next session goes on")
            log.warning("trim_failed", component="cache", error=str(error))
            if cache.errors.on_error != "warn" and self.report.exit_code == DONE:
                self.report.exit_code = SOMETHING_MISSING

    async def _clear_spool(self) -> None:
        """Give back what a session took of a spool that was too small for it; finished points are untouched."""
        try:
            if self._opening.spool is not None:
                await self._opening.spool.sweep(())
        except StoreError as error:
            self.report.problems.append(f"spool: {error}")

    async def _upload_backlog(self) -> None:
        """Upload what waits in the spool, if the vault is there and nothing speaks against it; settle the exit code."""
        spool, settings = self._opening.spool, self.setup.spool
        if spool is None or settings is None:
            return
        from engine.pipeline.upload import Upload

        self.phase = "uploading the backlog"
        report, left = self.report, -1
        waiting = {report.point}
        upload = Upload(self.setup, lambda: settings.wanted() or settings.no_upload() is not None)
        try:
            # Packs of sessions that were cut off, which the point made now does not list either.
            await spool.sweep(await anyio.to_thread.run_sync(self.setup.state.open_sessions))
            waiting = {str(point) for point in await spool.points()}
            left = len(waiting)
            settings.offer()
            if left and (why := settings.no_upload()) is not None:
                log.info("backlog_waits", component="spool", points=left, reason=why)
            elif left and self._opening.away_lately():
                log.info("backlog_waits", component="spool", points=left, reason=report.fallback)
            elif left or await spool.notes():
                await upload.open()
                await upload.all()
        except StoreUnavailable as error:
            log.info("backlog_waits", component="spool", points=left, reason=str(error))
        except (StoreError, ConfigError, StateCorrupt, SessionAborted) as error:
            report.problems.append(f"the backlog was not uploaded: {error}")
            log.error("upload_failed", component="spool", error=str(error))
        self._opening.hear(upload.report)
        if self._making_room is not None:
            self._opening.hear(self._making_room.report)
        published = {each.point for each in report.uploaded}
        report.backlog = max(0, left - len(upload.report.uploaded) - len(upload.report.lost))
        # A vault that was lost after the point had got there leads to the spool, too.
        if self._route.route == "FALLBACK" and report.exit_code == DONE and report.point in waiting - published:
            report.exit_code = IN_SPOOL

    async def _room(self, opened: Opened, spool: Side) -> bool:
        """Upload the oldest point in the spool, so that it makes room; False: none was."""
        settings = self.setup.spool
        assert settings is not None
        if (why := settings.paused()) is not None:
            self.report.problems.append(f"the spool is full, and nothing in it can be uploaded: {why}")
            return False
        if self._making_room is None:
            from engine.pipeline.upload import Upload, Within

            upload = Upload(self.setup)
            try:
                await upload.open(Within(spool, opened.vault, self._cache.side))
            except (StoreError, ConfigError) as error:
                log.info("no_room_made", component="spool", error=str(error))
                return False
            self._making_room = upload
        done = len(self._making_room.report.uploaded)
        try:
            await self._making_room.oldest()
        except StoreError as error:
            log.info("no_room_made", component="spool", error=str(error))
        return len(self._making_room.report.uploaded) > done

    def _route_changed(self, route: Route) -> None:
        if route != "FALLBACK":
            self._opened_as_vault()
        self.report.change_route(route, self.setup.clock.now_ms())

    def _opened_as_vault(self) -> None:
        if not self.report.route_history:
            self.report.change_route("VAULT", self.started_ms)

    async def _attempt(self) -> None:
        """Run once; if local state turns out damaged, give it up and run again: it can all be rebuilt."""
        try:
            await self._run()
        except StateCorrupt as error:
            self.report.problems.append(f"{error}; local state is given up, everything is read and compared again")
            log.warning("state_given_up", error=str(error))
            for source in self.setup.volumes:
                self.setup.state.volume(source.name).forget()
            self.setup.state.end_sessions()
            self._begin_again()
            await self._run()

    def _begin_again(self) -> None:
        """Forget how far this session came; the volumes stay open: what is read stays of one moment."""
        self.runs.clear()
        self.report.volumes.clear()
        self._cache = CacheSide()

    async def _run(self) -> None:
        try:
            await self._deliver()
        except (VaultLost, VaultRefused) as error:
            if self._opening.spool is None or self.report.point is not None:
                raise
            # Nothing in the point may rely on what this session sent to the vault, so nothing staged is kept.
            log.warning("session_begins_again", error=str(error))
            self._use_spool(error)
            self._begin_again()
            await self._deliver()

    async def _deliver(self) -> None:
        setup = self.setup
        self.phase = "opening the stores"
        opened = await self._opening.open()
        if self._parent is not None:
            # It may have put roots meanwhile, after which the next one must come.
            opened.parent.order_min = max(opened.parent.order_min, self._parent.next_order(0))
        self._parent, self._certificates = opened.parent, opened.certificates
        await self._open_cache(opened.certificates)
        await anyio.to_thread.run_sync(setup.state.begin_session, self.id)
        target = await self._target(opened)
        self.phase = "opening the volumes"
        await self._open_volumes(target, opened)
        in_vault = self._route.route == "VAULT"
        delivery = Delivery(
            setup,
            self.id,
            self.started_ms,
            self.report,
            self._chance,
            self.runs,
            self._cache,
            opened.parent,
            target,
            self._now,
            pages=[opened.vault.packs] if opened.vault is not None and not in_vault else [],
            whole=opened.vault is not None and not in_vault,
        )
        self.transmitter = delivery.transmitter
        await delivery.run()
        if self._cache.side is not None and self._cache.gave_up is not None and self.report.cache == "ok":
            self._cache_failed("given up", self._cache.gave_up)

    def _now(self, phase: str) -> None:
        self.phase = phase

    async def _target(self, opened: Opened) -> Target:
        """Return where vault-bound blocks go. Raises: StoreError, StateCorrupt."""
        if self._route.route == "FALLBACK":
            return Target(await self._open_spool(opened))
        self._opened_as_vault()
        assert opened.vault is not None
        spool = self.setup.spool
        if spool is None or self._opening.spool is None or not spool.resume:
            return Target(opened.vault)

        async def switch(error: StoreError, sent: frozenset[int]) -> Side:
            self._use_spool(error)
            return await self._open_spool(msgspec.structs.replace(opened, vault=None), sent)

        return Target(opened.vault, switch)

    async def _open_spool(self, opened: Opened, sent: frozenset[int] = frozenset()) -> Side:
        assert self.setup.spool is not None
        side = await self._opening.spool_side(opened.certificates, sent)
        self.setup.spool.objects.make_room = partial(self._room, opened, side)
        return side

    def _use_spool(self, error: StoreError) -> None:
        self._opening.fall_back(error)
        self._gate.shut(error)

    async def _open_cache(self, certificates: Certificates) -> None:
        setup = self.setup
        if setup.cache is None:
            return
        self.report.cache = "ok"
        try:
            found = await self._opening.cache_format()
            self._cache.side = await self._opening.side(found, setup.cache.objects, certificates)
            self._cache.gives_up = setup.cache.errors.gives_up
        except StoreError as error:
            self._cache.gave_up = error
            self._cache_failed("away", error)

    def _cache_failed(self, state: str, error: StoreError) -> None:
        """Count a cache error as `on_error` says. Raises: SessionAborted."""
        assert self.setup.cache is not None
        policy = self.setup.cache.errors.on_error
        sentence = f"cache: {error}; the backup goes on without it, what it lacks is put there later"
        self.report.cache = state
        if policy == "fail":
            raise SessionAborted(f'cache: {error}; the session fails because of [cache] on_error = "fail"')
        self.report.problems.append(sentence)
        (log.error if policy == "error" else log.warning)("cache_failed", component="cache", error=str(error))
        if policy == "error":
            self.report.exit_code = SOMETHING_MISSING

    async def _open_volumes(self, target: Target, opened: Opened) -> None:
        for source in self.setup.volumes:
            run = await anyio.to_thread.run_sync(self._open_volume, source, target)
            self._readers[source.name] = run.reader
            self.runs.append(run)
        parent = opened.parent
        for run in self.runs:
            self.report.volumes[run.name] = run.report
            if run.head is None and parent.previous is not None and not parent.lost and not self.setup.full:
                self.report.problems.append(
                    f"volume {run.name!r}: there was no local state for it; everything was read and compared"
                )
            self.report.problems += await anyio.to_thread.run_sync(run.choose, self._chance)

    def _open_volume(self, source: VolumeSource, target: Target) -> VolumeRun:
        setup = self.setup
        state = setup.state.volume(source.name)
        if setup.full:
            state.forget()
        how = Manner(setup.identity, setup.codec, target, self._cache.side, paranoid=setup.paranoid, delta=setup.delta)
        return open_run(source, state, how, self._readers.get(source.name))

    def _row(self) -> SessionRow:
        return SessionRow(
            session=self.report.session,
            started_ms=self.started_ms,
            ended_ms=self.setup.clock.now_ms(),
            exit_code=self.report.exit_code,
            point=self.report.point,
            route=self.report.route,
            report=msgspec.json.encode(self.report).decode(),
        )

    def _record(self) -> None:
        try:
            try:
                self.setup.history.add(self._row())
            except StateCorrupt as error:
                # What was damaged is out of the way now: this session is the first of a new list.
                self.report.problems.append(str(error))
                self.setup.history.add(self._row())
            self._note_cache()
        except ForebayError as error:
            # The point stands, or does not, whatever the log of sessions says.
            self.report.problems.append(f"this session is not in the history: {error}")
            log.error("history_failed", error=str(error))

    def _note_cache(self) -> None:
        """Note that there was a session with this cache: from the first one on it is verified."""
        cache, store = self.setup.cache, self.setup.identity.cache
        if cache is not None and cache.history is not None and store is not None and self.report.point is not None:
            cache.history.note_session(store, self.setup.clock.now_ms())
