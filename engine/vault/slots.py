"""Key slots: what a passphrase opens (docs/FORMAT.md, "Key slots").

An *enrol slot* opens what a system needs to join a domain; a *recovery slot* opens the same and what reads every
system's history. A slot is checked for damage before anything is computed, and its Argon2id parameters are bounded,
so that a hostile store can neither pass damage off as a wrong passphrase by accident nor make a reader compute
for ever.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import anyio.to_thread
import msgspec
from blake3 import blake3
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from engine.errors import ConfigError, ForebayError, FormatTooNew, ObjectMissing, StoreCorrupt, StoreError
from engine.names import parse_slot, slot_name
from engine.ports import ObjectStore
from engine.subkeys import SECRET_BYTES, DomainKeys, derive
from engine.vault import hpke
from engine.vault.framing import (
    ENROL_LABEL,
    FORMAT_VERSION,
    SLOT_BYTES_MAX,
    SLOTS_MAX,
    Bytes16,
    Bytes32,
    Bytes64,
    PrivateKey,
    PublicKey,
    decode_body,
    encode_frame,
    frame_end,
)
from engine.vault.passphrase import normalise

ENROL: Final = 1
RECOVERY: Final = 2

_MAGIC: Final = b"FBSLOT\x00\x01"
_NONCE_BYTES: Final = 12
_CHECKSUM_BYTES: Final = 16
_MEMORY_KIB: Final = (8 * 1024, 1024 * 1024)
_ITERATIONS: Final = (1, 16)
_LANES: Final = (1, 16)


class KdfCost(msgspec.Struct, frozen=True):
    """What one guess at a passphrase costs: Argon2id memory in KiB, iterations, lanes. Raises: ValueError."""

    memory_kib: int = 256 * 1024
    iterations: int = 3
    lanes: int = 4

    def __post_init__(self) -> None:
        for name, value, (low, high) in (
            ("memory_kib", self.memory_kib, _MEMORY_KIB),
            ("iterations", self.iterations, _ITERATIONS),
            ("lanes", self.lanes, _LANES),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, allowed are {low} to {high}")

    @classmethod
    def cheapest(cls) -> KdfCost:
        """Return the least cost a reader accepts; for tests."""
        return cls(_MEMORY_KIB[0], _ITERATIONS[0], _LANES[0])


@dataclass(frozen=True, repr=False, slots=True, kw_only=True)
class OpenedDomain:
    """What the slots of one domain gave. `recovery_private`, `vault_private`: None if only enrol slots opened."""

    domain: bytes  # 16 bytes, public
    domain_secret: bytes
    vault_public: bytes
    enrol_private: bytes
    enrol_certificate: bytes
    recovery_public: bytes
    recovery_private: bytes | None = None
    vault_private: bytes | None = None
    slots: list[tuple[str, bytes]] = field(default_factory=list)  # name and bytes of every slot of the domain

    def __repr__(self) -> str:
        return f"OpenedDomain(domain={self.domain.hex()}, secrets=***)"

    @property
    def keys(self) -> DomainKeys:
        """The subkeys of the domain."""
        return DomainKeys.of(self.domain, self.domain_secret)

    @property
    def enrol_public(self) -> bytes:
        """The public half of the enrolment key (32 bytes)."""
        return Ed25519PrivateKey.from_private_bytes(self.enrol_private).public_key().public_bytes_raw()


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    domain: Bytes16
    slot: Bytes16
    kind: int
    memory_kib: int
    iterations: int
    lanes: int
    salt: Bytes16
    key_file: bool


class _Body(msgspec.Struct, frozen=True, kw_only=True):
    domain_secret: Bytes32
    vault_public: Bytes32
    enrol_private: Bytes32
    enrol_certificate: Bytes64
    recovery_public: PublicKey
    recovery_private: PrivateKey | None = None
    vault_private: Bytes32 | None = None

    def __repr__(self) -> str:
        return "_Body(***)"


class Slot(msgspec.Struct, frozen=True):
    """A slot object whose checksum, header and bounds are in order; not opened yet."""

    name: str
    data: bytes
    domain: bytes
    kind: int
    cost: KdfCost
    salt: bytes
    needs_key_file: bool
    sealed_at: int  # where the nonce begins


def found(passphrase: str, kdf: KdfCost, key_file: bytes | None) -> tuple[OpenedDomain, tuple[str, bytes]]:
    """Make a new domain. Return its secrets and its first slot, a recovery slot, as (name, bytes).

    Computes Argon2id: call in a thread. Raises: ConfigError for an unusable passphrase.
    """
    domain = secrets.token_bytes(16)
    vault = Ed25519PrivateKey.generate()
    enrol = Ed25519PrivateKey.generate()
    recovery_private, recovery_public = hpke.generate()
    opened = OpenedDomain(
        domain=domain,
        domain_secret=secrets.token_bytes(SECRET_BYTES),
        vault_public=vault.public_key().public_bytes_raw(),
        enrol_private=enrol.private_bytes_raw(),
        enrol_certificate=vault.sign(ENROL_LABEL + domain + enrol.public_key().public_bytes_raw()),
        recovery_public=recovery_public,
        recovery_private=recovery_private,
        vault_private=vault.private_bytes_raw(),
    )
    slot = seal_slot(opened, "recovery", passphrase, kdf, key_file)
    opened.slots.append(slot)
    return opened, slot


def seal_slot(
    opened: OpenedDomain, kind: Literal["enrol", "recovery"], passphrase: str, kdf: KdfCost, key_file: bytes | None
) -> tuple[str, bytes]:
    """Return a new slot of a domain as (name, bytes); an enrol slot leaves the recovery and vault keys out.

    Computes Argon2id: call in a thread. Raises: ConfigError for an unusable passphrase, or for a recovery slot
    when `opened` comes from enrol slots only.
    """
    recovery = kind == "recovery"
    if recovery and (opened.recovery_private is None or opened.vault_private is None):
        raise ConfigError("a recovery slot can be made only with the recovery passphrase")
    header = _Header(
        version=FORMAT_VERSION,
        domain=opened.domain,
        slot=secrets.token_bytes(16),
        kind=RECOVERY if recovery else ENROL,
        memory_kib=kdf.memory_kib,
        iterations=kdf.iterations,
        lanes=kdf.lanes,
        salt=secrets.token_bytes(16),
        key_file=key_file is not None,
    )
    body = _Body(
        domain_secret=opened.domain_secret,
        vault_public=opened.vault_public,
        enrol_private=opened.enrol_private,
        enrol_certificate=opened.enrol_certificate,
        recovery_public=opened.recovery_public,
        recovery_private=opened.recovery_private if recovery else None,
        vault_private=opened.vault_private if recovery else None,
    )
    head = encode_frame(_MAGIC, header)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    kek = _kek(passphrase, kdf, header.salt, key_file)
    sealed = head + nonce + AESGCM(kek).encrypt(nonce, msgspec.msgpack.encode(body), head)
    return slot_name(header.domain, header.slot), sealed + blake3(sealed).digest(_CHECKSUM_BYTES)


def parse_slot_object(name: str, data: bytes) -> Slot:
    """Check a slot object without opening it. Raises: StoreCorrupt, FormatTooNew."""
    try:
        head = frame_end(data, _MAGIC)
        if len(data) > SLOT_BYTES_MAX:
            raise ValueError(f"it has more than {SLOT_BYTES_MAX} bytes")
        if blake3(data[:-_CHECKSUM_BYTES]).digest(_CHECKSUM_BYTES) != data[-_CHECKSUM_BYTES:]:
            raise ValueError("its checksum is wrong")
        header = decode_body(data[12:head], _Header)
        if header.version > FORMAT_VERSION:
            raise FormatTooNew(f"key slot {name} has version {header.version}; install a newer forebay")
        if header.version != FORMAT_VERSION or header.kind not in (ENROL, RECOVERY):
            raise ValueError(f"version {header.version}, kind {header.kind} does not exist")
        if parse_slot(name) != (header.domain, header.slot):
            raise ValueError("it was stored under another slot's name")
        if len(data) < head + _NONCE_BYTES + 16 + _CHECKSUM_BYTES:
            raise ValueError("it is cut short")
        cost = KdfCost(header.memory_kib, header.iterations, header.lanes)
    except ValueError as error:
        raise StoreCorrupt(name, str(error)) from None
    return Slot(name, data, header.domain, header.kind, cost, header.salt, header.key_file, head)


def open_slot(slot: Slot, passphrase: str, key_file: bytes | None) -> OpenedDomain | None:
    """Open one slot; None if passphrase and key file are not the ones it was sealed with.

    Computes Argon2id: call in a thread. Raises: StoreCorrupt if it opens and does not hold together, ConfigError
    for an unusable passphrase.
    """
    if slot.needs_key_file and key_file is None:
        return None
    kek = _kek(passphrase, slot.cost, slot.salt, key_file if slot.needs_key_file else None)
    start = slot.sealed_at + _NONCE_BYTES
    nonce, sealed = slot.data[slot.sealed_at : start], slot.data[start:-_CHECKSUM_BYTES]
    try:
        plain = AESGCM(kek).decrypt(nonce, sealed, slot.data[: slot.sealed_at])
    except InvalidTag:
        return None
    try:
        body = decode_body(plain, _Body)
        _check_body(slot, body)
    except ValueError as error:
        raise StoreCorrupt(slot.name, str(error)) from None
    return OpenedDomain(
        domain=slot.domain,
        domain_secret=body.domain_secret,
        vault_public=body.vault_public,
        enrol_private=body.enrol_private,
        enrol_certificate=body.enrol_certificate,
        recovery_public=body.recovery_public,
        recovery_private=body.recovery_private,
        vault_private=body.vault_private,
        slots=[(slot.name, slot.data)],
    )


async def read_slots(objects: ObjectStore) -> tuple[list[Slot], list[StoreError]]:
    """Read all slots of a store. Return the sound ones, cheapest first, and what is wrong with the others.

    Raises: ConfigError for more than `SLOTS_MAX`; StoreUnavailable, StoreRejected.
    """
    names = sorted([info.name async for info in objects.list("key/") if parse_slot(info.name)])
    if len(names) > SLOTS_MAX:
        raise ConfigError(
            f"the store holds {len(names)} key slots, at most {SLOTS_MAX} are allowed: "
            "remove those that nobody uses (objects under key/)"
        )
    slots: list[Slot] = []
    damaged: list[StoreError] = []
    for name in names:
        try:
            slots.append(parse_slot_object(name, bytes(await objects.get(name, 0, SLOT_BYTES_MAX + 1))))
        except ObjectMissing:
            continue  # removed since it was listed
        except (StoreCorrupt, FormatTooNew) as error:
            damaged.append(error)
    return sorted(slots, key=lambda slot: (slot.cost.memory_kib * slot.cost.iterations, slot.name)), damaged


async def open_slots(
    objects: ObjectStore, passphrase: str, key_file: bytes | None, problems: list[str] | None = None
) -> list[OpenedDomain]:
    """Try passphrase and key file on every slot of a store; return the domains they open, sorted by id.

    Slots that are damaged are named in `problems` (when given) as long as another one opens.

    Raises: ConfigError if there is no slot or the passphrase opens none; StoreCorrupt naming a damaged slot if
    nothing opens, or slots of one domain that contradict each other; FormatTooNew; StoreUnavailable,
    StoreRejected.
    """
    normalise(passphrase)
    slots, damaged = await read_slots(objects)
    opened: dict[bytes, OpenedDomain] = {}
    for slot in slots:
        try:
            one = await anyio.to_thread.run_sync(open_slot, slot, passphrase, key_file)
        except StoreCorrupt as error:
            damaged.append(error)
            continue
        if one is not None:
            opened[one.domain] = _merge(slot.name, opened.get(one.domain), one)
    if not opened:
        raise _nothing_opened(slots, damaged, key_file)
    if problems is not None:
        problems.extend(map(str, damaged))
    return [
        replace(opened[domain], slots=[(slot.name, slot.data) for slot in slots if slot.domain == domain])
        for domain in sorted(opened)
    ]


def _kek(passphrase: str, kdf: KdfCost, salt: bytes, key_file: bytes | None) -> bytes:
    secret = Argon2id(
        salt=salt, length=SECRET_BYTES, iterations=kdf.iterations, lanes=kdf.lanes, memory_cost=kdf.memory_kib
    ).derive(normalise(passphrase).encode())
    return derive("slot", secret + (blake3(key_file).digest() if key_file is not None else b""))


def _check_body(slot: Slot, body: _Body) -> None:
    """Check that the keys of an opened slot belong together. Raises: ValueError."""
    enrol_public = Ed25519PrivateKey.from_private_bytes(body.enrol_private).public_key().public_bytes_raw()
    try:
        Ed25519PublicKey.from_public_bytes(body.vault_public).verify(
            body.enrol_certificate, ENROL_LABEL + slot.domain + enrol_public
        )
    except InvalidSignature:
        raise ValueError("its enrolment key is not certified by its vault key") from None
    if slot.kind == ENROL:
        if body.recovery_private is not None or body.vault_private is not None:
            raise ValueError("an enrol slot must not hold the recovery or the vault key")
        return
    if body.recovery_private is None or hpke.public_of(body.recovery_private) != body.recovery_public:
        raise ValueError("its recovery key does not match the public one")
    if body.vault_private is None or (
        Ed25519PrivateKey.from_private_bytes(body.vault_private).public_key().public_bytes_raw() != body.vault_public
    ):
        raise ValueError("its vault key does not match the public one")


def _merge(name: str, known: OpenedDomain | None, new: OpenedDomain) -> OpenedDomain:
    if known is None:
        return new
    if (known.vault_public, known.domain_secret, known.recovery_public) != (
        new.vault_public,
        new.domain_secret,
        new.recovery_public,
    ):
        raise StoreCorrupt(name, "it holds other keys than another slot of the same domain; one of them is forged")
    return known if known.recovery_private is not None else new


def _nothing_opened(slots: list[Slot], damaged: list[StoreError], key_file: bytes | None) -> ForebayError:
    if damaged and isinstance(damaged[0], StoreCorrupt):
        others = f"; the passphrase opens no other key slot ({len(slots)} tried)" if slots else ""
        return StoreCorrupt(damaged[0].name, damaged[0].reason + others)
    if damaged:
        return damaged[0]
    if not slots:
        return ConfigError("the store holds no key slots, so no passphrase can open it; is this the right store?")
    needs = any(slot.needs_key_file for slot in slots)
    if needs and key_file is None:
        return ConfigError("the passphrase opens no key slot of the store without its key file; give --key-file, too")
    what = "the passphrase or the key file is wrong" if needs else "the passphrase is wrong"
    return ConfigError(f"{what}: it opens no key slot of the store ({len(slots)} tried)")
