"""Index fragments: which ids lie where, write-once, signed by the system that wrote the packs (docs/FORMAT.md, Index).

The columns of a fragment are aligned and contiguous, so a memory-mapped fragment is looked up as it is. Everything
is checked once, when it comes from a store; nothing may be relied on that another system claims about a third one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from engine.acks import PackAck, SourceTable
from engine.block import DELTA_FLAG, LENGTH_MASK, Bytes
from engine.columns import U32, U64, Columns, Rows, SourceRows, sort_order
from engine.errors import StoreCorrupt
from engine.names import FragmentName
from engine.pack import FOOTER_BYTES_MIN, PACK_HEADER_BYTES
from engine.packtable import PACK_ROW, PackRows, fault_in, pack_names, rows_from_bytes, rows_of
from engine.seal import RECORD_BYTES_MAX, RECORD_BYTES_MIN
from engine.subkeys import DomainKeys
from engine.trailer import CHECKSUM_BYTES, TRAILER_BYTES, Signer, Verifier, check_trailer, make_trailer
from engine.view import View

INDEX_LABEL: Final = b"forebay index v1\0"
INDEX_VERSION: Final = 1
INDEX_HEADER_BYTES: Final = 80
FRAGMENT_READ_MAX: Final = 64 << 20  # bytes; nothing larger is taken for a fragment
FRAGMENT_SIZE_MIN: Final = INDEX_HEADER_BYTES + TRAILER_BYTES

_MAGIC: Final = b"FBINDEX\x01"
_MERGED: Final = 1
_HEADER: Final = struct.Struct("<8sHHI16s16s8sIIIIQ")
_COVER: Final = struct.Struct("<8sII")
_SLICE: Final = 1 << 17  # entries checked at a time, so that checking a large fragment needs little memory


class Layout(msgspec.Struct, frozen=True):
    """Where the sections of a fragment begin, in bytes; also that of the mirror's own merges (`cover_bytes`)."""

    entries: int
    packs: int
    covers: int
    sources: int = 0
    cover_bytes: int = _COVER.size

    @property
    def table(self) -> int:
        """Start of the pack table, the first section after the columns."""
        return INDEX_HEADER_BYTES + 28 * self.entries + 4 * (self.entries % 2)

    @property
    def cover_list(self) -> int:
        """Start of the covers."""
        return self.table + self.packs * PACK_ROW.itemsize

    @property
    def source_list(self) -> int:
        """Start of the source rows."""
        return self.cover_list + self.covers * self.cover_bytes

    @property
    def trailer(self) -> int:
        """Where the source rows end: of a fragment, the start of what seals it."""
        return self.source_list + self.sources * 8

    def columns(self, data: Bytes) -> Columns:
        """Return the columns as they lie in `data`."""
        n, at = self.entries, INDEX_HEADER_BYTES
        return Columns(
            np.frombuffer(data, U64, n, at),
            np.frombuffer(data, U64, n, at + 8 * n),
            np.frombuffer(data, U32, n, at + 16 * n),
            np.frombuffer(data, U32, n, at + 20 * n),
            np.frombuffer(data, U32, n, at + 24 * n),
        )

    def rows(self, data: Bytes) -> PackRows:
        """Return the pack table as it lies in `data`."""
        return rows_from_bytes(memoryview(data)[self.table : self.cover_list])


class Fragment(msgspec.Struct, frozen=True, eq=False):
    """A checked fragment over its buffer. `sources` uint32[s, 2]: (entry, pack row) of deltas' sources."""

    name: FragmentName
    columns: Columns
    rows: PackRows
    covers: tuple[FragmentName, ...]
    sources: npt.NDArray[np.uint32]
    checksum: bytes

    def view(self, writer: bytes) -> View:
        """Return the view of it that the system `writer` has."""
        sources = SourceRows(self.sources[:, 0], self.sources[:, 1])
        return View(self.columns, self.rows, own=self.name.writer == writer, sources=sources)


