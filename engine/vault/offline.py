"""A domain founded while there is no vault, and the vault it gets at first contact (DESIGN.md §3.1, §5 Domains).

The id of the vault is chosen when the domain is founded: local state is bound to it from the first session on, and
the vault made later is known by it. Until then key slots and certificate live in the identity and in the spool.
"""

from __future__ import annotations

import secrets

import anyio.to_thread
import msgspec

from engine.errors import ConfigError, ObjectMissing
from engine.names import FORMAT
from engine.ports import Clock, ObjectStore
from engine.stage import flush
from engine.subkeys import SECRET_BYTES
from engine.vault.formatobject import FormatObject, new_store, read_format
from engine.vault.founding import check_name, make_identity
from engine.vault.identity import Identity
from engine.vault.passphrase import check_strength
from engine.vault.publishing import publish
from engine.vault.slots import KdfCost, found


async def found_offline(name: str, passphrase: str, key_file: bytes | None, kdf: KdfCost, clock: Clock) -> Identity:
    """Found a domain without a vault; the identity of its first system holds the domain's key slot.

    Raises: ConfigError (weak or unusable passphrase, impossible name).
    """
    name = check_name(name)
    check_strength(passphrase)
    opened, _ = await anyio.to_thread.run_sync(found, passphrase, kdf, key_file)
    system, listing_key = secrets.token_bytes(16), secrets.token_bytes(SECRET_BYTES)
    identity = make_identity(opened, name, new_store("vault").store, clock.now_ms(), system, 1, listing_key)
    return msgspec.structs.replace(identity, vault_pending=True)


async def create_pending(vault: ObjectStore, identity: Identity) -> Identity:
    """Make the vault of a domain that was founded offline, in a store that answers and lists nothing at all.

    Safe to repeat, at whatever it was stopped: a vault with the id chosen at the founding is finished. Returns the
    identity without the flag, to be saved. Raises: ConfigError (the place holds something else), StoreCorrupt,
    FormatTooNew, StoreUnavailable, StoreRejected (something else was put there at the same moment).
    """
    assert identity.vault_pending, "this system has its vault"
    wanted = pending_format(identity)
    try:
        there = bytes(await vault.get(FORMAT, 0, len(wanted) + 1))
    except ObjectMissing:
        there = b""
    if there != wanted and wanted.startswith(there):  # it is not there, or a share left it cut off
        async for info in vault.list(""):
            if info.name != FORMAT:
                raise ConfigError(
                    f"the vault is not empty (it holds {info.name!r}) and has no format object: name an empty place "
                    "as [vault] url"
                )
        await vault.put(FORMAT, wanted)
        await flush(vault)
    return await finish_pending(vault, identity)


def pending_format(identity: Identity) -> bytes:
    """Return the format object of the vault that was chosen when the domain was founded."""
    return FormatObject("vault", identity.vault).encode()


async def finish_pending(vault: ObjectStore, identity: Identity) -> Identity:
    """Publish slots and certificate in a vault that has the format object chosen; return the identity to be saved.

    Raises: ConfigError (it is another vault), StoreCorrupt, FormatTooNew, StoreUnavailable, StoreRejected.
    """
    marker = await read_format(vault, "vault", "write")
    if marker.store != identity.vault:
        raise ConfigError(
            f"the vault exists already (id {marker.store.hex()}), but system {identity.name!r} has founded a domain of "
            "its own offline: name an empty place as [vault] url; or, to join that vault, move the identity file away "
            "(and keep it, and the spool: its points can be restored with --spool and the passphrase) and run "
            "'forebay init'"
        )
    await publish(vault, identity)
    return msgspec.structs.replace(identity, vault_pending=False)
