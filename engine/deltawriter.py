"""Writing deltas: which parts of a changed block have to travel, and the record that says where the others lie.

Rules (DESIGN.md §5, Delta; docs/FORMAT.md, Delta):
- A part need not travel if its digest is that of the same part of the block's old record, and the record that holds it
  literally (the old one itself, or one of its sources) lies in a pack this system wrote and may rely on. So there are
  no chains: what a delta takes from elsewhere is never taken from it.
- At most four sources. Where five would be needed, the one that gives the fewest parts is given up: its parts travel,
  which merges an older delta into the new one.
- A delta has to save at least half: of the block before anything is sealed, and of what a whole record is thought to
  take once it is compressed. Otherwise the block goes whole.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.block import (
    DELTA_FLAG,
    ID_BYTES,
    KEY_BYTES,
    PART_BYTES,
    PART_SLICES,
    PARTS,
    PLACE,
    REF_BYTES,
    SOURCES_MAX,
    Bytes,
    Mask,
    Refs,
)
from engine.delta import (
    BITMAP,
    LENGTH,
    NO_PART,
    RESERVED,
    SHAPE,
    TRAVELS,
    Parts,
    Source,
    assemble,
    open_links,
    open_parts,
    parse_delta,
)
from engine.errors import SessionAborted, StoreCorrupt
from engine.names import PackName
from engine.partdigest import PartDigests
from engine.parts import ORIGINS, SOURCE, Origins, PartEntries
from engine.seal import (
    BROKEN_MEMORY,
    DELTA,
    DELTA_FRAME_MIN,
    HEADER_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    Codec,
    build_header,
    compressed,
)
from engine.subkeys import parts_key, record_keys

_OWN: Final = SOURCES_MAX  # in the holders of parts: the old record itself
_HOLDERS: Final = SOURCES_MAX + 1
_NOWHERE: Final = frozenset((TRAVELS, NO_PART))
_NUMBERS: Final = bytes(range(_HOLDERS))
# A SOURCE as it lies in memory: id, parts key, place.
_SOURCE_BYTES: Final = SOURCE.itemsize
_KEY_STOP: Final = ID_BYTES + KEY_BYTES
_U64: Final = struct.Struct("<Q")


class DeltaRecord(msgspec.Struct, frozen=True):
    """A sealed delta. `packs`: those its sources lie in; `origins`: its row in local state, the bytes of an ORIGINS."""

    record: bytes
    packs: tuple[PackName, ...]
    origins: bytes

    @property
    def part_map(self) -> bytes:
        """Where each of the sixteen parts lies."""
        return self.origins[:PARTS]

    def sources(self) -> list[Source]:
        """Return its sources, in order."""
        rows = [self.origins[at : at + _SOURCE_BYTES] for at in range(PARTS, len(self.origins), _SOURCE_BYTES)]
        return [
            Source(row[:ID_BYTES], row[ID_BYTES:_KEY_STOP], np.frombuffer(row, PLACE, 1, _KEY_STOP)[0])
            for row in rows
            if any(row)
        ]


class _Plans(msgspec.Struct, frozen=True):
    """Where the parts of k blocks are to come from.

    `holders`: uint8[k, 16], the holder (0..3: old source, 4: old record) of every part that need not travel, else
    TRAVELS, or NO_PART beyond the end; `good`: which blocks are worth a delta; `sources`: SOURCE[k, 5], the holders.
    """

    holders: npt.NDArray[np.uint8]
    good: Mask
    sources: npt.NDArray[np.void]


class DeltaWriter:
    """Makes deltas of one system, in batches, from any number of threads."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec

    def make(
        self,
        refs: Sequence[bytes],
        contents: Sequence[Bytes],
        digests: PartDigests,
        old_refs: Refs,
        known: PartEntries,
        origins: Origins,
        packs: Mapping[int, PackName],
    ) -> list[DeltaRecord | None]:
        """Return a delta for each of k changed blocks, or None where it must go whole.

        `refs`, `contents`, `digests` are those of the blocks as they are now; `old_refs` (`uint8[k, 48]`), `known` and
        `origins` (shape (k,), zero where nothing is known) those of the map; `packs` are the packs, by key, that a
        source may lie in.
        """
        plans = _plan([len(content) for content in contents], digests, old_refs, known, origins, packs)
        made: list[DeltaRecord | None] = [None] * len(refs)
        good = np.flatnonzero(plans.good).tolist()
        nonces = secrets.token_bytes(2 * NONCE_BYTES * len(good))
        # Bytes from here on: what is done for every block is slicing, not arrays.
        holders = plans.holders.tobytes()
        ways = {i: _way(holders[i * PARTS : (i + 1) * PARTS]) for i in good}
        plains = [_travelling_parts(contents[i], ways[i][1]) for i in good]
        # Where all that travels does not shrink, nothing of it is worth a try of its own.
        codec = self._codec if compressed(self._codec, b"".join(plains))[0] is self._codec else Codec.NONE
        sources, old = plans.sources.tobytes(), old_refs.tobytes()
        whole = known["whole_bytes"].tolist()
        for turn, (i, plain) in enumerate(zip(good, plains, strict=True)):
            order, part_map = ways[i]
            rows = [
                sources[at : at + _SOURCE_BYTES] for at in ((i * _HOLDERS + each) * _SOURCE_BYTES for each in order)
            ]
            if order[-1] == _OWN:
                key = parts_key(old[i * REF_BYTES + ID_BYTES : (i + 1) * REF_BYTES])
                rows[-1] = rows[-1][:ID_BYTES] + key + rows[-1][_KEY_STOP:]
            nonce = nonces[turn * 2 * NONCE_BYTES : (turn + 1) * 2 * NONCE_BYTES]
            record = _seal_delta(refs[i], len(contents[i]), part_map, rows, plain, codec, nonce)
            if len(record) * 2 > whole[i] > 0:
                continue
            names = {packs[_U64.unpack_from(row, _KEY_STOP)[0]]: None for row in rows}
            made[i] = DeltaRecord(record, tuple(names), (part_map + b"".join(rows)).ljust(ORIGINS.itemsize, b"\0"))
        return made