def encode_fragment(
    name: FragmentName,
    packs: Sequence[PackAck],
    keys: DomainKeys,
    signer: Signer,
    covers: Sequence[FragmentName] = (),
) -> bytes:
    """Return the bytes of fragment `name`, listing `packs`; `covers`: the fragments it stands for, if merged."""
    tables = [SourceTable.of(pack) for pack in packs]
    rows = rows_of([*(pack.name for pack in packs), *(name for table in tables for name in table.packs)])
    row_of = {name.hash: position for position, name in enumerate(pack_names(rows))}
    columns, order = _sorted_columns(packs, row_of)
    covered = b"".join(_COVER.pack(each.incarnation, each.sequence, 0) for each in sorted(covers))
    sources = _source_rows(packs, tables, row_of, order)
    layout = Layout(columns.entries, len(rows), len(covers), len(sources))
    header = _HEADER.pack(
        _MAGIC, INDEX_VERSION, _MERGED if covers else 0, columns.entries,
        keys.domain, name.writer, name.incarnation, name.sequence, len(rows), len(covers), len(sources), 0,
    )  # fmt: skip
    padding = bytes(4 * (columns.entries % 2))
    chunks = [header, *(column.tobytes() for column in columns), padding, rows.tobytes(), covered, sources.tobytes()]
    body = b"".join(chunks)
    assert len(body) == layout.trailer
    return body + make_trailer(INDEX_LABEL, blake3(body).digest(), keys, signer)


def open_fragment(name: FragmentName, data: Bytes, keys: DomainKeys | None, verifier: Verifier | None) -> Fragment:
    """Check every byte of a fragment read from a store and return it as a view over `data`.

    Without `keys` the MAC and without `verifier` the signature stay unchecked. Raises: StoreCorrupt.
    """
    where = str(name)
    view = memoryview(data)
    layout, domain = _read_header(name, view)
    checksum = blake3(view[: layout.trailer]).digest()
    check_trailer(INDEX_LABEL, view[layout.trailer :], checksum, domain, name.writer, keys, verifier, where)
    fragment = _fragment(name, layout, view)
    fault = fault_in(fragment.rows) or fault_in_columns(fragment.columns, fragment.rows, name.writer)
    if fault is not None:
        raise StoreCorrupt(where, fault)
    _check_sources(where, fragment.sources, fragment.columns, len(fragment.rows))
    return fragment


def fragment_domain(data: Bytes) -> bytes:
    """Return the domain (16 bytes) that a fragment's header names, unchecked."""
    return bytes(memoryview(data)[16:32])


def view_fragment(name: FragmentName, data: Bytes, domain: bytes) -> Fragment:
    """Return a view over a fragment that was checked before it came into the local mirror; its structure is checked.

    Raises: StoreCorrupt.
    """
    layout, of = _read_header(name, memoryview(data))
    if of != domain:
        raise StoreCorrupt(str(name), f"it belongs to another domain ({of.hex()})")
    fragment = _fragment(name, layout, memoryview(data))
    fault = fault_in(fragment.rows)
    if fault is not None:
        raise StoreCorrupt(str(name), fault)
    return fragment


def fault_in_columns(columns: Columns, rows: PackRows, writer: bytes) -> str | None:
    """Say what is wrong with entries read from a store: their order, or that they point outside `writer`'s packs."""
    of_writer = (rows["writer"] == np.frombuffer(writer, np.uint8)).all(axis=1)
    sizes = rows["size"].astype(np.int64)
    for start in range(0, columns.entries, _SLICE):
        part = columns.part(start, start + _SLICE)
        seam = columns.part(max(start - 1, 0), start + _SLICE)
        same = seam.lo[1:] == seam.lo[:-1]
        if bool((seam.lo[1:] < seam.lo[:-1]).any()) or bool((same & (seam.hi[1:] < seam.hi[:-1])).any()):
            return "its entries are not in order"
        if bool((part.pack >= len(rows)).any()):
            return "an entry points outside its pack table"
        if not bool(of_writer[part.pack].all()):
            return "it lists records in packs of another system"
        length = (part.length & U32.type(LENGTH_MASK)).astype(np.int64)
        if int(length.min()) < RECORD_BYTES_MIN or int(length.max()) > RECORD_BYTES_MAX:
            return "an entry has an impossible length"
        end = part.offset + length
        if int(part.offset.min()) < PACK_HEADER_BYTES or bool((end + FOOTER_BYTES_MIN > sizes[part.pack]).any()):
            return "an entry points outside its pack"
    return None


