"""Packs: immutable objects of many records; the unit of transfer and retry (DESIGN.md §5; docs/FORMAT.md, Pack).

A pack is named by the hash of its bytes, so anyone can check it without keys; a scan of its records rebuilds the
index, so losing every index loses nothing.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from engine.block import DELTA_FLAG, ID_BYTES, LENGTH_MASK, PLACE, Bytes, Ids, Places, ids_from_bytes
from engine.errors import StoreCorrupt
from engine.names import PackName
from engine.packtable import KINDS
from engine.rooms import Rooms
from engine.seal import DELTA, HEADER_BYTES, RECORD_BYTES_MAX, RECORD_BYTES_MIN, RecordHeader, parse_header
from engine.subkeys import DomainKeys
from engine.trailer import TRAILER_BYTES, check_trailer, make_trailer
from engine.trailer import Signer as Signer
from engine.trailer import Verifier as Verifier

PACK_LABEL: Final = b"forebay pack v1\0"
PACK_VERSION: Final = 1
PACK_HEADER_BYTES: Final = 64
PACK_TAIL_BYTES: Final = 12
PACK_BYTES_MIN: Final = 4 << 20  # bounds of the configured size
PACK_BYTES_MAX: Final = 64 << 20
PACK_READ_MAX: Final = 80 << 20  # nothing larger is taken for a pack

_MAGIC: Final = b"FBPACK\x00\x01"
_END_MAGIC: Final = b"FBPEND\x00\x01"
_HEADER: Final = struct.Struct("<8sHBBI16s16s16s")
_TAIL: Final = struct.Struct("<I8s")
_COUNTS: Final = struct.Struct("<II")
_SOURCE: Final = np.dtype([("writer", "V16"), ("hash", "V32"), ("size", "<u4")])
_ENTRY_BYTES: Final = 16 + 4 + 4 + 2
RECORDS_MAX: Final = 1 << 18  # of a pack: 256 bytes each in the largest
FOOTER_SHARE: Final = 64  # of a pack; its room has so much more for the footer of records of 2 KiB and more
HASHED_BYTES: Final = 1 << 19  # at once, while they are still in the processor's cache
FOOTER_BYTES_MIN: Final = _COUNTS.size + _ENTRY_BYTES + TRAILER_BYTES + PACK_TAIL_BYTES
PACK_SIZE_MIN: Final = PACK_HEADER_BYTES + RECORD_BYTES_MIN + FOOTER_BYTES_MIN

U16: Final = np.dtype("<u2")
U32: Final = np.dtype("<u4")


class FinishedPack(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """A pack ready to be put, and what an index has to know of it.

    `ids` uint64[n, 2], `offsets` uint32[n], `lengths` uint32[n] (DELTA_FLAG set for deltas), in the order of the
    records. `sources`: (entry, pack) for every pack that holds a source of the delta at that entry.
    """

    name: PackName
    data: Bytes
    ids: Ids
    offsets: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.uint32]
    sources: tuple[tuple[int, PackName], ...] = ()

    def places(self) -> Places:
        """Return the place of every record, in order."""
        places = np.empty(len(self.offsets), dtype=PLACE)
        places["pack"], places["offset"], places["length"] = self.name.key, self.offsets, self.lengths
        return places


class PackEntries(msgspec.Struct, frozen=True, eq=False):
    """What a pack's footer says. `days` uint16[n]: newest inherited stamp, in days since 2020-01-01; 0: none."""

    name: PackName
    ids: Ids
    offsets: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.uint32]
    days: npt.NDArray[np.uint16]
    sources: tuple[PackName, ...]


