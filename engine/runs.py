"""Runs: immutable sorted pieces of a block map, as trees of pages (docs/FORMAT.md, "Runs").

A run has three trees. The id tree says which blocks it names, and where; the key tree, of the same shape, holds
the other 32 bytes of each ref, and only the run's envelope says where it begins; the table tree lists the packs
that reading the run takes. The pages of a run lie in page packs of their own (but for leaves shared with older
runs), so that they go together when the run is merged away. A block named by no run of a volume is zero; the
newest run that names a block, with an id or in a zero extent, decides.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np

from engine.block import ID_BYTES, PLACE, REF_BYTES, Mask, Places, Refs
from engine.errors import StoreCorrupt
from engine.names import PackName
from engine.packtable import PackRows, PackTable, fault_in, rows_from_bytes, rows_of, sorted_rows, with_rows
from engine.page import (
    BLOCKS_MAX,
    TABLE_ROWS,
    IdLeaf,
    Inner,
    KeyLeaf,
    Keys,
    Page,
    PageAddress,
    TableLeaf,
    decode,
    encode,
)
from engine.pagestore import PageHandle, PageReader, PageWriter
from engine.root import RunDescriptor, is_absolute
from engine.runbuild import LeafCutter, RunChunk, TreeBuilder

__all__ = [
    "RunChunk",
    "RunReader",
    "Window",
    "envelope_info",
    "key_address",
    "overlay",
    "overlay_what_opens",
    "write_run",
]

BATCH_LEAVES: Final = 16  # written, or read ahead, at once: about 1 MiB
ENVELOPE_LABEL: Final = b"forebay run v1\0"


def envelope_info(domain: bytes, system: bytes, run: bytes) -> bytes:
    """Return the HPKE info under which the address of a run's key tree is sealed."""
    return ENVELOPE_LABEL + domain + system + run


def key_address(name: str, descriptor: RunDescriptor, opened: bytes) -> bytes:
    """Return what a run's envelope held, checked; `name` is the root it came from. Raises: StoreCorrupt."""
    if bool(opened) != bool(descriptor.id_tree) or (opened and not is_absolute(opened)):
        raise StoreCorrupt(name, "the envelope of a run does not hold the address of its keys")
    return opened


async def write_run(
    writer: PageWriter,
    chunks: AsyncIterable[RunChunk] | Iterable[RunChunk],
    *,
    base: bool,
    packs: Callable[[], PackRows],
    seal_envelope: Callable[[bytes, bytes], bytes],
) -> RunDescriptor:
    """Write a run and close the writer's open pack, so that all of the run lies in named packs.

    `chunks` come in ascending order; `packs` is called once they are consumed and returns the rows, in any order, of
    all packs the entries lie in, those of delta sources included; `seal_envelope(run id, key tree address)` seals the
    address (64 bytes, or none for an empty run) to the system's recovery key. Raises: what the writer and `chunks`
    raise.
    """
    run = secrets.token_bytes(16)
    cutter, output = LeafCutter(base), _Output(writer)
    async for chunk in _each(chunks):
        for leaf in cutter.feed(chunk):
            await output.add(leaf)
    for leaf in cutter.end():
        await output.add(leaf)
    await output.flush()
    roots = await output.ids.end(), await output.keys.end()
    used = output.ids.used | output.keys.used
    table = TreeBuilder(writer)
    closed = [name for ordinal in used if (name := writer.pack_of(ordinal)) is not None]
    rows = sorted_rows(np.concatenate((packs(), rows_of(closed)))) if output.leaves else rows_of(())
    table_root = await _write_table(writer, table, rows)
    await writer.close()
    # The packs of the table's own pages, and those that were still open while it was written.
    rest = {name for ordinal in used | table.used if (name := writer.pack_of(ordinal)) is not None}
    rest -= set(closed) - {writer.pack_of(ordinal) for ordinal in table.used}
    id_tree, key_tree, table_tree = (writer.address(root) if root else b"" for root in (*roots, table_root))
    return RunDescriptor(
        run=run,
        base=base,
        entries=output.entries,
        zeros=output.zeros,
        leaves=output.leaves,
        id_tree=id_tree,
        table=table_tree,
        table_packs=rows_of(rest).tobytes(),
        envelope=seal_envelope(run, key_tree),
    )


