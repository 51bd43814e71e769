"""Trimming a cache: a plan (trimplan.py) made of what its index lists and when that was seen, and carried out.

Every step may be the last one the machine ever does. What is kept of packs that are rewritten is copied, as it is, into
new packs of this system, made durable and listed in an index fragment; then the old packs are listed as removed
(engine/removals.py), and only then they are deleted. What an interruption leaves is either listed as removed, and the
next one to trim deletes it, or there twice, and the copy nobody sees goes one day. No copy of a record goes because
there is another one: two who trim at once cannot each remove what the other one kept.

Packs of pages stay: the points' roots in the cache name them, and all of them are a thousandth of the blocks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, Protocol

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import DELTA_FLAG, LENGTH_MASK, Ids, Mask
from engine.cache.inventory import Inventory
from engine.cache.trimplan import (
    DAY_MAX,
    CachePacks,
    Classes,
    Days,
    Ints,
    Room,
    Step,
    TrimPlan,
    classes_of,
    join_classes,
    plan_trim,
)
from engine.columns import U32, Column32, Column64, Rows
from engine.errors import ObjectMissing, StoreCorrupt, StoreRejected
from engine.events import EventLog
from engine.names import PackName
from engine.pack import (
    PACK_TAIL_BYTES,
    FinishedPack,
    PackBuilder,
    PackEntries,
    check_pack,
    footer_start,
    read_footer,
)
from engine.packstore import PackStore
from engine.policy import TrimPolicy
from engine.subkeys import DomainKeys
from engine.trailer import Verifier

MIXED: Final = 0xFFFF  # instead of a day: the records of a pack were last seen on different days

log = EventLog("cache")


class LastSeen(Protocol):
    """When records were last seen by any system, from stamps and from what rewritten packs inherited.

    A record's number in its pack is the rank of its offset among those the pack's writer lists. Days count from
    2020-01-01; 0: nobody is known to have seen it. Writers whose clocks are wrong are left out.
    """

    async def packs(self, keys: Column64) -> Days:
        """Return for each pack the day all its records were last seen on; MIXED: not all on the same.

        Raises: StoreUnavailable, StoreRejected.
        """
        ...

    async def records(self, key: int, count: int) -> Days:
        """Return for each of the `count` records of a pack the day it was last seen on.

        Raises: StoreUnavailable, StoreRejected.
        """
        ...


class Trimmed(msgspec.Struct, frozen=True, eq=False):
    """What was done: packs `deleted` whole, and `rewritten`. `freed_bytes`: less new packs; `problems`: sentences.

    `unseen`: keys of packs with records nobody is known to have seen: whoever trims stamps them, once, for they are
    protected until they are known to be old. `heirs`: the packs written, with the days they inherited: for the next
    stamp of this system to carry on, as days of the past.
    """

    plan: TrimPlan
    deleted: int
    rewritten: int
    freed_bytes: int
    unseen: Column64
    heirs: tuple[tuple[PackName, Days], ...]
    problems: tuple[str, ...]


class _Changed(Exception):
    """A pack is not what the index says; the reason stands in a sentence."""


class Trimmer:
    """Trims one cache, whose index was refreshed. `new_pack` opens an own pack of blocks.

    `room` tells what is known of the device now; `pinned`: ids that must not go. Methods raise StoreUnavailable and
    StoreRejected where they ask the cache.
    """

    def __init__(
        self,
        cache: PackStore,
        seen: LastSeen,
        keys: DomainKeys,
        verifier: Verifier,
        new_pack: Callable[[], PackBuilder],
        room: Callable[[], Awaitable[Room]],
        pinned: Ids | None = None,
    ) -> None:
        assert cache.removals is not None
        self._cache, self._removals, self._seen = cache, cache.removals, seen
        self._keys, self._verifier, self._new_pack, self._room = keys, verifier, new_pack, room
        self._pinned = np.empty(0, np.uint64) if pinned is None else np.sort(pinned[:, 0])
        self._problems: list[str] = []
        self._heirs: list[tuple[PackName, Days]] = []
        self._deleted = self._rewritten = self._freed = 0

    async def run(self, policy: TrimPolicy, today: int) -> Trimmed:
        """Finish what an earlier trimming left, plan, and carry it out, step by step. Raises: StateCorrupt."""
        await self._finish()
        held = await anyio.to_thread.run_sync(lambda: Inventory(self._cache.index.views(), self._removals.keys))
        days, classes = await self._last_seen(held)
        packs = CachePacks(held.sizes, held.deltas)
        room = await self._room()
        plan = await anyio.to_thread.run_sync(plan_trim, packs, classes, policy, room, today)
        for step in plan.steps:
            if step.deleted.size:
                await self._remove(held.names(step.deleted))
            elif not await self._rewrite(held, step, plan.cutoffs):
                break
        await self._cache.settle_removals()
        unseen = held.keys[np.flatnonzero(held.data & (days == 0))]
        done = Trimmed(
            plan=plan,
            deleted=self._deleted - self._rewritten,
            rewritten=self._rewritten,
            freed_bytes=self._freed,
            unseen=unseen,
            heirs=tuple(self._heirs),
            problems=tuple(self._problems),
        )
        log.info(
            "cache_trimmed",
            component="cache",
            deleted=done.deleted,
            rewritten=done.rewritten,
            freed_bytes=done.freed_bytes,
            needed_bytes=plan.needed_bytes,
            protected_bytes=plan.protected_bytes,
        )
        return done

    async def _finish(self) -> None:
        """Delete what is listed as removed and may be there still, whoever listed it."""
        for known in self._removals.unsettled():
            for writer, keys in known.packs.items():
                for key in keys.tolist():
                    for pack in self._cache.index.packs_of_key(key):
                        if pack.writer == writer:
                            await self._cache.objects.delete(str(pack))

    async def _last_seen(self, held: Inventory) -> tuple[Days, Classes]:
        """Return the oldest day in each pack (0: it holds records nobody saw), and the classes of all that may go."""
        days = np.zeros(len(held), np.uint16)
        usable = held.data & ~held.doubtful & (held.counts > 0)
        (rows,) = usable.nonzero()
        days[rows] = await self._seen.packs(held.keys[rows])
        pinned = await anyio.to_thread.run_sync(held.packs_with, self._pinned)
        floors, bound = await self._floors(held, np.flatnonzero(usable & held.deltas), days)
        mixed = usable & ((days == MIXED) | pinned | held.several)
        (plain,) = (usable & ~mixed & ~bound).nonzero()
        parts = [
            await anyio.to_thread.run_sync(
                classes_of_packs, plain, days[plain], held.bytes_[plain], held.counts[plain], floors[plain]
            )
        ]
        (rows,) = (mixed & ~bound).nonzero()
        for records in held.records(rows):
            found = [
                await self._seen.records(int(held.keys[row]), count)
                for row, count in zip(records.packs.tolist(), records.counts.tolist(), strict=True)
            ]
            each = np.concatenate([np.empty(0, np.uint16), *found])
            held.counts[records.packs] = records.counts
            for row, part in zip(records.packs.tolist(), found, strict=True):
                days[row] = part.min(initial=MIXED)
            shut = np.isin(records.lo, self._pinned)
            classes = classes_of(records.counts, each, records.lengths, shut, floors[records.packs])
            parts.append(msgspec.structs.replace(classes, pack=records.packs[classes.pack]))
        joined = join_classes(parts)
        order = np.lexsort((joined.day, joined.pack))
        return days, Classes(joined.pack[order], joined.day[order], joined.bytes_[order], joined.records[order])

    async def _floors(self, held: Inventory, rows: Rows, days: Days) -> tuple[Days, Mask]:
        """Return for each pack the newest day of a delta elsewhere with a source in it, and which must stay.

        Sources are known by their packs only, in the footers of packs with deltas. One that cannot be read might need
        anything: it stays.
        """
        floors = np.zeros(len(held), np.uint16)
        bound: Mask = np.zeros(len(held), np.bool_)
        for row, name in zip(rows.tolist(), held.names(rows), strict=True):
            try:
                entries = await self._footer(name)
            except ObjectMissing:
                continue
            except StoreCorrupt as error:
                self._problems.append(f"{error}; it is not trimmed")
                bound[row] = True
                continue
            keys = np.array([source.key for source in entries.sources], np.uint64)
            day = int(days[row])
            if day == MIXED:
                day = int((await self._seen.records(name.key, int(held.counts[row]))).max(initial=0))
            at = np.flatnonzero(np.isin(held.keys, keys))
            floors[at] = np.maximum(floors[at], day or DAY_MAX)
        return floors, bound

    async def _footer(self, name: PackName) -> PackEntries:
        objects = self._cache.objects
        tail = await objects.get(str(name), name.size - PACK_TAIL_BYTES, PACK_TAIL_BYTES)
        start = footer_start(name, tail)
        return read_footer(name, await objects.get(str(name), start, name.size - start), start)

    async def _remove(self, names: Sequence[PackName]) -> None:
        """List packs as removed, and delete them."""
        rest = list(names)
        try:
            await self._cache.announce_removal(names)
        except StoreRejected:
            # No room for a list, maybe: half of what goes makes it. Until then it is missing where it is listed.
            for pack in rest[: -(-len(rest) // 2)]:
                await self._delete(pack)
            rest = rest[-(-len(rest) // 2) :]
            await self._cache.announce_removal(names)
        for pack in rest:
            await self._delete(pack)

    async def _delete(self, pack: PackName) -> None:
        await self._cache.objects.delete(str(pack))
        self._deleted += 1
        self._freed += pack.size

    async def _rewrite(self, held: Inventory, step: Step, cutoffs: Days) -> bool:
        """Rewrite the packs of a step; False: there is no room for that any more."""
        free = (await self._room()).free_bytes
        if free is not None and free < step.new_bytes:
            self._problems.append(
                f"{step.new_bytes:,} bytes were needed to rewrite packs of the cache and {free:,} were free: others "
                "filled it meanwhile; the next trimming goes on"
            )
            return False
        builder, done = self._new_pack(), list[PackName]()
        for records in held.records(np.sort(step.rewritten)):
            stops = np.cumsum(records.counts)
            names = held.names(records.packs)
            for row, name, stop, count in zip(
                records.packs.tolist(), names, stops.tolist(), records.counts.tolist(), strict=True
            ):
                part = slice(stop - count, stop)
                try:
                    days = await self._seen.records(name.key, count)
                    kept = await self._kept(name, records.offsets[part], days, records.lo[part], int(cutoffs[row]))
                except ObjectMissing:
                    done.append(name)
                    self._freed -= name.size
                    continue
                except (StoreCorrupt, _Changed) as error:
                    self._problems.append(f"{error}; it is not trimmed")
                    continue
                for record, day in kept:
                    if not builder.room(len(record)):
                        await self._put(builder)
                        builder = self._new_pack()
                    builder.add(record, day=day)
                done.append(name)
        if builder.count:
            await self._put(builder)
        await self._cache.publish_index()
        self._rewritten += len(done)
        if done:
            await self._remove(done)
        return True

    async def _kept(
        self, name: PackName, offsets: Column32, days: Days, lo: Column64, cutoff: int
    ) -> Iterable[tuple[bytes, int]]:
        """Return the records of a pack that stay, sealed as they are, each with the day it was last seen on."""
        data = await self._cache.objects.get(str(name), 0, name.size)
        entries = await anyio.to_thread.run_sync(check_pack, name, data, self._keys, self._verifier)
        if not np.array_equal(entries.offsets, offsets) or not np.array_equal(entries.ids[:, 0], lo):
            raise _Changed(f"object {name} holds other records than its writer lists")
        if bool((entries.lengths & U32.type(DELTA_FLAG)).any()):
            raise _Changed(f"object {name} holds deltas that its writer does not list as such")
        goes = (days > 0) & (days <= cutoff) & ~np.isin(lo, self._pinned)
        lengths = entries.lengths & U32.type(LENGTH_MASK)
        view = memoryview(data)
        # Copies: a new pack takes what is left of many old ones, which must not all stay in memory for it.
        return [
            (bytes(view[offset : offset + length]), day)
            for offset, length, day in zip(
                offsets[~goes].tolist(), lengths[~goes].tolist(), days[~goes].tolist(), strict=True
            )
        ]

    async def _put(self, builder: PackBuilder) -> None:
        days = builder.days
        finished: FinishedPack = await anyio.to_thread.run_sync(builder.finish)
        await self._cache.put_pack(finished)
        self._freed -= finished.name.size
        self._heirs.append((finished.name, days))


def classes_of_packs(packs: Ints | Rows, days: Days, bytes_: Ints, records: Ints, floors: Days) -> Classes:
    """Return the classes of packs of which all records were last seen on one day."""
    lengths = np.zeros(len(packs), np.uint32)
    found = classes_of(np.ones(len(packs), np.int64), days, lengths, np.zeros(len(packs), np.bool_), floors)
    return Classes(np.asarray(packs, np.int64), found.day, bytes_, records)
