"""What an interrupted trimming announced and did not delete, by whichever system: the next one to trim does it."""

from __future__ import annotations

from engine.errors import StoreRejected
from engine.packstore import PackStore


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
            for key in keys.tolist():
                for pack in cache.index.packs_of_key(key):
                    if pack.writer == writer:
                        await cache.objects.delete(str(pack))
        if foreign:
            await cache.removals.drop(known)
    await cache.settle_removals()
