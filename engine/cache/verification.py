"""Verification of the cache: the block maps of the system's volumes are compared with what the cache holds.

    cache there, and the adopted one → its index, less packs that a listing does not have with the right size
    → every non-zero block of every map looked up → missing-block bitmap, page by page → what was seen, for the stamp

Rules (DESIGN.md §3.4):
- No volume is read. What the index lists counts only as far as its packs are there.
- The bitmap is settled page by page, and each page of it is true from then on: sessions that come in between go on from
  there, and settle what they change themselves.
- It gives way to whoever wants the state directory, and goes on from its checkpoint; so also after a kill or a reboot.
- What could not be finished is an attempt, not a result. A bitmap is only ever of the cache it was compared with.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import numpy as np

from engine.block import blocks_in
from engine.cache.attempt import Attempt
from engine.cache.checks import tell_checks, without
from engine.cache.comparison import Comparison, Stopped
from engine.cache.deep import choose, read_packs, with_read
from engine.cache.listing import listed_as_known
from engine.cache.recheck import amend, bring_pages_again, lacking_blocks
from engine.cache.seals import Seals
from engine.cache.sightings import Sightings, goes_on, lies_elsewhere
from engine.cache.stamping import MOVES_MAX, Stamping, moved, removed_packs
from engine.cache.stamps import day_of
from engine.columns import Column64
from engine.distinct import among, distinct
from engine.errors import ConfigError, ForebayError, SessionAborted, StoreCorrupt
from engine.events import EventLog
from engine.index import PackIndex
from engine.names import PackName
from engine.packstore import PackStore
from engine.pipeline.stores import Side, open_side
from engine.ports import Clock, ObjectStore
from engine.state import PAGE_ENTRIES, CacheHistory, Checkpoint, Compared, StateStore, VolumeState
from engine.upkeep import CacheUpkeep, LostPacks
from engine.vault.certificate import Certificates
from engine.vault.enrolment import cache_members, find_cache
from engine.vault.identity import Identity

log = EventLog("verify")

CHECKPOINT_S: Final = 600.0
LOOK_S: Final = 0.1


class VerifySetup(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification is made of.

    `cache` is the object store behind its retry stage, `volumes` the configured names. `read_share`: of the packs, by
    size, what is read, 0 to 1. `heals`: healing of restore points comes next, and the checkpoint is its to remove.
    `wanted` tells whether somebody waits for the state directory; `relax` lets go of what of the cache's index was
    mapped into memory.
    """

    identity: Identity
    state: StateStore
    history: CacheHistory
    clock: Clock
    cache: ObjectStore
    volumes: Sequence[str]
    own_only: bool = False
    read_share: float = 0.0
    heals: bool = False
    wanted: Callable[[], bool] = lambda: False
    relax: Callable[[], None] = lambda: None


