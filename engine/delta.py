"""Deltas: records that hold only some parts of a block and say in which other records the rest lies literally.

Reading them (DESIGN.md §5, Delta; docs/FORMAT.md, Delta). A source is opened with its *parts* key alone, so from a
source nothing leads further back: whoever can open a block can open at most four older records with it.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping
from functools import lru_cache
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
    HEADER,
    HEADER_BYTES,
    HEADER_FORMAT,
    LINKS_PER_SOURCE,
    NONCE_BYTES,
    RECORD_BYTES_MIN,
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
_PLAIN, _LZ4 = int(Codec.NONE), int(Codec.LZ4)
LENGTH: Final = struct.Struct("<I")
BITMAP: Final = struct.Struct("<H")
_ALL_BEYOND: Final = bytes([NO_PART]) * PARTS
# By the number of sources: what may stand in the map of a delta for the parts a block has.
_ORIGINS: Final = tuple(bytes([*range(count), TRAVELS]) for count in range(SOURCES_MAX + 1))
_LACKS: Final = "a source of a delta does not hold the part taken from it, or the delta its own"
_SHAPELESS: Final = "the shape of a delta is not one a delta can have"
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

    def __init__(self, by_number: Mapping[int, memoryview], content: Bytes | None = None) -> None:
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
    ident, codec, plain_length, nonce, block_length, links_at, links_stop = _measured(record, where)
    view = memoryview(record)
    return Delta(
        ident,
        codec,
        plain_length,
        nonce,
        view[:links_at],
        block_length,
        bytes(view[_HEAD.size : links_at - LENGTH.size - NONCE_BYTES]),
        bytes(view[links_at - LENGTH.size - NONCE_BYTES : links_at - LENGTH.size]),
        view[links_at:links_stop],
        view[links_stop:],
    )


def _measured(record: Bytes, where: str) -> tuple[bytes, Codec, int, bytes, int, int, int]:
    """Return id, codec, plain length, nonce and block length of a delta, and where its links begin and end.

    Raises: StoreCorrupt.
    """
    size = len(record)
    if size < _HEAD.size:
        raise StoreCorrupt(where, f"a record of {size} bytes is no delta")
    ident, kind, codec, flags, plain_length, body, nonce, block_length, count, reserved = _HEAD.unpack_from(record)
    if kind != DELTA or codec >= len(_CODECS) or flags or HEADER_BYTES + body != size:
        parse_header(record, where)  # which says what is wrong, unless it is this:
        raise StoreCorrupt(where, "not one delta record where a delta should be")
    if not 1 <= count <= SOURCES_MAX or not 1 <= block_length <= BLOCK_BYTES or reserved != RESERVED:
        raise StoreCorrupt(where, _SHAPELESS)
    links_at = _HEAD.size + count * ID_BYTES + NONCE_BYTES + LENGTH.size
    links_stop = links_at + count * LINKS_PER_SOURCE + PARTS + TAG_BYTES
    if (
        not BITMAP.size <= plain_length <= DELTA_PLAIN_MAX
        or not TAG_BYTES < size - links_stop <= TAG_BYTES + plain_length
    ):
        raise StoreCorrupt(where, _SHAPELESS)
    if LENGTH.unpack_from(record, links_at - LENGTH.size)[0] != links_stop - links_at:
        raise StoreCorrupt(where, "the source list of a delta has another length than its sources need")
    return ident, _CODECS[codec], plain_length, nonce, block_length, links_at, links_stop


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
    return _cut_parts(delta.codec, packed, delta.plain_length, delta.block_length, where)


def _cut_parts(codec: Codec, packed: bytes, plain_length: int, block_length: int, where: str) -> Parts:
    plain = memoryview(decompress(codec, packed, plain_length, where))
    parts, stop = _held(BITMAP.unpack_from(plain)[0], block_length)
    if stop < 0 or stop > plain_length:
        raise StoreCorrupt(where, "a delta does not hold the parts its bitmap names")
    if stop != plain_length:
        raise StoreCorrupt(where, "a delta holds more than the parts its bitmap names")
    return Parts({number: plain[at] for number, at in parts})


# Most deltas hold one part or two of a whole block: the same few ways again and again.
@lru_cache(maxsize=4096)
def _held(bitmap: int, block_length: int) -> tuple[tuple[tuple[int, slice], ...], int]:
    """Return which parts a delta holds, each with where it lies in what was opened, and where the last of them ends.

    -1: it names a part that the block does not have.
    """
    parts: list[tuple[int, slice]] = []
    at = BITMAP.size
    for number in range(PARTS):
        if bitmap >> number & 1:
            length = part_length(number, block_length)
            if not length:
                return (), -1
            parts.append((number, slice(at, at + length)))
            at += length
    return tuple(parts), at


def open_source(source: Source, record: Bytes, where: str) -> Parts:
    """Return the parts a source record holds literally, whether it is whole or a delta. Raises: StoreCorrupt."""
    return open_literal(source.id, source.parts_key, record, where)


def open_literal(ident: bytes, parts_key: bytes, record: Bytes, where: str) -> Parts:
    """Return the parts that the record with this id (16 bytes) holds literally. Raises: StoreCorrupt."""
    if record[:ID_BYTES] != ident:
        raise StoreCorrupt(where, "another record lies where the source of a delta should be")
    if len(record) > _KIND_AT and record[_KIND_AT] == DELTA:
        _, codec, plain_length, nonce, block_length, links_at, links_stop = _measured(record, where)
        view = memoryview(record)
        packed = decrypt(parts_key, nonce, view[links_stop:], view[:links_at], where)
        return _cut_parts(codec, packed, plain_length, block_length, where)
    return Parts({}, _open_ground(parts_key, record, where))


def _open_ground(parts_key: bytes, record: Bytes, where: str) -> Bytes:
    """Return what `open_content` returns, in memory that a block can be put together in. Raises: StoreCorrupt."""
    if len(record) >= RECORD_BYTES_MIN:
        _, kind, codec, flags, plain_length, body, nonce = HEADER.unpack_from(record)
        fits = kind == WHOLE and not flags and HEADER_BYTES + body == len(record) and 1 <= plain_length <= BLOCK_BYTES
        view = memoryview(record)
        sealed, aad = view[HEADER_BYTES:], view[:HEADER_BYTES]
        try:
            if fits and codec == _PLAIN and body == plain_length + TAG_BYTES:
                room = np.empty(plain_length, np.uint8).data  # memory that nobody clears first
                AESGCM(parts_key).decrypt_into(nonce, sealed, aad, room)
                return room
            if fits and codec == _LZ4 and body <= plain_length + TAG_BYTES:
                packed = AESGCM(parts_key).decrypt(nonce, sealed, aad)
                content: bytearray = lz4.block.decompress(packed, uncompressed_size=plain_length, return_bytearray=True)
                if len(content) == plain_length:
                    return content
        except (InvalidTag, lz4.block.LZ4BlockError):
            pass  # said below
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
) -> Bytes:
    """Return what `assemble` returns, in the memory it was put together in.

    `spent`: the sources that nothing else needs, of which one may become the block. Raises: StoreCorrupt.
    """
    length = delta.block_length
    # Most parts of most blocks come from one whole record: it is copied in one piece, and the others put over it.
    base, ground = next(
        ((origin, parts.content) for origin, parts in taken.items() if len(parts.content or b"") == length), (-1, None)
    )
    block: bytearray | memoryview
    if ground is None:
        block = bytearray(length)
    else:
        block = bytearray(ground) if isinstance(ground, bytes) or base not in spent else ground
    full_parts, rest = divmod(length, PART_BYTES)
    view = memoryview(block)
    for origin, parts in (*taken.items(), (TRAVELS, own)):
        number = part_map.find(origin) if origin != base else -1
        while number >= 0:
            piece = parts.get(number)
            if piece is None or len(piece) != (PART_BYTES if number < full_parts else rest):
                raise StoreCorrupt(where, _LACKS)
            view[number * PART_BYTES : number * PART_BYTES + len(piece)] = piece
            number = part_map.find(origin, number + 1)
    if part_map.count(TRAVELS) != len(own.by_number):
        raise StoreCorrupt(where, "a delta's map and its bitmap disagree")
    return block
