"""The runs of a volume's new point: one run of what changed, merged with older ones where there are too many.

A merged run is written from the map as it is now, so no key of an old block is needed, and what newer runs name
is left out (DESIGN.md §5, Runs). What is written goes with what changed and what is merged, not with the map: only
where runs to be merged cannot be read any more, the whole map becomes a base run that leans on none of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, suppress

import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt

from engine.bits import any_along, rows_of
from engine.block import BATCH_BLOCKS, Ids, Mask, Places, ids_of
from engine.distinct import distinct
from engine.errors import StateCorrupt, StoreCorrupt
from engine.names import PackName
from engine.packstore import PackStore
from engine.packtable import PackRows, PackTable, pack_names, rows_from_bytes
from engine.packtable import rows_of as pack_rows
from engine.page import Blocks, IdLeaf
from engine.pagesources import PagesAway
from engine.pagestore import PageReader, PageWriter
from engine.pipeline.reliance import Reliance
from engine.pipeline.resolve import CHUNK_PAGES, EVERY_PAGE, staged_chunks
from engine.root import RUNS_MAX, RunDescriptor
from engine.runbuild import RunChunk
from engine.runmerge import Covered, NamesBlocks, covered, plan_merge
from engine.runs import RunReader, write_run
from engine.state import VolumeState


class RunMaker(msgspec.Struct):
    """Writes the runs of one volume.

    `name_packs` names packs by their keys (None: unknown to the index); `delta_sources` gives, for ids and places,
    (position, key of a pack a source lies in) of those that are deltas, and which are answered; `seal_envelope` seals
    the address of a key tree to the recovery key; `problems` gets a sentence for runs that could not be read.
    """

    state: VolumeState
    writer: PageWriter
    reader: PageReader
    name_packs: Callable[[npt.NDArray[np.uint64]], Sequence[PackName | None]]
    delta_sources: Callable[[Ids, Places], tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64], Mask]]
    seal_envelope: Callable[[bytes, bytes], bytes]
    problems: list[str] = []

    async def runs(self, parent: Sequence[RunDescriptor]) -> list[RunDescriptor]:
        """Return the runs of the new point, oldest first, all written. Raises: StoreError, StateCorrupt."""
        staged = StagedRun(self.state)
        changed = await anyio.to_thread.run_sync(staged.count)
        if not changed and parent:
            return list(parent)
        merge = plan_merge([*(run.entries + run.zeros for run in parent), changed])
        if merge is None:
            return [*parent, await self._write(staged.chunks(base=not parent), [], base=not parent)]
        try:
            return await self._with_merge(parent, staged, *merge)
        except PagesAway:
            # They are merged once they can be read again; until then a point has a run more.
            if len(parent) < RUNS_MAX:
                return [*parent, await self._write(staged.chunks(base=False), [], base=False)]
        except StoreCorrupt as error:
            self.problems.append(f"{error}; restore points before this one need it, this one and later ones do not")
        tables: list[PackTable] = []
        for run in parent:
            with suppress(StoreCorrupt):
                tables.append(await RunReader(self.reader, run).table())
        return [await self._base(tables, whole=len(tables) == len(parent))]

    async def anew(self) -> list[RunDescriptor]:
        """Return one base run of the whole map, which leans on no older one. Raises: StoreError, StateCorrupt."""
        return [await self._base([], whole=False)]

    async def _base(self, tables: Sequence[PackTable], *, whole: bool) -> RunDescriptor:
        return await self._write(self._everything(), tables, base=True, tables_whole=whole)

    async def _with_merge(
        self, parent: Sequence[RunDescriptor], staged: StagedRun, start: int, stop: int
    ) -> list[RunDescriptor]:
        merged, newer = parent[start:stop], parent[stop:]
        readers: list[NamesBlocks] = [RunReader(self.reader, run) for run in merged]
        shadowing: list[NamesBlocks] = [RunReader(self.reader, run) for run in newer]
        # What is staged is the newest run: merged with the others, or laid over them.
        takes_new = stop > len(parent)
        (readers if takes_new else shadowing).append(staged)
        chunks = self._merged(readers, shadowing, base=start == 0)
        tables = [await RunReader(self.reader, run).table() for run in merged]
        result = [*parent[:start], await self._write(chunks, tables, base=start == 0)]
        if not takes_new:
            result += [*newer, await self._write(staged.chunks(base=False), [], base=False)]
        return result

    async def _write(
        self,
        chunks: Iterator[RunChunk] | AsyncIterator[RunChunk],
        tables: Sequence[PackTable],
        *,
        base: bool,
        tables_whole: bool = True,
    ) -> RunDescriptor:
        keys: set[int] = set()
        orphans = False

        async def watched() -> AsyncIterator[RunChunk]:
            nonlocal orphans
            async for chunk in _each(chunks):
                ids = ids_of(chunk.refs)
                _, sources, known = await anyio.to_thread.run_sync(self.delta_sources, ids, chunk.places)
                keys.update(distinct(chunk.places["pack"], sources).tolist())
                orphans = orphans or not known.all()
                yield chunk

        def packs() -> PackRows:
            wanted = np.array(sorted(keys), dtype=np.uint64)
            # The index lost the sources of an older delta: they are among the packs its run named.
            found = [name for table in tables for name in table.names()] if orphans else []
            if orphans and not (found and tables_whole):
                raise StateCorrupt("local state names a delta whose sources nobody knows; run 'forebay backup --full'")
            for key, name in zip(wanted.tolist(), self.name_packs(wanted), strict=True):
                # What a run named was checked when it was written; today's index may lack a foreign pack, or name
                # another one that somebody gave the same key.
                named = next((known for table in tables if (known := table.find(key))), name)
                if named is None:
                    raise StateCorrupt(
                        f"local state names a pack nobody knows ({key:016x}); run 'forebay backup --full'"
                    )
                found.append(named)
            return pack_rows(found)

        return await write_run(self.writer, watched(), base=base, packs=packs, seal_envelope=self.seal_envelope)

    async def _merged(
        self, readers: Sequence[NamesBlocks], shadowing: Sequence[NamesBlocks], *, base: bool
    ) -> AsyncIterator[RunChunk]:
        """Yield the present state of all blocks that count; where they are zero, extents (none in a base run)."""
        async with aclosing(covered(readers, shadowing)) as parts:
            async for part in parts:
                yield await anyio.to_thread.run_sync(self._present, part, base)

    def _everything(self) -> Iterator[RunChunk]:
        """Yield all blocks that are not zero as they are now, ascending (*sync*)."""
        pages = distinct(self.state.used_pages(0, EVERY_PAGE), self.state.staged_pages())
        for start in range(0, len(pages), CHUNK_PAGES):
            part = pages[start : start + CHUNK_PAGES]
            entries = self.state.current(part)
            page_of, bit_of = np.nonzero(any_along(entries["ref"]))
            chosen = entries[page_of, bit_of]
            numbers = (part[page_of] * BATCH_BLOCKS + bit_of).astype(np.uint64)
            yield RunChunk(numbers, chosen["ref"], chosen["place"], numbers[:0], numbers[:0])

    def _present(self, part: Covered, base: bool) -> RunChunk:
        numbers = part.blocks.astype(np.int64)
        pages, row = np.unique(numbers // BATCH_BLOCKS, return_inverse=True)
        entries = self.state.current(pages)[row, numbers % BATCH_BLOCKS]
        none = part.zero_starts[:0]
        zeros = (none, none) if base else (part.zero_starts, part.zero_counts)
        return RunChunk(part.blocks, entries["ref"], entries["place"], *zeros)


class StagedRun(msgspec.Struct, frozen=True):
    """What a session has staged, seen as the run it will be: the newest of its volume."""

    state: VolumeState

    def count(self) -> int:
        """Return how many blocks are staged (*sync*)."""
        return sum(int(np.bitwise_count(masks).sum()) for _, masks, _ in staged_chunks(self.state))

    def chunks(self, *, base: bool) -> Iterator[RunChunk]:
        """Yield what is staged, ascending; zero blocks as extents, or not at all in a base run (*sync*)."""
        for pages, masks, entries in staged_chunks(self.state):
            rows = rows_of(masks)
            page_of, bit_of = np.nonzero(rows)
            numbers = pages[page_of] * BATCH_BLOCKS + bit_of
            chosen = entries[rows]
            full = any_along(chosen["ref"])
            starts, counts = _extents(numbers[:0] if base else numbers[~full])
            yield RunChunk(numbers[full].astype(np.uint64), chosen["ref"][full], chosen["place"][full], starts, counts)

    async def leaves(self) -> AsyncGenerator[IdLeaf, None]:
        """Yield what is staged as a run's leaves."""
        for chunk in self.chunks(base=False):
            leaf, _ = chunk.leaf()
            if leaf.names_any:
                yield leaf


