"""Removal lists: which packs left a cache, write-once, signed by the system that removed them (docs/FORMAT.md).

A list is written before the packs go, so that nobody who finds what took their place believes in them still. It names
packs by their keys, for nothing but to pass over them: who lies in one makes others send blocks again, no more.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import numpy as np
from blake3 import blake3

from engine.block import Bytes
from engine.columns import U64, Column64
from engine.errors import StoreCorrupt
from engine.names import RemovalName
from engine.subkeys import DomainKeys
from engine.trailer import TRAILER_BYTES, Signer, Verifier, check_trailer, make_trailer

REMOVALS_PREFIX: Final = "gc/"  # of their names, in a store and in the folder of its mirror
REMOVAL_LABEL: Final = b"forebay gone v1\0"
REMOVAL_VERSION: Final = 1
REMOVAL_HEADER_BYTES: Final = 72
REMOVAL_READ_MAX: Final = 16 << 20  # bytes; nothing larger is taken for a removal list
REMOVAL_SIZE_MIN: Final = REMOVAL_HEADER_BYTES + TRAILER_BYTES

_MAGIC: Final = b"FBGONE\x00\x01"
_SETTLED: Final = 1
_HEADER: Final = struct.Struct("<8sHHI16s16s8sIIII")
_WRITER: Final = struct.Struct("<16sII")
_COVER: Final = struct.Struct("<8sII")


class RemovalList(msgspec.Struct, frozen=True, eq=False):
    """A checked list. `packs`: keys (uint64, ascending) of packs that left, by the systems that wrote those.

    `settled`: all of them are deleted; else some may be there still, and whoever likes may delete them. `covers`:
    lists of the same writer that this one stands for.
    """

    name: RemovalName
    packs: Mapping[bytes, Column64]
    covers: tuple[RemovalName, ...]
    settled: bool

    @property
    def count(self) -> int:
        """How many packs it lists."""
        return sum(len(keys) for keys in self.packs.values())


def encode_removals(
    name: RemovalName,
    packs: Mapping[bytes, Column64],
    keys: DomainKeys,
    signer: Signer,
    covers: Sequence[RemovalName] = (),
    *,
    settled: bool = False,
) -> bytes:
    """Return the bytes of a list; `packs` as in `RemovalList`, none of them empty."""
    writers = sorted(packs)
    covers = sorted(covers)
    count = sum(len(packs[writer]) for writer in writers)
    header = _HEADER.pack(
        _MAGIC, REMOVAL_VERSION, _SETTLED if settled else 0, count, keys.domain, name.writer, name.incarnation,
        name.sequence, len(writers), len(covers), 0,
    )  # fmt: skip
    body = b"".join(
        [
            header,
            *(_WRITER.pack(writer, len(packs[writer]), 0) for writer in writers),
            *(packs[writer].astype(U64).tobytes() for writer in writers),
            *(_COVER.pack(cover.incarnation, cover.sequence, 0) for cover in covers),
        ]
    )
    return body + make_trailer(REMOVAL_LABEL, blake3(body).digest(), keys, signer)


def removal_domain(data: Bytes) -> bytes:
    """Return the domain (16 bytes) that a list's header names, unchecked."""
    return bytes(memoryview(data)[16:32])


def open_removals(name: RemovalName, data: Bytes, keys: DomainKeys | None, verifier: Verifier | None) -> RemovalList:
    """Check a list and return what it says; without `verifier`: one whose signature was checked before.

    Without `keys` it may be of any domain. Raises: StoreCorrupt.
    """
    where = str(name)
    if not REMOVAL_SIZE_MIN <= len(data) <= REMOVAL_READ_MAX:
        raise StoreCorrupt(where, f"no removal list is {len(data)} bytes long")
    magic, version, flags, count, domain, writer, incarnation, sequence, writers, covers, reserved = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC or version != REMOVAL_VERSION or flags not in (0, _SETTLED) or reserved:
        raise StoreCorrupt(where, "it is not a removal list of a version this program knows")
    if (writer, incarnation, sequence) != (name.writer, name.incarnation, name.sequence):
        claimed = RemovalName(writer, incarnation, sequence)
        raise StoreCorrupt(where, f"its header says it is {claimed}: it was copied here from another name")
    table = REMOVAL_HEADER_BYTES + writers * _WRITER.size
    cover_list = table + 8 * count
    trailer = cover_list + covers * _COVER.size
    if trailer + TRAILER_BYTES != len(data):
        raise StoreCorrupt(where, "its counts do not fit its length")
    view = memoryview(data)
    check_trailer(REMOVAL_LABEL, view[trailer:], blake3(view[:trailer]).digest(), domain, writer, keys, verifier, where)
    packs = _read_packs(where, view[REMOVAL_HEADER_BYTES:table], np.frombuffer(view[table:cover_list], U64))
    return RemovalList(name, packs, _read_covers(name, view[cover_list:trailer]), bool(flags & _SETTLED))


def _read_packs(where: str, table: memoryview, keys: Column64) -> dict[bytes, Column64]:
    packs: dict[bytes, Column64] = {}
    at, last = 0, b""
    for writer, count, reserved in _WRITER.iter_unpack(table):
        part = keys[at : at + count]
        if writer <= last or reserved or not count or len(part) < count or bool((part[1:] <= part[:-1]).any()):
            raise StoreCorrupt(where, "its packs are not in order")
        packs[writer] = part
        at, last = at + count, writer
    if at != len(keys):
        raise StoreCorrupt(where, "it lists packs of nobody")
    return packs


def _read_covers(name: RemovalName, data: memoryview) -> tuple[RemovalName, ...]:
    covers = []
    for incarnation, sequence, reserved in _COVER.iter_unpack(data):
        if reserved:
            raise StoreCorrupt(str(name), "its covers are not in a form this program knows")
        covers.append(RemovalName(name.writer, incarnation, sequence))
    if sorted(set(covers)) != covers or name in covers:
        raise StoreCorrupt(str(name), "its covers are not in order, or name itself")
    return tuple(covers)
