"""Which packs lie in a cache that others may be trimming at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import anyio.to_thread
import numpy as np

from engine.columns import Column64
from engine.distinct import distinct
from engine.names import PackName
from engine.packstore import PackStore
from engine.packtable import KINDS
from engine.ports import ObjectStore

KEYS_AT_ONCE: Final = 1 << 16
LISTINGS_MAX: Final = 4


async def listed_as_known(packs: PackStore, gone: Column64) -> Column64:
    """Return the keys of all packs that are there with the right size, ascending, as the index of `packs` knows them.

    Who trims writes records anew elsewhere before a pack goes: if one is not there that nobody is known to have
    removed, nor among those that were `gone` (ascending) before, the index is read again, and packs are listed again.
    So they are where somebody is known to have removed one: the index reads what was listed first, and what was removed
    after that, so it may know of a removal, and not of what took the place.
    Raises: StoreUnavailable, StoreRejected, StateCorrupt.
    """
    present: Column64 = np.empty(0, np.uint64)
    unexplained: list[int] = []
    settled: bool | None = None
    for _ in range(LISTINGS_MAX):
        present = await listed_keys(packs.objects)
        absent = await anyio.to_thread.run_sync(packs.index.absent, present)
        told = distinct(gone, packs.removals.keys) if packs.removals is not None else gone
        before, unexplained = unexplained, absent[~np.isin(absent, told)].tolist()
        if settled is None:
            settled = not (np.isin(absent, _removed(packs)) & ~np.isin(absent, gone)).any()
        if unexplained in ([], before) and settled:
            break
        known = _removed(packs)
        await packs.refresh()
        settled = np.array_equal(known, _removed(packs))
    return present


def _removed(packs: PackStore) -> Column64:
    return packs.removals.keys if packs.removals is not None else np.empty(0, np.uint64)


async def listed_keys(objects: ObjectStore, kinds: Iterable[str] = KINDS) -> Column64:
    """Return the keys of all packs of some kinds that are there with the right size, ascending.

    Raises: StoreUnavailable, StoreRejected.
    """
    chunks: list[Column64] = [np.empty(0, np.uint64)]
    keys: list[int] = []
    for kind in kinds:
        async for info in objects.list(f"{kind}/"):
            name = PackName.parse(info.name)
            if name is None or name.size != info.size:
                continue
            keys.append(name.key)
            if len(keys) == KEYS_AT_ONCE:
                chunks.append(np.array(keys, np.uint64))
                keys.clear()
    return distinct(*chunks, np.array(keys, np.uint64))
