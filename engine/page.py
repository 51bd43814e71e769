"""Pages: the nodes of a run's trees, at most 64 KiB of plaintext each (docs/FORMAT.md, "Pages").

Four types: id leaves (block numbers, ids, places, zero extents), key leaves (the other 32 bytes of each ref),
inner pages (children with their first block and the entries below them) and leaves of the pack table. What is
decoded was checked: counts against the length, orders, overlaps, bounds; what a page says about others is checked
by the reader of the tree. Block numbers and offsets are stored as differences, which compress to almost nothing
where blocks are neighbours: 5 bytes less for each block of a first backup.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import ID_BYTES, KEY_BYTES, LENGTH_MASK, PLACE, REF_BYTES, Bytes, Ids, Places
from engine.errors import StoreCorrupt
from engine.packtable import PACK_ROW, PACK_ROW_BYTES, PackRows, fault_in

PAGE_BYTES_MAX: Final = 65536
LEAF_ENTRIES: Final = 1024
LEAF_EXTENTS: Final = 1024
INNER_CHILDREN: Final = 512
TABLE_ROWS: Final = 1024
LEVEL_MAX: Final = 5  # a tree is at most six pages deep
BLOCKS_MAX: Final = 1 << 48  # block numbers of 2^64 bytes; sums of two never overflow

ADDRESS_BYTES: Final = REF_BYTES + PLACE.itemsize
CHILD: Final = np.dtype([("first", "<u8"), ("entries", "<u8"), ("ref", "u1", (REF_BYTES,)), ("place", PLACE)])

Blocks: TypeAlias = npt.NDArray[np.uint64]  # block numbers or counts, shape (n,)
Keys: TypeAlias = npt.NDArray[np.uint8]  # shape (n, 32)
Children: TypeAlias = npt.NDArray[np.void]  # dtype CHILD, shape (n,)

_HEADER: Final = struct.Struct("<BBHIQ")
_LEAF: Final = struct.Struct("<II")
_ID_LEAF, _KEY_LEAF, _INNER, _TABLE = 1, 2, 3, 4
_ENTRY_BYTES: Final = 8 + ID_BYTES + PLACE.itemsize


class PageAddress(msgspec.Struct, frozen=True):
    """Where a page lies and what opens it: `ref` 48 bytes, then its place; `pack` 0 means the naming page's pack."""

    ref: bytes
    pack: int
    offset: int
    length: int

    def __bytes__(self) -> bytes:
        return self.ref + struct.pack("<QII", self.pack, self.offset, self.length)

    @classmethod
    def parse(cls, data: bytes) -> PageAddress:
        """Return the address in 64 bytes; a place is a hint, so every value is possible."""
        assert len(data) == ADDRESS_BYTES
        return cls(data[:REF_BYTES], *struct.unpack_from("<QII", data, REF_BYTES))

    @classmethod
    def of_child(cls, child: np.void) -> PageAddress:
        """Return the address in one row of an inner page."""
        place = child["place"]
        return cls(child["ref"].tobytes(), int(place["pack"]), int(place["offset"]), int(place["length"]))


class IdLeaf(msgspec.Struct, frozen=True):
    """Blocks a run names: `blocks` ascending with `ids` and `places` beside, and extents of zero blocks between."""

    blocks: Blocks
    ids: Ids
    places: Places
    zero_starts: Blocks
    zero_counts: Blocks

    level: ClassVar[int] = 0

    @property
    def entries(self) -> int:
        """The number of blocks named with an id."""
        return len(self.blocks)

    @property
    def names_any(self) -> bool:
        """Whether the leaf names anything: always, unless it was cut to a range."""
        return bool(len(self.blocks) or len(self.zero_starts))

    @property
    def first_block(self) -> int:
        """The smallest block number named."""
        return min(int(column[0]) for column in (self.blocks, self.zero_starts) if len(column))

    @property
    def stop_block(self) -> int:
        """One more than the greatest block number named."""
        entry = int(self.blocks[-1]) + 1 if len(self.blocks) else 0
        zero = int(self.zero_starts[-1]) + int(self.zero_counts[-1]) if len(self.zero_starts) else 0
        return max(entry, zero)

    def clipped(self, first: int, stop: int) -> tuple[IdLeaf, slice]:
        """Return what is named in [first, stop), and which of the leaf's entries that is."""
        low, high = np.searchsorted(self.blocks, np.array([first, stop], np.uint64))
        starts = np.maximum(self.zero_starts, np.uint64(first))
        stops = np.minimum(self.zero_starts + self.zero_counts, np.uint64(stop))
        inside = starts < stops
        chosen = slice(int(low), int(high))
        starts, stops = starts[inside], stops[inside]
        return IdLeaf(self.blocks[chosen], self.ids[chosen], self.places[chosen], starts, stops - starts), chosen

    def fault(self) -> str | None:
        """Say what is wrong with the columns, or None."""
        blocks, starts, counts = self.blocks, self.zero_starts, self.zero_counts
        if not len(blocks) and not len(starts):
            return "a leaf names nothing"
        if len(blocks) > LEAF_ENTRIES or len(starts) > LEAF_EXTENTS:
            return "a leaf names too much"
        if not bool((blocks[1:] > blocks[:-1]).all()) or bool((blocks[-1:] >= BLOCKS_MAX).any()):
            return "the blocks of a leaf are not in ascending order"
        return _extent_fault(blocks, starts, counts)


