"""Locks of a vault (`[vault] lock`): what a new point needs stays locked for as long as the point (LockPolicy).

What is put is locked by its put. At the end of a session, and of the upload of a point, what that point needs and has
too little time left is locked anew:
- What the session relied on for the first time is looked at in each session; all that the point needs once a day,
  which takes the pack tables of its runs: locks end with days.
- What has half its time left is due. From a quarter of its time on a share of it is done each day, so that the packs of
  a first backup are not due all together; one session locks at most EXTENDED_MAX objects, and says so if more are due.
- Until when what is locked is noted locally. What there is no note of is due: that is all it costs to lose them.

Nothing here ends a session or is waited for: the point stands. What could not be locked is a problem of the report.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, TypeAlias

import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from engine.columns import Column64
from engine.errors import ForebayError, ObjectMissing, StoreError, StoreRejected
from engine.events import EventLog
from engine.index import PackIndex
from engine.names import FragmentName, PackName, certificate_name
from engine.packread import PackReads
from engine.packtable import PackRows, keys_of, pack_name, rows_from_bytes, rows_of, sorted_rows
from engine.pagesources import PageSources, PageStore
from engine.pipeline.setup import LockSetup, SessionSetup
from engine.policy import DAY_S, LockPolicy
from engine.ports import ObjectStore
from engine.root import VolumePoint
from engine.runs import RunReader
from engine.workers import run_workers

log = EventLog("lock")

EXTENDED_MAX: Final = 25_000
AT_ONCE: Final = 16
REFUSED_MAX: Final = 32  # without a single success: so it is with the rest


# The rows of all packs a point needs.
_Everything: TypeAlias = Callable[[], Awaitable[PackRows]]
Days: TypeAlias = npt.NDArray[np.int64]


class _Due(msgspec.Struct, frozen=True):
    """What is to be locked anew now, the most urgent first; the first `must` of it cannot wait."""

    names: list[str]
    keys: Column64
    must: int


def choose(days: Days, policy: LockPolicy, now_s: float, *, share: bool) -> tuple[npt.NDArray[np.intp], int]:
    """Return which locks that end on `days` (0: not known) are extended now, the most urgent first.

    And how many there are that cannot wait. `share`: some of those that can are extended too, today.
    """
    point_day = policy.point_day(now_s)
    must = int((days < point_day).sum())
    early = days[(days >= point_day) & (days < policy.early_day(now_s))]
    more = math.ceil(len(early) / (int(early.min()) - point_day + 1)) if share and len(early) else 0
    return days.argsort(kind="stable")[: min(EXTENDED_MAX, must + more)], must


class Locking:
    """Keeps locked what one point in the vault needs; `problems` hears what went wrong.

    `began_ms`: since 1970; everything that counts as put was put after that.
    """

    def __init__(self, setup: SessionSetup, lock: LockSetup, began_ms: int, problems: list[str]) -> None:
        self._setup, self._lock, self._problems = setup, lock, problems
        self._began_s = began_ms / 1000
        self._store = setup.identity.vault
        self._gone: list[str] = []
        self._refused: list[StoreRejected] = []

    async def after_session(
        self,
        volumes: Sequence[VolumePoint],
        relied: Iterable[PackName],
        written: Iterable[int],
        cache: ObjectStore | None,
    ) -> None:
        """Lock what a session's point needs; `volumes` are the point's.

        `relied`: packs it relied on; `written`: keys of those it put. `cache`: where pages are read first.
        """
        near = [cache] if cache is not None else []
        pages = PageSources(
            [PageStore(PackReads(objects, PackIndex()).read) for objects in (*near, self._setup.vault)],
            self._setup.identity.keys.pages,
        )

        async def everything() -> PackRows:
            tables = [rows_of(relied)]
            for volume in volumes:
                for run in volume.runs:
                    tables += [rows_from_bytes(run.table_packs), (await RunReader(pages, run).table()).rows]
            return sorted_rows(np.concatenate(tables))

        await self._keep(rows_of(relied), everything, written)

    async def after_upload(self, listed: Iterable[PackName], sent: Iterable[int]) -> None:
        """Lock what an uploaded point needs: `listed`; `sent`: keys of the packs that were put just now."""
        rows = rows_of(listed)

        async def everything() -> PackRows:
            return rows

        await self._keep(rows, everything, sent)

    async def _keep(self, relied: PackRows, everything: _Everything, written: Iterable[int]) -> None:
        now_s = self._setup.clock.now_ms() / 1000
        today = int(now_s // DAY_S)
        done = [np.fromiter(written, np.uint64)]
        looked = 0
        try:
            looked, notes = await anyio.to_thread.run_sync(self._lock.notes.locks, self._store)
            rows, others = relied, []
            if whole := looked != today:
                rows, others = await everything(), await self._others()
            rows = await anyio.to_thread.run_sync(self._standing, rows)
            due = await anyio.to_thread.run_sync(self._due, rows, others, notes, done[0], now_s, whole)
            left, why = await self._extend(due, done)
            if left:
                self._problems.append(
                    f"{left} objects of the vault that the restore point needs are not locked for as long as it yet: "
                    f"{why}; the next session goes on with them"
                )
            elif whole and len(due.names) < EXTENDED_MAX:
                looked = today
            if self._gone:
                more = f" and {len(self._gone) - 1} more" if len(self._gone) > 1 else ""
                self._problems.append(
                    f"object {self._gone[0]}{more}, which the restore point needs, is gone from the vault: run "
                    "'forebay backup --full' to send its blocks again"
                )
        except ForebayError as error:
            self._problems.append(f"{error}; what the restore point needs is locked by the next session")
            log.warning("locks_not_extended", component="vault", error=str(error))
        await self._remember(np.concatenate(done), looked, today)

    async def _remember(self, keys: Column64, looked: int, today: int) -> None:
        until = self._lock.policy.needed_day(self._began_s)
        try:
            await anyio.to_thread.run_sync(
                lambda: self._lock.notes.add_locks(self._store, until, keys.tobytes(), looked=looked, today=today)
            )
        except ForebayError as error:
            self._problems.append(f"{error}; objects of the vault are locked anew more often than they need")

    async def _others(self) -> list[str]:
        """Return what besides packs is locked: the domain's key slots, the certificate, own index fragments."""
        identity, setup = self._setup.identity, self._setup
        names = [certificate_name(identity.domain, identity.system, identity.certificate_number)]
        names += [info.name async for info in setup.vault.list(f"key/{identity.domain.hex()}/")]
        for name in await anyio.to_thread.run_sync(setup.state.mirror(self._store).names):
            fragment = FragmentName.parse(name)
            if fragment is not None and fragment.writer == identity.system:
                names.append(name)
        return names

    def _standing(self, rows: PackRows) -> PackRows:
        """Add to packs those that stand in for them (*sync*)."""
        notes, keys = self._setup.stand_ins, {*keys_of(rows).tolist()}
        known = notes.stand_ins(self._store) if notes is not None else {}
        standing = rows_of(name for damaged, name in known.items() if damaged.key in keys and name != damaged)
        return sorted_rows(np.concatenate((rows, standing))) if len(standing) else rows

    def _due(
        self, rows: PackRows, others: list[str], notes: dict[int, bytes], written: Column64, now_s: float, whole: bool
    ) -> _Due:
        """Choose what is locked anew now (*sync*)."""
        policy = self._lock.policy
        keys = np.concatenate((keys_of(rows), np.array([_key(name) for name in others], np.uint64)))
        days = np.zeros(len(keys), np.int64)
        for day in sorted(notes):  # the latest counts
            days[np.isin(keys, np.frombuffer(notes[day], "<u8"))] = day
        days[np.isin(keys, written)] = policy.needed_day(self._began_s)
        order, must = choose(days, policy, now_s, share=whole)
        names = [str(pack_name(rows[at])) if at < len(rows) else others[at - len(rows)] for at in order.tolist()]
        return _Due(names, keys[order], must)

    async def _extend(self, due: _Due, done: list[Column64]) -> tuple[int, str]:
        """Lock what is due; return how much of what cannot wait is left, and why. What was locked goes to `done`."""
        rest = iter(range(len(due.names)))
        locked: list[int] = []
        settled: list[int] = []
        why = f"one session locks {EXTENDED_MAX} objects"

        async def work() -> None:
            for at in rest:
                if len(self._refused) >= REFUSED_MAX and not locked:
                    return
                try:
                    await self._lock.vault.extend_lock(due.names[at])
                except ObjectMissing:
                    self._gone.append(due.names[at])
                    settled.append(at)
                except StoreRejected as error:
                    self._refused.append(error)
                else:
                    locked.append(at)
                    settled.append(at)

        try:
            await run_workers(work, AT_ONCE)
        except StoreError as error:
            why = str(error)
        done.append(due.keys[locked])
        if locked:
            log.info("locks_extended", component="vault", objects=len(locked))
        left = due.must - sum(at < due.must for at in settled)
        return left, str(self._refused[0]) if self._refused else why


def _key(name: str) -> int:
    """Return what stands for an object's name in the notes; a pack has a key of its own."""
    return int.from_bytes(blake3(name.encode()).digest(8), "little")
