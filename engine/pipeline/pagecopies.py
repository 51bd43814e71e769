"""The pages of a point in the cache: a restore with the vault away needs every page its runs are made of.

Pages a session writes go to both stores. Those of the runs it takes over, and those an equal page stands for, were
written earlier: the cache may have been away then, or given up, or be a new one. What it lacks is copied from the
vault, pack by pack: own packs as they are, records of other systems' packs into an own one, for a system writes
objects of its own names only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import LENGTH_MASK, Mask
from engine.errors import StoreError, StoreRejected
from engine.events import EventLog
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder, PackEntries, check_pack
from engine.packstore import PackStore
from engine.pagestore import PageReader
from engine.root import RunDescriptor
from engine.runs import RunReader

log = EventLog("commit")


class PageCopies(msgspec.Struct, frozen=True):
    """Brings pages from `vault` to `cache`; `reader` reads the vault's, `new_pack` opens an own page pack."""

    vault: PackStore
    cache: PackStore
    reader: PageReader
    new_pack: Callable[[], PackBuilder]

    async def bring(self, packs: Iterable[PackName], runs: Iterable[RunDescriptor]) -> bool:
        """Put into the cache what it lacks of these packs' and runs' pages; False: the vault did not give all of them.

        Raises: StoreError of the cache.
        """
        whole = await self._bring_packs(packs)
        for run in runs:
            try:
                names = (await RunReader(self.reader, run).table()).names()
            except StoreError as error:
                log.warning("pages_not_copied", component="cache", error=str(error))
                whole = False
            else:
                whole = await self._bring_packs(name for name in names if name.kind == "page") and whole
        return whole

    async def _bring_packs(self, names: Iterable[PackName]) -> bool:
        whole = True
        for name in map(self.vault.stand_in, names):
            index = self.cache.index
            if index.bars(name.key) or name not in index.packs_of_key(name.key):
                whole = await self._bring_pack(name) and whole
        return whole

    async def _bring_pack(self, name: PackName) -> bool:
        try:
            data = bytes(await self.vault.objects.get(str(name), 0, name.size))
            entries = await anyio.to_thread.run_sync(check_pack, name, data, None, None)
        except StoreError as error:
            log.warning("pages_not_copied", component="cache", object=str(name), error=str(error))
            return False
        lacking = self.cache.index.lookup(entries.ids)["length"] == 0
        if not lacking.any():
            return True
        if name.writer == self.cache.writer:
            try:
                await self.cache.put_pack(FinishedPack(name, data, entries.ids, entries.offsets, entries.lengths))
            except StoreRejected as error:
                # A power cut or a bad disk may leave other bytes under a pack's name, and they are never replaced.
                log.warning("pages_copied_anew", component="cache", object=str(name), error=str(error))
            else:
                return True
        await self.cache.put_pack(await anyio.to_thread.run_sync(self._own, data, entries, lacking))
        return True

    def _own(self, data: bytes, entries: PackEntries, lacking: Mask) -> FinishedPack:
        """Return an own pack of the records of another system's that the cache lacks."""
        builder = self.new_pack()
        for at in np.flatnonzero(lacking).tolist():
            start = int(entries.offsets[at])
            builder.add(data[start : start + (int(entries.lengths[at]) & LENGTH_MASK)])
        return builder.finish()
