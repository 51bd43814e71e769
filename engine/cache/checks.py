"""Which packs of a cache a system has read and found whole, and when: told to the others, so that each is read by one.

What a system says of packs it did not write is a hint for thirty days, never more: a neighbour that claims to have read
everything only delays what others find, since each reads every pack it uses itself twice a year.
"""

from __future__ import annotations

import struct
from typing import Final

import anyio.to_thread
import numpy as np
from blake3 import blake3

from engine.block import Bytes
from engine.columns import Column64
from engine.distinct import distinct
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import CheckedName
from engine.ports import ObjectStore
from engine.refresh import Members
from engine.stage import flush
from engine.subkeys import DomainKeys
from engine.trailer import TRAILER_BYTES, Signer, Verifier, check_trailer, make_trailer
from engine.upkeep import CheckedPacks
from engine.vault.identity import Identity

CHECKS_LABEL: Final = b"forebay checks v1\0"
CHECKS_HEADER_BYTES: Final = 64
CHECKS_READ_MAX: Final = 16 << 20  # bytes; nothing larger is taken for checks
CHECKED_MAX: Final = 1_500_000  # packs that one object tells of: of more, those read last
READ_AGAIN_DAYS: Final = 30  # packs of others, after anybody read them
READ_MYSELF_DAYS: Final = 180

_MAGIC: Final = b"FBCHECK\1"
_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sHHI16s16s8sII")


def encode_checks(name: CheckedName, checked: CheckedPacks, keys: DomainKeys, signer: Signer) -> bytes:
    """Return the object that tells of `checked` packs (keys ascending)."""
    count = len(checked.keys)
    head = _HEADER.pack(_MAGIC, _VERSION, 0, count, keys.domain, name.writer, name.incarnation, name.sequence, 0)
    body = head + checked.keys.astype("<u8").tobytes() + checked.days.astype("<u2").tobytes()
    return body + make_trailer(CHECKS_LABEL, blake3(body).digest(), keys, signer)


def open_checks(name: CheckedName, data: Bytes, keys: DomainKeys | None, verifier: Verifier | None) -> CheckedPacks:
    """Check what a system tells of. Without `keys` the MAC and without `verifier` the signature stay unchecked.

    Raises: StoreCorrupt.
    """
    where, view = str(name), memoryview(data)
    if not CHECKS_HEADER_BYTES + TRAILER_BYTES <= len(view) <= CHECKS_READ_MAX:
        raise StoreCorrupt(where, f"no checks are {len(view)} bytes long")
    magic, version, flags, count, domain, writer, incarnation, sequence, reserved = _HEADER.unpack_from(view)
    if magic != _MAGIC or version != _VERSION or flags or reserved:
        raise StoreCorrupt(where, "it holds no checks of a version this program knows")
    if (writer, incarnation, sequence) != (name.writer, name.incarnation, name.sequence):
        raise StoreCorrupt(where, "its header names another object: it was copied here")
    stop = CHECKS_HEADER_BYTES + 10 * count
    if stop + TRAILER_BYTES != len(view):
        raise StoreCorrupt(where, "its count does not fit its length")
    check_trailer(CHECKS_LABEL, view[stop:], blake3(view[:stop]).digest(), domain, writer, keys, verifier, where)
    packs = np.frombuffer(view, "<u8", count, CHECKS_HEADER_BYTES)
    if bool((packs[1:] <= packs[:-1]).any()):
        raise StoreCorrupt(where, "its packs are not in order")
    return CheckedPacks(packs, np.frombuffer(view, "<u2", count, CHECKS_HEADER_BYTES + 8 * count))


async def _newest(objects: ObjectStore, members: set[bytes]) -> dict[bytes, list[CheckedName]]:
    """Return what lies there of these systems, the newest first."""
    found: dict[bytes, list[CheckedName]] = {}
    async for info in objects.list("checked/"):
        name = CheckedName.parse(info.name)
        if name is not None and name.writer in members:
            found.setdefault(name.writer, []).append(name)
    return {writer: sorted(names, key=lambda each: each.sequence, reverse=True) for writer, names in found.items()}


async def checked_by_others(
    objects: ObjectStore, keys: DomainKeys, members: Members, system: bytes, used: Column64, today: int
) -> CheckedPacks:
    """Return when any other system last read those of the packs `used` (keys, ascending), within thirty days.

    What does not open tells nothing. Raises: StoreUnavailable, StoreRejected.
    """
    days = np.zeros(len(used), np.uint16)
    for names in (await _newest(objects, {*members.systems()} - {system})).values():
        try:
            data = await objects.get(str(names[0]), 0, CHECKS_READ_MAX + 1)
            told = await anyio.to_thread.run_sync(open_checks, names[0], data, keys, members)
        except (StoreCorrupt, ObjectMissing):
            continue
        believed = (told.days > max(today - READ_AGAIN_DAYS, 0)) & (told.days <= today)
        at = used.searchsorted(told.keys[believed]).clip(max=max(len(used) - 1, 0))
        if len(used):
            mine = used[at] == told.keys[believed]
            np.maximum.at(days, at[mine], told.days[believed][mine])
    return CheckedPacks(used[days > 0], days[days > 0])


async def tell_checks(
    objects: ObjectStore, identity: Identity, incarnation: bytes, checked: CheckedPacks, today: int
) -> None:
    """Tell the others which packs this system read within thirty days, in the stead of what it told before.

    Raises: StoreUnavailable, StoreRejected.
    """
    lately = (checked.days > max(today - READ_AGAIN_DAYS, 0)) & (checked.days <= today)
    keys, days = checked.keys[lately], checked.days[lately]
    if len(keys) > CHECKED_MAX:
        last = np.sort(np.argsort(days, kind="stable")[-CHECKED_MAX:])
        keys, days = keys[last], days[last]
    older = (await _newest(objects, {identity.system})).get(identity.system, [])
    name = CheckedName(identity.system, incarnation, older[0].sequence + 1 if older else 1)
    told = CheckedPacks(keys, days)
    data = await anyio.to_thread.run_sync(encode_checks, name, told, identity.keys, identity.signer)
    await objects.put(str(name), data)
    await flush(objects)
    for each in older:
        await objects.delete(str(each))


def without(checked: CheckedPacks, packs: Column64) -> CheckedPacks:
    """Return `checked` less these packs (keys)."""
    kept = ~np.isin(checked.keys, distinct(packs))
    return CheckedPacks(checked.keys[kept], checked.days[kept])
