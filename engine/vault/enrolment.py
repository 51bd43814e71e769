"""What a session asks of the vault before anything else: is this system still enrolled, under the pinned key."""

from __future__ import annotations

from engine.errors import ConfigError, ObjectMissing
from engine.ports import ObjectStore
from engine.vault.certificate import Certificates
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
