"""Trimming as part of something larger: at the end of a session, and for the command that does nothing else.

Whatever becomes of it, what was backed up stands. It may be ended anywhere, so whoever waits is made way for at once.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from engine.cache.orphans import OrphanSweep
from engine.cache.stamping import Stamping
from engine.cache.stamps import day_of
from engine.cache.trim import Trimmer
from engine.cache.trimming import trim_cache
from engine.cache.trimrecord import Orphans, TrimReport, noted
from engine.errors import ConfigError, ForebayError
from engine.pack import PackBuilder
from engine.pipeline.stores import Side, open_side
from engine.policy import TrimPolicy
from engine.ports import Clock, Device, ObjectStore, Room
from engine.refresh import Members
from engine.state import StateStore
from engine.vault.certificate import Certificates
from engine.vault.enrolment import cache_members, find_cache
from engine.vault.identity import Identity

LOOK_S: Final = 0.1


class TrimSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What trimming a cache takes besides the cache: `device`: what it lies on, None: nobody can ask that."""

    identity: Identity
    state: StateStore
    clock: Clock
    policy: TrimPolicy
    device: Device | None
    pack_bytes: int


async def trim_side(
    setup: TrimSetup,
    side: Side,
    certificates: Certificates,
    *,
    aged: bool = False,
    watch: Callable[[Trimmer], None] = lambda trimmer: None,
) -> TrimReport:
    """Trim the cache that is open as `side`, merge its own fragments there if they are many, and note what came of it.

    `aged`: let go of what is older than `max_age` also if that was done today already; by itself that is done once a
    day, since for it every record is looked at. `watch` is given what trims, if anything has to go.
    Raises: StoreUnavailable, StoreRejected, StateCorrupt, SessionAborted.
    """
    identity, notes = setup.identity, setup.state.trim_notes(side.store_id)
    session, now_ms = secrets.token_bytes(16), setup.clock.now_ms()
    before = await anyio.to_thread.run_sync(notes.last)
    due = aged or before is None or before.aged_day != day_of(now_ms)
    policy = setup.policy if due else msgspec.structs.replace(setup.policy, age_days_max=None)

    async def room() -> Room:
        return await setup.device.room() if setup.device is not None else Room()

    def new_pack() -> PackBuilder:
        return PackBuilder("data", identity.keys, identity.system, session, identity.signer, setup.pack_bytes)

    async def members() -> Members:
        # Systems of the domain that have another vault: what they saw counts, too.
        return await certificates.refresh(side.objects)

    sweep = OrphanSweep(before.orphans if before is not None else Orphans())
    report = await trim_cache(
        side.packs,
        Stamping(side.objects, identity, certificates, setup.state.incarnation, now_ms),
        policy,
        room,
        new_pack,
        members=members,
        grown=before.grown if before is not None else (),
        stood=(before.others_day, before.stood_day) if before is not None else (0, 0),
        damaged=(await anyio.to_thread.run_sync(setup.state.upkeep(side.store_id).lost_packs)).damaged.tolist(),
        sweep=sweep,
        watch=watch,
    )
    await side.packs.merge_fragments()
    aged = due and policy.age_days_in_force is not None
    record = noted(before, report, setup.clock.now_ms(), aged=aged, orphans=sweep.known)
    await anyio.to_thread.run_sync(notes.put, record)
    return report


class TrimJob:
    """A trimming that opens the cache itself, and gives way to whoever wants the state directory; `run` once.

    `cache` is the object store behind its retry stage. May be watched while it runs.
    """

    def __init__(self, setup: TrimSetup, cache: ObjectStore, wanted: Callable[[], bool] = lambda: False) -> None:
        self._setup, self._cache, self._wanted = setup, cache, wanted
        self._trimmer: Trimmer | None = None
        self._phase = "opening the cache"
        self.report: TrimReport | None = None
        self.problems: list[str] = []

    @property
    def phase(self) -> str:
        """What it does now."""
        return self._trimmer.phase if self._trimmer is not None else self._phase

    @property
    def freed_bytes(self) -> int:
        """How much is free already that was not before."""
        return self._trimmer.freed_bytes if self._trimmer is not None else 0

    @property
    def needed_bytes(self) -> int:
        """How much has to go, as far as that is known."""
        return self._trimmer.needed_bytes if self._trimmer is not None else 0

    async def run(self) -> bool:
        """Trim; True: it is done, `report` tells how, False: it gave way and is to begin again later.

        Raises: ForebayError.
        """
        failed: ForebayError | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, group.cancel_scope)
            try:
                self.report = await self._trim()
            except ForebayError as error:
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return self.report is not None

    async def _watch(self, work: anyio.CancelScope) -> None:
        while not self._wanted():
            await self._setup.clock.sleep(LOOK_S)
        work.cancel()

    async def _trim(self) -> TrimReport:
        setup, identity = self._setup, self._setup.identity
        if identity.cache is None:
            raise ConfigError("this system has adopted no cache yet: run 'forebay init --cache'")
        found = await find_cache(self._cache, identity)
        certificates = await cache_members(self._cache, identity)
        side, problems = await open_side(found, self._cache, identity, setup.state, certificates, own_only=False)
        self.problems += problems
        self._phase = "looking what has to go"
        return await trim_side(setup, side, certificates, aged=True, watch=self._watched)

    def _watched(self, trimmer: Trimmer) -> None:
        self._trimmer = trimmer
