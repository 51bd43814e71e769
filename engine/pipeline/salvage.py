"""What is left of damaged packs: blocks whose keys local state still has are opened where they lie, and sealed anew.

A record shows only to its key whether it is whole. Local state has the keys of the newest state of each volume; of
blocks that were overwritten since, nobody on this machine can tell, so they are not passed on as if they were good.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence

import anyio.to_thread
import numpy as np

from engine.bits import any_along
from engine.block import LENGTH_MASK, ids_of
from engine.errors import ObjectMissing, StateCorrupt, StoreCorrupt
from engine.names import PackName
from engine.opener import Opener, Shelf
from engine.packread import REQUEST_BYTES, Extents, PackReads, Range
from engine.pipeline.lost import Wanted
from engine.pipeline.resolve import CHUNK_PAGES, EVERY_PAGE
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.seal import Sealer
from engine.state import Entries, StateStore


async def salvaged(
    setup: SessionSetup, sides: Sequence[Side], packs: Collection[PackName], volumes: Iterable[str], wanted: Wanted
) -> AsyncGenerator[bytes, None]:
    """Yield a whole record of each id not found yet that can still be opened in `sides`; it counts as found then.

    `packs`: those they lay in, which no index may list any more; `volumes`: whose maps may have their keys.
    Raises: StoreUnavailable, StoreRejected.
    """
    keys = setup.identity.keys
    named = {name.key: name for name in packs}
    stores = [_ReadAhead(side) for side in sides]
    shelves = [Shelf(store.index, store.read) for store in stores]
    opener = Opener(shelves[0].index, shelves[0].read, keys, shelves[1:])
    sealer = Sealer(setup.codec, keys.blocks)
    chunks = _entries(setup.state, volumes, wanted)
    while (chunk := await anyio.to_thread.run_sync(lambda: next(chunks, None))) is not None:
        for entries in _together(chunk):
            # Of the blocks of a chunk, some may have the same content.
            rows = wanted.rows(ids_of(entries["ref"]))
            if not wanted.found[rows].all():
                await _fetch(stores, named, entries)
            for row, entry in zip(rows.tolist(), entries, strict=True):
                if wanted.found[row]:
                    continue
                ref = entry["ref"].tobytes()
                try:
                    content = await opener.open(ref, entry["place"], named.get)
                except (StoreCorrupt, ObjectMissing):
                    continue
                wanted.found[row] = True
                yield await anyio.to_thread.run_sync(sealer.seal, ref, content)


def _entries(state: StateStore, volumes: Iterable[str], wanted: Wanted) -> Iterator[Entries]:
    """Yield the entries of maps whose ids are looked for (*sync*), a bounded number at once.

    A map that cannot be read has none.
    """
    for name in volumes:
        volume = state.volume(name)
        try:
            used = volume.used_pages(0, EVERY_PAGE) if volume.head is not None else np.empty(0, np.int64)
            for start in range(0, len(used), CHUNK_PAGES):
                entries = volume.read(used[start : start + CHUNK_PAGES])
                chosen = entries[any_along(entries["ref"])]
                rows = wanted.rows(ids_of(chosen["ref"]))
                chosen = chosen[rows >= 0]
                chosen = chosen[~wanted.found[rows[rows >= 0]]]
                if len(chosen):
                    yield chosen
        except StateCorrupt:
            continue


def _together(entries: Entries) -> Iterator[Entries]:
    """Yield the entries by what one request reads: of one pack, near one another, in the order they lie in."""
    places = entries["place"]
    entries = entries[np.lexsort((places["offset"], places["pack"]))]
    packs, offsets = entries["place"]["pack"].tolist(), entries["place"]["offset"].tolist()
    stops = (entries["place"]["offset"].astype(np.int64) + (entries["place"]["length"] & LENGTH_MASK)).tolist()
    start = 0
    for at in range(1, len(entries) + 1):
        if at == len(entries) or packs[at] != packs[start] or stops[at] - offsets[start] > REQUEST_BYTES:
            yield entries[start:at]
            start = at


async def _fetch(stores: Sequence[_ReadAhead], named: Mapping[int, PackName], entries: Entries) -> None:
    """Read ahead what lies at the places of `entries`, all of one pack, from the first store that has it."""
    key = int(entries["place"]["pack"][0])
    places = entries["place"][entries["place"]["length"] > 0]
    ranges = list(zip(places["offset"].tolist(), (places["length"] & LENGTH_MASK).tolist(), strict=True))
    for store in stores:
        pack = named.get(key) or store.index.pack_name(key)
        if pack is not None and await store.fetch(pack, ranges):
            return


class _ReadAhead:
    """Reads records of one store, from what was fetched ahead of one pack; asks for nothing known to be cut off.

    A pack that is gone, or cut, has no alternate either: else `PackReads` would have found that.
    """

    def __init__(self, side: Side) -> None:
        self.index = side.packs.index
        self._objects, self._reads = side.objects, PackReads(side.objects, self.index)
        self._stops: dict[PackName, int] = {}  # of packs that are not as long as their names say
        self._pack: PackName | None = None
        self._extents = Extents(())

    async def fetch(self, pack: PackName, ranges: Sequence[Range]) -> bool:
        """Read all these records at once, those that are there; False: none of them could be.

        Raises: StoreUnavailable, StoreRejected.
        """
        self._pack, self._extents = None, Extents(())
        for _ in range(2):  # the second time, it is known where the pack is cut
            stop = self._stops.get(pack, pack.size)
            inside = [(offset, length) for offset, length in ranges if offset + length <= stop]
            if not inside:
                return False
            try:
                self._extents = await self._reads.fetch(pack, inside)
            except StoreCorrupt:
                return False
            except ObjectMissing:
                await self._find_stop(pack)
                continue
            self._pack = pack
            return True
        return False

    async def read(self, pack: PackName, ranges: Sequence[Range]) -> list[bytes]:
        """Return the records at (offset, length); see `PackStore.read_records`."""
        stop = self._stops.get(pack)
        if stop is not None and any(offset + length > stop for offset, length in ranges):
            raise ObjectMissing(str(pack))
        if pack == self._pack:
            cut = [self._extents.cut(offset, length) for offset, length in ranges]
            records = [bytes(record) for record in cut if record is not None]
            # What is no record may be one under the pack's other name, which only a read of its own looks for.
            if len(records) == len(ranges) and self._extents.hold_records(ranges):
                return records
        try:
            return await self._reads.read(pack, ranges)
        except ObjectMissing:
            await self._find_stop(pack)
            raise

    async def _find_stop(self, pack: PackName) -> None:
        try:
            self._stops[pack] = await self._objects.stat(str(pack))
        except ObjectMissing:
            self._stops[pack] = 0