# Most blocks change in one part or two: there are few ways, and most of them are asked for again and again.
@lru_cache(maxsize=4096)
def _way(held_by: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the holders a delta names, in order, and its map, from the holder of each part."""
    order = tuple(sorted(set(held_by) - _NOWHERE))
    return order, held_by.translate(bytes.maketrans(bytes(order), _NUMBERS[: len(order)]))


@lru_cache(maxsize=4096)
def _travelling(part_map: bytes) -> tuple[bytes, tuple[slice, ...]]:
    """Return the bitmap of the parts that travel, and where in a block they lie."""
    numbers = [number for number in range(PARTS) if part_map[number] == TRAVELS]
    return BITMAP.pack(sum(1 << number for number in numbers)), tuple(PART_SLICES[number] for number in numbers)


def _travelling_parts(content: Bytes, part_map: bytes) -> bytes:
    """Return what a delta of `content` seals: which parts travel by its map (16 bytes), and those parts."""
    bitmap, slices = _travelling(part_map)
    view = memoryview(content)
    return b"".join([bitmap, *[view[each] for each in slices]])


def _seal_delta(
    ref: bytes,
    block_length: int,
    part_map: bytes,
    sources: Sequence[bytes],
    plain: bytes,
    codec: Codec,
    nonces: bytes,
) -> bytes:
    """Return the record of a block of `block_length` bytes, whose ref is `ref`, as a delta.

    `part_map` (16 bytes) says for every part which of `sources` (the 64 bytes of a SOURCE each) holds it, TRAVELS or
    NO_PART; `plain` are those that travel. `nonces`: 24 random bytes, never used before.
    """
    count = len(sources)
    used, packed = compressed(codec, plain)
    key, links_key = record_keys(ref[ID_BYTES:])
    links = b"".join([source[ID_BYTES:] for source in sources]) + part_map
    links_length = len(links) + TAG_BYTES
    body_length = DELTA_FRAME_MIN + count * ID_BYTES + links_length + len(packed) + TAG_BYTES
    frame = b"".join(
        [
            build_header(ref[:ID_BYTES], DELTA, used, len(plain), body_length, nonces[:NONCE_BYTES]),
            SHAPE.pack(block_length, count, RESERVED),
            *[source[:ID_BYTES] for source in sources],
            nonces[NONCE_BYTES:],
            LENGTH.pack(links_length),
        ]
    )
    sealed_links = AESGCM(links_key).encrypt(nonces[NONCE_BYTES:], links, frame)
    record = b"".join([frame, sealed_links, AESGCM(key).encrypt(nonces[:NONCE_BYTES], packed, frame)])
    assert len(record) == HEADER_BYTES + body_length
    return record


def check_delta(ref: bytes, delta: DeltaRecord, content: Bytes) -> None:
    """Open what was just sealed and compare it with what it was made of.

    Raises: SessionAborted when they differ: nothing but broken memory or a broken library does that.
    """
    try:
        same = _opens_to(ref, delta, content)
    except StoreCorrupt:
        same = False
    if not same:
        raise SessionAborted(BROKEN_MEMORY)


def _opens_to(ref: bytes, delta: DeltaRecord, content: Bytes) -> bool:
    where = "in memory"
    parsed = parse_delta(delta.record, where)
    key, links_key = record_keys(ref[ID_BYTES:])
    sources, part_map = open_links(parsed, links_key, where)
    named = [
        (source.id, source.parts_key, source.place.tobytes()) == (row.id, row.parts_key, row.place.tobytes())
        for source, row in zip(sources, delta.sources(), strict=True)
    ]
    own = open_parts(parsed, key, where)
    view = memoryview(content)
    rest = {number: view[each] for number, each in enumerate(PART_SLICES)}
    taken = {origin: Parts(rest) for origin in range(len(sources))}
    same = assemble(parsed, part_map, own, taken, where) == content
    return all(named) and same and parsed.id == ref[:ID_BYTES] and part_map == delta.part_map


def _plan(
    lengths: Sequence[int],
    digests: PartDigests,
    old_refs: Refs,
    known: PartEntries,
    origins: Origins,
    packs: Mapping[int, PackName],
) -> _Plans:
    count = len(lengths)
    length = np.array(lengths, dtype=np.int64)
    ends = np.minimum(length[:, None] - np.arange(PARTS) * PART_BYTES, PART_BYTES)  # bytes of each part; <= 0: none
    exists = ends > 0
    sources = np.zeros((count, _HOLDERS), SOURCE)
    sources[:, :SOURCES_MAX] = origins["sources"]
    sources["id"][:, _OWN] = old_refs[:, :ID_BYTES]
    sources["place"][:, _OWN] = known["place"]
    is_delta = (known["place"]["length"] & np.uint32(DELTA_FLAG)) != 0
    held_elsewhere = is_delta[:, None] & (origins["map"] != TRAVELS)
    holders = np.where(held_elsewhere, origins["map"], _OWN).astype(np.uint8)
    holds = sources["place"]["pack"].ravel().tolist()
    usable: Mask = np.array([key in packs for key in holds], np.bool_).reshape(count, _HOLDERS)
    usable &= sources["place"]["length"] != 0
    same: Mask = exists & (digests == known["digests"]) & (holders <= _OWN)
    same &= np.take_along_axis(usable, np.minimum(holders, _OWN).astype(np.intp), axis=1)
    if is_delta.any():
        # How many parts each holder would give; where all five would give some, the least useful is left out.
        given = np.stack([(same & (holders == holder)).sum(axis=1) for holder in range(_HOLDERS)], axis=1)
        crowded: Mask = np.asarray((given > 0).all(axis=1), np.bool_)
        same &= ~(crowded[:, None] & (holders == given.argmin(axis=1)[:, None]))
    travels = exists & ~same
    half = np.where(travels, ends, 0).sum(axis=1) * 2 <= length
    holders = np.where(same, holders, np.where(exists, TRAVELS, NO_PART)).astype(np.uint8)
    return _Plans(holders, half & same.any(axis=1) & travels.any(axis=1), sources)
