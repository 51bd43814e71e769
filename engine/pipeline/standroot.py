"""Roots that rotted in the vault under the names of points that wait: others stand for them (DESIGN.md §3.3, §5).

Under such a name nothing else can be put, and nobody may remove it. So what the root says is sealed anew under the next
name: the same order, the incarnation plus one, so that it comes right after the damaged one and before later points. It
names the root it stands for and that one's hash, by which later points, and local state, know their predecessor.
Whoever begins again looks for it first: of one point there is one.
"""

from __future__ import annotations

import msgspec

from engine.errors import FormatTooNew, ObjectMissing, StoreCorrupt
from engine.names import PointId
from engine.pipeline.setup import SessionSetup
from engine.ports import ObjectStore
from engine.root import PreviousRoot, Root, open_root, seal_root
from engine.signed import OBJECT_BYTES_MAX
from engine.vault.certificate import Certificates


class NameTaken(Exception):
    """The vault has another point of this name: a copy of local state went on without seeing the original's points."""


class ToPut(msgspec.Struct, frozen=True):
    """What goes to the vault for a spooled point: the name it has there, and the root's bytes."""

    point: PointId
    data: bytes


async def to_put(
    vault: ObjectStore, setup: SessionSetup, certificates: Certificates, spooled: Root, data: bytes
) -> ToPut:
    """Return what to put for a spooled root, `data`.

    Raises: StoreUnavailable, StoreRejected, NameTaken, SessionAborted (it would be too large under another name).
    """
    point, identity = spooled.point, setup.identity
    sizes: dict[PointId, int] = {}
    async for info in vault.list(f"root/{identity.system.hex()}/{point.order:016x}-"):
        if (parsed := PointId.parse_root(info.name)) is not None:
            sizes[parsed[1]] = info.size

    async def read(there: PointId) -> tuple[bytes, PreviousRoot | bool | None]:
        """Return what lies there, and which root it stands for; True: another one, None: nothing, or it is damaged."""
        name, found = there.root(identity.system), b""
        try:
            found = bytes(await vault.get(name, 0, OBJECT_BYTES_MAX + 1))
            return found, open_root(
                name, found, identity.listing_key, certificates.verify_number
            ).body.stands_for or True
        except (StoreCorrupt, ObjectMissing):
            return found, None
        except FormatTooNew:
            return found, True

    kept: set[PointId] = set()
    for other in filter(sizes.__contains__, point.stand_ins()):
        found, says = await read(other)
        if says == spooled.named:
            return ToPut(other, found)
        if says is not None:
            kept.add(other)
    if point not in sizes:
        return ToPut(point, data)
    found, says = await read(point)
    if found == data or (says is None and len(found) != len(data)):
        return ToPut(point, data)  # one that was cut is replaced by the put
    if says is not None:
        raise NameTaken
    body = msgspec.structs.replace(spooled.body, stands_for=spooled.named)
    for other in point.stand_ins():
        sealed = seal_root(
            body,
            domain=spooled.domain,
            system=spooled.system,
            point=other,
            recovery_key_id=spooled.recovery_key_id,
            certificate=identity.certificate_number,
            listing_key=identity.listing_key,
            signer=identity.signer,
        )
        if other not in kept and sizes.get(other) != len(sealed):
            return ToPut(other, sealed)
    return ToPut(point, data)  # its put tells what is wrong
