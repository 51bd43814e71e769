"""Packs of a cache that no index lists, and how they leave it.

A session that dies between a pack and the fragment that lists it leaves such a pack. The next session of that system
lists it, but not if its local state was lost, or if it never comes back: then nobody finds what is in it, ever, and it
would take room for good. The rules:

- A pack is removed if no index named it, not as a source of deltas either, at two looks of this system fifteen days
  apart or more, and at none in between: so long whoever put it may still list it. A look is taken every five days,
  every day as long as there are any.
- What no index names is known only of writers of whom all fragments that lie there are in the mirror. Packs are listed
  before the index is read, and it is read again before any of them goes: what comes to be listed meanwhile stays.
- What any system stamped within the protected days stays, and what holds a block that is pinned. Where a clock is not
  believed, a stamp or a pin cannot be read, nothing goes.
- Packs of pages stay: points name them, not the index.

They are announced as removed as all that is trimmed; and whoever comes to list a pack it put long ago looks first
whether it is there (packstore.py). What is listed all the same while it goes stays on the list of removals, since the
index is read once more before that is settled.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import anyio.to_thread
import numpy as np

from engine.cache.clocks import ClockVerdict
from engine.cache.finishing import remove_packs
from engine.cache.footers import FOOTERS_MAX, Footers
from engine.cache.lastseen import StampedDays
from engine.cache.pins import read_pins
from engine.cache.stamping import Stamping
from engine.cache.trimplan import DELETED_AT_ONCE, PROTECTED_DAYS, last_unprotected
from engine.cache.trimrecord import ORPHANS_MAX, Orphans
from engine.distinct import distinct
from engine.errors import ObjectMissing, StoreCorrupt
from engine.events import EventLog
from engine.names import PackName
from engine.packstore import PackStore

ORPHAN_DAYS: Final = PROTECTED_DAYS + 1  # between two looks: days, so fourteen times 24 hours at least
LOOK_DAYS: Final = 5
NAMES_AT_ONCE: Final = 1 << 12

Found: TypeAlias = dict[PackName, int]  # and how many bytes are there

log = EventLog("cache")


class OrphanSweep:
    """One look for packs that no index lists; `run` once.

    `known`: what former looks noted, and afterwards what this one did. `deleted`: packs, with `freed_bytes`.
    """

    def __init__(self, known: Orphans) -> None:
        self.known = known
        self.deleted = self.freed_bytes = 0
        self.problems: list[str] = []

    async def run(
        self,
        cache: PackStore,
        stamping: Callable[[], Awaitable[Stamping]],
        today: int,
        judge: Callable[[], Awaitable[ClockVerdict]],
    ) -> None:
        """Look, if it is time to, and remove what may go.

        `stamping`: with all systems of the domain; `judge`: what `today` is worth.
        Raises: StoreUnavailable, StoreRejected, StateCorrupt, SessionAborted.
        """
        if not self._due(today):
            return
        found = await _listed(cache)
        if found:
            await cache.refresh()
            found = await anyio.to_thread.run_sync(_not_named, cache, found)
        since = self.known.since()
        if found:
            verdict = await judge()
            if verdict.refused is None:
                for name in found:
                    # Noted by a clock that ran ahead: nobody knows since when.
                    if since.get(name.key, today + 1) > today:
                        since[name.key] = verdict.day
                ripe = [name for name in found if verdict.day - since[name.key] >= ORPHAN_DAYS]
                if ripe:
                    await self._remove(cache, await stamping(), verdict, ripe, found)
        keys = {name.key for name in found}
        self.known = Orphans.of(
            today, len(found), sum(found.values()), {key: day for key, day in since.items() if key in keys}
        )

    def _due(self, today: int) -> bool:
        # A clock that was put back does not put off the next look.
        return not 0 <= today - self.known.day < (1 if self.known.packs else LOOK_DAYS)

    async def _remove(
        self, cache: PackStore, stamping: Stamping, verdict: ClockVerdict, ripe: Sequence[PackName], found: Found
    ) -> None:
        """Remove what nobody needs; what went leaves `found`."""
        try:
            going = await _unneeded(cache, stamping, verdict, ripe)
        except StoreCorrupt as error:
            self.problems.append(f"{error}; packs that no index lists stay until that is known")
            return
        if not going:
            return
        await cache.refresh()
        still = await anyio.to_thread.run_sync(_not_named, cache, {name: found[name] for name in going})

        async def delete(name: PackName) -> None:
            await cache.objects.delete(str(name))
            self.deleted += 1
            self.freed_bytes += found.pop(name)

        names = [*still]
        for start in range(0, len(names), DELETED_AT_ONCE):
            await remove_packs(cache, names[start : start + DELETED_AT_ONCE], delete)
        if self.deleted:
            log.info("unlisted_packs_removed", component="cache", packs=self.deleted, bytes=self.freed_bytes)
            # Who listed one of them meanwhile must be known before its removal is forgotten.
            await cache.refresh()
            await cache.settle_removals()


async def _listed(cache: PackStore) -> Found:
    """Return packs of blocks in the store that the index, as it is known, does not name; at most ORPHANS_MAX."""
    found: Found = {}
    part: Found = {}
    async for info in cache.objects.list("data/"):
        name = PackName.parse(info.name)
        if name is None or str(name) != info.name or not cache.knows_all_of(name.writer):
            continue
        part[name] = info.size
        if len(part) == NAMES_AT_ONCE:
            found |= await anyio.to_thread.run_sync(_not_named, cache, part)
            part = {}
            if len(found) >= ORPHANS_MAX:
                break
    found |= await anyio.to_thread.run_sync(_not_named, cache, part)
    return dict([*found.items()][:ORPHANS_MAX])


def _not_named(cache: PackStore, packs: Found) -> Found:
    """Return those of `packs` that no index names, and of which that can be told."""
    keys = np.array([name.key for name in packs], np.uint64)
    named = np.zeros(len(keys), np.bool_)
    for view in cache.index.views() if len(keys) else ():
        named |= np.isin(keys, view.keys)
    return {
        name: size
        for (name, size), known in zip(packs.items(), named.tolist(), strict=True)
        if not known and cache.knows_all_of(name.writer)
    }


async def _unneeded(
    cache: PackStore, stamping: Stamping, verdict: ClockVerdict, packs: Sequence[PackName]
) -> list[PackName]:
    """Return those of `packs` that no system saw lately, and that hold nothing that is pinned. Raises: StoreCorrupt."""
    keys, last = distinct(np.array([name.key for name in packs], np.uint64)), last_unprotected(verdict.day)
    seen = StampedDays(stamping, verdict.believed, last)
    await seen.packs(keys)
    old = set(keys[seen.newest() <= max(last, 0)].tolist())
    identity = stamping.identity
    pinned, _ = await read_pins(cache.objects, identity.keys, stamping.members, identity.system, stamping.now_ms)
    left = [name for name in packs if name.key in old]
    if not len(pinned):
        return left
    footers, going = Footers(cache.objects), []
    for name in left[:FOOTERS_MAX]:
        try:
            ids = (await footers.read(name)).ids
        except (ObjectMissing, StoreCorrupt):
            ids = pinned[:0]  # nobody can get anything out of it
        if not np.isin(ids[:, 0], pinned[:, 0]).any():
            going.append(name)
    return going
