"""Certificates: who may write under a system's id (docs/FORMAT.md, "Certificates").

The vault key signs them, or an enrolment key that the vault key has certified. An enrolment key can enrol new
systems, nothing more: it may sign certificate number 1 only, so that whoever holds it cannot put another signing
key in an existing system's place.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal

import anyio
import msgspec
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import ObjectMissing, StoreCorrupt, StoreError
from engine.names import certificate_name, parse_certificate
from engine.ports import ObjectStore
from engine.subkeys import SECRET_BYTES, DomainKeys
from engine.vault import hpke
from engine.vault.framing import ENROL_LABEL, Bytes16, Bytes32, Number, PublicKey, decode_body, encode_frame, frame_end

if TYPE_CHECKING:
    from engine.vault.slots import OpenedDomain

CERTIFICATE_BYTES_MAX: Final = 16384
CERTIFICATES_MAX: Final = 65536  # of one domain
NAME_BYTES_MAX: Final = 255

_MAGIC: Final = b"FBCERT\x00\x01"
_LABEL: Final = b"forebay cert v1\0"
_LISTING_INFO: Final = b"forebay listing v1\0"
_LISTING_BYTES: Final = SECRET_BYTES + hpke.OVERHEAD_BYTES
_NONCE_BYTES: Final = 12
_SIGNATURE_BYTES: Final = 64
_READERS: Final = 16  # certificates fetched at once


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    domain: Bytes16
    system: Bytes16
    number: Number
    issued: Annotated[int, msgspec.Meta(ge=0)]
    signing_public: Bytes32
    recovery_public: PublicKey
    name_sealed: Annotated[bytes, msgspec.Meta(min_length=12 + 1 + 16, max_length=12 + NAME_BYTES_MAX + 16)]
    listing_sealed: Annotated[bytes, msgspec.Meta(min_length=_LISTING_BYTES, max_length=_LISTING_BYTES)]
    signer: Literal["vault", "enrol"]
    enrol_public: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    enrol_certificate: Annotated[bytes, msgspec.Meta(max_length=64)] = b""


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate whose chain of signatures ends at the vault key.

    `system` 16 bytes; `number` from 1, the greatest is the newest; `issued_ms` by the clock of the machine that
    enrolled it; `signing_public` 32 bytes; `recovery_public` 1216 bytes; `data` the object's bytes.
    """

    domain: bytes
    system: bytes
    number: int
    issued_ms: int
    signing_public: bytes
    recovery_public: bytes = field(repr=False)
    name_sealed: bytes = field(repr=False)
    listing_sealed: bytes = field(repr=False)
    data: bytes = field(repr=False)
    key: Ed25519PublicKey = field(repr=False, compare=False)

    @property
    def object_name(self) -> str:
        """The name of the certificate's object."""
        return certificate_name(self.domain, self.system, self.number)

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Tell if the certified system signed `message`."""
        return _verify(self.key, signature, message)

    def name(self, keys: DomainKeys) -> str:
        """Return the system's name. Raises: StoreCorrupt."""
        nonce, sealed = self.name_sealed[:_NONCE_BYTES], self.name_sealed[_NONCE_BYTES:]
        try:
            return AESGCM(keys.names).decrypt(nonce, sealed, self.domain + self.system).decode()
        except (InvalidTag, UnicodeDecodeError):
            raise StoreCorrupt(self.object_name, "the system's name in it cannot be opened") from None

    def open_listing_key(self, recovery_private: bytes) -> bytes:
        """Return the system's 32-byte listing key. Raises: StoreCorrupt."""
        try:
            return hpke.open(recovery_private, self.listing_sealed, _LISTING_INFO + self.domain + self.system)
        except ValueError as error:
            raise StoreCorrupt(self.object_name, f"its listing key cannot be opened: {error}") from None


