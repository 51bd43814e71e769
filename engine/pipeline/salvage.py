"""What is left of damaged packs: blocks whose keys local state still has are opened where they lie, and sealed anew.

A record shows only to its key whether it is whole. Local state has the keys of the newest state of each volume; of
blocks that were overwritten since, nobody on this machine can tell, so they are not passed on as if they were good.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Sequence

import anyio.to_thread
import numpy as np

from engine.bits import any_along
from engine.block import ID_BYTES, Ids, ids_of
from engine.errors import ObjectMissing, StateCorrupt, StoreCorrupt
from engine.names import PackName
from engine.opener import Opener, Shelf
from engine.packread import PackReads
from engine.pipeline.resolve import CHUNK_PAGES, EVERY_PAGE
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.seal import Sealer
from engine.state import StateStore


async def salvaged(
    setup: SessionSetup, sides: Sequence[Side], packs: Collection[PackName], volumes: Iterable[str], wanted: Ids
) -> AsyncGenerator[tuple[bytes, bytes], None]:
    """Yield (id, whole record) of the blocks of `wanted` that can still be opened in `sides`, each once.

    `packs`: those they lay in, which no index may list any more; `volumes`: whose maps may have their keys.
    Raises: StoreUnavailable, StoreRejected.
    """
    keys = setup.identity.keys
    named = {name.key: name for name in packs}
    shelves = [Shelf(side.packs.index, PackReads(side.objects, side.packs.index).read) for side in sides]
    opener = Opener(shelves[0].index, shelves[0].read, keys, shelves[1:])
    sealer = Sealer(setup.codec, keys.blocks)
    done: set[bytes] = set()
    for entry in await anyio.to_thread.run_sync(lambda: [*_entries(setup.state, volumes, wanted)]):
        ref = entry["ref"].tobytes()
        ident = ref[:ID_BYTES]
        if ident in done:
            continue
        try:
            content = await opener.open(ref, entry["place"], named.get)
        except (StoreCorrupt, ObjectMissing):
            continue
        done.add(ident)
        yield ident, await anyio.to_thread.run_sync(sealer.seal, ref, content)


def _entries(state: StateStore, volumes: Iterable[str], wanted: Ids) -> Iterator[np.void]:
    """Yield the entries of maps whose ids are wanted (*sync*); a map that cannot be read has none."""
    low = np.unique(wanted[:, 0])
    idents = set(map(bytes, wanted))
    for name in volumes:
        volume = state.volume(name)
        try:
            used = volume.used_pages(0, EVERY_PAGE) if volume.head is not None else np.empty(0, np.int64)
            for start in range(0, len(used), CHUNK_PAGES):
                entries = volume.read(used[start : start + CHUNK_PAGES])
                chosen = entries[any_along(entries["ref"])]
                ids = ids_of(chosen["ref"])
                for at in np.flatnonzero(np.isin(ids[:, 0], low)).tolist():
                    if bytes(ids[at]) in idents:
                        yield chosen[at]
        except StateCorrupt:
            continue
