"""Merging a system's own index fragments in a store where deleting is allowed: a cache.

Every session writes a fragment, so their number would grow for ever, and they go on listing packs that were removed. So
once there are many, all are read, one by one: what still is there of small and of largely outdated ones is written into
few new fragments that say what they stand for, then the old ones go. Whoever reads in between finds both, which a
reader knows, or an old one gone, of which it learns from the new one at its next refresh.

What is damaged of its own it removes, too, or everybody would read it at every refresh, for ever.

It is done seldom: who mirrors an index fetches again what was merged, and with it what it had merged that with.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.acks import PackAck
from engine.block import ids_from_bytes
from engine.columns import Column64
from engine.errors import ObjectMissing, StoreCorrupt
from engine.events import EventLog
from engine.fragment import FRAGMENT_READ_MAX, Fragment, encode_fragment, open_fragment
from engine.names import FragmentName
from engine.packtable import pack_names
from engine.ports import ObjectStore
from engine.stage import remove_damaged
from engine.subkeys import DomainKeys
from engine.trailer import Signer, Verifier

FRAGMENTS_MAX: Final = 64  # of one system; more are merged
ENTRIES_MAX: Final = 1 << 19  # of a merged fragment: 14 MiB, 32 GiB of blocks
HALF: Final = 2

log = EventLog("index")


class FragmentMerge(msgspec.Struct):
    """One merging of a system's own fragments in one store.

    `listed`: those there are, and their sizes in bytes; what goes leaves it. `damaged`: those that do not open.
    `superseded`: what merged ones stand for; `removed`: keys (ascending) of packs nothing relies on any more;
    `next_name` gives a free name, `flush` returns once what was put is durable.
    """

    objects: ObjectStore
    keys: DomainKeys
    verifier: Verifier
    signer: Signer
    listed: dict[FragmentName, int]
    damaged: Mapping[FragmentName, int]
    superseded: Collection[FragmentName]
    removed: Column64
    next_name: Callable[[], Awaitable[FragmentName]]
    flush: Callable[[], Awaitable[None]]

    async def run(self) -> int:
        """Merge if they are many, and remove what merged ones stand for; return how many went.

        Raises: StoreUnavailable, StoreRejected.
        """
        gone = await self._drop(sorted(self.listed.keys() & set(self.superseded)))
        await self._sweep()
        if len(self.listed) <= FRAGMENTS_MAX:
            return gone
        before = len(self.listed)
        pool: list[PackAck] = []
        covers: list[FragmentName] = []
        entries = 0
        # The newest of an incarnation stays: its number must not be given again, others may have mirrored it.
        newest = {name.incarnation: name for name in sorted(self.listed)}
        for name in sorted(self.listed.keys() - set(newest.values())):
            if (packs := await self._worth_merging(name)) is None:
                continue
            left = sum(len(pack.ids) for pack in packs)
            if covers and entries + left > ENTRIES_MAX:
                gone += await self._replace(pool, covers)
                pool, covers, entries = [], [], 0
            pool += packs
            covers.append(name)
            entries += left
        if len(covers) > 1 or (covers and not pool):
            gone += await self._replace(pool, covers)
        log.info("fragments_merged", component="cache", before=before, after=len(self.listed))
        return gone

    async def _sweep(self) -> None:
        """Remove what is damaged of this system's own, but for a newest one: others may have mirrored it whole."""
        check = partial(open_fragment, keys=None, verifier=None)
        for name in await remove_damaged(self.objects, self.damaged, self.listed, check, FRAGMENT_READ_MAX):
            log.info("damaged_fragment_removed", component="cache", object=str(name), bytes=self.damaged[name])

    async def _worth_merging(self, name: FragmentName) -> list[PackAck] | None:
        """Return what a fragment lists that was not removed; None: it stays as it is."""
        if self.listed[name] > FRAGMENT_READ_MAX:
            return None
        try:
            data = bytes(await self.objects.get(str(name), 0, self.listed[name]))
            fragment = await anyio.to_thread.run_sync(open_fragment, name, data, self.keys, self.verifier)
        except (StoreCorrupt, ObjectMissing):
            return None  # a refresh tells what is wrong
        packs = await anyio.to_thread.run_sync(packs_in, fragment, self.removed)
        left = sum(len(pack.ids) for pack in packs)
        return None if left * HALF > max(ENTRIES_MAX, fragment.columns.entries) else packs

    async def _replace(self, packs: Sequence[PackAck], covers: Sequence[FragmentName]) -> int:
        """List `packs` in one fragment that stands for `covers`, which then go; none, if there are no packs."""
        if packs:
            name = await self.next_name()
            data = await anyio.to_thread.run_sync(encode_fragment, name, packs, self.keys, self.signer, covers)
            await self.objects.put(str(name), data)
            await self.flush()
            self.listed[name] = len(data)
        return await self._drop(covers)

    async def _drop(self, names: Sequence[FragmentName]) -> int:
        for name in names:
            await self.objects.delete(str(name))
            del self.listed[name]
        return len(names)


def packs_in(fragment: Fragment, removed: Column64) -> list[PackAck]:
    """Return the packs a fragment lists, each with its records in the order they lie in; none of `removed` keys."""
    columns = fragment.columns
    order = np.lexsort((columns.offset, columns.pack))
    pack = columns.pack[order]
    names = pack_names(fragment.rows)
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    sources: dict[int, list[tuple[int, int]]] = {}
    for entry, row in fragment.sources.tolist():
        sources.setdefault(int(columns.pack[entry]), []).append((int(position[entry]), row))
    starts = np.flatnonzero(np.concatenate([[True], pack[1:] != pack[:-1]])[: len(pack)])
    found = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(pack)], strict=True):
        row = int(pack[start])
        if bool(np.isin(names[row].key, removed)):
            continue
        part = order[start:stop]
        ids = np.stack([columns.lo[part], columns.hi[part]], axis=1)
        found.append(
            PackAck(
                names[row],
                ids_from_bytes(ids.astype("<u8").tobytes()),
                columns.offset[part].copy(),
                columns.length[part].copy(),
                tuple((at - start, names[source]) for at, source in sorted(sources.get(row, []))),
            )
        )
    return found
