"""Key slots and certificates in stores: put there when one is made or joined, and put back where they got lost."""

from __future__ import annotations

from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import parse_slot
from engine.ports import ObjectStore
from engine.stage import flush
from engine.vault.certificate import CERTIFICATE_BYTES_MAX
from engine.vault.framing import SLOT_BYTES_MAX
from engine.vault.identity import Identity


async def publish(objects: ObjectStore, identity: Identity) -> None:
    """Put the identity's certificate, and its key slots if there are none, into a store; durable on return.

    Slots are left alone where the domain has any: one that was removed on purpose must not come back. What a share
    left cut off when the connection broke is put again.

    Raises: StoreCorrupt if the store holds something else under one of the names: its keys are not the ones this
    system pinned, or it is a forgery; StoreUnavailable, StoreRejected.
    """
    sizes = {info.name: info.size async for info in objects.list("key/")}
    none = all((slot := parse_slot(name)) is None or slot[0] != identity.domain for name in sizes)
    for name, data in identity.slots:
        if none or sizes.get(name, len(data)) < len(data):
            await put_absent(objects, name, data, SLOT_BYTES_MAX)
    await put_absent(objects, identity.certificate_name, identity.certificate, CERTIFICATE_BYTES_MAX)
    await flush(objects)


async def put_back(objects: ObjectStore, identity: Identity) -> None:
    """Put what a store of this system alone lost of its slots and certificate, or holds cut, there again; durable.

    Of slots, as in `publish`, none comes back beside others. Raises: StoreUnavailable, StoreRejected.
    """
    sizes: dict[str, int] = {}
    for prefix in ("key/", "cert/"):
        sizes |= {info.name: info.size async for info in objects.list(prefix)}
    others = {name for name in sizes if (slot := parse_slot(name)) and slot[0] == identity.domain}
    slots = [(name, data) for name, data in identity.slots if name in sizes or not others]
    lacking = [
        (name, data)
        for name, data in (*slots, (identity.certificate_name, identity.certificate))
        if sizes.get(name) != len(data)
    ]
    for name, data in lacking:
        await objects.put(name, data)
    if lacking:
        await flush(objects)


async def put_absent(objects: ObjectStore, name: str, data: bytes, bytes_max: int) -> None:
    """Put an object unless it is there already; one that was cut off is not.

    Raises: StoreCorrupt if another one is; StoreUnavailable, StoreRejected.
    """
    try:
        there = await objects.get(name, 0, bytes_max + 1)
    except ObjectMissing:
        there = b""
    if len(there) < len(data) and data.startswith(bytes(there)):
        await objects.put(name, data)
    elif there != data:
        raise StoreCorrupt(
            name,
            "it is not what this machine was enrolled with: the store was replaced, or the object is damaged or "
            "forged; if the store is the right one, remove the object and run 'forebay init' again",
        )


async def slot_domains(objects: ObjectStore) -> set[bytes]:
    """Return the ids (16 bytes) of the domains that have key slots in a store. Raises: as its `list`."""
    parsed = [parse_slot(name) for name in await slots_in(objects)]
    return {found_slot[0] for found_slot in parsed if found_slot is not None}


async def slots_in(objects: ObjectStore) -> list[str]:
    """Return the names of the key slots in a store. Raises: as its `list`."""
    return sorted([info.name async for info in objects.list("key/") if parse_slot(info.name)])
