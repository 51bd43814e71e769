"""Filling in from the cache what the vault lost under a spooled point (DESIGN.md §3.3).

What the cache has, and what can still be opened of packs that are damaged in the spool, goes to the vault (refill.py).
What is left are holes; but not while the cache is away, which may have it: then the point waits.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.errors import StoreCorrupt, StoreUnavailable
from engine.names import PackName
from engine.pagesources import PagesAway
from engine.pipeline.lost import STRETCH_BLOCKS, Lost, Ranges, RunCursor, Wanted, add_ranges
from engine.pipeline.refill import CacheAway, Refill
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.root import Root, VolumePoint
from engine.runs import RunReader
from engine.vault.certificate import Certificates

LOST_MAX: Final = 1 << 20  # lost blocks that are held; they take some 60 bytes each


class Filled(msgspec.Struct, frozen=True):
    """What filling in a point came to: `holes` per volume, problems, packs that stay lost, volumes nobody can read."""

    holes: dict[str, Ranges]
    problems: list[str]
    left: frozenset[PackName]
    unread: frozenset[str]


class Filling:
    """Fills in one point; `cache` None: there is nothing to fill from, or it is away, and `away` says why.

    What is lost is settled once it is `lost_max` blocks; volumes are gone through `stretch_blocks` at a time.
    """

    def __init__(
        self,
        setup: SessionSetup,
        vault: Side,
        spooled: Side,
        cache: Side | None,
        certificates: Certificates,
        away: StoreUnavailable | None = None,
        *,
        lost_max: int = LOST_MAX,
        stretch_blocks: int = STRETCH_BLOCKS,
    ) -> None:
        self._away = away
        self._refill = Refill(setup, vault, [spooled], cache, certificates)
        self._lost_max, self._stretch_blocks = lost_max, stretch_blocks

    async def fill(self, root: Root, absent: Collection[PackName], damaged: Collection[PackName] = ()) -> Filled:
        """Put into the vault what it lacks of a point; return what is left.

        `absent`: packs the point lists that neither vault nor spool have whole; `damaged`: those of them that the spool
        has, and of which that was said. Raises: CacheAway (it has to wait), StoreUnavailable and StoreRejected of vault
        and spool, StateCorrupt.
        """
        problems = [f"object {name} is gone from the vault" for name in sorted({*absent} - {*damaged}, key=str)]
        left = frozenset([name for name in absent if not await self._refill.copy(name)])
        holes: dict[str, Ranges] = {volume.name: [] for volume in root.body.volumes}
        unread: set[str] = set()
        pending: list[tuple[str, Lost]] = []
        for volume in root.body.volumes:
            faults: list[str] = []
            async with aclosing(self._lost(volume, left, faults)) as stretches:
                async for lost in stretches:
                    pending.append((volume.name, lost))
                    if sum(len(each.blocks) for _, each in pending) >= self._lost_max:
                        await self._settle(pending, left, holes)
                        pending = []
            if faults:
                problems += faults
                unread.add(volume.name)
        await self._settle(pending, left, holes)
        await self._refill.finish()
        problems += self._refill.problems
        holes.update({volume.name: [(0, volume.blocks)] for volume in root.body.volumes if volume.name in unread})
        holes = {name: ranges for name, ranges in holes.items() if ranges}
        if holes and self._away is not None:
            raise CacheAway(str(self._away)) from self._away
        return Filled(holes, problems, left, frozenset(unread))

    async def _settle(
        self, pending: Sequence[tuple[str, Lost]], gone: Collection[PackName], holes: dict[str, Ranges]
    ) -> None:
        """Put what is lost into the vault, as far as it is to be had; the rest goes into `holes`, of all volumes."""
        wanted = await anyio.to_thread.run_sync(Wanted, [lost.ids for _, lost in pending])
        if len(wanted):
            await self._refill.find_there(wanted, gone)
        if self._refill.cache is not None and not wanted.all_found():
            await self._refill.fill_in(wanted)
        if not wanted.all_found():
            await self._refill.salvage(wanted, gone, list(holes))
        for name, lost in pending:
            for blocks in wanted.gone(lost):
                add_ranges(holes[name], blocks)

    async def _lost(
        self, volume: VolumePoint, gone: Collection[PackName], faults: list[str]
    ) -> AsyncGenerator[Lost, None]:
        """Yield, a stretch at a time, the blocks of a volume in packs of `gone`, and deltas with a source there.

        `faults` takes a sentence about each run that cannot be read: nobody knows which of its blocks count.
        """
        reader = self._refill.pages()
        keys = np.array(sorted(name.key for name in gone), np.uint64)
        async with AsyncExitStack() as opened:
            runs: list[RunCursor] = []
            for descriptor in volume.runs:
                run = RunReader(reader, descriptor)
                with _told(volume, faults):
                    # Pages with keys cannot be opened here: what a pack of pages held, nobody can put elsewhere.
                    needed = (await run.table()).names()
                    if away := next((name for name in needed if name.kind == "page" and name in gone), None):
                        raise StoreCorrupt(str(away), "it held pages of the block map, and no store has it")
                    runs.append(RunCursor(await opened.enter_async_context(aclosing(run.leaves()))))
            while True:
                firsts: list[int] = []
                for cursor in [*runs]:
                    # A run that failed gives nothing more.
                    block: int | None = None
                    with _told(volume, faults):
                        block = await cursor.next_block()
                    if block is not None:
                        firsts.append(block)
                if not firsts:
                    return
                lost = Lost.none()
                for cursor in runs:
                    with _told(volume, faults):
                        async with aclosing(
                            self._refill.bad_leaves(cursor, min(firsts) + self._stretch_blocks, keys)
                        ) as leaves:
                            await lost.lay_over(leaves)
                if len(lost.blocks):
                    yield lost


@contextmanager
def _told(volume: VolumePoint, faults: list[str]) -> Iterator[None]:
    """Add what is wrong with a run of a volume to `faults`. Raises: StoreUnavailable, StoreRejected of a store."""
    try:
        yield
    except StoreCorrupt as error:
        if isinstance(error, PagesAway) and error.away is not None:
            raise error.away from error
        faults.append(f"volume {volume.name!r}: {error}")
