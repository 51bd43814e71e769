"""Trimming a cache: a plan (trimplan.py) made of what its index lists and when that was seen, and carried out.

Every step may be the last one the machine ever does. What is kept of packs that are rewritten is copied, as it is, into
new packs of this system, made durable and listed in an index fragment; then the old packs are listed as removed
(engine/removals.py), and only then they are deleted. What an interruption leaves is either listed as removed, and the
next one to trim deletes it, or there twice, and the copy nobody sees goes one day. No copy of a record goes because
there is another one: two who trim at once cannot each remove what the other one kept.

A pack that is not there gives no room, and one that turns out to be damaged cannot be rewritten: it goes as a whole,
once all of it is old. Where anything came otherwise than planned, it is planned again what goes instead.

Packs of pages stay: the points' roots in the cache name them, and all of them are a thousandth of the blocks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import DELTA_FLAG, LENGTH_MASK, Ids, Mask
from engine.cache.finishing import finish_removals, remove_packs
from engine.cache.footers import Footers, unseen_of
from engine.cache.heirs import Copied, Heir, LastSeen, with_later
from engine.cache.inventory import Inventory, Records
from engine.cache.listing import listed_keys
from engine.cache.stamps import Seen
from engine.cache.trimplan import (
    DAY_MAX,
    UNSEEN,
    CachePacks,
    Classes,
    Days,
    Ints,
    TrimPlan,
    classes_of,
    classes_of_packs,
    join_classes,
    needed_bytes,
    plan_trim,
)
from engine.columns import U32, Column32, Column64, Rows
from engine.distinct import among
from engine.errors import ObjectMissing, StoreCorrupt
from engine.events import EventLog
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder, check_pack
from engine.packstore import PackStore
from engine.policy import TrimPolicy
from engine.ports import Room
from engine.subkeys import DomainKeys
from engine.trailer import Verifier

MIXED: Final = 0xFFFF  # instead of a day: the records of a pack may have been last seen on different days
ROUNDS_MAX: Final = 8
DAMAGED_MAX: Final = 256  # plans of one round in place of such as nothing came of but damaged packs

log = EventLog("cache")


class Trimmed(msgspec.Struct, frozen=True, eq=False):
    """What was done: packs `deleted` whole, and `rewritten`. `freed_bytes`: less new packs; `problems`: sentences.

    `unseen`: of packs with records nobody is known to have seen these, as seen today: whoever trims stamps that, once,
    for they are protected until they are known to be old. `heirs`: the packs written, with the days they inherited (0:
    nobody is known to have seen it): for the next stamp of this system to carry on, as days of the past.
    `absent_bytes`: of packs the index lists and the cache does not.
    """

    plan: TrimPlan
    deleted: int
    rewritten: int
    freed_bytes: int
    unseen: tuple[Seen, ...]
    heirs: tuple[Heir, ...]
    problems: tuple[str, ...]
    absent_bytes: int


class _Changed(Exception):
    """A pack is not what the index says; the reason stands in a sentence."""


class Trimmer:
    """Trims one cache, whose index was refreshed. `new_pack` opens an own pack of blocks.

    `room` tells what is known of the device now; `pinned`: ids that must not go, and `pins_came` tells whether there
    may be more of them by now; `damaged`: keys of packs known to be that; `unlisted_bytes` of the cache's are in packs
    that no index lists. While it runs `phase` says what it does,
    `needed_bytes` what has to go for the thresholds, `freed_bytes` what has gone. Methods raise StoreUnavailable and
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
        damaged: Iterable[int] = (),
        pins_came: Callable[[], Awaitable[bool]] | None = None,
        unlisted_bytes: int = 0,
    ) -> None:
        assert cache.removals is not None
        self._cache, self._removals, self._seen = cache, cache.removals, seen
        self._keys, self._verifier, self._new_pack, self._room = keys, verifier, new_pack, room
        self._pins_came, self._unlisted_bytes = pins_came, unlisted_bytes
        self._pinned = np.empty(0, np.uint64) if pinned is None else np.sort(pinned[:, 0])
        self._problems: list[str] = []
        self._heirs: list[Heir] = []
        self._footers = Footers(cache.objects)
        self._gone: set[int] = set()
        self._absent: dict[int, int] | None = None  # bytes of packs that were not there, by key; None: not yet listed
        self._damaged = set(damaged)
        self._otherwise = False  # something did not go that was to
        self._ended = False  # nothing more can go now
        self._unseen: list[Seen] = []
        self._deleted = self._rewritten = self.freed_bytes = self.needed_bytes = 0
        self.phase = "looking what has to go"

    async def run(self, policy: TrimPolicy, today: int, counted: int | None = None) -> Trimmed:
        """Finish what an earlier trimming left, plan, and carry it out, step by step.

        What is old is counted from day `counted`, if that is not `today`.
        Raises: StateCorrupt, StoreCorrupt (what was seen lately cannot be known).
        """
        await finish_removals(self._cache)
        plans: list[TrimPlan] = []
        while not plans or (plans[-1].steps and len(plans) < ROUNDS_MAX and await self._goes_on(plans[-1], policy)):
            plans.append(await self._round(policy, today, today if counted is None else counted))
        await self._cache.settle_removals()
        heirs = tuple(heir for heir in self._heirs if heir[0].key not in self._gone)
        told = self._gone | {name.key for name, _ in heirs} | (self._absent or {}).keys()
        done = Trimmed(
            plan=msgspec.structs.replace(plans[-1], needed_bytes=plans[0].needed_bytes),
            deleted=self._deleted,
            rewritten=self._rewritten,
            freed_bytes=self.freed_bytes,
            unseen=tuple(seen for seen in self._unseen if seen.pack not in told),
            heirs=heirs,
            problems=tuple(dict.fromkeys(self._problems)),
            absent_bytes=sum(size for key, size in (self._absent or {}).items() if key not in self._gone),
        )
        log.info(
            "cache_trimmed",
            component="cache",
            deleted=done.deleted,
            rewritten=done.rewritten,
            freed_bytes=done.freed_bytes,
            needed_bytes=done.plan.needed_bytes,
            protected_bytes=done.plan.protected_bytes,
        )
        return done

    async def _goes_on(self, plan: TrimPlan, policy: TrimPolicy) -> bool:
        """Tell whether another plan may come to more: something came in between, or what was freed is not free."""
        if self._otherwise or self._ended or not plan.met:
            return self._otherwise
        # Two that trim at a time may free the same, and others fill it meanwhile.
        return needed_bytes(policy, 0, await self._room()) > 0

    async def _round(self, policy: TrimPolicy, today: int, counted: int) -> TrimPlan:
        """Plan, and carry that out; `_otherwise` tells whether something came in between."""
        self.phase, self._otherwise, self._unseen = "looking what has to go", False, []
        held = await anyio.to_thread.run_sync(lambda: Inventory(self._cache.index.views(), self._removals.keys))
        absent, whole = await self._not_there(held), held.deltas
        classes = await self._last_seen(held, today)
        classes.bytes_[absent[classes.pack]] = 0
        # Nothing stamps what is not there, so it would be new for ever.
        classes.day[absent[classes.pack] & (classes.day == UNSEEN)] = 1
        left = DAMAGED_MAX
        while True:
            packs = CachePacks(
                np.where(absent, 0, held.sizes),
                whole | absent | np.isin(held.keys, _keys(self._damaged)),
                self._unlisted_bytes,
            )
            plan = await anyio.to_thread.run_sync(plan_trim, packs, classes, policy, await self._room(), counted)
            known = len(self._damaged), len(self._gone)
            await self._carry_out(plan, held, today)
            # Where damage is all there was, everything else is as it was planned with.
            left -= 1
            if len(self._damaged) == known[0] or len(self._gone) > known[1] or not left:
                return plan

    async def _carry_out(self, plan: TrimPlan, held: Inventory, today: int) -> None:
        self.phase, self.needed_bytes = "trimming", max(self.needed_bytes, plan.needed_bytes)
        for step in plan.steps:
            if self._pins_came is not None and await self._pins_came():
                self._problems.append("blocks were pinned in the cache while it was trimmed: the next trimming goes on")
                self._otherwise, self._ended = False, True
                break
            # Others' sessions may have ended since the plan was made.
            deleted, rewritten = await self._still_old(held, step.deleted), await self._still_old(held, step.rewritten)
            if deleted.size:
                await self._remove(held.names(deleted))
            if rewritten.size and not await self._rewrite(held, rewritten, step.new_bytes, plan.cutoffs, today):
                self._otherwise, self._ended = False, True  # for lack of room, which planning does not make
                break
        else:
            # What went may have made more room than it was to: a pack that was cut counts as none.
            self._otherwise |= bool(plan.no_room.size)

    async def _not_there(self, held: Inventory) -> Mask:
        """Tell which packs were not there, or not in their size, when the first plan was made."""
        if self._absent is None:
            there = await listed_keys(self._cache.objects, ["data"])
            listed = held.names(np.flatnonzero(held.data & ~among(held.keys, there)))
            self._absent = {name.key: name.size for name in await self._cache.absent(listed)}
        found: Mask = np.isin(held.keys, _keys(self._absent))
        return found

    async def _still_old(self, held: Inventory, rows: Ints) -> Ints:
        rows = np.sort(rows)
        old = rows[~await self._seen.since(held.keys[rows])] if rows.size else rows
        self._otherwise |= len(old) < len(rows)
        return old

    async def _last_seen(self, held: Inventory, today: int) -> Classes:
        """Return the classes of all that may go; notes what nobody has seen."""
        days = np.zeros(len(held), np.uint16)
        usable = held.data & ~held.doubtful & (held.counts > 0)
        (rows,) = usable.nonzero()
        days[rows] = await self._seen.packs(held.keys[rows])
        pinned = await anyio.to_thread.run_sync(held.packs_with, self._pinned)
        floors, bound = await self._floors(held, np.flatnonzero(usable & held.deltas), days)
        mixed = usable & ((days == MIXED) | (days == 0) | pinned | held.several)
        (plain,) = (usable & ~mixed & ~bound).nonzero()
        parts = [
            await anyio.to_thread.run_sync(
                classes_of_packs, plain, days[plain], held.bytes_[plain], held.counts[plain], floors[plain]
            )
        ]
        (rows,) = (mixed & ~bound).nonzero()
        for records in held.records(rows):
            each = await self._days(held, records, today)
            held.counts[records.packs] = records.counts
            self._unseen += unseen_of(held.keys[records.packs], records.counts, each, today)
            shut = np.isin(records.lo, self._pinned)
            classes = classes_of(records.counts, each, records.lengths, shut, floors[records.packs])
            parts.append(msgspec.structs.replace(classes, pack=records.packs[classes.pack]))
        joined = join_classes(parts)
        order = np.lexsort((joined.day, joined.pack))
        return Classes(joined.pack[order], joined.day[order], joined.bytes_[order], joined.records[order])

    async def _days(self, held: Inventory, records: Records, today: int) -> Days:
        """Return the day each record was last seen on, by stamps, else by what its pack inherited."""
        days = await self._seen.records(held.keys[records.packs], records.counts)
        starts = np.cumsum(records.counts) - records.counts
        for at in np.flatnonzero(np.minimum.reduceat(days, starts) == 0).tolist() if len(starts) else []:
            part = days[starts[at] : starts[at] + records.counts[at]]
            (name,) = held.names(records.packs[at : at + 1])
            inherited = np.minimum(await self._footers.inherited(name, len(part)), np.uint16(today))
            np.copyto(part, inherited, where=part == 0)
        return days

    async def _floors(self, held: Inventory, rows: Rows, days: Days) -> tuple[Days, Mask]:
        """Return for each pack the newest day of a delta elsewhere with a source in it, and which must stay.

        Sources are known by their packs only, in the footers of packs with deltas. One that cannot be read might need
        anything: it stays.
        """
        floors = np.zeros(len(held), np.uint16)
        bound: Mask = np.zeros(len(held), np.bool_)
        for row, name in zip(rows.tolist(), held.names(rows), strict=True):
            try:
                entries = await self._footers.read(name)
            except ObjectMissing:
                continue
            except StoreCorrupt as error:
                self._problems.append(f"{error}; it is not trimmed")
                bound[row] = True
                continue
            keys = np.array([source.key for source in entries.sources], np.uint64)
            day = int(days[row])
            if day == MIXED:
                day = int((await self._seen.records(held.keys[[row]], held.counts[[row]])).max(initial=0))
            at = np.flatnonzero(np.isin(held.keys, keys))
            floors[at] = np.maximum(floors[at], day or DAY_MAX)
        return floors, bound

    async def _remove(self, names: Sequence[PackName]) -> None:
        """List packs as removed, and delete them."""
        await remove_packs(self._cache, names, self._delete)

    async def _delete(self, pack: PackName) -> None:
        await self._cache.objects.delete(str(pack))
        self._gone.add(pack.key)
        if self._absent is None or pack.key not in self._absent:
            self._deleted += 1
            self.freed_bytes += pack.size

    async def _rewrite(self, held: Inventory, rows: Ints, new_bytes: int, cutoffs: Days, today: int) -> bool:
        """Rewrite some packs, whose new ones need `new_bytes`; False: there is no room for that any more."""
        free = (await self._room()).free_bytes
        if free is not None and free < new_bytes:
            self._problems.append(
                f"{new_bytes:,} bytes were needed to rewrite packs of the cache and {free:,} were free: others "
                "filled it meanwhile; the next trimming goes on"
            )
            return False
        builder, done, gone = self._new_pack(), list[PackName](), list[PackName]()
        first, copied = len(self._heirs), list[Copied]()
        for records in held.records(rows):
            stops = np.cumsum(records.counts)
            names = held.names(records.packs)
            days = await self._days(held, records, today)
            for row, name, stop, count in zip(
                records.packs.tolist(), names, stops.tolist(), records.counts.tolist(), strict=True
            ):
                part = slice(stop - count, stop)
                try:
                    ranks, kept = await self._kept(
                        name, records.offsets[part], days[part], records.lo[part], int(cutoffs[row])
                    )
                except ObjectMissing:
                    assert self._absent is not None
                    self._absent[name.key] = name.size
                    gone.append(name)
                    continue
                except (StoreCorrupt, _Changed) as error:
                    self._problems.append(f"{error}; it is not trimmed")
                    self._damaged.add(name.key)
                    continue
                for record, day in kept:
                    if not builder.room(len(record)):
                        await self._put(builder)
                        builder = self._new_pack()
                    builder.add(record, day=day)
                done.append(name)
                copied.append(Copied(name.key, count, ranks))
        if builder.count:
            await self._put(builder)
        await self._cache.publish_index()
        self._rewritten += len(done)
        self._deleted -= len(done)  # they are not only that
        self._otherwise |= len(done) < len(rows)
        if done or gone:
            await self._remove([*done, *gone])
        try:
            self._heirs[first:] = await with_later(self._heirs[first:], copied, self._seen)
        except StoreCorrupt as error:
            self._problems.append(f"{error}; what it said of packs that were rewritten meanwhile is not known")
        return True

    async def _kept(
        self, name: PackName, offsets: Column32, days: Days, lo: Column64, cutoff: int
    ) -> tuple[Rows, Iterable[tuple[bytes, int]]]:
        """Return which records of a pack stay, and these, sealed as they are, each with the day it was last seen on."""
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
        return np.flatnonzero(~goes), [
            (bytes(view[offset : offset + length]), day)
            for offset, length, day in zip(
                offsets[~goes].tolist(), lengths[~goes].tolist(), days[~goes].tolist(), strict=True
            )
        ]

    async def _put(self, builder: PackBuilder) -> None:
        days = builder.days
        finished: FinishedPack = await anyio.to_thread.run_sync(builder.finish)
        await self._cache.put_pack(finished)
        self.freed_bytes -= finished.name.size
        self._heirs.append((finished.name, days))


def _keys(packs: Iterable[int]) -> Column64:
    return np.array(sorted(packs), np.uint64)
