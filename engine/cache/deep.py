"""Deep verification: packs are read whole, those first that nobody here has read for longest (DESIGN.md §3.4).

Read are packs this system wrote, and those of others its volumes used when it last stamped, unless any system has read
them within the last thirty days, and this one within the last half year. A pack is sound if all its bytes hash to its
name, its structure is right, and every block that this system has the key of opens. What is damaged is set aside:
nothing relies on it any more, so its blocks are missing, and are healed.

A pack that is not there when its turn comes has no damage: others trim while one reads. Who asked for it to be read
looks anew what is there, and where the blocks lie then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import Bytes
from engine.cache.checks import READ_AGAIN_DAYS, READ_MYSELF_DAYS, checked_by_others
from engine.cache.seals import Seals, in_groups
from engine.cache.stamping import Stamping
from engine.columns import Column64, Rows
from engine.distinct import among, distinct
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import PackName
from engine.pack import PACK_TAIL_BYTES, check_pack, footer_start, read_footer
from engine.packstore import PackStore
from engine.subkeys import DomainKeys
from engine.trailer import Verifier
from engine.upkeep import CheckedPacks
from engine.view import View


class DeepPlan(msgspec.Struct, frozen=True, eq=False):
    """What may be read: pack keys and sizes, in the order in which they are."""

    keys: Column64
    sizes: Column64

    def within(self, budget_bytes: int) -> Column64:
        """Return the first packs, until they have so many bytes; one at least, if there is any and any budget."""
        if budget_bytes <= 0 or not len(self.keys):
            return self.keys[:0]
        return self.keys[: 1 + int(np.cumsum(self.sizes).searchsorted(budget_bytes, "left"))]

    @property
    def total_bytes(self) -> int:
        """How many bytes all of them have."""
        return int(self.sizes.sum())


def plan(
    views: Sequence[View],
    present: Column64,
    used: Column64,
    checked: CheckedPacks,
    others: CheckedPacks,
    today: int,
) -> DeepPlan:
    """Return what may be read of the packs that `views` list and that are `present` (*sync*).

    `used`: keys of packs in which blocks of this system lie; `checked`: when which of them was read last, here, and by
    `others`.
    """
    keys: list[Column64] = [np.empty(0, np.uint64)]
    sizes: list[Column64] = [np.empty(0, np.uint64)]
    for view in views:
        listed = view.listed() & among(view.keys, present)
        if not view.own:
            mine, theirs = last_read(view.keys, checked), last_read(view.keys, others)
            due = np.maximum(mine, theirs) < today - READ_AGAIN_DAYS + 1
            listed &= np.isin(view.keys, used) & (due | (mine < today - READ_MYSELF_DAYS + 1))
        keys.append(view.keys[listed])
        sizes.append(view.rows["size"][listed].astype(np.uint64))
    every, first = np.unique(np.concatenate(keys), return_index=True)
    order = last_read(every, checked).argsort(kind="stable")
    return DeepPlan(every[order], np.concatenate(sizes)[first][order])


async def choose(
    packs: PackStore, present: Column64, checked: CheckedPacks, stamping: Stamping, today: int
) -> DeepPlan:
    """Return what may be read of the packs that are `present`; `checked`: when which of them was read last, here.

    Raises: StoreUnavailable, StoreRejected.
    """
    identity = stamping.identity
    used = distinct(np.empty(0, np.uint64), *(head.packs for head in await stamping.own_heads()))
    others = await checked_by_others(stamping.objects, identity.keys, stamping.members, identity.system, used, today)
    return await anyio.to_thread.run_sync(plan, packs.index.views(), present, used, checked, others, today)


def with_read(checked: CheckedPacks, read: Column64, today: int, present: Column64) -> CheckedPacks:
    """Return what is known of packs that are `present`, `read` ones as of today."""
    keys = distinct(checked.keys[among(checked.keys, present)], read)
    days = last_read(keys, checked).astype(np.uint16)
    days[keys.searchsorted(read)] = today
    return CheckedPacks(keys, days)


def last_read(keys: Column64, checked: CheckedPacks) -> Rows:
    """Return the day each of the packs was read last, 0: never."""
    days = np.zeros(len(keys), np.intp)
    if len(checked.keys):
        at = checked.keys.searchsorted(keys).clip(max=len(checked.keys) - 1)
        known = checked.keys[at] == keys
        days[known] = checked.days[at[known]]
    return days


async def read_packs(
    packs: PackStore,
    wanted: Column64,
    told: Callable[[PackName, StoreCorrupt | None], None],
    seals: Seals,
    relax: Callable[[], None] = lambda: None,
) -> Column64:
    """Read packs (by key) one after the other; `told` hears of each, and what is wrong with it.

    Returned are the keys (ascending) of those that were not there, of which `told` hears nothing.
    `seals`: what of them can be opened. Raises: StoreUnavailable, StoreRejected, StateCorrupt, Stopped.
    """
    absent: list[int] = []
    groups = in_groups(packs.index.views(), wanted, relax)
    while (group := await anyio.to_thread.run_sync(next, groups, None)) is not None:
        keys, ids = group
        await anyio.to_thread.run_sync(seals.gather, ids)
        for name in packs.index.pack_names(keys):
            if name is None:
                continue
            fault: StoreCorrupt | None = None
            try:
                data = await packs.objects.get(str(name), 0, name.size)
                # The hash in the name says it all of the bytes; who signed them was looked at with the index.
                await anyio.to_thread.run_sync(check_whole, name, data, seals)
            except ObjectMissing:
                absent.append(name.key)
                continue
            except StoreCorrupt as error:
                fault = error
            told(name, fault)
    return distinct(np.array(absent, np.uint64))


def check_whole(
    name: PackName, data: Bytes, seals: Seals, keys: DomainKeys | None = None, verifier: Verifier | None = None
) -> None:
    """Check every byte of a pack, and open what of it can be opened (*sync*). Raises: StoreCorrupt."""
    fault: StoreCorrupt | None = None
    try:
        entries = check_pack(name, data, keys, verifier)
    except StoreCorrupt as error:
        fault = error
        # Where at least the footer can be read, it is found out which records are hurt.
        try:
            start = footer_start(name, memoryview(data)[-PACK_TAIL_BYTES:])
            entries = read_footer(name, memoryview(data)[start:], start)
        except StoreCorrupt:
            raise fault from None
    bad = seals.bad_in(name, data, entries)
    if fault is not None or bad.offsets:
        reason = fault.reason if fault is not None else "its bytes are those that were written, but no blocks"
        raise StoreCorrupt(str(name), f"{reason} ({bad.sentence()})" if bad.offsets else reason)
