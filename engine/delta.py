"""Deltas: records that hold only some parts of a block and say in which other records the rest lies literally.

Reading them (DESIGN.md §5, Delta; docs/FORMAT.md, Delta). A source is opened with its *parts* key alone, so from a
source nothing leads further back: whoever can open a block can open at most four older records with it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from engine.block import BLOCK_BYTES, ID_BYTES, KEY_BYTES, PART_BYTES, PARTS, PLACE, Bytes
from engine.errors import StoreCorrupt
from engine.seal import (
    DELTA,
    DELTA_FRAME_MIN,
    HEADER_BYTES,
    LINKS_PER_SOURCE,
    NONCE_BYTES,
    SOURCES_MAX,
    TAG_BYTES,
    RecordHeader,
    decompress,
    decrypt,
    open_content,
    parse_header,
)

TRAVELS: Final = 255  # in the map of a delta: this part is in the delta itself
NO_PART: Final = 254  # this part lies beyond the end of a short block

_SHAPE: Final = struct.Struct("<IB3s")
_LENGTH: Final = struct.Struct("<I")
_BITMAP: Final = struct.Struct("<H")


class Source(NamedTuple):
    """A source of a delta: `id` 16 bytes, its *parts* key 32 bytes, where it lay when the delta was written."""

    id: bytes
    parts_key: bytes
    place: np.void


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta taken apart, nothing opened yet. `frame`: header and extension, what both seals are bound to."""

    header: RecordHeader
    frame: memoryview
    block_length: int
    source_ids: tuple[bytes, ...]
    links_nonce: bytes
    links: memoryview
    parts: memoryview


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts one opened record holds literally, by part number."""

    by_number: Mapping[int, memoryview]

    def get(self, number: int) -> memoryview | None:
        """Return part `number`, or None if this record does not hold it."""
        return self.by_number.get(number)


def part_length(number: int, block_length: int) -> int:
    """Return how long part `number` of a block of this length is; 0 beyond its end."""
    return max(0, min(PART_BYTES, block_length - number * PART_BYTES))


def parse_delta(record: Bytes, where: str) -> Delta:
    """Take a delta record apart, every length checked. Raises: StoreCorrupt."""
    header = parse_header(record, where)
    if header.kind != DELTA or len(record) != header.record_bytes:
        raise StoreCorrupt(where, "not one delta record where a delta should be")
    view = memoryview(record)
    block_length, count, reserved = _SHAPE.unpack_from(view, HEADER_BYTES)
    links_at = HEADER_BYTES + DELTA_FRAME_MIN + count * ID_BYTES
    links_stop = links_at + count * LINKS_PER_SOURCE + PARTS + TAG_BYTES
    sizes_fit = 1 <= block_length <= BLOCK_BYTES and 1 <= count <= SOURCES_MAX and reserved == bytes(3)
    if not sizes_fit or not links_stop + TAG_BYTES < len(view) <= links_stop + TAG_BYTES + header.plain_length:
        raise StoreCorrupt(where, "the shape of a delta is not one a delta can have")
    ids_at = HEADER_BYTES + _SHAPE.size
    ids = tuple(bytes(view[at : at + ID_BYTES]) for at in range(ids_at, ids_at + count * ID_BYTES, ID_BYTES))
    nonce_at = ids_at + count * ID_BYTES
    if _LENGTH.unpack_from(view, nonce_at + NONCE_BYTES)[0] != links_stop - links_at:
        raise StoreCorrupt(where, "the source list of a delta has another length than its sources need")
    nonce = bytes(view[nonce_at : nonce_at + NONCE_BYTES])
    return Delta(header, view[:links_at], block_length, ids, nonce, view[links_at:links_stop], view[links_stop:])


def open_links(delta: Delta, links_key: bytes, where: str) -> tuple[tuple[Source, ...], bytes]:
    """Return a delta's sources and its map of 16 bytes: where each part comes from. Raises: StoreCorrupt."""
    plain = decrypt(links_key, delta.links_nonce, delta.links, delta.frame, where)
    sources = []
    for position, ident in enumerate(delta.source_ids):
        at = position * LINKS_PER_SOURCE
        place = np.frombuffer(plain, PLACE, 1, at + KEY_BYTES)[0]
        sources.append(Source(ident, plain[at : at + KEY_BYTES], place))
    part_map = plain[len(sources) * LINKS_PER_SOURCE :]
    for number, origin in enumerate(part_map):
        beyond = part_length(number, delta.block_length) == 0
        if beyond != (origin == NO_PART) or (origin >= len(sources) and origin not in (TRAVELS, NO_PART)):
            raise StoreCorrupt(where, "the map of a delta names a source or part it does not have")
    return tuple(sources), part_map


def open_parts(delta: Delta, parts_key: bytes, where: str) -> Parts:
    """Return the parts that travel in a delta, which its *parts* key alone opens. Raises: StoreCorrupt."""
    packed = decrypt(parts_key, delta.header.nonce, delta.parts, delta.frame, where)
    plain = memoryview(decompress(delta.header.codec, packed, delta.header.plain_length, where))
    (bitmap,) = _BITMAP.unpack_from(plain)
    parts: dict[int, memoryview] = {}
    at = _BITMAP.size
    for number in range(PARTS):
        if bitmap >> number & 1:
            length = part_length(number, delta.block_length)
            if length == 0 or at + length > len(plain):
                raise StoreCorrupt(where, "a delta does not hold the parts its bitmap names")
            parts[number] = plain[at : at + length]
            at += length
    if at != len(plain):
        raise StoreCorrupt(where, "a delta holds more than the parts its bitmap names")
    return Parts(parts)


def open_source(source: Source, record: Bytes, where: str) -> Parts:
    """Return the parts a source record holds literally, whether it is whole or a delta. Raises: StoreCorrupt."""
    if bytes(record[:ID_BYTES]) != source.id:
        raise StoreCorrupt(where, "another record lies where the source of a delta should be")
    if parse_header(record, where).kind == DELTA:
        return open_parts(parse_delta(record, where), source.parts_key, where)
    content = memoryview(open_content(source.parts_key, record, where))
    count = -(-len(content) // PART_BYTES)
    return Parts({number: content[number * PART_BYTES : (number + 1) * PART_BYTES] for number in range(count)})


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
    if set(own.by_number) != {number for number, origin in enumerate(part_map) if origin == TRAVELS}:
        raise StoreCorrupt(where, "a delta's map and its bitmap disagree")
    pieces: list[memoryview] = []
    for number, origin in enumerate(part_map):
        if origin == NO_PART:
            continue
        piece = (own if origin == TRAVELS else taken[origin]).get(number)
        if piece is None or len(piece) != part_length(number, delta.block_length):
            raise StoreCorrupt(where, "a source of a delta does not hold the part taken from it")
        pieces.append(piece)
    return b"".join(pieces)
