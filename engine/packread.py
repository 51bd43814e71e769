"""Reading from packs: coalesced ranges, and what counts as present (DESIGN.md §5, Object store port).

A pack whose size is not the one in its name is absent. Where deleting is forbidden, a good copy may lie beside it
under `NAME.1` … `NAME.9`; it is looked for only when the plain name gives something wrong.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import anyio.to_thread
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from engine.block import Bytes, Mask
from engine.errors import ObjectMissing, StoreCorrupt
from engine.index import PackIndex
from engine.names import PackName
from engine.packtable import KINDS
from engine.ports import ObjectStore
from engine.seal import HEADER_BYTES
from engine.workers import run_workers

GAP_BYTES: Final = 160 << 10  # two records of blocks that do not compress: less than asking once more costs
REQUEST_BYTES: Final = 8 << 20
REQUESTS_MAX: Final = 4
STATS_MAX: Final = 16
LISTING_PAGE: Final = 1000  # names a listing gives a request
STATS_ALWAYS: Final = 4  # so few packs are never worth a listing
ALTERNATES_MAX: Final = 4096
SAMPLES: Final = 16  # of what was read of a pack: enough to tell the right object from a wrong one

_BODY: Final = struct.Struct("<I")
_BODY_AT: Final = 24  # in a record's header: how long its body is

Range = tuple[int, int]


class Extents:
    """What was fetched of one pack: a record that lies within is cut out of it, without a copy."""

    __slots__ = ("_pieces", "_starts")

    def __init__(self, pieces: Iterable[tuple[int, Bytes]]) -> None:
        """Keep (offset in the pack, bytes) pairs."""
        ordered = sorted(pieces, key=lambda piece: piece[0])
        self._starts = [start for start, _ in ordered]
        self._pieces = [memoryview(data) for _, data in ordered]

    def cut(self, offset: int, length: int) -> memoryview | None:
        """Return `length` bytes at `offset` of the pack, or None if they were not fetched."""
        at = bisect_right(self._starts, offset) - 1
        if at < 0:
            return None
        start = offset - self._starts[at]
        record = self._pieces[at][start : start + length]
        return record if len(record) == length else None

    def cover(self, offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> Mask:
        """Tell of each of many ranges whether it was fetched."""
        starts = np.array([0, *self._starts], np.int64)
        stops = starts + np.array([0, *map(len, self._pieces)], np.int64)
        covered: Mask = offsets + lengths <= stops[np.searchsorted(starts[1:], offsets, "right")]
        return covered

    def hold_records(self, ranges: Sequence[Range]) -> bool:
        """Tell whether at each of the fetched ranges stands a record, as far as its header's length tells.

        Whether a record is whole, only opening it shows.
        """
        for offset, length in ranges:
            at = bisect_right(self._starts, offset) - 1
            if length < HEADER_BYTES:
                return False
            if _BODY.unpack_from(self._pieces[at], offset - self._starts[at] + _BODY_AT)[0] + HEADER_BYTES != length:
                return False
        return True


class PackReads:
    """Reads packs of one object store; `index` tells how long a listing would be."""

    def __init__(self, objects: ObjectStore, index: PackIndex) -> None:
        self._objects, self._index = objects, index
        self._alternates: OrderedDict[PackName, str] = OrderedDict()

    async def read(self, pack: PackName, ranges: Sequence[Range]) -> list[bytes]:
        """Return the records at (offset, length); see `PackStore.read_records`."""
        extents = await self.fetch(pack, ranges)
        return [bytes(extents.cut(offset, length) or b"") for offset, length in ranges]

    async def fetch(
        self, pack: PackName, ranges: Sequence[Range], gap_bytes: int = GAP_BYTES, around_bytes: int = 0
    ) -> Extents:
        """Return the records at (offset, length), what lies between those up to `gap_bytes` apart, and around.

        `around_bytes`: as much is read before and after as well. Raises: as `PackStore.read_records`.
        """
        for offset, length in ranges:
            if offset < 0 or length <= 0 or offset + length > pack.size:
                raise StoreCorrupt(str(pack), f"a place names {length} bytes at offset {offset}, outside the pack")
        extents = await self._fetch(pack, ranges, gap_bytes, around_bytes)
        if pack not in self._alternates and not extents.hold_records(ranges[:: 1 + len(ranges) // SAMPLES]):
            name = await self._locate(pack)
            if name != str(pack):
                return await self._fetch(pack, ranges, gap_bytes, around_bytes)
        return extents

    async def _fetch(self, pack: PackName, ranges: Sequence[Range], gap_bytes: int, around_bytes: int) -> Extents:
        requests = [
            (max(0, start - around_bytes), min(pack.size, stop + around_bytes))
            for start, stop in _requests(ranges, gap_bytes)
        ]
        if len(requests) == 1:
            ((start, stop),) = requests
            return Extents([(start, await self._get(pack, start, stop - start))])
        rest = iter(requests)
        pieces: list[tuple[int, Bytes]] = []

        async def work() -> None:
            for start, stop in rest:
                pieces.append((start, await self._get(pack, start, stop - start)))

        await run_workers(work, min(REQUESTS_MAX, len(requests)))
        return Extents(pieces)

    async def whole(self, pack: PackName) -> bytes | None:
        """Return all bytes of a pack; None: it is not there, or they are not those of its name."""
        try:
            data = bytes(await self._objects.get(str(pack), 0, pack.size))
        except ObjectMissing:
            return None
        same = await anyio.to_thread.run_sync(lambda: blake3(data).digest() == pack.hash)
        return data if same else None

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

    async def _get(self, pack: PackName, offset: int, length: int) -> Bytes:
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


async def listed_keys(objects: ObjectStore) -> set[int]:
    """Return the keys of the packs that lie in a store with the right size. Raises: StoreUnavailable, StoreRejected."""
    there: set[int] = set()
    for kind in KINDS:
        async for info in objects.list(f"{kind}/"):
            name = PackName.parse(info.name)
            if name is not None and name.size == info.size:
                there.add(name.key)
    return there


def _requests(ranges: Sequence[Range], gap_bytes: int) -> list[tuple[int, int]]:
    """Return, as (start, stop), what is to be fetched for `ranges`, ascending: every one of them lies within one."""
    requests: list[tuple[int, int]] = []
    start = stop = -1
    for offset, length in sorted(ranges):
        end = offset + length
        if start < 0 or offset - stop > gap_bytes or end - start > REQUEST_BYTES:
            if start >= 0:
                requests.append((start, stop))
            start, stop = offset, end
        elif end > stop:
            stop = end
    if start >= 0:
        requests.append((start, stop))
    return requests
