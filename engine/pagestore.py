"""Pages in page packs: written children first, read by address, each checked against its ref.

A page that lies in the pack of the page that names it is named with pack 0: its pack has no name before it is
finished. The writer encodes an inner page only once it knows in which pack it lands. Leaves that own page packs
already hold are not written again; inner pages always are, since their content depends on where children lie.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
import msgspec

from engine.block import ID_BYTES, Bytes, Ids, Places, ids_from_bytes, ref_of
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder
from engine.page import PAGE_BYTES_MAX, PageAddress
from engine.seal import HEADER_BYTES, RECORD_BYTES_MIN, TAG_BYTES, Sealer, open_whole

CACHE_BYTES: Final = 8 << 20
PAGE_RECORD_MAX: Final = HEADER_BYTES + PAGE_BYTES_MAX + TAG_BYTES

Lookup: TypeAlias = Callable[[Ids], Places]
Resolve: TypeAlias = Callable[[int], PackName | None]
# Ranges (offset, length) of one pack → their bytes: `PackStore.read_records`.
Fetch: TypeAlias = Callable[[PackName, list[tuple[int, int]]], Awaitable[list[bytes]]]
# An id of 16 bytes → a record of that id from wherever there is one: the way out when a place fails.
FetchById: TypeAlias = Callable[[bytes], Awaitable[bytes | None]]


class PageHandle(msgspec.Struct, frozen=True):
    """A page that was written: `pack` is the writer's ordinal of the pack it lies in."""

    ref: bytes
    pack: int
    offset: int
    length: int


