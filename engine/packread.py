"""Reading from packs: coalesced ranges, and what counts as present (DESIGN.md §5, Object store port).

A pack whose size is not the one in its name is absent. Where deleting is forbidden, a good copy may lie beside it
under `NAME.1` … `NAME.9`; it is looked for only when the plain name gives something wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from typing import Final

from engine.errors import ObjectMissing, StoreCorrupt
from engine.index import PackIndex
from engine.names import PackName
from engine.ports import ObjectStore
from engine.seal import parse_header
from engine.workers import run_workers

GAP_BYTES: Final = 64 << 10
REQUEST_BYTES: Final = 8 << 20
REQUESTS_MAX: Final = 4
STATS_MAX: Final = 16
LISTING_PAGE: Final = 1000  # names a listing gives a request
STATS_ALWAYS: Final = 4  # so few packs are never worth a listing
ALTERNATES_MAX: Final = 4096

Range = tuple[int, int]


class PackReads:
    """Reads packs of one object store; `index` tells how long a listing would be."""

    def __init__(self, objects: ObjectStore, index: PackIndex) -> None:
        self._objects, self._index = objects, index
        self._alternates: OrderedDict[PackName, str] = OrderedDict()

    async def read(self, pack: PackName, ranges: Sequence[Range]) -> list[bytes]:
        """Return the records at (offset, length); see `PackStore.read_records`."""
        for offset, length in ranges:
            if offset < 0 or length <= 0 or offset + length > pack.size:
                raise StoreCorrupt(str(pack), f"a place names {length} bytes at offset {offset}, outside the pack")
        found: list[bytes] = [b""] * len(ranges)
        requests = list(_requests(ranges))
        rest = iter(requests)

        async def work() -> None:
            for start, stop, positions in rest:
                data = memoryview(await self._get(pack, start, stop - start))
                for position in positions:
                    offset, length = ranges[position]
                    found[position] = bytes(data[offset - start : offset - start + length])

        await run_workers(work, min(REQUESTS_MAX, len(requests)))
        if pack not in self._alternates and not all(_is_record(record) for record in found):
            name = await self._locate(pack)
            if name != str(pack):
                return await self.read(pack, ranges)
        return found

    async def absent(self, names: Collection[PackName]) -> set[PackName]:
        """Return those of `names` that are not there with the right size."""
        wanted = set(names)
        known = self._index.count_packs({name.writer for name in wanted})
        if len(wanted) <= max(STATS_ALWAYS, known // LISTING_PAGE):
            return await self._absent_by_stat(wanted)
        for prefix in sorted({f"{name.kind}/{name.writer.hex()}/" for name in wanted}):
            async for info in self._objects.list(prefix):
                pack = PackName.parse(info.name)
                if pack is not None and pack.size == info.size:
                    wanted.discard(pack)
        return wanted

    async def _absent_by_stat(self, names: set[PackName]) -> set[PackName]:
        absent: set[PackName] = set()
        rest = iter(names)

        async def work() -> None:
            for pack in rest:
                if not await self._is_there(pack):
                    absent.add(pack)

        await run_workers(work, min(STATS_MAX, len(names)))
        return absent

    async def _is_there(self, pack: PackName) -> bool:
        try:
            if await self._objects.stat(str(pack)) == pack.size:
                return True
        except ObjectMissing:
            return False
        try:
            await self._locate(pack)
        except ObjectMissing:
            return False
        return True

    async def _get(self, pack: PackName, offset: int, length: int) -> bytes:
        name = self._alternates.get(pack, str(pack))
        try:
            data = await self._objects.get(name, offset, length)
        except ObjectMissing:
            data = b""
        if len(data) != length:
            name = await self._locate(pack)
            data = await self._objects.get(name, offset, length)
        if len(data) != length:
            raise StoreCorrupt(name, f"the store gave {len(data)} bytes of it where {length} were asked for")
        return data

    async def _locate(self, pack: PackName) -> str:
        """Return the name under which the pack lies with the right size. Raises: ObjectMissing."""
        names = [
            info.name
            async for info in self._objects.list(str(pack))
            if info.size == pack.size and PackName.parse(info.name) == pack
        ]
        if not names:
            raise ObjectMissing(str(pack), f"object {pack} is gone from the store, or its size is not the one it had")
        name = min(names)
        if name != str(pack):
            self._alternates[pack] = name
            if len(self._alternates) > ALTERNATES_MAX:
                self._alternates.popitem(last=False)
        return name


def _is_record(record: bytes) -> bool:
    try:
        return parse_header(record, "").record_bytes == len(record)
    except StoreCorrupt:
        return False


def _requests(ranges: Sequence[Range]) -> Iterator[tuple[int, int, list[int]]]:
    """Yield (start, stop, positions of the ranges within) of what is to be fetched, ascending."""
    start, stop, positions = 0, 0, list[int]()
    for position in sorted(range(len(ranges)), key=lambda each: ranges[each]):
        offset, length = ranges[position]
        end = offset + length
        if positions and (offset - stop > GAP_BYTES or max(stop, end) - start > REQUEST_BYTES):
            yield start, stop, positions
            positions = []
        if not positions:
            start, stop, positions = offset, end, []
        positions.append(position)
        stop = max(stop, end)
    if positions:
        yield start, stop, positions
