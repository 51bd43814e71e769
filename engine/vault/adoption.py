"""Adopting a cache or a spool: key slots and certificates are copied in, so that a restore needs nothing else.

The identity names the store it has adopted by its id: another one in its place is noticed, and the same one is known
again wherever it was moved to (DESIGN.md §3.1).
"""

from __future__ import annotations

import msgspec

from engine.errors import ConfigError
from engine.names import PointId
from engine.ports import ObjectStore
from engine.vault.certificate import CERTIFICATE_BYTES_MAX, Certificates
from engine.vault.formatobject import FormatObject, StoreKind, read_format
from engine.vault.framing import SLOT_BYTES_MAX
from engine.vault.identity import Identity
from engine.vault.publishing import publish, put_absent, slot_domains


class Adoption(msgspec.Struct, frozen=True):
    """What adopting a store did. `identity` names it; `foreign`: how many other domains use it, too."""

    identity: Identity
    foreign: int


async def adopt_cache(cache: ObjectStore, identity: Identity, known: Certificates | None = None) -> Adoption:
    """Make `cache`, which has its format object, the cache of this system; it may serve other domains, too.

    Key slots, this system's certificate and (from `known`) its earlier ones are copied into it, so that a restore
    needs nothing but the cache.

    Raises: StoreCorrupt (also if it is no cache), FormatTooNew, StoreUnavailable, StoreRejected.
    """
    marker = await _furnish("cache", cache, identity, known)
    foreign = await slot_domains(cache) - {identity.domain}
    return Adoption(msgspec.structs.replace(identity, cache=marker.store), len(foreign))


async def adopt_spool(spool: ObjectStore, identity: Identity, known: Certificates | None = None) -> Adoption:
    """Make `spool`, which has its format object, the spool of this system, and of no other.

    What is copied into it is what `adopt_cache` copies. Raises: ConfigError (it holds points of another system), and
    as `adopt_cache`.
    """
    await read_format(spool, "spool", "write")
    others: dict[bytes, int] = {}
    async for info in spool.list("root/"):
        parsed = PointId.parse_root(info.name)
        if parsed is not None and parsed[0] != identity.system:
            others[parsed[0]] = others.get(parsed[0], 0) + 1
    if others:
        listed = ", ".join(sorted(system.hex() for system in others))
        raise ConfigError(
            f"the spool holds {sum(others.values())} restore points of another system ({listed}), which only that one "
            "can upload: name another folder; they can be restored with --spool and the passphrase"
        )
    marker = await _furnish("spool", spool, identity, known)
    return Adoption(msgspec.structs.replace(identity, spool=marker.store), 0)


async def _furnish(kind: StoreKind, store: ObjectStore, identity: Identity, known: Certificates | None) -> FormatObject:
    marker = await read_format(store, kind, "write")
    for name, data in identity.slots:
        await put_absent(store, name, data, SLOT_BYTES_MAX)
    for certificate in known.all() if known is not None else []:
        if certificate.system == identity.system:
            await put_absent(store, certificate.object_name, certificate.data, CERTIFICATE_BYTES_MAX)
    await publish(store, identity)
    return marker