def _extent_fault(blocks: Blocks, starts: Blocks, counts: Blocks) -> str | None:
    if bool((starts >= BLOCKS_MAX).any()) or bool((counts > BLOCKS_MAX).any()) or not bool(counts.all()):
        return "a zero extent is impossible"
    stops = starts + counts
    if bool((stops[-1:] > BLOCKS_MAX).any()) or bool((stops[:-1] > starts[1:]).any()):
        return "the zero extents of a leaf overlap or are not in ascending order"
    if not bool((np.searchsorted(blocks, starts) == np.searchsorted(blocks, stops)).all()):
        return "a block of a leaf lies in a zero extent"
    return None


class KeyLeaf(msgspec.Struct, frozen=True):
    """The keys (`uint8[n, 32]`) of the blocks of the id leaf with the same ordinal; `first_block` is that leaf's."""

    first_block: int
    keys: Keys

    level: ClassVar[int] = 0

    @property
    def entries(self) -> int:
        """The number of keys."""
        return len(self.keys)

    @property
    def stop_block(self) -> int:
        """One more than the greatest block number the page itself shows."""
        return self.first_block + 1


class Inner(msgspec.Struct, frozen=True):
    """Children of one page in ascending order; `level` 1 stands over leaves."""

    level: int
    children: Children

    @property
    def first_block(self) -> int:
        """The first block, or ordinal, of the first child."""
        return int(self.children["first"][0])

    @property
    def stop_block(self) -> int:
        """One more than the greatest block number, or ordinal, the page itself shows."""
        return int(self.children["first"][-1]) + 1

    @property
    def entries(self) -> int:
        """The number of entries in all leaves below."""
        return int(self.children["entries"].sum())


class TableLeaf(msgspec.Struct, frozen=True):
    """Rows of a run's pack table; `first_block` is the ordinal of the first one in the whole table."""

    first_block: int
    rows: PackRows

    level: ClassVar[int] = 0

    @property
    def entries(self) -> int:
        """The number of rows."""
        return len(self.rows)

    @property
    def stop_block(self) -> int:
        """One more than the ordinal of the last row."""
        return self.first_block + len(self.rows)


Page: TypeAlias = IdLeaf | KeyLeaf | Inner | TableLeaf


def encode(page: Page) -> bytes:
    """Return the plaintext bytes of a page, at most 64 KiB."""
    match page:
        case IdLeaf(blocks, ids, places, starts, counts):
            fault = page.fault()
            assert fault is None, fault
            first = page.first_block
            zeros = np.column_stack((starts, counts)).astype("<u8")
            steps = np.diff(blocks, prepend=np.uint64(first)).astype("<u8")
            columns = (zeros, steps, ids, places["pack"], _gaps(places), places["length"])
            head = _HEADER.pack(_ID_LEAF, 0, 0, len(blocks), first) + _LEAF.pack(len(starts), 0)
            return head + b"".join(column.tobytes() for column in columns)
        case KeyLeaf(first_block, keys):
            assert len(keys) <= LEAF_ENTRIES
            return _HEADER.pack(_KEY_LEAF, 0, 0, len(keys), first_block) + keys.tobytes()
        case Inner(level, children):
            assert 1 <= level <= LEVEL_MAX
            assert 1 <= len(children) <= INNER_CHILDREN
            return _HEADER.pack(_INNER, level, 0, len(children), page.first_block) + children.tobytes()
        case TableLeaf(first, rows):
            assert 1 <= len(rows) <= TABLE_ROWS
            return _HEADER.pack(_TABLE, 0, 0, len(rows), first) + rows.tobytes()