async def _each(chunks: AsyncIterable[RunChunk] | Iterable[RunChunk]) -> AsyncIterator[RunChunk]:
    if isinstance(chunks, AsyncIterable):
        async for chunk in chunks:
            yield chunk
    else:
        for chunk in chunks:
            yield chunk


async def _write_table(writer: PageWriter, tree: TreeBuilder, rows: PackRows) -> PageHandle | None:
    for first in range(0, len(rows), TABLE_ROWS):
        part = rows[first : first + TABLE_ROWS]
        (handle,) = await writer.put_leaves([encode(TableLeaf(first, part))], share=False)
        await tree.add(first, len(part), handle)
    return await tree.end()


class _Output:
    """Leaves of both trees on their way into pages, a batch at a time."""

    def __init__(self, writer: PageWriter) -> None:
        self._writer = writer
        self._batch: list[tuple[IdLeaf, Keys]] = []
        self.ids, self.keys = TreeBuilder(writer), TreeBuilder(writer)
        self.entries = self.zeros = self.leaves = 0

    async def add(self, chunk: RunChunk) -> None:
        self._batch.append(chunk.leaf())
        if len(self._batch) == BATCH_LEAVES:
            await self.flush()

    async def flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        id_pages, key_pages = await anyio.to_thread.run_sync(_encode_leaves, batch)
        # Separate calls: keys do not shrink, and the sealer gives compression up within a batch that does not.
        id_handles = await self._writer.put_leaves(id_pages)
        key_handles = await self._writer.put_leaves(key_pages)
        for (leaf, _), id_handle, key_handle in zip(batch, id_handles, key_handles, strict=True):
            await self.ids.add(leaf.first_block, len(leaf.blocks), id_handle)
            await self.keys.add(leaf.first_block, len(leaf.blocks), key_handle)
            self.entries += len(leaf.blocks)
            self.zeros += int(leaf.zero_counts.sum())
        self.leaves += len(batch)


def _encode_leaves(batch: list[tuple[IdLeaf, Keys]]) -> tuple[list[bytes], list[bytes]]:
    ids = [encode(leaf) for leaf, _ in batch]
    return ids, [encode(KeyLeaf(leaf.first_block, keys)) for leaf, keys in batch]


class _Node(msgspec.Struct, frozen=True):
    """A page to be read and what the page above says of it; None where nothing is above.

    All it names lies in [first, stop). `within` is the pack of the page above.
    """

    address: PageAddress
    within: PackName | None
    stop: int
    first: int | None = None
    level: int | None = None
    entries: int | None = None

    def fault(self, page: Page) -> str | None:
        """Say what of `page` is not as the page above says, or None."""
        if self.level is not None and page.level != self.level:
            return "a page of a run is not of the level the page above says"
        if self.first is not None and page.first_block != self.first:
            return "a page of a run does not begin where the page above says"
        if self.entries is not None and page.entries != self.entries:
            return "a page of a run has not as many entries as the page above says"
        return "a page of a run reaches into the next one" if page.stop_block > self.stop else None