def issue(
    opened: OpenedDomain,
    *,
    system: bytes,
    number: int,
    name: str,
    signing_public: bytes,
    listing_key: bytes,
    issued_ms: int,
) -> Certificate:
    """Certify a system's signing key with the vault key, or with the enrolment key if that is all there is.

    Raises: ValueError for a number above 1 without the vault key, or a name that is too long.
    """
    encoded = name.encode()
    if not 0 < len(encoded) <= NAME_BYTES_MAX:
        raise ValueError(f"a system's name has 1 to {NAME_BYTES_MAX} bytes")
    if opened.vault_private is None and number != 1:
        raise ValueError("only the vault key may certify another key for an existing system")
    by_vault = opened.vault_private is not None
    nonce = secrets.token_bytes(_NONCE_BYTES)
    binding = opened.domain + system
    body = _Body(
        domain=opened.domain,
        system=system,
        number=number,
        issued=issued_ms,
        signing_public=signing_public,
        recovery_public=opened.recovery_public,
        name_sealed=nonce + AESGCM(opened.keys.names).encrypt(nonce, encoded, binding),
        listing_sealed=hpke.seal(opened.recovery_public, listing_key, _LISTING_INFO + binding),
        signer="vault" if by_vault else "enrol",
        enrol_public=b"" if by_vault else opened.enrol_public,
        enrol_certificate=b"" if by_vault else opened.enrol_certificate,
    )
    head = encode_frame(_MAGIC, body)
    signer = Ed25519PrivateKey.from_private_bytes(opened.vault_private or opened.enrol_private)
    data = head + signer.sign(_LABEL + head)
    return parse_certificate_object(certificate_name(opened.domain, system, number), data, opened.vault_public)


def parse_certificate_object(name: str, data: bytes, vault_public: bytes) -> Certificate:
    """Return the certificate in `data`, stored as `name`, if its chain ends at the vault key (32 bytes).

    Raises: StoreCorrupt.
    """
    try:
        end = frame_end(data, _MAGIC)
        if len(data) != end + _SIGNATURE_BYTES or len(data) > CERTIFICATE_BYTES_MAX:
            raise ValueError(f"it has {len(data)} bytes, which is not what its length field says")
        body = decode_body(data[12:end], _Body)
        if parse_certificate(name) != (body.domain, body.system, body.number):
            raise ValueError("it was stored under another certificate's name")
        _check_chain(body, data[:end], data[end:], vault_public)
        key = Ed25519PublicKey.from_public_bytes(body.signing_public)
    except ValueError as error:
        raise StoreCorrupt(name, str(error)) from None
    return Certificate(
        domain=body.domain,
        system=body.system,
        number=body.number,
        issued_ms=body.issued,
        signing_public=body.signing_public,
        recovery_public=body.recovery_public,
        name_sealed=body.name_sealed,
        listing_sealed=body.listing_sealed,
        data=data,
        key=key,
    )


