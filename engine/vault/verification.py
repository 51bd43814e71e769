"""Verification of the vault: is all there that the restore points of this system need (DESIGN.md §3.4).

    points the vault keeps → pack tables of their runs → one listing → a share of the packs read → what is lost is put
    there again (mending.py) → points that lack something are marked, those that do no more, too → history

Rules:
- No volume is read, and no key of older blocks is needed: presence and sizes tell of a pack that it is there, its bytes
  whether it is sound.
- What is lost is remembered: no session relies on it again, and each sends again what its volumes have there.
- It gives way to whoever wants the state directory, and begins again after that: what was read and what was put stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import numpy as np

from engine.cache.comparison import Stopped
from engine.cache.deep import last_read, with_read
from engine.cache.pins import Pinning
from engine.cache.seals import Seals
from engine.cache.stamps import day_of
from engine.columns import Column64
from engine.distinct import distinct
from engine.errors import ForebayError, ObjectMissing, StoreError
from engine.events import EventLog
from engine.names import PackName
from engine.packtable import rows_from_bytes
from engine.pipeline.refill import Refill
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.state import VaultHistory
from engine.upkeep import LostPacks
from engine.vault.certificate import Certificates
from engine.vault.check import VaultCheck
from engine.vault.kept import Kept, Needs, look, read_kept, tables
from engine.vault.marking import mark_all
from engine.vault.mending import Mending
from engine.vault.reading import Fault, read_all
from engine.vault.sides import open_cache, open_vault

log = EventLog("verify")

LOOK_S: Final = 0.1
NAMED_MAX: Final = 20  # packs, or points, that are told by name
CONFIRMED_AT_ONCE: Final = 1 << 16
NAMES_AT_ONCE: Final = 1 << 14  # packs that are read


class VaultVerifySetup(msgspec.Struct, frozen=True, kw_only=True):
    """What a verification of the vault is made of.

    `session`: stores, keys and local state, as a session has them; `volumes`: the configured names; `read_share`: of
    the packs that points need, by size, what is read, 0 to 1. `wanted` tells whether somebody waits for the state
    directory.
    """

    session: SessionSetup
    history: VaultHistory
    volumes: Sequence[str]
    read_share: float = 0.0
    wanted: Callable[[], bool] = lambda: False


class Lost(msgspec.Struct):
    """The packs that points need and that are lost: not there with the right size, or damaged."""

    absent: set[PackName] = set()
    damaged: set[PackName] = set()


class VaultVerification:
    """One verification of the vault; `run` once. May be watched while it runs.

    `carried`: the record of one that gave way, which this one goes on with.
    """

    def __init__(self, setup: VaultVerifySetup, carried: VaultCheck | None = None) -> None:
        self._setup, self._session = setup, setup.session
        identity, clock = self._session.identity, self._session.clock
        self.check = carried or VaultCheck(
            check=secrets.token_hex(16), store=identity.vault.hex(), started_ms=clock.now_ms()
        )
        self.problems: list[str] = []
        self.phase = "opening the vault"
        self.read_bytes = self.to_read_bytes = 0
        self._stopping = False
        self._faults: dict[PackName, str] = {}  # what is wrong with packs that were read
        self._unread = False  # the pack table of a run cannot be read anywhere
        self._certificates: Certificates | None = None
        self._upkeep = self._session.state.upkeep(identity.vault)

    async def run(self) -> bool:
        """Verify; True: it is completed, False: it gave way and is to go on later.

        Raises: ForebayError (it could not be finished; that is recorded).
        """
        failed: ForebayError | None = None
        done = False
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as working:
                group.start_soon(self._watch, working)
                try:
                    await self._verify()
                    done = True
                except ForebayError as error:
                    failed = error
            group.cancel_scope.cancel()
        if failed is not None or done:
            await anyio.to_thread.run_sync(self._record, failed)
        if failed is not None:
            raise failed
        return done

    async def _watch(self, working: anyio.CancelScope) -> None:
        while not self._setup.wanted():
            await self._session.clock.sleep(LOOK_S)
        self._stopping = True
        self.phase = "giving way"
        working.cancel()

    async def _verify(self) -> None:
        vault, certificates, problems = await open_vault(self._session)
        self._certificates = certificates
        self.problems += problems
        cache = await self._cache(certificates)
        refill = Refill(self._session, vault, [], cache, certificates)
        self.phase = "reading restore points"
        kept = await read_kept(vault.objects, self._session.identity, certificates)
        self._told(kept)
        needs = await self._needs(kept, refill)
        self.phase = "listing packs"
        await look(needs, vault.objects, self._listed)
        lost = await self._absent(needs, vault)
        try:
            await self._read(needs, vault, kept, lost)
        finally:
            self._remember(lost)
        del needs  # mending reads the tables of runs again, one at a time
        await self._mend(kept, refill, lost)

    async def _cache(self, certificates: Certificates) -> Side | None:
        """Return the cache, to fill from what the vault lost; one that cannot be used is none."""
        try:
            opened = await open_cache(self._session, certificates)
        except StoreError as error:
            self.problems.append(f"cache: {error}; what the vault lost cannot be filled in from it now")
            return None
        if opened is None:
            return None
        self.problems += opened[1]
        return opened[0]

    def _told(self, kept: Kept) -> None:
        self.check = msgspec.structs.replace(
            self.check, points=len(kept.points), damaged_roots=len(kept.broken), incomplete=0, holes=0
        )
        self.problems += [*kept.problems, *_some(kept.broken)]
        if kept.others:
            self.problems.append(
                f"{kept.others} restore points are of another domain, whose keys are not here: they were not looked at"
            )

    async def _needs(self, kept: Kept, refill: Refill) -> Needs:
        needs = Needs()
        async for number, rows in tables(kept, refill.pages(cache_first=True)):
            self.phase = f"reading what they need: {number + 1} of {len(kept.runs)} runs"
            if rows is None:
                self._unread = True
                rows = rows_from_bytes(kept.runs[number].table_packs)
            await anyio.to_thread.run_sync(needs.add, rows)
        await anyio.to_thread.run_sync(needs.close)
        sizes = needs.rows["size"].astype(np.int64)
        self.check = msgspec.structs.replace(self.check, packs=len(sizes), bytes=int(sizes.sum()))
        return needs

    def _listed(self, count: int) -> None:
        self.phase = f"listing packs ({count} so far)"

    async def _absent(self, needs: Needs, vault: Side) -> Lost:
        """Return the packs that are not there with the right size; each was asked for by its name."""
        (rows,) = (~needs.there).nonzero()
        lost = Lost()
        for start in range(0, len(rows), CONFIRMED_AT_ONCE):
            self.phase = f"asking for packs that were not listed: {start} of {len(rows)}"
            part = rows[start : start + CONFIRMED_AT_ONCE]
            lost.absent |= await vault.packs.absent(needs.names(part))
        gone = np.array([name.key for name in lost.absent], np.uint64)
        needs.there = ~np.isin(needs.keys(), gone)
        return lost

    async def _read(self, needs: Needs, vault: Side, kept: Kept, lost: Lost) -> None:
        """Read the share of the packs that is due, those read longest ago first; what is damaged goes to `lost`."""
        keys, sizes = needs.keys(), needs.rows["size"].astype(np.int64)
        known = await anyio.to_thread.run_sync(self._upkeep.lost_packs)
        doubted = needs.there & np.isin(keys, distinct(known.damaged, np.array(sorted(kept.damaged), np.uint64)))
        doubtful = needs.names(doubted)
        lost.damaged.update(name for name in doubtful if vault.packs.stand_in(name) == name)
        if not self._setup.read_share:
            return
        checked = await anyio.to_thread.run_sync(self._upkeep.checked_packs)
        (rows,) = needs.there.nonzero()
        rows = rows[last_read(keys[rows], checked).argsort(kind="stable")]
        self.to_read_bytes = round(int(sizes[rows].sum()) * self._setup.read_share)
        self.read_bytes = self.check.read_bytes
        if (left := self.to_read_bytes - self.read_bytes) <= 0:
            return
        rows = rows[: 1 + int(np.cumsum(sizes[rows]).searchsorted(left, "left"))]
        read: list[int] = []
        self.phase = "reading packs"

        def told(name: PackName, fault: Fault) -> None:
            read.append(name.key)
            self._read_one(name, fault, lost)

        assert self._certificates is not None
        identity, state = self._session.identity, self._session.state
        states = [state.volume(name) for name in self._setup.volumes]
        seals = Seals(states, identity.keys.blocks, lambda: self._stopping)
        try:
            for start in range(0, len(rows), NAMES_AT_ONCE):
                names = needs.names(rows[start : start + NAMES_AT_ONCE])
                await read_all(vault, names, seals, identity.keys, self._certificates, told)
        except Stopped:
            await anyio.sleep_forever()  # whoever noticed that somebody waits breaks this off
        finally:
            today, done = day_of(self._session.clock.now_ms()), np.array(read, np.uint64)
            self._upkeep.set_checked_packs(with_read(checked, distinct(done), today, keys[needs.there]))

    def _read_one(self, name: PackName, fault: Fault, lost: Lost) -> None:
        self.read_bytes += name.size
        self.check = msgspec.structs.replace(
            self.check, read_packs=self.check.read_packs + 1, read_bytes=self.check.read_bytes + name.size
        )
        lost.damaged.discard(name)
        if isinstance(fault, ObjectMissing):
            lost.absent.add(name)
        elif fault is not None:
            log.error("pack_damaged", component="vault", object=str(name), bytes=name.size, error=str(fault))
            self._faults[name] = fault.reason
            lost.damaged.add(name)

    def _remember(self, lost: Lost) -> None:
        """Remember what is lost, and tell of what was not known to be (*sync*)."""
        known = self._upkeep.lost_packs()
        gone, damaged = keys_of_names(lost.absent), keys_of_names(lost.damaged)
        before = distinct(known.gone, known.damaged)
        new_gone = [name for name in sorted(lost.absent, key=str) if not np.isin(name.key, before)]
        new_damaged = [name for name in sorted(lost.damaged, key=str) if not np.isin(name.key, before)]
        self.problems += _some([f"object {name} is gone from the vault or has a wrong size" for name in new_gone])
        self.problems += _some([self._damage(name) for name in new_damaged])
        if new_gone:
            log.warning("packs_gone", component="vault", packs=len(new_gone))
        self._upkeep.set_lost_packs(LostPacks(gone, damaged))
        self.check = msgspec.structs.replace(
            self.check,
            missing_packs=len(lost.absent),
            missing_bytes=sum(name.size for name in lost.absent),
            damaged_packs=len(lost.damaged),
            damaged_bytes=sum(name.size for name in lost.damaged),
            new_packs=self.check.new_packs + len(new_gone) + len(new_damaged),
        )

    def _damage(self, name: PackName) -> str:
        known = self._faults.get(name)
        return f"object {name} in the vault is damaged" + (f": {known}" if known is not None else "")

    async def _mend(self, kept: Kept, refill: Refill, lost: Lost) -> None:
        """Put there again what is to be had, and mark the points that lack something, and those that do no more."""
        pinning = self._pinning(refill.cache)
        if not (lost.absent or lost.damaged or self._unread or any(point.told for point in kept.points)):
            await self._unpin(pinning, refill)
            return
        volumes, pin = self._setup.volumes, pinning.pin if pinning is not None else None
        mending = Mending(refill, kept, lost.absent, lost.damaged, volumes, pin, self._now)
        try:
            await mending.run()
        finally:
            # What was put there again may be relied on; of all else each session sends what its volumes have there.
            self._bar(keys_of_names((lost.absent | lost.damaged) - {*mending.copied}))
            self.problems += mending.problems
            self.check = msgspec.structs.replace(
                self.check,
                copied_packs=self.check.copied_packs + len(mending.copied),
                filled_blocks=self.check.filled_blocks + mending.filled,
            )
        await self._unpin(pinning, refill)
        self.phase = "marking restore points"
        self.check = await mark_all(kept, mending, refill, self._session, self.check, self.problems)

    def _pinning(self, cache: Side | None) -> Pinning | None:
        session = self._session
        if cache is None:
            return None
        return Pinning(cache.objects, session.identity, session.state.incarnation, session.clock.now_ms())

    async def _unpin(self, pinning: Pinning | None, refill: Refill) -> None:
        """Have this system's pins go: what the cache has of what was lost lies in the vault again."""
        if pinning is None or refill.cache is None:
            return
        try:
            await pinning.drop()
        except StoreError as error:
            self.problems.append(f"cache: {error}; blocks in it stay pinned until the next verification of the vault")

    def _bar(self, keys: Column64) -> None:
        if not keys.size:
            return
        try:
            self._session.history.add_bad_packs(self._session.identity.vault, keys.tolist())
        except ForebayError as error:
            self.problems.append(f"{error}; run 'forebay backup --full' to send what the vault lost again")

    def _now(self, phase: str) -> None:
        self.phase = phase

    def _record(self, failed: ForebayError | None) -> None:
        """Record the verification (*sync*)."""
        self.check = msgspec.structs.replace(
            self.check,
            ended_ms=self._session.clock.now_ms(),
            completed=failed is None,
            error=str(failed) if failed is not None else None,
        )
        if failed is not None:
            log.warning("vault_verification_failed", component="vault", error=str(failed))
        else:
            tell = log.info if self.check.passed else log.error
            tell(
                "vault_verified",
                component="vault",
                points=self.check.points,
                packs=self.check.packs,
                missing=self.check.missing_packs,
                damaged=self.check.damaged_packs,
                incomplete=self.check.incomplete,
            )
        try:
            self._setup.history.put_vault_check(self.check)
        except ForebayError as error:
            self.problems.append(f"this verification is not in the history: {error}")


def keys_of_names(names: Collection[PackName]) -> Column64:
    """Return the keys of packs, ascending."""
    return np.array(sorted(name.key for name in names), np.uint64)


def _some(sentences: Sequence[str]) -> list[str]:
    more = [f"and {len(sentences) - NAMED_MAX} more like it"] if len(sentences) > NAMED_MAX else []
    return [*sentences[:NAMED_MAX], *more]
