"""Pins: ids whose records in the cache may be the last copy of blocks that a kept restore point needs (§3.4).

A system that verifies the vault pins what the vault lost and the cache has, before it is put back there; once it is,
its pins go. Whoever trims keeps what any system pinned. What one system may pin is bounded, and the pins of one that is
gone for long do not count: neither a neighbour nor a machine that was scrapped fills a cache for ever.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np
from blake3 import blake3

from engine.block import Bytes, Ids
from engine.cache.stamps import day_of
from engine.errors import ObjectMissing, StoreCorrupt
from engine.events import EventLog
from engine.names import PinName, StampName
from engine.ports import ObjectStore
from engine.refresh import Members
from engine.stage import flush
from engine.subkeys import DomainKeys
from engine.trailer import TRAILER_BYTES, Signer, Verifier, check_trailer, make_trailer
from engine.vault.identity import Identity

log = EventLog("pins")

PIN_LABEL: Final = b"forebay pins v1\0"
PIN_HEADER_BYTES: Final = 64
PIN_READ_MAX: Final = 16 << 20  # bytes; nothing larger is taken for pins
IDS_MAX: Final = 1_000_000  # of one system, whatever it wrote
PINNED_MAX: Final = 4_000_000  # of all systems together, shared out evenly
PINS_MAX: Final = 64  # objects of one system
COUNT_DAYS: Final = 180  # after the last sign of life of their writer pins count no more

_MAGIC: Final = b"FBPIN\0\0\1"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHHI16s16s8sII")


class Pins(msgspec.Struct, frozen=True, eq=False):
    """What one object pins: `day` since 2020-01-01 on which it was written; `ids` ascending, none twice."""

    name: PinName
    day: int
    ids: Ids


def encode_pins(name: PinName, day: int, ids: Ids, keys: DomainKeys, signer: Signer) -> bytes:
    """Return the object that pins `ids`, in any order, as often as they come."""
    unique = _ascending(ids)
    head = _HEADER.pack(
        _MAGIC, _VERSION, day, len(unique), keys.domain, name.writer, name.incarnation, name.sequence, 0
    )
    body = head + unique.tobytes()
    return body + make_trailer(PIN_LABEL, blake3(body).digest(), keys, signer)


def open_pins(name: PinName, data: Bytes, keys: DomainKeys | None, verifier: Verifier | None) -> Pins:
    """Check pins read from a store. Without `keys` the MAC and without `verifier` the signature stay unchecked.

    Raises: StoreCorrupt.
    """
    where, view = str(name), memoryview(data)
    if not PIN_HEADER_BYTES + TRAILER_BYTES <= len(view) <= PIN_READ_MAX:
        raise StoreCorrupt(where, f"no pins are {len(view)} bytes long")
    magic, version, day, count, domain, writer, incarnation, sequence, reserved = _HEADER.unpack_from(view)
    if magic != _MAGIC or version != _VERSION or reserved:
        raise StoreCorrupt(where, "it holds no pins of a version this program knows")
    if (writer, incarnation, sequence) != (name.writer, name.incarnation, name.sequence):
        raise StoreCorrupt(where, "its header names another object: it was copied here")
    stop = PIN_HEADER_BYTES + 16 * count
    if stop + TRAILER_BYTES != len(view):
        raise StoreCorrupt(where, "its count does not fit its length")
    check_trailer(PIN_LABEL, view[stop:], blake3(view[:stop]).digest(), domain, writer, keys, verifier, where)
    ids = np.frombuffer(view[PIN_HEADER_BYTES:stop], "<u8").reshape(-1, 2)
    if not np.array_equal(_ascending(ids), ids):
        raise StoreCorrupt(where, "its ids are not in order")
    return Pins(name, day, ids)


def _ascending(ids: Ids) -> Ids:
    ordered = ids[np.lexsort((ids[:, 1], ids[:, 0]))]
    first = np.ones(len(ordered), np.bool_)
    first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.ascontiguousarray(ordered[first])


async def read_pins(
    objects: ObjectStore, keys: DomainKeys, members: Members, system: bytes, now_ms: int
) -> tuple[Ids, list[str]]:
    """Return what the domain's systems pinned, and a sentence for each that pinned more than counts.

    `system`: this one, whose own pins count whatever their age. Raises: StoreCorrupt (pins of a live system that do
    not open: what they protect is not known), StoreUnavailable, StoreRejected.
    """
    known = {*members.systems(), system}
    listed: dict[bytes, list[PinName]] = defaultdict(list)
    async for info in objects.list("pin/"):
        name = PinName.parse(info.name)
        if name is not None and name.writer in known and len(listed[name.writer]) < 2 * PINS_MAX:
            listed[name.writer].append(name)
    if not any(listed.values()):
        return np.empty((0, 2), np.uint64), []
    seen: dict[bytes, int] = {}
    async for info in objects.list("stamp/"):
        stamp = StampName.parse(info.name)
        if stamp is not None and stamp.writer in listed:
            seen[stamp.writer] = max(seen.get(stamp.writer, 0), stamp.day)
    today, found, problems = day_of(now_ms), dict[bytes, list[Ids]](), list[str]()
    for writer, names in listed.items():
        newest_first = sorted(names, key=lambda each: each.sequence, reverse=True)[:PINS_MAX]
        found[writer] = []
        for name in newest_first:
            pins = await _read(objects, name, keys, members)
            if pins is None:
                continue
            # A day that is to come is no sign of life.
            alive = max(pins.day if pins.day <= today + 1 else 0, seen.get(writer, 0))
            if writer == system or alive >= today - COUNT_DAYS:
                found[writer].append(pins.ids)
    pinning = {writer: np.concatenate(parts) for writer, parts in found.items() if parts}
    share = min(IDS_MAX, PINNED_MAX // max(1, len(pinning)))
    for writer, ids in pinning.items():
        if len(ids) > share:
            problems.append(
                f"system {writer.hex()} pins {len(ids)} blocks in the cache: only {share} of them count; "
                "run 'forebay verify --vault' there"
            )
    return _ascending(
        np.concatenate([np.empty((0, 2), np.uint64), *(ids[:share] for ids in pinning.values())])
    ), problems


async def _read(objects: ObjectStore, name: PinName, keys: DomainKeys, members: Members) -> Pins | None:
    try:
        data = await objects.get(str(name), 0, PIN_READ_MAX + 1)
    except ObjectMissing:
        return None  # its writer needs it no more
    return await anyio.to_thread.run_sync(open_pins, name, data, keys, members)


class Pinning:
    """The pins of this system in one cache. Methods raise StoreUnavailable and StoreRejected.

    `incarnation`: 8 bytes, of its state directory.
    """

    def __init__(self, objects: ObjectStore, identity: Identity, incarnation: bytes, now_ms: int) -> None:
        self._objects, self._identity = objects, identity
        self._incarnation, self._day = incarnation, day_of(now_ms)
        self._older: list[PinName] | None = None
        self._written: list[PinName] = []
        self._count = 0
        self.left_out = 0  # ids beyond what a system may pin

    async def pin(self, ids: Ids) -> None:
        """Pin these ids, durably, besides what is pinned."""
        room = IDS_MAX - self._count
        self.left_out += max(0, len(ids) - room)
        if not len(part := ids[:room]):
            return
        older = await self._listed()
        sequence = max((name.sequence for name in (*older, *self._written)), default=0) + 1
        name = PinName(self._identity.system, self._incarnation, sequence)
        data = await anyio.to_thread.run_sync(
            encode_pins, name, self._day, part, self._identity.keys, self._identity.signer
        )
        await self._objects.put(str(name), data)
        await flush(self._objects)
        self._written.append(name)
        self._count += len(part)
        log.info("blocks_pinned", component="cache", blocks=len(part))
        # What earlier ones that were cut off pinned is found again, and pinned again, in the same order.
        while older and len(older) + len(self._written) > PINS_MAX:
            await self._objects.delete(str(older.pop(0)))

    async def drop(self) -> None:
        """Remove all pins of this system: what they were for lies in the vault again."""
        names = [*await self._listed(), *self._written]
        for name in names:
            await self._objects.delete(str(name))
        self._older, self._written, self._count = [], [], 0
        if names:
            log.info("pins_dropped", component="cache", pins=len(names))

    async def _listed(self) -> list[PinName]:
        """Return the pins written before, oldest first."""
        if self._older is None:
            found = []
            async for info in self._objects.list(f"pin/{self._identity.system.hex()}/"):
                name = PinName.parse(info.name)
                if name is not None:
                    found.append(name)
            self._older = sorted(found, key=lambda each: each.sequence)
        return self._older
