"""The seal trailer that ends packs and index fragments.

Checksum, domain MAC and signature stand over everything before them: the checksum finds damage, the MAC keeps out
whoever is not of the domain, the signature says which of its systems wrote it (docs/FORMAT.md, Seal trailer).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

from engine.block import Bytes
from engine.errors import StoreCorrupt
from engine.subkeys import DomainKeys

CHECKSUM_BYTES: Final = 32
MAC_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
TRAILER_BYTES: Final = CHECKSUM_BYTES + MAC_BYTES + SIGNATURE_BYTES

Signer: TypeAlias = Callable[[bytes], bytes]  # message -> 64-byte Ed25519 signature of this system


class Verifier(Protocol):
    """Knows the signing keys of a domain's systems, from their certificates."""

    def verify(self, writer: bytes, message: bytes, signature: bytes) -> bool:
        """Tell whether `signature` (64 bytes) over `message` is one of the system `writer` (16 bytes)."""
        ...


def make_trailer(label: bytes, checksum: bytes, keys: DomainKeys, signer: Signer) -> bytes:
    """Return the 128 bytes that end an object whose BLAKE3 so far is `checksum`."""
    mac = keys.mac(label, checksum)
    return checksum + mac + signer(label + keys.domain + checksum + mac)


def check_trailer(
    label: bytes,
    trailer: Bytes,
    checksum: bytes,
    domain: bytes,
    writer: bytes,
    keys: DomainKeys | None,
    verifier: Verifier | None,
    where: str,
) -> None:
    """Check a trailer against the checksum of all before it, and what `keys` and `verifier` allow to be checked.

    `domain` and `writer` (16 bytes each) are what the object's own header says. Raises: StoreCorrupt.
    """
    parts = bytes(trailer)
    mac, signature = parts[CHECKSUM_BYTES : CHECKSUM_BYTES + MAC_BYTES], parts[CHECKSUM_BYTES + MAC_BYTES :]
    if len(parts) != TRAILER_BYTES or parts[:CHECKSUM_BYTES] != checksum:
        raise StoreCorrupt(where, "its checksum does not fit its bytes")
    if keys is not None:
        if domain != keys.domain:
            raise StoreCorrupt(where, f"it belongs to another domain ({domain.hex()})")
        if not hmac.compare_digest(mac, keys.mac(label, checksum)):
            raise StoreCorrupt(where, f"its MAC is not of this domain; it claims to be of system {writer.hex()}")
    if verifier is not None and not verifier.verify(writer, label + domain + checksum + mac, signature):
        raise StoreCorrupt(where, f"it is not signed by system {writer.hex()}, whose name it has")
