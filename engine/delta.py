"""Deltas: records that hold only some parts of a block and say in which other records the rest lies literally.

Reading them (DESIGN.md §5, Delta; docs/FORMAT.md, Delta). A source is opened with its *parts* key alone, so from a
source nothing leads further back: whoever can open a block can open at most four older records with it.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import lz4.block  # type: ignore[import-untyped]
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.block import BLOCK_BYTES, ID_BYTES, PART_BYTES, PART_SLICES, PARTS, PLACE, SOURCES_MAX, Bytes
from engine.errors import StoreCorrupt
from engine.seal import (
    DELTA,
    DELTA_PLAIN_MAX,
    HEADER_BYTES,
    HEADER_FORMAT,
    LINKS_PER_SOURCE,
    NONCE_BYTES,
    TAG_BYTES,
    WHOLE,
    Codec,
    decompress,
    decrypt,
    open_content,
    parse_header,
)

TRAVELS: Final = 255  # in the map of a delta: this part is in the delta itself
NO_PART: Final = 254  # this part lies beyond the end of a short block

# What the links of a delta say of one source.
LINK: Final = np.dtype([("parts_key", "V32"), ("place", PLACE)])

SHAPE: Final = struct.Struct("<IB3s")  # what follows the header in a delta: length of the block, sources, reserved
RESERVED: Final = bytes(3)
_HEAD: Final = struct.Struct(HEADER_FORMAT + SHAPE.format[1:])
_CODECS: Final = tuple(Codec)
LENGTH: Final = struct.Struct("<I")
BITMAP: Final = struct.Struct("<H")
_ALL_BEYOND: Final = bytes([NO_PART]) * PARTS
# By the number of sources: what may stand in the map of a delta for the parts a block has.
_ORIGINS: Final = tuple(bytes([*range(count), TRAVELS]) for count in range(SOURCES_MAX + 1))
_KIND_AT: Final = 16  # in a record: the byte of its header that tells whole from delta


class Source(NamedTuple):
    """A source of a delta: `id` 16 bytes, its *parts* key 32 bytes, where it lay when the delta was written."""

    id: bytes
    parts_key: bytes
    place: np.void


class Delta(NamedTuple):
    """A delta taken apart, nothing opened yet. `frame`: header and extension, what both seals are bound to.

    `ids`: those of the sources, 16 bytes each. `plain_length`: of the parts, once opened.
    """

    id: bytes
    codec: Codec
    plain_length: int
    nonce: bytes
    frame: memoryview
    block_length: int
    ids: bytes
    links_nonce: bytes
    links: memoryview
    parts: memoryview

    @property
    def source_ids(self) -> tuple[bytes, ...]:
        """The ids of the sources, one by one."""
        return tuple(self.ids[at : at + ID_BYTES] for at in range(0, len(self.ids), ID_BYTES))


class Parts:
    """The parts one opened record holds literally: some by number, or all of a `content`, the whole block's."""

    __slots__ = ("_by_number", "content")

    def __init__(self, by_number: Mapping[int, memoryview], content: bytes | bytearray | None = None) -> None:
        self._by_number, self.content = by_number, content

    @property
    def by_number(self) -> Mapping[int, memoryview]:
        """The parts by part number."""
        if self.content is None:
            return self._by_number
        view = memoryview(self.content)
        return {at // PART_BYTES: view[at : at + PART_BYTES] for at in range(0, len(view), PART_BYTES)}

    def get(self, number: int) -> memoryview | None:
        """Return part `number`, or None if this record does not hold it."""
        if self.content is None:
            return self._by_number.get(number)
        return memoryview(self.content)[PART_SLICES[number]] or None


def part_length(number: int, block_length: int) -> int:
    """Return how long part `number` of a block of this length is; 0 beyond its end."""
    return max(0, min(PART_BYTES, block_length - number * PART_BYTES))


def parse_delta(record: Bytes, where: str) -> Delta:
    """Take a delta record apart, every length checked. Raises: StoreCorrupt."""
    view = memoryview(record)
    if len(view) < _HEAD.size:
        raise StoreCorrupt(where, f"a record of {len(view)} bytes is no delta")
    ident, kind, codec, flags, plain_length, body, nonce, block_length, count, reserved = _HEAD.unpack_from(view)
    nonce_at = _HEAD.size + count * ID_BYTES
    links_at = nonce_at + NONCE_BYTES + LENGTH.size
    links_stop = links_at + count * LINKS_PER_SOURCE + PARTS + TAG_BYTES
    if kind != DELTA or codec >= len(_CODECS) or flags or HEADER_BYTES + body != len(view):
        parse_header(record, where)  # which says what is wrong, unless it is this:
        raise StoreCorrupt(where, "not one delta record where a delta should be")
    fits = 1 <= block_length <= BLOCK_BYTES and 1 <= count <= SOURCES_MAX and reserved == RESERVED
    fits = fits and BITMAP.size <= plain_length <= DELTA_PLAIN_MAX
    if not fits or not TAG_BYTES < len(view) - links_stop <= TAG_BYTES + plain_length:
        raise StoreCorrupt(where, "the shape of a delta is not one a delta can have")
    if LENGTH.unpack_from(view, nonce_at + NONCE_BYTES)[0] != links_stop - links_at:
        raise StoreCorrupt(where, "the source list of a delta has another length than its sources need")
    return Delta(
        ident,
        _CODECS[codec],
        plain_length,
        nonce,
        view[:links_at],
        block_length,
        bytes(view[_HEAD.size : nonce_at]),
        bytes(view[nonce_at : nonce_at + NONCE_BYTES]),
        view[links_at:links_stop],
        view[links_stop:],
    )


def read_links(delta: Delta, links_key: bytes, where: str) -> tuple[bytes, bytes]:
    """Return what a delta says of its sources, dtype LINK once for each, and its map: where each of 16 parts is from.

    Raises: StoreCorrupt.
    """
    plain = decrypt(links_key, delta.links_nonce, delta.links, delta.frame, where)
    part_map, count = plain[-PARTS:], -(-delta.block_length // PART_BYTES)
    # What is left once everything that may stand there is taken out must be nothing.
    unknown = part_map[:count].translate(None, _ORIGINS[len(delta.ids) // ID_BYTES])
    if unknown or part_map[count:] != _ALL_BEYOND[count:]:
        raise StoreCorrupt(where, "the map of a delta names a source or part it does not have")
    return plain[:-PARTS], part_map


def open_links(delta: Delta, links_key: bytes, where: str) -> tuple[tuple[Source, ...], bytes]:
    """Return a delta's sources and its map of 16 bytes: where each part comes from. Raises: StoreCorrupt."""
    links, part_map = read_links(delta, links_key, where)
    rows = np.frombuffer(links, LINK)
    sources = (
        Source(*each) for each in zip(delta.source_ids, map(bytes, rows["parts_key"]), rows["place"], strict=True)
    )
    return tuple(sources), part_map


def open_parts(delta: Delta, parts_key: bytes, where: str) -> Parts:
    """Return the parts that travel in a delta, which its *parts* key alone opens. Raises: StoreCorrupt."""
    packed = decrypt(parts_key, delta.nonce, delta.parts, delta.frame, where)
    plain = memoryview(decompress(delta.codec, packed, delta.plain_length, where))
    (bitmap,) = BITMAP.unpack_from(plain)
    parts: dict[int, memoryview] = {}
    full_parts, at = delta.block_length // PART_BYTES, BITMAP.size
    while bitmap:
        number = (bitmap & -bitmap).bit_length() - 1
        bitmap &= bitmap - 1
        length = PART_BYTES if number < full_parts else part_length(number, delta.block_length)
        if length == 0 or at + length > len(plain):
            raise StoreCorrupt(where, "a delta does not hold the parts its bitmap names")
        parts[number] = plain[at : at + length]
        at += length
    if at != len(plain):
        raise StoreCorrupt(where, "a delta holds more than the parts its bitmap names")
    return Parts(parts)


def open_source(source: Source, record: Bytes, where: str) -> Parts:
    """Return the parts a source record holds literally, whether it is whole or a delta. Raises: StoreCorrupt."""
    return open_literal(source.id, source.parts_key, record, where)


def open_literal(ident: bytes, parts_key: bytes, record: Bytes, where: str) -> Parts:
    """Return the parts that the record with this id (16 bytes) holds literally. Raises: StoreCorrupt."""
    if record[:ID_BYTES] != ident:
        raise StoreCorrupt(where, "another record lies where the source of a delta should be")
    if len(record) > _KIND_AT and record[_KIND_AT] == DELTA:
        return open_parts(parse_delta(record, where), parts_key, where)
    return Parts({}, _open_ground(parts_key, record, where))


def _open_ground(parts_key: bytes, record: Bytes, where: str) -> bytearray:
    """Return what `open_content` returns, in memory that a block can be put together in. Raises: StoreCorrupt."""
    header = parse_header(record, where)
    content: bytearray
    if header.kind == WHOLE and len(record) == header.record_bytes:
        view = memoryview(record)
        sealed, aad = view[HEADER_BYTES:], view[:HEADER_BYTES]
        with suppress(InvalidTag, lz4.block.LZ4BlockError):
            if header.codec is Codec.NONE:
                content = bytearray(header.plain_length)
                AESGCM(parts_key).decrypt_into(header.nonce, sealed, aad, content)
                return content
            if header.codec is Codec.LZ4:
                packed = AESGCM(parts_key).decrypt(header.nonce, sealed, aad)
                content = lz4.block.decompress(packed, uncompressed_size=header.plain_length, return_bytearray=True)
                if len(content) == header.plain_length:
                    return content
    return bytearray(open_content(parts_key, record, where))  # the other codec; or it says what is wrong


def has_all(parts: Parts, part_map: bytes, origin: int, block_length: int) -> bool:
    """Tell whether `parts` hold, at full length, every part the map takes from `origin`."""
    return all(
        (part := parts.get(number)) is not None and len(part) == part_length(number, block_length)
        for number, taken in enumerate(part_map)
        if taken == origin
    )


def assemble(delta: Delta, part_map: bytes, own: Parts, taken: Mapping[int, Parts], where: str) -> bytes:
    """Return the block: `own` are the parts that travel, `taken` those of each source, by its position.

    The caller compares the result with its ref. Raises: StoreCorrupt.
    """
    return bytes(put_together(delta, part_map, own, taken, where))


def put_together(
    delta: Delta, part_map: bytes, own: Parts, taken: Mapping[int, Parts], where: str, spent: Container[int] = ()
) -> bytearray:
    """Return what `assemble` returns, in the memory it was put together in.

    `spent`: the sources that nothing else needs, of which one may become the block. Raises: StoreCorrupt.
    """
    length = delta.block_length
    # Most parts of most blocks come from one whole record: it is copied in one piece, and the others put over it.
    base, ground = next(
        ((origin, parts.content) for origin, parts in taken.items() if len(parts.content or b"") == length), (-1, None)
    )
    if ground is None:
        block = bytearray(length)
    else:
        block = ground if isinstance(ground, bytearray) and base in spent else bytearray(ground)
    full_parts, rest = divmod(length, PART_BYTES)
    travelling = 0
    for number, origin in enumerate(part_map):
        if origin in (base, NO_PART):
            continue
        if origin == TRAVELS:
            travelling += 1
            piece = own.get(number)
        else:
            piece = taken[origin].get(number)
        if piece is None or len(piece) != (PART_BYTES if number < full_parts else rest):
            raise StoreCorrupt(where, "a source of a delta does not hold the part taken from it, or the delta its own")
        block[number * PART_BYTES : number * PART_BYTES + len(piece)] = piece
    if travelling != len(own.by_number):
        raise StoreCorrupt(where, "a delta's map and its bitmap disagree")
    return block
