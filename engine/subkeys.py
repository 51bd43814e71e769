"""Subkeys: every keyed use has its own, derived from the domain secret, the listing key or a block's key.

`BLAKE3 derive_key(context, secret)`: BLAKE3 takes a key or a context, never both, so a keyed hash always
runs under a derived subkey. The contexts are part of the format (docs/FORMAT.md) and never change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blake3 import blake3

SECRET_BYTES: Final = 32
_PREFIX: Final = "forebay 2026 v1 "


def derive(use: str, secret: bytes, length: int = SECRET_BYTES) -> bytes:
    """Return `length` bytes of the subkey of `secret` for `use` (the context without its common prefix)."""
    return blake3(secret, derive_key_context=_PREFIX + use).digest(length)


@dataclass(frozen=True, repr=False, slots=True)
class DomainKeys:
    """The four subkeys of a domain secret; none of them, nor the secret, opens a sealed block."""

    domain: bytes  # 16 bytes, public
    blocks: bytes
    pages: bytes
    names: bytes
    macs: bytes

    @classmethod
    def of(cls, domain: bytes, secret: bytes) -> DomainKeys:
        """Derive all subkeys of the domain with id `domain` (16 bytes) from its 32-byte `secret`."""
        return cls(
            domain,
            derive("blocks", secret),
            derive("pages", secret),
            derive("names", secret),
            derive("macs", secret),
        )

    def mac(self, label: bytes, checksum: bytes) -> bytes:
        """Return the 32-byte domain MAC over a label and a 32-byte checksum."""
        return blake3(label + checksum, key=self.macs).digest()


def record_keys(key: bytes) -> tuple[bytes, bytes]:
    """Return the (*parts*, *links*) keys of a record from the 32-byte `key` half of its ref."""
    both = derive("record", key, 64)
    return both[:32], both[32:]


def parts_key(key: bytes) -> bytes:
    """Return only the *parts* key: what seals the content of a whole block."""
    return derive("record", key)


def root_key(listing_key: bytes) -> bytes:
    """Return the AES-256 key that seals the bodies of a system's roots and notes."""
    return derive("roots", listing_key)


def report_key(listing_key: bytes) -> bytes:
    """Return the AES-256 key that seals the bodies of a system's reports."""
    return derive("reports", listing_key)


def digest_seed(listing_key: bytes) -> int:
    """Return the 64-bit seed of the digests of parts in local state: this system's own, unknown to its neighbours."""
    return int.from_bytes(derive("digests", listing_key, 8), "little")