class Verification:
    """One verification, or what is left of it after a pause; `run` once. May be watched while it runs."""

    def __init__(self, setup: VerifySetup) -> None:
        self._setup = setup
        self.attempt: Attempt | None = None
        self.problems: list[str] = []
        self.phase = "opening the cache"
        self.position_blocks = self.total_blocks = 0
        self._upkeep: CacheUpkeep | None = None
        self._checkpoint: Checkpoint | None = None
        self._members: Certificates | None = None
        self._present: Column64 = np.empty(0, np.uint64)
        self._sightings: Sightings | None = None
        self._saved_s, self._stopping = 0.0, False

    async def run(self) -> bool:
        """Verify; True: it is completed, False: it gave way and is to go on later.

        Raises: ForebayError (it could not be finished; that is recorded as an attempt).
        """
        done = False
        failed: ForebayError | None = None
        side: Side | None = None
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as opening:
                group.start_soon(self._watch, opening)
                try:
                    side = await self._open()
                    await self._read_packs(side)
                except ForebayError as error:
                    failed = error
            if side is not None:
                try:
                    done = await self._see(side.packs, side.store_id)
                    if done:
                        await anyio.to_thread.run_sync(self._complete)
                except ForebayError as error:
                    failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            await anyio.to_thread.run_sync(self._record_failure, failed)
            raise failed
        return done

    async def _watch(self, opening: anyio.CancelScope) -> None:
        """Notice that somebody waits: what goes on over the network is broken off, what computes looks for it."""
        while not self._setup.wanted():
            await self._setup.clock.sleep(LOOK_S)
        self._stopping = True
        self.phase = "giving way"
        opening.cancel()

    async def _open(self) -> Side:
        """Open the cache, and rely on what is there only. Raises: StoreError, ConfigError, StateCorrupt."""
        setup, identity = self._setup, self._setup.identity
        if identity.cache is None:
            raise ConfigError("this system has adopted no cache yet: run 'forebay init --cache'")
        self._upkeep = setup.state.upkeep(identity.cache)
        self._checkpoint = await anyio.to_thread.run_sync(self._resumed)
        self.attempt = self._checkpoint.attempt
        found = await find_cache(setup.cache, identity)
        self._members = certificates = await cache_members(setup.cache, identity)
        side, problems = await open_side(
            found, setup.cache, identity, setup.state, certificates, own_only=setup.own_only, look_again=True
        )
        self.problems += problems
        await self._look(side.packs)
        there = self._present[~among(self._present, removed_packs(side.packs))]
        if await anyio.to_thread.run_sync(lies_elsewhere, self._checkpoint, self._upkeep, there):
            self._begin_again()
        return side

    def _begin_again(self) -> None:
        """Compare everything anew: packs have gone of which something was found already."""
        assert self._checkpoint is not None
        log.info("verification_begins_again", component="cache", attempt=self._checkpoint.attempt.attempt)
        self._checkpoint = msgspec.structs.replace(self._checkpoint, volumes={}, seen=False)
        self.position_blocks = 0

    async def _see(self, packs: PackStore, store: bytes) -> bool:
        """Compare, and stamp what was found where it lies then; False: it gave way. Raises: ForebayError."""
        for _ in range(MOVES_MAX):
            known = removed_packs(packs)
            if not await anyio.to_thread.run_sync(self._compare_all, packs.index, store):
                return False
            if not await moved(packs, await self._stamp(), known):
                break
            await self._look(packs)
            self._begin_again()
        return True

    async def _look(self, packs: PackStore, absent: Column64 | None = None) -> None:
        """Find out which packs are there, but for those known to be `absent`. Raises: StoreError, SessionAborted."""
        assert self._upkeep is not None
        self.phase = "listing the packs"
        listed = await listed_as_known(packs, self._upkeep.lost_packs().gone)
        self._present = listed[~among(listed, absent)] if absent is not None else listed
        await anyio.to_thread.run_sync(self._rely_on, packs)

    def _resumed(self) -> Checkpoint:
        """Return the checkpoint to go on from, or that of a new attempt; records the attempt."""
        identity, setup = self._setup.identity, self._setup
        assert identity.cache is not None
        assert self._upkeep is not None
        found = self._upkeep.checkpoint()
        if found is None or not goes_on(found, self._upkeep, identity.cache):
            attempt = Attempt(
                attempt=secrets.token_hex(16), store=identity.cache.hex(), started_ms=setup.clock.now_ms()
            )
            found = Checkpoint(attempt=attempt)
            # From now on whoever comes next goes on with this one, however it is cut off.
            self._upkeep.set_checkpoint(found)
            log.info("verification_started", component="cache", attempt=attempt.attempt)
        else:
            log.info("verification_resumed", component="cache", attempt=found.attempt.attempt)
        setup.history.put_attempt(found.attempt)
        return found

    def _rely_on(self, packs: PackStore) -> None:
        assert self._upkeep is not None
        assert packs.removals is not None
        gone, known = packs.index.absent(self._present), self._upkeep.lost_packs()
        packs.index.bar(gone.tolist())
        new = gone[~among(gone, known.gone)]
        # What somebody trimmed is gone as it should be.
        if unexplained := int(np.count_nonzero(~np.isin(new, packs.removals.keys))):
            log.warning("packs_gone", component="cache", packs=unexplained)
        self._bring_pages_again(packs.index.pack_names(new))
        # What was found to be damaged stays lost until somebody removes it.
        self._upkeep.set_lost_packs(LostPacks(gone, known.damaged[among(known.damaged, self._present)]))

    def _bring_pages_again(self, lost: Iterable[PackName | None]) -> None:
        bring_pages_again(self._setup.state, self._setup.volumes, self._setup.identity.system, lost)

    async def _read_packs(self, side: Side) -> None:
        """Read the share of the packs that is due, and set damaged ones aside. Raises: StoreError, SessionAborted."""
        setup = self._setup
        if not setup.read_share:
            return
        assert self._checkpoint is not None
        assert self._upkeep is not None
        self.phase = "choosing packs to read"
        upkeep, today = self._upkeep, day_of(setup.clock.now_ms())
        checked = await anyio.to_thread.run_sync(upkeep.checked_packs)
        whole = await choose(side.packs, self._present, checked, self._stamping(), today)
        budget = round(whole.total_bytes * setup.read_share) - self._checkpoint.attempt.deep_bytes
        read: list[int] = []

        def told(name: PackName, fault: StoreCorrupt | None) -> None:
            assert self._checkpoint is not None
            read.append(name.key)
            known = self._checkpoint.attempt
            self.attempt = msgspec.structs.replace(
                known,
                deep_packs=known.deep_packs + 1,
                deep_bytes=known.deep_bytes + name.size,
                damaged_packs=known.damaged_packs + (fault is not None),
                damaged_bytes=known.damaged_bytes + (name.size if fault is not None else 0),
            )
            self._checkpoint = msgspec.structs.replace(self._checkpoint, attempt=self.attempt)
            self.phase = f"reading packs ({self.attempt.deep_bytes >> 20} MiB so far)"
            if fault is not None:
                self._set_aside(side.packs.index, name, fault)

        try:
            absent = await read_packs(side.packs, whole.within(budget), told, self._seals(), setup.relax)
            if absent.size:
                await self._look(side.packs, absent)
        except Stopped:
            await anyio.lowlevel.checkpoint()  # where whoever noticed that somebody waits breaks this off
        finally:
            known = with_read(checked, np.array(read, np.uint64), today, self._present)
            upkeep.set_checked_packs(known)
        sound = without(known, upkeep.lost_packs().damaged)
        await tell_checks(setup.cache, setup.identity, setup.state.incarnation, sound, today)

    def _seals(self) -> Seals:
        setup = self._setup
        states = [setup.state.volume(name) for name in setup.volumes]
        return Seals(states, setup.identity.keys.blocks, lambda: self._stopping or setup.wanted())

    def _set_aside(self, index: PackIndex, name: PackName, fault: StoreCorrupt) -> None:
        assert self._upkeep is not None
        log.error("pack_damaged", component="cache", object=str(name), bytes=name.size, error=str(fault))
        self.problems.append(f"{fault}; nothing relies on it any more, and the next backup puts its blocks there again")
        known = self._upkeep.lost_packs()
        damaged = distinct(known.damaged, np.array([name.key], np.uint64))
        self._upkeep.set_lost_packs(LostPacks(known.gone, damaged))
        index.bar([name.key])
        self._bring_pages_again([name])

    def _compare_all(self, index: PackIndex, store: bytes) -> bool:
        """Compare all volumes (*sync*); False: it gave way. Raises: StateCorrupt, SessionAborted."""
        setup, point, upkeep = self._setup, self._checkpoint, self._upkeep
        assert point is not None
        assert upkeep is not None
        self._saved_s = setup.clock.monotonic()
        comparison = Comparison(index, lambda: self._stopping or setup.wanted(), setup.relax, upkeep.scratch)
        self._sightings = Sightings(upkeep, point.attempt.attempt, comparison, noted=point.seen)
        states = {name: setup.state.volume(name) for name in setup.volumes}
        heads = {name: head for name, state in states.items() if (head := state.head) is not None}
        if not heads:
            raise SessionAborted("there is no restore point here yet to compare the cache with: run 'forebay backup'")
        self.total_blocks = sum(blocks_in(head.volume_bytes) for head in heads.values())
        # What was settled of a bitmap that has since become another cache's is settled anew.
        alike = {name for name, head in heads.items() if head.missing_known and head.cache == store}
        kept = {name: compared for name, compared in point.volumes.items() if name in alike}
        self._checkpoint = msgspec.structs.replace(point, volumes=kept)
        try:
            for name, head in heads.items():
                blocks = blocks_in(head.volume_bytes)
                self._compare(name, states[name], blocks, store)
                self.position_blocks += blocks
        except Stopped:
            self._save()
            return False
        return True

    def _compare(self, name: str, state: VolumeState, blocks: int, store: bytes) -> None:
        assert self._checkpoint is not None
        assert self._sightings is not None
        self.phase = f"comparing volume {name!r}"
        known = self._checkpoint.volumes.get(name, Compared())
        if known.done:
            return
        before, end = self.position_blocks, -(-blocks // PAGE_ENTRIES)
        for stretch in self._sightings.comparison.volume(state, known.page, end):
            known = Compared(stretch.stop, known.blocks + stretch.blocks, known.missing + stretch.missing)
            self._note(name, known)
            self.position_blocks = before + min(blocks, stretch.stop * PAGE_ENTRIES)
            if self._setup.clock.monotonic() - self._saved_s >= CHECKPOINT_S:
                self._save()
        self.position_blocks = before
        state.sync_missing()
        amend(state, cache=store, missing_known=True)
        self._note(name, msgspec.structs.replace(known, done=True))

    def _note(self, name: str, compared: Compared) -> None:
        """Note how far a volume was compared, and what that makes in all."""
        assert self._checkpoint is not None
        volumes = {**self._checkpoint.volumes, name: compared}
        self.attempt = msgspec.structs.replace(
            self._checkpoint.attempt,
            blocks=sum(each.blocks for each in volumes.values()),
            missing=sum(each.missing for each in volumes.values()),
        )
        self._checkpoint = msgspec.structs.replace(self._checkpoint, attempt=self.attempt, volumes=volumes)

    def _save(self) -> None:
        """Make what was settled so far durable, then say how far that is."""
        point, setup = self._checkpoint, self._setup
        assert point is not None
        assert self._upkeep is not None
        assert self._sightings is not None
        for name in point.volumes:
            setup.state.volume(name).sync_missing()
        self._sightings.note()
        self._checkpoint = point = msgspec.structs.replace(point, seen=True)
        self._upkeep.set_checkpoint(point)
        setup.history.put_attempt(point.attempt)
        self._saved_s = setup.clock.monotonic()

    def _stamping(self) -> Stamping:
        setup = self._setup
        assert self._members is not None
        return Stamping(setup.cache, setup.identity, self._members, setup.state.incarnation, setup.clock.now_ms())

    async def _stamp(self) -> Column64:
        """Say in the cache what was seen today; return the packs. Raises: StoreError, StateCorrupt, SessionAborted."""
        self.phase = "writing what was seen"
        assert self._sightings is not None
        assert self._upkeep is not None
        days: list[int] = []
        with closing(await anyio.to_thread.run_sync(self._sightings.so_far)) as seen:
            self.problems += await self._stamping().renew(
                seen.pieces(), self._present, oldest=days.append, scratch=self._upkeep.scratch
            )
            unique, packs = await anyio.to_thread.run_sync(lambda: (seen.records(), seen.keys()))
        assert self._checkpoint is not None
        attempt = msgspec.structs.replace(
            self._checkpoint.attempt,
            unique=unique,
            sealed_bytes=self._sightings.bytes_of(unique),
            oldest_day=days[-1] if days else 0,
        )
        self._checkpoint = msgspec.structs.replace(self._checkpoint, attempt=attempt)
        return packs

    def _complete(self) -> None:
        point, setup = self._checkpoint, self._setup
        assert point is not None
        assert self._upkeep is not None
        # What sessions put there while it paused is missing no more.
        lacking = sum(lacking_blocks(setup.state.volume(name)) for name in point.volumes)
        attempt = msgspec.structs.replace(
            point.attempt,
            completed=True,
            ended_ms=setup.clock.now_ms(),
            healed_since=max(0, point.attempt.missing - lacking),
        )
        setup.history.put_attempt(attempt)
        self._upkeep.set_checkpoint(Checkpoint(attempt=attempt) if setup.heals else None)
        self.attempt = attempt
        tell = log.info if attempt.passed else log.error
        tell("verification_completed", component="cache", blocks=attempt.blocks, missing=attempt.missing)

    def _record_failure(self, failed: ForebayError) -> None:
        """Record the attempt as one that could not be finished (*sync*); nothing is gone on from."""
        log.warning("verification_failed", component="cache", error=str(failed))
        if self.attempt is None or self._upkeep is None:
            return
        self.attempt = msgspec.structs.replace(
            self.attempt, ended_ms=self._setup.clock.now_ms(), completed=False, error=str(failed)
        )
        try:
            self._upkeep.set_checkpoint(None)
            self._setup.history.put_attempt(self.attempt)
        except ForebayError as error:
            self.problems.append(f"this attempt is not in the history: {error}")
