"""Packs leave a cache: first they are listed as removed, then they are deleted.

What an interrupted trimming announced and did not delete, by whichever system, the next one to trim deletes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from engine.errors import StoreRejected
from engine.names import PackName
from engine.packstore import PackStore


async def remove_packs(
    cache: PackStore, names: Sequence[PackName], delete: Callable[[PackName], Awaitable[None]]
) -> None:
    """List packs as removed, and have each deleted. Raises: StoreError, StateCorrupt, SessionAborted."""
    rest = list(names)
    try:
        await cache.announce_removal(names)
    except StoreRejected:
        # No room for a list, maybe: half of what goes makes it. Until then it is missing where it is listed.
        half = -(-len(rest) // 2)
        for pack in rest[:half]:
            await delete(pack)
        rest = rest[half:]
        await cache.announce_removal(names)
    for pack in rest:
        await delete(pack)


async def finish_removals(cache: PackStore) -> None:
    """Delete what is listed as removed and may be there still, whoever listed it; then nothing of that is left to do.

    A list of another system is taken over, so that whoever vanished leaves nothing behind that all others look at for
    ever. If it trims still, it finds done what it was about to do. Raises: StoreError, StateCorrupt, SessionAborted.
    """
    assert cache.removals is not None
    for known in cache.removals.unsettled():
        foreign = known.name.writer != cache.writer
        if foreign:
            try:
                await cache.take_over_removals(known)
            except StoreRejected:
                foreign = False  # no room for a list, maybe: then it stays where it is
        for writer, keys in known.packs.items():
            await _delete(cache, writer, keys.tolist())
        if foreign:
            await cache.removals.drop(known)
    await cache.settle_removals()


async def _delete(cache: PackStore, writer: bytes, keys: Sequence[int]) -> None:
    """Delete packs of a writer; what no index names is looked for in the store."""
    unnamed = set[int]()
    for key in keys:
        packs = [pack for pack in cache.index.packs_of_key(key) if pack.writer == writer]
        for pack in packs:
            await cache.objects.delete(str(pack))
        if not packs:
            unnamed.add(key)
    if unnamed:
        found = [PackName.parse(info.name) async for info in cache.objects.list(f"data/{writer.hex()}/")]
        for name in [name for name in found if name is not None and name.key in unnamed]:
            await cache.objects.delete(str(name))
