"""A session: one run of a backup job, from the stores' markers to the commit. Read this file from `Session.run` down.

spool, vault, parent, cache (opening.py) → volumes and where their candidates are → delivery (delivery.py)
→ the backlog is uploaded, if there is one and the vault is there (upload.py).

A session that loses its vault goes on into the spool: from its first candidate on (`restart`), or with what the vault
does not have yet (`resume`, target.py).
"""

from __future__ import annotations

import random
import secrets

import anyio.to_thread
import msgspec
import structlog

from engine.errors import ForebayError, SessionAborted, StateCorrupt, StoreError, StoreRejected
from engine.exitcodes import DONE, IN_SPOOL, SOMETHING_MISSING, of_error
from engine.pipeline.commit import CacheSide
from engine.pipeline.delivery import Delivery
from engine.pipeline.gate import GatedStore, Outage, ReconnectGate, VaultLost, VaultRefused
from engine.pipeline.opening import Opened, Opening
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
from engine.vault.formatobject import read_format

log = structlog.get_logger("session")


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
        self._opening = Opening(setup, self.report, self._route, self._vault)

    @property
    def outage(self) -> Outage | None:
        """What the session waits for while the vault is lost; None: it does not."""
        return self._gate.outage

    @property
    def after_outage(self) -> str:
        """What happens if the vault does not come back in time."""
        return self._gate.then

    async def run(self) -> SessionReport:
        """Do the session and return its report; what ended it is in the report, and it is recorded in history.

        Raises: only what no session can end with (bugs, cancellation).
        """
        started = self.setup.clock.monotonic()
        try:
            await self._opening.open_spool()
            self._gate.spool = self._opening.spool is not None
            await self._attempt()
            if self._route.route == "FALLBACK" and self.report.exit_code == DONE:
                self.report.exit_code = IN_SPOOL
        except* ForebayError as group:
            error = first_cause(group)
            self.report.error = str(error)
            self.report.exit_code = of_error(error)
            if self._route.route != "ABORTED":
                self._route.on(Event.FAILED, Means(window=False, spool=False))
            log.error("session_failed", error=str(error))
        finally:
            for reader in self._readers.values():
                reader.close()
        self.report.seconds = round(self.setup.clock.monotonic() - started, 3)
        await anyio.to_thread.run_sync(self._record)
        return self.report

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
            return Target(await self._opening.spool_side(opened.certificates))
        self._opened_as_vault()
        assert opened.vault is not None
        spool = self.setup.spool
        if spool is None or self._opening.spool is None or not spool.resume:
            return Target(opened.vault)

        async def switch(error: StoreError, sent: frozenset[int]) -> Side:
            self._use_spool(error)
            return await self._opening.spool_side(opened.certificates, sent)

        return Target(opened.vault, switch)

    def _use_spool(self, error: StoreError) -> None:
        self._opening.fall_back(error)
        self._gate.shut(error)

    async def _open_cache(self, certificates: Certificates) -> None:
        setup = self.setup
        if setup.cache is None:
            return
        self.report.cache = "ok"
        try:
            await setup.cache.objects.probe()
            found = await read_format(setup.cache.objects, "cache", "write")
            if found.store != setup.identity.cache:
                raise StoreRejected(
                    "it is not the cache this system has adopted: mount that one, or run 'forebay init --cache' to "
                    "adopt this one"
                )
            self._cache.side = await self._opening.side(found, setup.cache.objects, certificates, durable_puts=False)
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
        except ForebayError as error:
            # The point stands, or does not, whatever the log of sessions says.
            self.report.problems.append(f"this session is not in the history: {error}")
            log.error("history_failed", error=str(error))