def decode(content: Bytes, where: str) -> Page:
    """Return the page in `content`, its columns views over it. `where` names the pack in errors.

    Raises: StoreCorrupt.
    """
    if not _HEADER.size <= len(content) <= PAGE_BYTES_MAX:
        raise StoreCorrupt(where, "a page has an impossible length")
    kind, level, reserved, count, first = _HEADER.unpack_from(content)
    if reserved or first >= BLOCKS_MAX or (level != 0 and kind != _INNER):
        raise StoreCorrupt(where, "a page has an impossible header")
    match kind:
        case 1:
            return _decode_id_leaf(content, count, first, where)
        case 2:
            _check_count(content, count, (0, LEAF_ENTRIES), KEY_BYTES, where)
            return KeyLeaf(first, np.frombuffer(content, np.uint8, offset=_HEADER.size).reshape(-1, KEY_BYTES))
        case 3:
            return _decode_inner(content, level, count, first, where)
        case 4:
            _check_count(content, count, (1, TABLE_ROWS), PACK_ROW_BYTES, where)
            rows = np.frombuffer(content, PACK_ROW, offset=_HEADER.size)
            if fault := fault_in(rows):
                raise StoreCorrupt(where, fault)
            return TableLeaf(first, rows)
    raise StoreCorrupt(where, f"a page is of the unknown type {kind}")


def _check_count(content: Bytes, count: int, bounds: tuple[int, int], row_bytes: int, where: str) -> None:
    if not bounds[0] <= count <= bounds[1] or len(content) != _HEADER.size + count * row_bytes:
        raise StoreCorrupt(where, "a page's count does not fit its length")


def _decode_id_leaf(content: Bytes, count: int, first: int, where: str) -> IdLeaf:
    start = _HEADER.size + _LEAF.size
    if len(content) < start:
        raise StoreCorrupt(where, "a page has an impossible length")
    extents, reserved = _LEAF.unpack_from(content, _HEADER.size)
    if count > LEAF_ENTRIES or extents > LEAF_EXTENTS or reserved:
        raise StoreCorrupt(where, "a page has an impossible header")
    if len(content) != start + extents * 16 + count * _ENTRY_BYTES:
        raise StoreCorrupt(where, "a page's count does not fit its length")
    zeros = np.frombuffer(content, "<u8", extents * 2, start).reshape(-1, 2)
    at = start + extents * 16
    steps = np.frombuffer(content, "<u8", count, at)
    ids = np.frombuffer(content, "<u8", count * 2, at + count * 8).reshape(-1, 2)
    places = np.empty(count, PLACE)
    at += count * (8 + ID_BYTES)
    places["pack"] = np.frombuffer(content, "<u8", count, at)
    places["length"] = np.frombuffer(content, "<u4", count, at + count * 12)
    places["offset"] = _offsets(np.frombuffer(content, "<u4", count, at + count * 8), places)
    if bool((steps >= BLOCKS_MAX).any()):
        raise StoreCorrupt(where, "the blocks of a leaf are not in ascending order")
    blocks = np.uint64(first) + np.cumsum(steps, dtype=np.uint64)
    leaf = IdLeaf(blocks, ids, places, zeros[:, 0], zeros[:, 1])
    if fault := leaf.fault():
        raise StoreCorrupt(where, fault)
    if leaf.first_block != first:
        raise StoreCorrupt(where, "a page does not begin with the block it says")
    return leaf


def _gaps(places: Places) -> npt.NDArray[np.uint32]:
    """Return where records begin, counted from the end of the record before, modulo 2^32.

    Neighbouring blocks mostly lie one after the other in a pack: then this is zero, and costs nothing.
    """
    gaps = places["offset"].astype("<u4")
    gaps[1:] -= (places["offset"] + (places["length"] & np.uint32(LENGTH_MASK)))[:-1]
    return gaps


def _offsets(gaps: npt.NDArray[np.uint32], places: Places) -> npt.NDArray[np.uint32]:
    steps = gaps.copy()
    steps[1:] += (places["length"] & np.uint32(LENGTH_MASK))[:-1]
    return np.cumsum(steps, dtype=np.uint32)


def _decode_inner(content: Bytes, level: int, count: int, first: int, where: str) -> Inner:
    _check_count(content, count, (1, INNER_CHILDREN), CHILD.itemsize, where)
    children = np.frombuffer(content, CHILD, offset=_HEADER.size)
    firsts = children["first"]
    if not 1 <= level <= LEVEL_MAX:
        raise StoreCorrupt(where, "an inner page has an impossible level")
    if int(firsts[0]) != first or int(firsts[-1]) >= BLOCKS_MAX or not bool((firsts[1:] > firsts[:-1]).all()):
        raise StoreCorrupt(where, "the children of a page are not in ascending order")
    if bool((children["entries"] > BLOCKS_MAX).any()):
        raise StoreCorrupt(where, "a page counts an impossible number of entries")
    return Inner(level, children)
