"""The identity of a system: the one local thing that cannot be rebuilt (DESIGN.md §5, Domains and identity).

It holds what backing up needs: no passphrase, no recovery key, no enrolment key. Where it is kept, and who may
read it, is the business of `adapters/state/identity.py`.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.errors import ConfigError, StoreCorrupt
from engine.names import certificate_name, parse_slot
from engine.subkeys import DomainKeys
from engine.vault.certificate import NAME_BYTES_MAX, Certificate, parse_certificate_object
from engine.vault.framing import (
    FORMAT_VERSION,
    SLOT_BYTES_MAX,
    SLOTS_MAX,
    Bytes16,
    Bytes32,
    Number,
    PublicKey,
    decode_body,
    encode_frame,
    frame_end,
)

IDENTITY_BYTES_MAX: Final = SLOTS_MAX * (SLOT_BYTES_MAX + 256) + 65536

_MAGIC: Final = b"FBIDENT\x01"
_CHECKSUM_BYTES: Final = 32


class Identity(msgspec.Struct, frozen=True, kw_only=True, eq=True):
    """Keys and names of this system in its domain.

    `system`, `domain` 16 bytes; `domain_secret`, `signing_private` (Ed25519), `listing_key`, `vault_public` (the
    pinned vault key) 32 bytes; `recovery_public` 1216 bytes; `certificate` the object's bytes, `slots` names and
    bytes of the domain's key slots: both travel with spooled points and cache copies; `vault`, `cache`, `spool` the
    ids of the stores it was enrolled in and adopted (16 bytes; None without one). `vault_pending`: the domain was
    founded offline, and the vault with that id is still to be made.
    """

    system: Bytes16
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES_MAX)]
    domain: Bytes16
    domain_secret: Bytes32
    signing_private: Bytes32
    listing_key: Bytes32
    recovery_public: PublicKey
    vault_public: Bytes32
    certificate_number: Number
    certificate: bytes
    slots: list[tuple[str, bytes]]
    vault: Bytes16
    cache: Bytes16 | None = None
    spool: Bytes16 | None = None
    vault_pending: bool = False
    version: int = FORMAT_VERSION

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r}, system={self.system.hex()}, domain={self.domain.hex()}, secrets=***)"

    def __rich_repr__(self) -> list[tuple[str, str]]:
        return [("name", self.name), ("system", self.system.hex()), ("domain", self.domain.hex())]

    @property
    def keys(self) -> DomainKeys:
        """The subkeys of the domain."""
        return DomainKeys.of(self.domain, self.domain_secret)

    def signer(self, message: bytes) -> bytes:
        """Return the system's 64-byte signature of `message`."""
        return Ed25519PrivateKey.from_private_bytes(self.signing_private).sign(message)

    @property
    def certificate_name(self) -> str:
        """The name of this identity's certificate object."""
        return certificate_name(self.domain, self.system, self.certificate_number)

    def certified(self) -> Certificate:
        """Return this identity's own certificate, checked against the pinned vault key. Raises: StoreCorrupt."""
        certificate = parse_certificate_object(self.certificate_name, self.certificate, self.vault_public)
        own = Ed25519PrivateKey.from_private_bytes(self.signing_private).public_key().public_bytes_raw()
        if (certificate.signing_public, certificate.recovery_public) != (own, self.recovery_public):
            raise StoreCorrupt(self.certificate_name, "it certifies other keys than this system's")
        return certificate


def encode_identity(identity: Identity) -> bytes:
    """Return the bytes of an identity file."""
    framed = encode_frame(_MAGIC, identity)
    return framed + blake3(framed).digest(_CHECKSUM_BYTES)


def decode_identity(data: bytes, where: str) -> Identity:
    """Return the identity in `data`; `where` names the file in errors. Raises: ConfigError."""
    try:
        end = frame_end(data, _MAGIC)
        if len(data) != end + _CHECKSUM_BYTES:
            raise ValueError(f"it has {len(data)} bytes, which is not what its length field says")
        if blake3(data[:end]).digest(_CHECKSUM_BYTES) != data[end:]:
            raise ValueError("its checksum is wrong")
        version = decode_body(data[12:end], _Version).version
        if version > FORMAT_VERSION:
            raise ConfigError(f"identity file {where} has version {version}; install a newer forebay")
        identity = decode_body(data[12:end], Identity)
        identity.certified()
        for name, _ in identity.slots:
            if parse_slot(name) is None:
                raise ValueError("it names a key slot that cannot exist")
    except (ValueError, StoreCorrupt) as error:
        raise ConfigError(
            f"identity file {where} is damaged: {error}; put back a copy of it, or run 'forebay init --replace'"
        ) from None
    return identity


class _Version(msgspec.Struct):
    version: int