class PackBuilder:
    """The open pack of one lane; not thread-safe.

    Records are kept by reference, so that adding costs the event loop next to nothing, and copied once, by `finish`.
    """

    def __init__(
        self, kind: str, keys: DomainKeys, writer: bytes, session: bytes, signer: Signer, pack_bytes: int
    ) -> None:
        """Begin a pack of `kind` "data" or "page" that is full at `pack_bytes` (4..64 MiB)."""
        assert len(writer) == len(session) == len(keys.domain) == 16
        self._kind, self._keys, self._writer, self._signer = kind, keys, writer, signer
        self._pack_bytes = pack_bytes
        self._header = _HEADER.pack(_MAGIC, PACK_VERSION, KINDS.index(kind), 0, 0, keys.domain, writer, session)
        self._size = PACK_HEADER_BYTES
        self._records: list[Bytes] = []
        self._days: list[int] = []
        self._sources: list[tuple[int, PackName]] = []

    @property
    def kind(self) -> str:
        """The kind of pack this will be, "data" or "page"."""
        return self._kind

    @property
    def size(self) -> int:
        """Bytes so far, header included, footer not."""
        return self._size

    @property
    def count(self) -> int:
        """Records so far."""
        return len(self._days)

    @property
    def days(self) -> npt.NDArray[np.uint16]:
        """The day of each record so far, uint16[n]."""
        return np.array(self._days, dtype=U16)

    def room(self, record_bytes: int) -> bool:
        """Tell whether a record of this length still belongs in this pack; an empty pack takes any.

        Tiny records have a footer of a size with their own: their number is bounded, so that no pack grows beyond what
        readers take for one.
        """
        full = self._size + record_bytes > self._pack_bytes or len(self._days) >= RECORDS_MAX
        return not self._days or not full

    def add(self, record: Bytes, sources: Sequence[PackName] = (), day: int = 0) -> int:
        """Append a record, which must not change any more, and return its offset.

        `sources`: the packs a delta's sources lie in; `day`: its newest inherited stamp.
        """
        length = len(record)
        assert RECORD_BYTES_MIN <= length <= RECORD_BYTES_MAX
        offset = self._size
        if sources:
            self._sources.extend((self.count, pack) for pack in sources)
        self._records.append(record)
        self._days.append(day)
        self._size = offset + length
        return offset

    def content_key(self) -> bytes:
        """Return what tells packs of one session and kind apart: a hash of the headers of their records, in order."""
        return blake3(b"".join([record[:HEADER_BYTES] for record in self._records])).digest()

    def finish(self) -> FinishedPack:
        """Write the footer, hash, sign and name the pack: CPU work, to be called in a worker thread, once."""
        assert self._records
        ids = b"".join([record[:ID_BYTES] for record in self._records])
        flagged = [len(record) | (DELTA_FLAG if record[16] == DELTA else 0) for record in self._records]
        lengths = np.array(flagged, dtype=U32)
        ends = np.cumsum(lengths & LENGTH_MASK, dtype=np.uint64) + PACK_HEADER_BYTES
        offsets = np.concatenate(([PACK_HEADER_BYTES], ends[:-1])).astype(U32)
        packs = sorted({(pack.hash, pack.writer, pack.size) for _, pack in self._sources})
        table = np.array([(writer, digest, size) for digest, writer, size in packs], dtype=_SOURCE)
        days = np.array(self._days, dtype=U16)
        counts = _COUNTS.pack(len(lengths), len(packs))
        footer = b"".join([counts, ids, offsets.tobytes(), lengths.tobytes(), days.tobytes(), table.tobytes()])
        room = _rooms(self._pack_bytes).take()
        hasher = self._fill(room).update(footer)
        end = make_trailer(PACK_LABEL, hasher.digest(), self._keys, self._signer) + _TAIL.pack(self._size, _END_MAGIC)
        name_hash = hasher.update(end).digest()
        data = _closed(room, self._size, footer + end)
        name = PackName(self._kind, self._writer, name_hash, len(data))
        return FinishedPack(name, data, ids_from_bytes(ids), offsets, lengths, tuple(self._sources))

    def _fill(self, room: memoryview) -> blake3:
        """Copy header and records into `room`, letting go of them, and return what has hashed them."""
        hasher = blake3()
        records, self._records = deque((self._header, *self._records)), []
        hashed = at = 0
        while records:
            record = records.popleft()
            stop = at + len(record)
            # Copied with the interpreter's lock held: to get it back takes longer than these few microseconds.
            room[at:stop] = record
            at = stop
            if at - hashed >= HASHED_BYTES or not records:
                hasher.update(room[hashed:at])
                hashed = at
        return hasher