def _extents(numbers: npt.NDArray[np.int64]) -> tuple[Blocks, Blocks]:
    """Return (starts, counts) of the runs of consecutive numbers."""
    if not numbers.size:
        none: Blocks = np.empty(0, dtype=np.uint64)
        return none, none
    cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = numbers[np.concatenate(([0], cuts))]
    counts = np.diff(np.concatenate(([0], cuts, [len(numbers)])))
    return starts.astype(np.uint64), counts.astype(np.uint64)


async def _each(chunks: Iterator[RunChunk] | AsyncIterator[RunChunk]) -> AsyncIterator[RunChunk]:
    if isinstance(chunks, AsyncIterator):
        async for chunk in chunks:
            yield chunk
        return
    # Reading what is staged is file work: a hop for each chunk of 512 pages.
    while (chunk_or_end := await anyio.to_thread.run_sync(next, chunks, None)) is not None:
        yield chunk_or_end


async def stands_on(run: RunDescriptor, packs: PackStore, pages: PageReader, reliance: Reliance) -> bool:
    """Tell whether a run that a point takes over leans on nothing that is known to be gone.

    Packs leave a spool when no point there lists them, so they do if the root of the run's point got lost; and pages
    may lie in packs that earlier sessions, or a verification of the vault, found to be bad.
    """
    near = pack_names(rows_from_bytes(run.table_packs))
    if not packs.keeps(near):
        return False
    if not any(packs.holds(name) for name in near) and not reliance.doubts_pages:
        return True  # the vault's: what it lacks by now is found when the point is uploaded
    try:
        names = (await RunReader(pages, run).table()).names()
    except PagesAway:
        return True
    except StoreCorrupt:
        return False
    return packs.keeps(names) and not reliance.bad_pages(names)