class RunReader:
    """Reads one run. Needs of the outside only the pages: packs are found by the run's own table, if need be.

    `key_address` is what the run's envelope held (64 bytes); without it `keyed` cannot be used.
    """

    def __init__(self, pages: PageReader, descriptor: RunDescriptor, key_address: bytes | None = None) -> None:
        self.descriptor = descriptor
        self._pages, self._key_address = pages, key_address
        self._near = PackTable(rows_from_bytes(descriptor.table_packs))
        self._table: PackTable | None = None
        self._asked_table = False

    async def leaves(self, first: int = 0, stop: int = BLOCKS_MAX) -> AsyncGenerator[IdLeaf, None]:
        """Yield what the run names in [first, stop), ascending, a leaf at a time and cut to the range.

        Raises: StoreCorrupt naming the pack of a page that does not hold together, StoreUnavailable, StoreRejected.
        """
        leaves = zeros = 0
        async with aclosing(self._id_leaves(first, stop)) as pages:
            async for _, leaf in pages:
                leaves, zeros = leaves + 1, zeros + int(leaf.zero_counts.sum())
                part, _ = leaf.clipped(first, stop)
                if part.names_any:
                    yield part
        whole = first == 0 and stop >= BLOCKS_MAX
        if whole and (leaves, zeros) != (self.descriptor.leaves, self.descriptor.zeros):
            raise StoreCorrupt(self._name, "its leaves or its zero blocks are not as many as the root says")

    async def keyed(self, first: int = 0, stop: int = BLOCKS_MAX) -> AsyncGenerator[tuple[IdLeaf, Refs], None]:
        """Yield what `leaves` yields, each with the refs (`uint8[n, 48]`) of its blocks. Raises: as `leaves`."""
        assert self._key_address is not None, "this run was opened without its keys"
        keys = self._walk(self._key_address, self.descriptor.entries, first, stop)
        async with aclosing(keys), aclosing(self._id_leaves(first, stop)) as pages:
            async for where, leaf in pages:
                _, page = await anext(keys, (where, None))
                if not isinstance(page, KeyLeaf) or page.first_block != leaf.first_block:
                    raise StoreCorrupt(where, "the keys of a run do not go with its blocks")
                if page.entries != leaf.entries:
                    raise StoreCorrupt(where, "a leaf of a run has not as many keys as blocks")
                part, chosen = leaf.clipped(first, stop)
                if part.names_any:
                    ids = np.ascontiguousarray(part.ids).view(np.uint8).reshape(-1, ID_BYTES)
                    yield part, np.concatenate((ids, page.keys[chosen]), axis=1)
            if await anext(keys, None) is not None:
                raise StoreCorrupt(self._name, "the keys of a run do not go with its blocks")

    async def table(self) -> PackTable:
        """Return all packs that reading the run, with its data and its delta sources, takes.

        Raises: StoreCorrupt, StoreUnavailable, StoreRejected.
        """
        if self._table is None:
            found, expected = bytearray(), 0
            async with aclosing(self._walk(self.descriptor.table, None, 0, BLOCKS_MAX, by_table=False)) as pages:
                async for where, page in pages:
                    if not isinstance(page, TableLeaf) or page.first_block != expected:
                        raise StoreCorrupt(where, "the pack table of a run does not hold together")
                    expected = page.stop_block
                    found += page.rows.tobytes()  # that grows where it lies: there may be millions of rows
            rows = rows_from_bytes(found)
            if fault := fault_in(rows):
                raise StoreCorrupt(self._name, f"its pack table is wrong: {fault}")
            self._table = PackTable(with_rows(rows, self._near.rows))
        return self._table

    @property
    def _name(self) -> str:
        return f"run {self.descriptor.run.hex()}"

    async def _id_leaves(self, first: int, stop: int) -> AsyncGenerator[tuple[str, IdLeaf], None]:
        async with aclosing(self._walk(self.descriptor.id_tree, self.descriptor.entries, first, stop)) as pages:
            async for where, page in pages:
                if not isinstance(page, IdLeaf):
                    raise StoreCorrupt(where, "another page lies where a leaf of a block map should be")
                yield where, page

    async def _walk(
        self, root: bytes, entries: int | None, first: int, stop: int, by_table: bool = True
    ) -> AsyncGenerator[tuple[str, Page], None]:
        # Depth first, children ascending; leaves of one inner page are read together, a bounded number ahead.
        stack = [_Node(PageAddress.parse(root), None, BLOCKS_MAX, entries=entries)] if root else []
        while stack:
            batch = [stack.pop()]
            while batch[0].level == 0 and stack and stack[-1].level == 0 and len(batch) < BATCH_LEAVES:
                if stack[-1].within != batch[0].within:
                    break
                batch.append(stack.pop())
            for node, (where, page, pack) in zip(batch, await self._read(batch, by_table), strict=True):
                if isinstance(page, Inner):
                    stack += reversed(_children(page, node, pack, first, stop))
                else:
                    yield where, page

    async def _read(self, nodes: list[_Node], by_table: bool) -> list[tuple[str, Page, PackName | None]]:
        addresses = [node.address for node in nodes]
        unknown = by_table and any(address.pack and self._resolve(address.pack) is None for address in addresses)
        if unknown and not self._asked_table:
            self._asked_table = True
            # A table that cannot be read leaves the way by id, which says what is missing.
            with suppress(StoreCorrupt):
                await self.table()
        found = await self._pages.get_many(addresses, nodes[0].within, self._resolve)
        pages: list[tuple[str, Page, PackName | None]] = []
        for node, (content, pack) in zip(nodes, found, strict=True):
            where = str(pack) if pack is not None else f"page {node.address.ref[:ID_BYTES].hex()}"
            page = decode(content, where)
            if fault := node.fault(page):
                raise StoreCorrupt(where, fault)
            pages.append((where, page, pack))
        return pages

    def _resolve(self, key: int) -> PackName | None:
        near = self._near.find(key) or (self._table.find(key) if self._table is not None else None)
        return near or self._pages.resolve(key)


