"""One trimming of a cache, from the question whether anything has to go to the stamps that say what is left (§3.4).

What an earlier trimming announced is deleted first, whoever it was. Then the thresholds are looked at; where all of
them are met, that is all: the device is asked once, and sizes are summed up, but no record is looked at. In between,
now and then, packs that no index lists are looked for (orphans.py). Nothing goes
by a clock that is not believed (clocks.py), nor while a stamp of the protected days cannot be read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import Ids
from engine.cache import clocks
from engine.cache.clocks import ClockVerdict
from engine.cache.finishing import finish_removals
from engine.cache.inventory import listed_bytes
from engine.cache.lastseen import StampedDays
from engine.cache.orphans import OrphanSweep
from engine.cache.pins import read_pins
from engine.cache.stamping import Stamping
from engine.cache.stamps import Seen, day_of
from engine.cache.trim import Trimmer
from engine.cache.trimplan import forecast_full, last_unprotected, needed_bytes
from engine.cache.trimrecord import Orphans, TrimReport
from engine.errors import StoreCorrupt
from engine.events import EventLog
from engine.names import PinName
from engine.pack import PackBuilder
from engine.packstore import PackStore
from engine.policy import TrimPolicy
from engine.ports import Room
from engine.refresh import Members

log = EventLog("cache")

NO_ROOM: Final = (
    "how large the cache's device is and how much of it is free cannot be found out: min_free of [cache] trim cannot "
    "be held"
)


async def judge(stamping: Stamping, stood: tuple[int, int] = (0, 0)) -> ClockVerdict:
    """Return whether this machine's clock may say what is old, from which day on, and what stamps may say.

    `stood` as for `judge_clock`. Raises: StoreUnavailable, StoreRejected.
    """
    listed = await stamping.listed()
    own = [await stamping.days(name) for name in listed.get(stamping.identity.system, [])]
    today = day_of(stamping.now_ms)
    others = {writer: names[-1].day for writer, names in listed.items() if writer != stamping.identity.system}
    return clocks.judge_clock(today, clocks.own_days(today, own), others, stood)


async def trim_cache(
    cache: PackStore,
    stamping: Stamping,
    policy: TrimPolicy,
    room: Callable[[], Awaitable[Room]],
    new_pack: Callable[[], PackBuilder],
    *,
    members: Callable[[], Awaitable[Members]] | None = None,
    grown: Sequence[tuple[int, int]] = (),
    damaged: Iterable[int] = (),
    stood: tuple[int, int] = (0, 0),
    sweep: OrphanSweep | None = None,
    watch: Callable[[Trimmer], None] = lambda trimmer: None,
) -> TrimReport:
    """Trim a cache whose index was refreshed once, until the thresholds are met or only protected records are left.

    `room` tells what is known of the device now; `new_pack` opens an own pack of blocks; `members`, asked if anything
    has to go: whose stamps and pins count, if not those `stamping` knows; `grown`: (day, bytes) of this cache on former
    days, for the forecast; `damaged`: keys of packs known to be that; `stood` as for `judge_clock`.
    `sweep`: what looks for packs no index lists; `watch` is given what trims.
    Raises: StoreUnavailable, StoreRejected, StateCorrupt, SessionAborted.
    """
    assert cache.removals is not None
    keys = stamping.identity.keys

    def make(seen: StampedDays, pinned: Ids, pins_came: Callable[[], Awaitable[bool]]) -> Trimmer:
        trimmer = Trimmer(
            cache, seen, keys, cache.members, new_pack, room, pinned, damaged, pins_came, report.unlisted_bytes
        )
        watch(trimmer)
        return trimmer

    async def with_members() -> Stamping:
        return stamping if members is None else msgspec.structs.replace(stamping, members=await members())

    await finish_removals(cache)
    today, sweep = day_of(stamping.now_ms), sweep or OrphanSweep(Orphans())
    await sweep.run(cache, with_members, today, lambda: judge(stamping, stood))
    size, device = await _size(cache) + sweep.known.size_bytes, await room()
    report = TrimReport(
        day=today,
        size_bytes=size,
        unlisted=sweep.known.packs,
        unlisted_bytes=sweep.known.size_bytes,
        deleted=sweep.deleted,
        freed_bytes=sweep.freed_bytes,
        device_bytes=device.device_bytes,
        free_bytes=device.free_bytes,
        needed_bytes=max(needed_bytes(policy, size, device), 0),
        problems=(*sweep.problems, *(() if device.free_bytes is not None else (NO_ROOM,))),
    )
    if report.needed_bytes or policy.age_days_in_force is not None:
        # What others did since this session began: neither what they put nor what they removed is known yet.
        problems = await cache.refresh()
        report = msgspec.structs.replace(report, problems=(*report.problems, *problems))
        stamping = await with_members()
        verdict = await judge(stamping, stood)
        report = msgspec.structs.replace(report, others_day=verdict.others_day)
        if verdict.refused is None:
            report = await _unless_pins_are_unknown(cache, stamping, policy, room, make, verdict, report)
        else:
            report = msgspec.structs.replace(report, refused=verdict.refused, lacking_bytes=report.needed_bytes)
        report = msgspec.structs.replace(report, problems=(*report.problems, *_ahead(verdict)))
    if report.free_bytes is not None:
        known = [*grown, (report.day, report.size_bytes)]
        full = await anyio.to_thread.run_sync(forecast_full, known, report.free_bytes, report.day)
        report = msgspec.structs.replace(report, full_day=full)
    _log(report)
    return report


def _ahead(verdict: ClockVerdict) -> list[str]:
    return [
        f"the clock of system {writer.hex()} runs more than a day ahead of the others': of days more than 14 ahead "
        "what it stamps does not count"
        for writer in sorted(verdict.ahead)
    ]


async def _unless_pins_are_unknown(
    cache: PackStore,
    stamping: Stamping,
    policy: TrimPolicy,
    room: Callable[[], Awaitable[Room]],
    make: Callable[[StampedDays, Ids, Callable[[], Awaitable[bool]]], Trimmer],
    verdict: ClockVerdict,
    before: TrimReport,
) -> TrimReport:
    """Trim, if all that is known to be the last copy of something is known to be that."""
    identity, before_pins = stamping.identity, await _pin_names(cache, stamping)

    async def pins_came() -> bool:
        return not await _pin_names(cache, stamping) <= before_pins

    try:
        pinned, problems = await read_pins(
            cache.objects, identity.keys, stamping.members, identity.system, stamping.now_ms
        )
    except StoreCorrupt as error:
        refused = (
            f"{error}; which blocks its system needs is not known, so nothing is trimmed until "
            "'forebay verify --vault' has run there; if it is gone for good, remove the object"
        )
        return msgspec.structs.replace(before, refused=refused, lacking_bytes=before.needed_bytes)
    seen = StampedDays(stamping, verdict.believed, last_unprotected(verdict.day))
    trimmer = make(seen, pinned, pins_came)
    before = msgspec.structs.replace(before, problems=(*before.problems, *problems))
    return await _trim(cache, stamping, policy, room, trimmer, seen, verdict, before)


async def _pin_names(cache: PackStore, stamping: Stamping) -> set[PinName]:
    known = {*stamping.members.systems(), stamping.identity.system}
    found = [PinName.parse(info.name) async for info in cache.objects.list("pin/")]
    return {name for name in found if name is not None and name.writer in known}


async def _trim(
    cache: PackStore,
    stamping: Stamping,
    policy: TrimPolicy,
    room: Callable[[], Awaitable[Room]],
    trimmer: Trimmer,
    seen: StampedDays,
    verdict: ClockVerdict,
    before: TrimReport,
) -> TrimReport:
    """Trim, and stamp what nobody had seen and what the packs written anew inherited."""
    try:
        done = await trimmer.run(policy, before.day, verdict.day)
    except StoreCorrupt as error:
        refused = (
            f"{error}; what its system has seen lately is not known, so nothing is trimmed until that system stamps "
            "anew: with its next verification; if it is gone for good, remove the object"
        )
        return msgspec.structs.replace(before, refused=refused, lacking_bytes=before.needed_bytes)
    told = [Seen(name.key, np.where(days == 0, np.uint16(before.day), days)) for name, days in done.heirs]
    told = sorted([*done.unseen, *told], key=lambda each: each.pack)
    problems = [*done.problems, *seen.problems]
    if told:
        problems += await stamping.add((), told)
    size, device = await _size(cache) - done.absent_bytes + before.unlisted_bytes, await room()
    return msgspec.structs.replace(
        before,
        size_bytes=size,
        device_bytes=device.device_bytes,
        free_bytes=device.free_bytes,
        needed_bytes=done.plan.needed_bytes,
        freed_bytes=before.freed_bytes + done.freed_bytes,
        lacking_bytes=max(needed_bytes(policy, size, device), 0),
        deleted=before.deleted + done.deleted,
        rewritten=done.rewritten,
        looked=True,
        protected_bytes=done.plan.protected_bytes,
        pinned_bytes=done.plan.pinned_bytes,
        unseen_bytes=done.plan.unseen_bytes,
        problems=(*before.problems, *problems),
    )


async def _size(cache: PackStore) -> int:
    removals = cache.removals
    assert removals is not None
    return await anyio.to_thread.run_sync(listed_bytes, cache.index.views(), removals.keys)


def _log(report: TrimReport) -> None:
    if report.refused is not None:
        log.warning("trim_refused", component="cache", reason=report.refused, needed_bytes=report.needed_bytes)
    elif not report.met:
        log.warning(
            "trim_threshold_not_met",
            component="cache",
            lacking_bytes=report.lacking_bytes,
            protected_bytes=report.protected_bytes,
            pinned_bytes=report.pinned_bytes,
            free_bytes=report.free_bytes,
            full_day=report.full_day,
        )
    for problem in report.problems:
        log.warning("trim_problem", component="cache", reason=problem)