class Certificates:
    """The valid certificates of a domain, fixed once loaded; a `Verifier` for any thread.

    `problems`: one sentence for each certificate object that is damaged or not signed by this vault's keys.
    """

    def __init__(self, domain: bytes, vault_public: bytes, valid: Iterable[Certificate], problems: list[str]) -> None:
        self.domain = domain
        self.problems = problems
        self._vault_public = vault_public
        self._by_system: dict[bytes, dict[int, Certificate]] = {}
        for certificate in sorted(valid, key=lambda one: one.number, reverse=True):
            self._by_system.setdefault(certificate.system, {})[certificate.number] = certificate

    @classmethod
    async def load(cls, objects: ObjectStore, domain: bytes, vault_public: bytes) -> Certificates:
        """Read all certificates of `domain` from a store and keep those that end at the vault key.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt for more than `CERTIFICATES_MAX`.
        """
        return await cls(domain, vault_public, [], []).refresh(objects)

    async def refresh(self, objects: ObjectStore) -> Certificates:
        """Return these and what the store holds besides; only names not known yet are read. Raises: see `load`."""
        prefix = f"cert/{self.domain.hex()}/"
        held = {one.object_name for one in self.all()}
        names = [
            info.name async for info in objects.list(prefix) if info.name not in held and parse_certificate(info.name)
        ]
        if len(names) + len(held) > CERTIFICATES_MAX:
            raise StoreCorrupt(prefix, f"it holds more than {CERTIFICATES_MAX} certificates")
        found: list[Certificate] = []
        problems: list[str] = []
        failed: list[StoreError] = []

        async def read_all(mine: list[str]) -> None:
            for name in mine:
                try:
                    data = bytes(await objects.get(name, 0, CERTIFICATE_BYTES_MAX + 1))
                    found.append(parse_certificate_object(name, data, self._vault_public))
                except ObjectMissing:
                    continue  # removed since it was listed
                except StoreCorrupt as error:
                    problems.append(str(error))
                except StoreError as error:
                    # Kept and raised below: out of a task group it would come as a group, which nobody catches.
                    failed.append(error)
                    return

        async with anyio.create_task_group() as group:
            for reader in range(min(_READERS, len(names))):
                group.start_soon(read_all, names[reader::_READERS])
        if failed:
            raise failed[0]
        return Certificates(self.domain, self._vault_public, [*self.all(), *found], sorted(problems))

    def all(self) -> list[Certificate]:
        """Return every valid certificate."""
        return [one for numbers in self._by_system.values() for one in numbers.values()]

    def systems(self) -> list[bytes]:
        """Return the ids of all systems with a valid certificate, sorted."""
        return sorted(self._by_system)

    def get(self, system: bytes, number: int) -> Certificate | None:
        """Return a system's valid certificate with this number, or None."""
        return self._by_system.get(system, {}).get(number)

    def newest(self, system: bytes) -> Certificate | None:
        """Return a system's valid certificate with the greatest number, or None."""
        return next(iter(self._by_system.get(system, {}).values()), None)

    def verify(self, writer: bytes, message: bytes, signature: bytes) -> bool:
        """Tell if `writer` signed `message` with a key that any of its valid certificates names."""
        return any(one.verify(message, signature) for one in self._by_system.get(writer, {}).values())

    def verify_number(self, system: bytes, number: int, message: bytes, signature: bytes) -> bool:
        """Tell if `system` signed `message` with the key of its certificate `number`."""
        certificate = self.get(system, number)
        return certificate is not None and certificate.verify(message, signature)

    def names(self, keys: DomainKeys) -> dict[bytes, str]:
        """Return the name of every system by its id; a name that does not open becomes a problem and is left out."""
        found: dict[bytes, str] = {}
        for system in self._by_system:
            certificate = self.newest(system)
            assert certificate is not None
            try:
                found[system] = certificate.name(keys)
            except StoreCorrupt as error:
                if str(error) not in self.problems:
                    self.problems.append(str(error))
        return found

    def open_listing_key(self, system: bytes, recovery_private: bytes) -> bytes:
        """Return a system's 32-byte listing key from its newest certificate.

        Raises: ObjectMissing without a valid certificate, StoreCorrupt if it does not open.
        """
        certificate = self.newest(system)
        if certificate is None:
            raise ObjectMissing(
                f"cert/{self.domain.hex()}/{system.hex()}", f"system {system.hex()} has no valid certificate"
            )
        return certificate.open_listing_key(recovery_private)


def _check_chain(body: _Body, head: bytes, signature: bytes, vault_public: bytes) -> None:
    """Raise ValueError unless the signatures lead from the certificate to the vault key."""
    vault = Ed25519PublicKey.from_public_bytes(vault_public)
    if body.signer == "vault":
        if not _verify(vault, signature, _LABEL + head):
            raise ValueError("it is not signed by this vault's key")
        return
    if len(body.enrol_public) != SECRET_BYTES or not _verify(
        vault, body.enrol_certificate, ENROL_LABEL + body.domain + body.enrol_public
    ):
        raise ValueError("the enrolment key that signed it is not certified by this vault's key")
    if not _verify(Ed25519PublicKey.from_public_bytes(body.enrol_public), signature, _LABEL + head):
        raise ValueError("it is not signed by the enrolment key it names")
    if body.number != 1:
        raise ValueError("an enrolment key may not certify another key for an existing system")


def _verify(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