def _closed(room: memoryview, size: int, end: bytes) -> Bytes:
    """Return the whole pack: in the room where it lies, unless a footer of many tiny records does not fit there."""
    if size + len(end) > len(room):
        return b"".join((room[:size], end))
    room[size : size + len(end)] = end
    return room[: size + len(end)]


@cache
def _rooms(pack_bytes: int) -> Rooms:
    """Return the rooms for packs of this size: with the first record even if that is longer, and the usual footer."""
    return Rooms(pack_bytes + RECORD_BYTES_MAX + pack_bytes // FOOTER_SHARE)


def stand_in_for(finished: FinishedPack, keys: DomainKeys, signer: Signer) -> FinishedPack:
    """Return another pack with the same records at the same offsets, sealed as they are; CPU work.

    It differs in its session, which is made of the name of `finished`, and so in its own name: for the same pack it
    is the same every time.
    """
    data = memoryview(finished.data)
    sealed = len(data) - PACK_TAIL_BYTES - TRAILER_BYTES
    session = blake3(finished.name.hash).digest(16)
    header = bytes(data[: PACK_HEADER_BYTES - len(session)]) + session
    hasher = blake3(header).update(data[PACK_HEADER_BYTES:sealed])
    end = make_trailer(PACK_LABEL, hasher.digest(), keys, signer) + bytes(data[-PACK_TAIL_BYTES:])
    name = msgspec.structs.replace(finished.name, hash=hasher.update(end).digest())
    whole = b"".join((header, data[PACK_HEADER_BYTES:sealed], end))
    return msgspec.structs.replace(finished, name=name, data=whole)


def footer_start(name: PackName, tail: Bytes) -> int:
    """Return where the footer of a pack begins, from the pack's last 12 bytes. Raises: StoreCorrupt."""
    where = str(name)
    if not PACK_SIZE_MIN <= name.size <= PACK_READ_MAX:
        raise StoreCorrupt(where, f"no pack is {name.size} bytes long")
    if len(tail) != PACK_TAIL_BYTES:
        raise StoreCorrupt(where, "it ends early")
    start, magic = _TAIL.unpack(tail)
    if magic != _END_MAGIC or not PACK_HEADER_BYTES + RECORD_BYTES_MIN <= start <= name.size - FOOTER_BYTES_MIN:
        raise StoreCorrupt(where, "it does not end as a pack ends")
    return int(start)


def read_footer(name: PackName, footer: Bytes, start: int) -> PackEntries:
    """Return the entries of a footer: `footer` is everything from `start` to the pack's end.

    Structure and bounds are checked, hash and trailer are not: they stand over the whole pack (`check_pack`).
    Raises: StoreCorrupt.
    """
    where = str(name)
    view = memoryview(footer)
    if len(view) < FOOTER_BYTES_MIN or start + len(view) != name.size:
        raise StoreCorrupt(where, "its footer is cut")
    count, packs = _COUNTS.unpack_from(view)
    if _COUNTS.size + count * _ENTRY_BYTES + packs * _SOURCE.itemsize + TRAILER_BYTES + PACK_TAIL_BYTES != len(view):
        raise StoreCorrupt(where, "its footer's counts do not fit its length")
    at = _COUNTS.size
    ids = np.frombuffer(view, "<u8", count * 2, at).reshape(-1, 2)
    offsets = np.frombuffer(view, U32, count, at + count * 16)
    lengths = np.frombuffer(view, U32, count, at + count * 20)
    days = np.frombuffer(view, U16, count, at + count * 24)
    table = np.frombuffer(view, _SOURCE, packs, at + count * 26)
    plain = (lengths & np.uint32(LENGTH_MASK)).astype(np.int64)
    bounds = np.concatenate(([PACK_HEADER_BYTES], PACK_HEADER_BYTES + np.cumsum(plain)))
    if count == 0 or not np.array_equal(bounds[:-1], offsets) or bounds[-1] != start:
        raise StoreCorrupt(where, "its footer's entries do not lie back to back")
    if plain.min() < RECORD_BYTES_MIN or plain.max() > RECORD_BYTES_MAX:
        raise StoreCorrupt(where, "its footer lists a record of impossible length")
    sources = tuple(PackName("data", bytes(row["writer"]), bytes(row["hash"]), int(row["size"])) for row in table)
    if any(left.hash >= right.hash for left, right in pairwise(sources)):
        raise StoreCorrupt(where, "its footer's source packs are not in order")
    return PackEntries(name, ids, offsets, lengths, days, sources)


def scan_records(name: PackName, data: Bytes, stop: int) -> Iterator[tuple[int, RecordHeader]]:
    """Yield (offset, header) of the records that lie back to back between the pack's header and `stop`.

    Without a footer, scan with `stop` = the pack's size and keep what came before the error: what is no record
    ends the scan. Raises: StoreCorrupt.
    """
    where = str(name)
    view = memoryview(data)[:stop]
    offset = PACK_HEADER_BYTES
    while offset < stop:
        header = parse_header(view[offset:], where)
        if offset + header.record_bytes > len(view):
            raise StoreCorrupt(where, f"the record at offset {offset} reaches beyond the records' end")
        yield offset, header
        offset += header.record_bytes


def check_pack(name: PackName, data: Bytes, keys: DomainKeys | None, verifier: Verifier | None) -> PackEntries:
    """Check every byte of a pack: size, hash, header, footer against a scan of the records, and the trailer.

    Without `keys` the MAC and without `verifier` the signature stay unchecked: the hash in the name needs neither.
    Raises: StoreCorrupt.
    """
    where = str(name)
    view = memoryview(data)
    if len(view) != name.size:
        raise StoreCorrupt(where, f"it is {len(view)} bytes long, its name says {name.size}")
    start = footer_start(name, view[-PACK_TAIL_BYTES:])
    sealed = len(view) - PACK_TAIL_BYTES - TRAILER_BYTES
    hasher = blake3(view[:sealed])
    checksum = hasher.digest()
    if hasher.update(view[sealed:]).digest() != name.hash:
        raise StoreCorrupt(where, "its bytes do not hash to its name")
    domain = check_header(name, view[:PACK_HEADER_BYTES])
    entries = read_footer(name, view[start:], start)
    records = list(scan_records(name, view, start))
    flags = [offset_header[1].record_bytes | DELTA_FLAG * (offset_header[1].kind == DELTA) for offset_header in records]
    if not np.array_equal(np.array(flags, dtype=np.uint64), entries.lengths):
        raise StoreCorrupt(where, "its footer lists other records than it holds")
    if b"".join([header.id for _, header in records]) != entries.ids.tobytes():
        raise StoreCorrupt(where, "its footer lists other ids than its records have")
    trailer = view[sealed : sealed + TRAILER_BYTES]
    check_trailer(PACK_LABEL, trailer, checksum, domain, name.writer, keys, verifier, where)
    return entries


def session_of(header: Bytes) -> bytes:
    """Return the session (16 bytes) that a pack's first 64 bytes name, unchecked; fewer bytes if it is cut."""
    return bytes(header[PACK_HEADER_BYTES - 16 : PACK_HEADER_BYTES])


def check_header(name: PackName, header: Bytes) -> bytes:
    """Check a pack's first 64 bytes against its name and return its domain (16 bytes). Raises: StoreCorrupt."""
    where = str(name)
    if len(header) < PACK_HEADER_BYTES:
        raise StoreCorrupt(where, "its header is cut")
    magic, version, kind, flags, reserved, domain, writer, _ = _HEADER.unpack_from(header)
    if magic != _MAGIC or version != PACK_VERSION or flags or reserved:
        raise StoreCorrupt(where, "it is not a pack of a version this program knows")
    if kind >= len(KINDS) or KINDS[kind] != name.kind or writer != name.writer:
        raise StoreCorrupt(where, "its header names another writer or kind than its name")
    return bytes(domain)
