"""The vault of a domain that was founded offline, made by the first session that reaches its place.

Only beyond the network: an empty share or bucket that answers is an empty one, an empty folder may be a mount point.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.errors import ConfigError, StoreError
from engine.events import EventLog

if TYPE_CHECKING:
    from adapters.config import Config
    from engine.vault.identity import Identity

OWNER: Final = "init"  # stands in the names of temporary files; a later init clears them away


async def first_contact(config: Config, identity: Identity) -> Identity:
    """Return the identity as it is to be used; if its vault is still to be made, and can be, that is done first.

    If it cannot, the session finds out for itself, and goes into the spool. Raises: SessionAborted (the identity file
    cannot be written).
    """
    place = config.vault.place
    if not identity.vault_pending or isinstance(place, Path):
        return identity
    import anyio.to_thread

    from adapters.openstore import open_remote
    from adapters.state import identity as files
    from engine.vault.offline import finish_pending, pending_format

    store = open_remote(place, OWNER, connect_timeout_s=config.vault.connect_timeout_s)
    try:
        if await store.look() == "new":
            await store.create(pending_format(identity))
        made = await finish_pending(store, identity)
    except (StoreError, ConfigError) as error:
        EventLog("vault").warning("vault_not_made", component="vault", error=str(error))
        return identity
    await anyio.to_thread.run_sync(files.save, config.system.identity_file, made)
    EventLog("vault").info("vault_made", component="vault", url=config.vault.url)
    return made
