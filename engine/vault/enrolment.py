"""What a session asks of its stores before anything else: is this system still enrolled, under the pinned key, and are
cache and spool those it has adopted."""

from __future__ import annotations

from engine.errors import ConfigError, ObjectMissing, StoreRejected
from engine.ports import ObjectStore
from engine.vault.certificate import Certificates
from engine.vault.formatobject import FormatObject, read_format
from engine.vault.identity import Identity


async def check_enrolment(vault: ObjectStore, identity: Identity) -> Certificates:
    """Return the domain's certificates after checking that the vault still shows the pinned key.

    Raises: ConfigError if this system's certificate is gone, or another key stands where the pinned one did;
    StoreUnavailable, StoreRejected.
    """
    certificates = await Certificates.load(vault, identity.domain, identity.vault_public)
    own = certificates.get(identity.system, identity.certificate_number)
    if own is not None and own.data == identity.certificate:
        return certificates
    try:
        await vault.stat(identity.certificate_name)
    except ObjectMissing:
        raise ConfigError(
            f"the vault does not have the certificate of system {identity.name!r}: if it is the right vault, "
            "run 'forebay init' to put it back"
        ) from None
    raise ConfigError(
        f"the certificate of system {identity.name!r} in the vault ({identity.certificate_name}) is not the one this "
        "machine was enrolled with: the vault shows another vault key than the pinned one, or the object was damaged "
        "or forged; check [vault] url, and do not back up to it before this is clear"
    )


def check_spool(identity: Identity, marker: FormatObject, where: str = "") -> None:
    """Return if `marker`, read at `where`, is that of the spool this system has adopted. Raises: ConfigError."""
    if identity.spool is None:
        raise ConfigError(f"system {identity.name!r} has adopted no spool yet: run 'forebay init'")
    if marker.store != identity.spool:
        raise ConfigError(
            f"[spool] path{where and f' ({where})'} leads to spool {marker.store.hex()}, but system {identity.name!r} "
            f"has adopted spool {identity.spool.hex()}: put that one back, or run 'forebay init --spool' to adopt "
            "this one"
        )


async def find_cache(cache: ObjectStore, identity: Identity) -> FormatObject:
    """Return the format object of the cache this system has adopted, after one try to reach it.

    Raises: StoreUnavailable (away), StoreRejected (another one, or it refuses), StoreCorrupt, FormatTooNew.
    """
    await cache.probe()
    found = await read_format(cache, "cache", "write")
    if found.store != identity.cache:
        raise StoreRejected(
            "it is not the cache this system has adopted: mount that one, or run 'forebay init --cache' to adopt "
            "this one"
        )
    return found


async def cache_members(cache: ObjectStore, identity: Identity) -> Certificates:
    """Return who is enrolled by the cache's copies, this system always: what needs no vault goes by them.

    Raises: StoreUnavailable, StoreRejected.
    """
    known = await Certificates.load(cache, identity.domain, identity.vault_public)
    return Certificates(identity.domain, identity.vault_public, [*known.all(), identity.certified()], known.problems)
