"""A session: one run of a backup job, from the stores' markers to the commit. Read this file from `Session.run` down.

vault, parent, cache → volumes and where their candidates are → round: read, compare, seal, transmit, flush
→ places → reliance (what is not good is sent again in another round) → commit
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Sequence
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt
import structlog

from engine.block import ids_from_bytes
from engine.distinct import distinct
from engine.errors import ForebayError, SessionAborted, StateCorrupt, StoreError, StoreRejected
from engine.exitcodes import SOMETHING_MISSING, of_error
from engine.pack import FinishedPack, PackBuilder
from engine.pipeline.candidates import forced
from engine.pipeline.commit import CacheSide, Committer
from engine.pipeline.gate import GatedStore, Outage, ReconnectGate
from engine.pipeline.lane import Lane, LaneResult
from engine.pipeline.parent import Parent, find_parent
from engine.pipeline.reliance import Reliance
from engine.pipeline.report import SessionReport, iso_time
from engine.pipeline.resolve import Resolved, resolve
from engine.pipeline.route import Event, Means, RouteKeeper
from engine.pipeline.stores import Side, open_side
from engine.pipeline.transmit import CACHE, VAULT, Transmitter, first_cause
from engine.pipeline.twins import Twins
from engine.pipeline.volume import Manner, VolumeRun, VolumeSource, open_run
from engine.policy import CacheErrorPolicy, LanePolicy, QueuePolicy, ReconnectPolicy, SlowPolicy
from engine.ports import Clock, ObjectStore
from engine.seal import Codec
from engine.state import History, SessionRow, StateStore
from engine.vault.certificate import Certificates
from engine.vault.enrolment import check_enrolment
from engine.vault.formatobject import FormatObject, read_format
from engine.vault.identity import Identity

log = structlog.get_logger("session")

ROUNDS_MAX: Final = 8  # checks of what is relied on, and rounds in which what turned out bad is sent again
ROOTS_MAX: Final = 3


class CacheSetup(msgspec.Struct, frozen=True):
    """The cache of a session: the object store behind its retry stage, and what its errors and slowness cost."""

    objects: ObjectStore
    errors: CacheErrorPolicy
    slow: SlowPolicy


class SessionSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a session is made of. `vault` is the object store behind its retry stage."""

    identity: Identity
    state: StateStore
    history: History
    clock: Clock
    vault: ObjectStore
    cache: CacheSetup | None
    volumes: Sequence[VolumeSource]
    version: str
    codec: Codec = Codec.ZSTD
    paranoid: bool = False
    delta: bool = True
    own_only: bool = False
    full: bool = False
    queue: QueuePolicy = msgspec.field(default_factory=QueuePolicy)
    lane: LanePolicy = msgspec.field(default_factory=LanePolicy)
    reconnect: ReconnectPolicy = msgspec.field(default_factory=ReconnectPolicy)
    workers: int = 2
    seed: int | None = None


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
        self._written: set[int] = set()
        self._route = RouteKeeper("VAULT", lambda route: self.report.change_route(route, setup.clock.now_ms()))
        self._gate = ReconnectGate(setup.vault.probe, setup.reconnect, setup.clock, self._chance, self._route)
        self._vault = GatedStore(setup.vault, self._gate)

    @property
    def outage(self) -> Outage | None:
        """What the session waits for while the vault is lost; None: it does not."""
        return self._gate.outage

    async def run(self) -> SessionReport:
        """Do the session and return its report; what ended it is in the report, and it is recorded in history.

        Raises: only what no session can end with (bugs, cancellation).
        """
        started = self.setup.clock.monotonic()
        self.report.change_route("VAULT", self.started_ms)
        try:
            await self._attempt()
        except* ForebayError as group:
            error = first_cause(group)
            self.report.error = str(error)
            self.report.exit_code = of_error(error)
            if self._route.route != "ABORTED":
                self._route.on(Event.FAILED, Means(window=False, spool=False))
            log.error("session_failed", error=str(error))
        finally:
            for run in self.runs:
                run.reader.close()
        self.report.seconds = round(self.setup.clock.monotonic() - started, 3)
        await anyio.to_thread.run_sync(self._record)
        return self.report

    async def _attempt(self) -> None:
        """Run once; if local state turns out damaged, give it up and run again: it can all be rebuilt."""
        try:
            await self._run()
        except StateCorrupt as error:
            self.report.problems.append(f"{error}; local state is given up, everything is read and compared again")
            log.warning("state_given_up", error=str(error))
            for run in self.runs:
                run.reader.close()
            self.runs.clear()
            self.report.volumes.clear()
            for source in self.setup.volumes:
                self.setup.state.volume(source.name).forget()
            self.setup.state.end_sessions()
            self._cache = CacheSide()
            await self._run()

    async def _run(self) -> None:
        setup = self.setup
        names = [source.name for source in setup.volumes]
        # One try: a vault that is away is said so at once, not after all retries.
        await setup.vault.probe()
        found = await read_format(self._vault, "vault", "write")
        self._same_vault(found.store)
        certificates = await check_enrolment(self._vault, setup.identity)
        # Before the index is opened: a cloned state gets its new incarnation here, and fragments carry it.
        parent = await find_parent(setup.state, names, setup.identity, certificates, self._vault, found.store)
        self.report.problems += parent.problems
        vault = await self._open_side(found, self._vault, certificates, durable_puts=True)
        await self._open_cache(certificates)
        await anyio.to_thread.run_sync(setup.state.begin_session, self.id)
        self.phase = "opening the volumes"
        await self._open_volumes(vault, parent)
        await self._transmit(vault, parent)

    def _same_vault(self, store: bytes) -> None:
        if store != self.setup.identity.vault:
            raise SessionAborted(
                "the vault is not the one this system was enrolled in; check [vault] url, "
                "or move the identity file away (and keep it) and run 'forebay init' to enrol in this one"
            )

    async def _open_side(
        self, found: FormatObject, objects: ObjectStore, certificates: Certificates, *, durable_puts: bool
    ) -> Side:
        setup = self.setup
        side, problems = await open_side(
            found,
            objects,
            setup.identity,
            setup.state,
            certificates,
            own_only=setup.own_only,
            distrust=setup.full,
            durable_puts=durable_puts,
        )
        self.report.problems += problems
        return side

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
            self._cache.side = await self._open_side(found, setup.cache.objects, certificates, durable_puts=False)
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

    async def _open_volumes(self, vault: Side, parent: Parent) -> None:
        for source in self.setup.volumes:
            self.runs.append(await anyio.to_thread.run_sync(self._open_volume, source, vault))
        for run in self.runs:
            self.report.volumes[run.name] = run.report
            if run.head is None and parent.previous is not None and not parent.lost and not self.setup.full:
                self.report.problems.append(
                    f"volume {run.name!r}: there was no local state for it; everything was read and compared"
                )
            self.report.problems += await anyio.to_thread.run_sync(run.choose, self._chance)

    def _open_volume(self, source: VolumeSource, vault: Side) -> VolumeRun:
        setup = self.setup
        state = setup.state.volume(source.name)
        if setup.full:
            state.forget()
        how = Manner(setup.identity, setup.codec, vault, self._cache.side, paranoid=setup.paranoid, delta=setup.delta)
        return open_run(source, state, how)

    def _lanes(self, vault: Side) -> list[Lane]:
        setup = self.setup
        identity = setup.identity

        def new_pack() -> PackBuilder:
            return PackBuilder("data", identity.keys, identity.system, self.id, identity.signer, setup.lane.pack_bytes)

        def wrote(finished: FinishedPack) -> None:
            self._written.add(finished.name.key)

        finish = Twins().finish
        lanes = [Lane(VAULT, vault.packs, new_pack, setup.lane, setup.clock, on_ack=wrote, finish=finish)]
        cache = self._cache.side
        if cache is not None and setup.cache is not None:
            index = cache.packs.index
            lanes.append(
                Lane(
                    CACHE,
                    cache.packs,
                    new_pack,
                    setup.lane,
                    setup.clock,
                    errors=setup.cache.errors,
                    slow=setup.cache.slow,
                    on_drop=lambda ids: index.release(ids_from_bytes(b"".join(ids))),
                    finish=finish,
                )
            )
        return lanes

    async def _transmit(self, vault: Side, parent: Parent) -> None:
        setup = self.setup
        self.transmitter = Transmitter(self._lanes(vault), setup.queue.bytes_max, setup.workers, setup.clock)
        reliance = Reliance(
            vault.packs,
            setup.history,
            setup.identity.keys.blocks,
            self._chance,
            trust_history=not setup.full,
            problems=self.report.problems,
        )
        names = [run.name for run in self.runs]
        await anyio.to_thread.run_sync(reliance.recall, names)
        self.phase = "reading and sending"
        self._heard(await self.transmitter.round([(run, run.works()) for run in self.runs]))
        self._tell_unreadable()
        committer = Committer(
            setup.identity,
            setup.state,
            vault,
            self._cache,
            parent,
            self.runs,
            self.id,
            setup.version,
            setup.codec,
            setup.lane.pack_bytes,
            self.started_ms,
            reliance,
            share_pages=not setup.full,
        )
        notes: list[tuple[str, bytes]] = []
        for _ in range(ROOTS_MAX):
            self.phase = "checking what is relied on"
            keys = await self._settle(reliance)
            self.phase = "writing the restore point"
            point, root = await committer.put_root()
            if await reliance.present(keys, frozenset(self._written)) and await committer.pages_present():
                break
            notes.append(await committer.supersede(point, "packs it relies on were lost while it was written"))
        else:
            raise SessionAborted("the vault loses packs faster than they are sent again; check what deletes from it")
        # From here on it stands, also if local state cannot follow it now.
        self.report.point = str(point)
        self.report.metadata_bytes = committer.metadata_bytes
        await committer.finish(point, root, notes)
        await anyio.to_thread.run_sync(reliance.healed, names)
        if self._cache.side is not None and self._cache.gave_up is not None and self.report.cache == "ok":
            self._cache_failed("given up", self._cache.gave_up)

    async def _settle(self, reliance: Reliance) -> npt.NDArray[np.uint64]:
        """Give every staged block a place in a pack that is there; return the keys of the packs relied on.

        What did not change and lies in a pack that turns out to be gone is staged and sent again, too.

        Raises: StoreError, SourceError, StateCorrupt, SessionAborted.
        """
        written = frozenset(self._written)
        for _ in range(ROUNDS_MAX):
            gone = reliance.take_gone()
            index = reliance.store.index
            resolved = [await anyio.to_thread.run_sync(resolve, run.state, index, gone) for run in self.runs]
            if any(found.pages.size for found in resolved):
                await self._send_again(resolved)
                written = frozenset(self._written)
                continue
            keys = distinct(*[found.keys for found in resolved])
            states = [run.state for run in self.runs]
            sources = {key: sample for run in self.runs for key, sample in run.producer.samples.items()}
            if (
                await reliance.present(keys, written)
                and await reliance.honest(states, keys, written)
                and await reliance.sound(sources, written)
            ):
                return keys
        raise SessionAborted("packs in the vault do not hold what they should; see the problems listed")

    async def _send_again(self, resolved: Sequence[Resolved]) -> None:
        assert self.transmitter is not None
        works = [
            (run, forced(found.pages, found.masks))
            for run, found in zip(self.runs, resolved, strict=True)
            if found.pages.size
        ]
        log.warning("blocks_sent_again", blocks=sum(int(np.bitwise_count(found.masks).sum()) for found in resolved))
        self._heard(await self.transmitter.round(works))

    def _heard(self, results: dict[str, LaneResult]) -> None:
        if (cache := results.get(CACHE)) is not None and cache.gave_up is not None:
            self._cache.gave_up = cache.gave_up

    def _tell_unreadable(self) -> None:
        for run in self.runs:
            ranges = run.unreadable_ranges()
            if not ranges:
                continue
            total = sum(length for _, length in ranges)
            shown = ", ".join(f"{length} bytes at {offset}" for offset, length in ranges[:8])
            more = f" and {len(ranges) - 8} more ranges" if len(ranges) > 8 else ""
            self.report.problems.append(
                f"volume {run.name!r}: {total} bytes could not be read and were stored as zeros: {shown}{more}"
            )
            self.report.exit_code = SOMETHING_MISSING

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