def _children(page: Inner, node: _Node, pack: PackName | None, first: int, stop: int) -> list[_Node]:
    firsts = [int(number) for number in page.children["first"]]
    stops = [*firsts[1:], node.stop]
    return [
        _Node(PageAddress.of_child(child), pack, child_stop, child_first, page.level - 1, int(child["entries"]))
        for child, child_first, child_stop in zip(page.children, firsts, stops, strict=True)
        if child_first < stop and child_stop > first
    ]


class Window(msgspec.Struct, frozen=True, eq=False):
    """The state of the blocks from `first` on: `refs` uint8[n, 48] and `places`, all zero where a block is zero."""

    first: int
    refs: Refs
    places: Places


async def overlay(readers: Sequence[RunReader], first: int, stop: int) -> Window:
    """Return the state of the blocks [first, stop) of a volume from its runs, oldest first, opened with their keys.

    Raises: StoreCorrupt, StoreUnavailable, StoreRejected.
    """
    window = _blank(first, stop)
    for reader in readers:
        await _lay_over(window, reader, stop)
    return window


async def overlay_what_opens(
    readers: Sequence[RunReader], first: int, stop: int
) -> tuple[Window, Mask, list[StoreCorrupt]]:
    """Return what `overlay` would, which blocks nobody knows (zero there), and why: those a damaged run may name.

    A block that a later run names is known again. Raises: StoreUnavailable, StoreRejected.
    """
    window, unknown = _blank(first, stop), np.zeros(stop - first, np.bool_)
    failed: list[StoreCorrupt] = []
    for reader in readers:
        try:
            await _lay_over(window, reader, stop, unknown)
        except StoreCorrupt as error:
            failed.append(error)
            unknown[:] = True
    window.refs[unknown], window.places[unknown] = 0, np.zeros((), PLACE)
    return window, unknown, failed


def _blank(first: int, stop: int) -> Window:
    return Window(first, np.zeros((stop - first, REF_BYTES), np.uint8), np.zeros(stop - first, PLACE))


async def _lay_over(window: Window, reader: RunReader, stop: int, unknown: Mask | None = None) -> None:
    """Lay what a run names over a window that ends at `stop`; what it names is unknown no more."""
    first, refs, places = window.first, window.refs, window.places
    async with aclosing(reader.keyed(first, stop)) as leaves:
        async for leaf, leaf_refs in leaves:
            for start, count in zip(leaf.zero_starts.tolist(), leaf.zero_counts.tolist(), strict=True):
                zeros = slice(start - first, start - first + count)
                refs[zeros], places[zeros] = 0, np.zeros((), PLACE)
                if unknown is not None:
                    unknown[zeros] = False
            at = (leaf.blocks - np.uint64(first)).astype(np.intp)
            refs[at], places[at] = leaf_refs, leaf.places
            if unknown is not None:
                unknown[at] = False