def _read_header(name: FragmentName, data: memoryview) -> tuple[Layout, bytes]:
    where = str(name)
    if not FRAGMENT_SIZE_MIN <= len(data) <= FRAGMENT_READ_MAX:
        raise StoreCorrupt(where, f"no index fragment is {len(data)} bytes long")
    magic, version, flags, entries, domain, writer, incarnation, sequence, packs, covers, sources, reserved = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC or version != INDEX_VERSION or flags not in (0, _MERGED) or reserved:
        raise StoreCorrupt(where, "it is not an index fragment of a version this program knows")
    if (writer, incarnation, sequence) != (name.writer, name.incarnation, name.sequence):
        claimed = FragmentName(writer, incarnation, sequence)
        raise StoreCorrupt(where, f"its header says it is {claimed}: it was copied here from another name")
    if bool(flags & _MERGED) != bool(covers):
        raise StoreCorrupt(where, "its flags and its covers disagree")
    layout = Layout(entries, packs, covers, sources)
    if layout.trailer + TRAILER_BYTES != len(data):
        raise StoreCorrupt(where, "its counts do not fit its length")
    if entries % 2 and bytes(data[layout.table - 4 : layout.table]) != bytes(4):
        raise StoreCorrupt(where, "its padding is not zero")
    return layout, domain


def _fragment(name: FragmentName, layout: Layout, data: memoryview) -> Fragment:
    covers = _read_covers(name, data[layout.cover_list : layout.source_list])
    sources = np.frombuffer(data[layout.source_list : layout.trailer], U32).reshape(-1, 2)
    checksum = bytes(data[layout.trailer : layout.trailer + CHECKSUM_BYTES])
    return Fragment(name, layout.columns(data), layout.rows(data), covers, sources, checksum)


def _read_covers(name: FragmentName, data: memoryview) -> tuple[FragmentName, ...]:
    where = str(name)
    covers = []
    for incarnation, sequence, reserved in _COVER.iter_unpack(data):
        if reserved:
            raise StoreCorrupt(where, "its covers are not in a form this program knows")
        covers.append(FragmentName(name.writer, incarnation, sequence))
    if sorted(set(covers)) != covers or name in covers:
        raise StoreCorrupt(where, "its covers are not in order, or name itself")
    return tuple(covers)


def _check_sources(where: str, sources: npt.NDArray[np.uint32], columns: Columns, packs: int) -> None:
    if not len(sources):
        return
    entry, pack = sources[:, 0].astype(np.int64), sources[:, 1].astype(np.int64)
    joined = (entry << 32) | pack
    if bool((entry >= columns.entries).any()) or bool((pack >= packs).any()) or bool((np.diff(joined) <= 0).any()):
        raise StoreCorrupt(where, "its source rows are not in order, or point outside it")
    if bool((columns.length[entry] & U32.type(DELTA_FLAG) == 0).any()):
        raise StoreCorrupt(where, "it gives sources to a record that is no delta")


def _sorted_columns(packs: Sequence[PackAck], row_of: dict[bytes, int]) -> tuple[Columns, Rows]:
    """Return the entries of all packs, sorted, and where each of them came from."""
    ids = np.concatenate([pack.ids for pack in packs])
    row = np.repeat([row_of[pack.name.hash] for pack in packs], [len(pack.ids) for pack in packs]).astype(U32)
    offset = np.concatenate([pack.offsets for pack in packs])
    length = np.concatenate([pack.lengths for pack in packs])
    order = sort_order(ids[:, 0], ids[:, 1])
    return Columns(ids[order, 0], ids[order, 1], row[order], offset[order], length[order]), order


def _source_rows(
    packs: Sequence[PackAck], tables: Sequence[SourceTable], row_of: dict[bytes, int], order: Rows
) -> npt.NDArray[np.uint32]:
    ranks = np.empty(len(order), np.intp)
    ranks[order] = np.arange(len(order))
    entries, rows, base = [], [], 0
    for pack, table in zip(packs, tables, strict=True):
        row_map = np.array([row_of[name.hash] for name in table.packs], U32)
        entries.append(table.entry + U32.type(base))
        rows.append(row_map[table.pack])
        base += len(pack.ids)
    return np.stack(SourceRows(np.concatenate(entries), np.concatenate(rows)).renumbered(ranks), axis=1)
