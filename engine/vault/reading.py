"""Reading packs of the vault whole: every byte against name, structure, MAC and signature, and what opens is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

import anyio.to_thread
import numpy as np

from engine.cache.deep import check_whole
from engine.cache.seals import Seals, in_groups
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import PackName
from engine.pipeline.stores import Side
from engine.subkeys import DomainKeys
from engine.trailer import Verifier
from engine.workers import run_workers

IN_FLIGHT_BYTES: Final = 64 << 20  # of packs that are read
READS_MAX: Final = 4

Fault: TypeAlias = StoreCorrupt | ObjectMissing | None
Told: TypeAlias = Callable[[PackName, Fault], None]


async def read_all(
    vault: Side, names: Sequence[PackName], seals: Seals, keys: DomainKeys, members: Verifier, told: Told
) -> None:
    """Read packs, about in this order, a few side by side; `told` hears of each what is wrong with it.

    Of damaged ones, what stands in for them is read.

    Raises: StoreUnavailable, StoreRejected, StateCorrupt, Stopped (by `seals`).
    """
    index, done = vault.packs.index, 0
    standing = [vault.packs.stand_in(name) for name in names]
    groups = in_groups(index.views(), np.array([name.key for name in standing], np.uint64))
    while (group := await anyio.to_thread.run_sync(next, groups, None)) is not None:
        packs, ids = group
        await anyio.to_thread.run_sync(seals.gather, ids)
        part = list(zip(names, standing, strict=True))[done : done + len(packs)]
        done += len(packs)
        rest = iter(part)

        async def work(rest: Iterator[tuple[PackName, PackName]] = rest) -> None:
            for name, read in rest:
                told(name, await _fault(vault, read, seals, keys, members))

        largest = max(name.size for name, _ in part)
        await run_workers(work, max(1, min(READS_MAX, IN_FLIGHT_BYTES // largest)))


async def _fault(vault: Side, name: PackName, seals: Seals, keys: DomainKeys, members: Verifier) -> Fault:
    """Return what is wrong with a pack, under whichever of its names it lies."""
    fault = await _fault_in(vault, str(name), name, seals, keys, members)
    if fault is None:
        return None
    found = [info.name async for info in vault.objects.list(str(name)) if info.size == name.size]
    others = [other for other in found if other != str(name) and PackName.parse(other) == name]
    good = any([await _fault_in(vault, other, name, seals, keys, members) is None for other in others])
    return None if good else fault


async def _fault_in(
    vault: Side, stored: str, name: PackName, seals: Seals, keys: DomainKeys, members: Verifier
) -> Fault:
    try:
        data = await vault.objects.get(stored, 0, name.size)
        await anyio.to_thread.run_sync(check_whole, name, data, seals, keys, members)
    except (StoreCorrupt, ObjectMissing) as error:
        return error
    return None