class PageWriter:
    """Writes pages into page packs; several tasks may share one.

    `builder_factory` opens a page pack; `put_pack` stores a finished one; `sealer` is bound to the pages subkey.
    `lookup` finds records in page packs that leaves may be shared with (length 0: none), `pack_name` names those
    packs.
    """

    def __init__(
        self,
        builder_factory: Callable[[], PackBuilder],
        put_pack: Callable[[FinishedPack], Awaitable[None]],
        pages_subkey: bytes,
        sealer: Sealer,
        lookup: Lookup,
        pack_name: Resolve,
    ) -> None:
        self._builder_factory, self._put_pack = builder_factory, put_pack
        self._subkey, self._sealer = pages_subkey, sealer
        self._lookup, self._pack_name = lookup, pack_name
        self._lock = anyio.Lock()
        self._builder: PackBuilder | None = None
        self._open_ordinal = 0
        self._open: dict[bytes, PageHandle] = {}  # pages in the open pack, by ref
        self._packs: list[PackName | None] = []  # by ordinal; None: still open
        self._ordinals: dict[PackName, int] = {}

    @property
    def packs(self) -> list[PackName]:
        """The page packs written, and the older ones in which shared leaves lie; the open one has no name yet."""
        return [name for name in self._packs if name is not None]

    def pack_of(self, ordinal: int) -> PackName | None:
        """Return the name of the pack with a handle's ordinal; None while it is open."""
        return self._packs[ordinal]

    def place(self, handle: PageHandle) -> PageAddress:
        """Return the address by which a page of the open pack may name `handle`'s page."""
        name = self._packs[handle.pack]
        return PageAddress(handle.ref, 0 if name is None else name.key, handle.offset, handle.length)

    def address(self, handle: PageHandle) -> bytes:
        """Return the absolute address (64 bytes) of a page whose pack was closed."""
        name = self._packs[handle.pack]
        assert name is not None, "the pack is still open: close it first"
        return bytes(PageAddress(handle.ref, name.key, handle.offset, handle.length))

    async def put_leaf(self, content: bytes) -> PageHandle:
        """Write one leaf; see `put_leaves`."""
        return (await self.put_leaves([content]))[0]

    async def put_leaves(self, contents: Sequence[bytes], share: bool = True) -> list[PageHandle]:
        """Write leaves of one type, in order; with `share`, not those that an own page pack already holds.

        One hop to a worker thread hashes, looks up and seals them all. Raises: what `put_pack` raises.
        """
        async with self._lock:
            prepared = await anyio.to_thread.run_sync(self._prepare, contents, share)
            return [found if record is None else await self._add(found, record) for found, record in prepared]

    async def put_inner(self, make: Callable[[Callable[[PageHandle], PageAddress]], bytes]) -> PageHandle:
        """Write the page that `make(place)` encodes; `make` may be called twice, its result's length may not vary.

        Raises: what `put_pack` raises.
        """
        async with self._lock:
            content = make(self.place)
            if self._builder is not None and not self._builder.room(len(content) + HEADER_BYTES + TAG_BYTES):
                await self._finish()
                content = make(self.place)
            ref = ref_of(self._subkey, content)
            record = await anyio.to_thread.run_sync(self._sealer.seal, ref, content)
            return await self._add(PageHandle(ref, -1, 0, 0), record)

    async def close(self) -> None:
        """Finish and put the open pack, if any; then every handle has an absolute address. More may be written after.

        Raises: what `put_pack` raises.
        """
        async with self._lock:
            if self._builder is not None:
                await self._finish()

    def _prepare(self, contents: Sequence[bytes], share: bool) -> list[tuple[PageHandle, Bytes | None]]:
        # A handle with a pack and no record: found. A handle without a pack (-1), and its record: to be added.
        refs = [ref_of(self._subkey, content) for content in contents]
        handles = [self._open.get(ref) or PageHandle(ref, -1, 0, 0) for ref in refs]
        if share and refs:
            places = self._lookup(ids_from_bytes(b"".join(ref[:ID_BYTES] for ref in refs)))
            handles = [
                handle if handle.pack >= 0 else self._found(ref, int(place["pack"]), place["offset"], place["length"])
                for handle, ref, place in zip(handles, refs, places, strict=True)
            ]
        fresh = [position for position, handle in enumerate(handles) if handle.pack < 0]
        records: list[Bytes | None] = [None] * len(refs)
        sealed = self._sealer.seal_batch([refs[at] for at in fresh], [contents[at] for at in fresh])
        for position, record in zip(fresh, sealed, strict=True):
            records[position] = record
        return list(zip(handles, records, strict=True))

    def _found(self, ref: bytes, key: int, offset: int, length: int) -> PageHandle:
        name = self._pack_name(key) if length else None
        if name is None or name.kind != "page":
            return PageHandle(ref, -1, 0, 0)
        if name not in self._ordinals:
            self._ordinals[name] = len(self._packs)
            self._packs.append(name)
        return PageHandle(ref, self._ordinals[name], int(offset), int(length))

    async def _add(self, unplaced: PageHandle, record: Bytes) -> PageHandle:
        if known := self._open.get(unplaced.ref):
            return known
        if self._builder is not None and not self._builder.room(len(record)):
            await self._finish()
        if self._builder is None:
            self._builder = self._builder_factory()
            self._open_ordinal = len(self._packs)
            self._packs.append(None)
        offset = self._builder.add(record)
        handle = PageHandle(unplaced.ref, self._open_ordinal, offset, len(record))
        self._open[handle.ref] = handle
        return handle

    async def _finish(self) -> None:
        builder, self._builder = self._builder, None
        assert builder is not None
        finished = await anyio.to_thread.run_sync(builder.finish)
        self._packs[self._open_ordinal] = finished.name
        self._ordinals[finished.name] = self._open_ordinal
        self._open.clear()
        await self._put_pack(finished)


class PageReader:
    """Reads pages by address, each checked against its ref; keeps the last `cache_bytes` of plaintext.

    `fetch` reads ranges of a pack; `resolve` names a pack by its key; `by_id` finds a record whose place failed.
    """

    def __init__(
        self,
        fetch: Fetch,
        resolve: Resolve,
        by_id: FetchById | None,
        pages_subkey: bytes,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.resolve = resolve
        self._fetch, self._by_id, self._subkey = fetch, by_id, pages_subkey
        self._cache: OrderedDict[bytes, tuple[bytes, PackName | None]] = OrderedDict()
        self._cached_bytes, self._cache_bytes = 0, cache_bytes

    async def get(
        self, address: PageAddress, within: PackName | None = None, resolve: Resolve | None = None
    ) -> tuple[bytes, PackName | None]:
        """Return one page; see `get_many`."""
        return (await self.get_many([address], within, resolve))[0]

    async def get_many(
        self, addresses: Sequence[PageAddress], within: PackName | None, resolve: Resolve | None = None
    ) -> list[tuple[bytes, PackName | None]]:
        """Return (content, pack it lies in) of each page; pack None: found by id, its pack unknown.

        `within` is the pack of the page that names them, what pack 0 stands for; `resolve` replaces the reader's own.
        Raises: StoreCorrupt naming the pack if a page is nowhere, StoreUnavailable, StoreRejected.
        """
        found: dict[bytes, tuple[bytes, PackName | None]] = {}
        wanted: dict[PackName | None, list[PageAddress]] = {}
        for address in addresses:
            if address.ref in self._cache:
                self._cache.move_to_end(address.ref)
                found[address.ref] = self._cache[address.ref]
            else:
                name = within if address.pack == 0 else (resolve or self.resolve)(address.pack)
                wanted.setdefault(name if _plausible(address, name) else None, []).append(address)
        for name, missing in wanted.items():
            for address, content, pack in await self._read(name, missing):
                found[address.ref] = content, pack
                self._remember(address.ref, content, pack)
        return [found[address.ref] for address in addresses]

    async def _read(
        self, name: PackName | None, addresses: list[PageAddress]
    ) -> list[tuple[PageAddress, bytes, PackName | None]]:
        records: list[bytes | None] = [None] * len(addresses)
        reason = "no pack that is known is said to hold it"
        if name is not None:
            try:
                ranges = [(address.offset, address.length) for address in addresses]
                records = list(await self._fetch(name, ranges))
            except ObjectMissing:
                reason = "the pack is not there"
            except StoreCorrupt as error:
                reason = error.reason
        opened = await anyio.to_thread.run_sync(self._open_all, name, addresses, records)
        pages: list[tuple[PageAddress, bytes, PackName | None]] = []
        for address, content in zip(addresses, opened, strict=True):
            if isinstance(content, bytes):
                pages.append((address, content, name))
            else:
                pages.append((address, await self._read_by_id(name, address, content or reason), None))
        return pages

    def _open_all(
        self, name: PackName | None, addresses: list[PageAddress], records: list[bytes | None]
    ) -> list[bytes | str | None]:
        # Content, or why a record does not open (None: there is no record).
        opened: list[bytes | str | None] = []
        for address, record in zip(addresses, records, strict=True):
            try:
                opened.append(None if record is None else open_whole(address.ref, record, self._subkey, str(name)))
            except StoreCorrupt as error:
                opened.append(error.reason)
        return opened

    async def _read_by_id(self, name: PackName | None, address: PageAddress, reason: str) -> bytes:
        ident = address.ref[:ID_BYTES]
        where = str(name) if name is not None else f"page {ident.hex()}"
        record: Bytes | None = await self._by_id(ident) if self._by_id is not None else None
        if record is None:
            raise StoreCorrupt(where, f"a page of the block map cannot be read ({reason}), and is nowhere else")
        return await anyio.to_thread.run_sync(open_whole, address.ref, record, self._subkey, where)

    def _remember(self, ref: bytes, content: bytes, pack: PackName | None) -> None:
        if ref not in self._cache:
            self._cache[ref] = content, pack
            self._cached_bytes += len(content)
        while self._cached_bytes > self._cache_bytes:
            _, (dropped, _) = self._cache.popitem(last=False)
            self._cached_bytes -= len(dropped)


def _plausible(address: PageAddress, pack: PackName | None) -> bool:
    return (
        pack is not None
        and RECORD_BYTES_MIN <= address.length <= PAGE_RECORD_MAX
        and address.offset + address.length <= pack.size
    )
