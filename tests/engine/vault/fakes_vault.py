"""A domain made once with the cheapest key derivation, and what tests of keys do again and again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from typing import TypeVar

import anyio
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.vault.certificate import Certificate, issue
from engine.vault.formatobject import new_store
from engine.vault.identity import Identity
from engine.vault.slots import KdfCost, OpenedDomain, found
from tests.fakes import MemoryStore

T = TypeVar("T")

PASSPHRASE = "copper lantern drifting north"
OTHER_PASSPHRASE = "velvet anchor beneath tomorrow"
CHEAP = KdfCost.cheapest()
SYSTEM = bytes(range(16))
LISTING_KEY = bytes(range(100, 132))


def run(main: Callable[[], Awaitable[T]]) -> T:
    return anyio.run(main)


@cache
def domain() -> OpenedDomain:
    return found(PASSPHRASE, CHEAP, None)[0]


@cache
def other_domain() -> OpenedDomain:
    return found(OTHER_PASSPHRASE, CHEAP, None)[0]


@cache
def signing_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def certify(
    opened: OpenedDomain | None = None,
    *,
    system: bytes = SYSTEM,
    number: int = 1,
    name: str = "web-01",
    key: Ed25519PrivateKey | None = None,
    listing_key: bytes = LISTING_KEY,
) -> Certificate:
    return issue(
        opened or domain(),
        system=system,
        number=number,
        name=name,
        signing_public=(key or signing_key()).public_key().public_bytes_raw(),
        listing_key=listing_key,
        issued_ms=1_790_000_000_000,
    )


@cache
def identity() -> Identity:
    opened, certificate = domain(), certify()
    return Identity(
        system=SYSTEM,
        name="web-01",
        domain=opened.domain,
        domain_secret=opened.domain_secret,
        signing_private=signing_key().private_bytes_raw(),
        listing_key=LISTING_KEY,
        recovery_public=opened.recovery_public,
        vault_public=opened.vault_public,
        certificate_number=1,
        certificate=certificate.data,
        slots=opened.slots,
        vault=bytes(16),
    )


def empty_vault() -> MemoryStore:
    store = MemoryStore()
    store.objects["format"] = new_store("vault").encode()
    return store


def empty_cache() -> MemoryStore:
    store = MemoryStore()
    store.objects["format"] = new_store("cache").encode()
    return store


def flips(data: bytes, step: int = 1) -> Iterator[bytes]:
    """Yield copies of `data`, each with one bit flipped, in every `step`-th byte."""
    for position in range(0, len(data), step):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        yield bytes(damaged)


def rechecked(slot: bytes) -> bytes:
    """Return a slot whose checksum is made right again, as an attacker would."""
    return slot[:-16] + blake3(slot[:-16]).digest(16)


def secrets_of(opened: OpenedDomain) -> list[bytes]:
    assert opened.recovery_private is not None
    assert opened.vault_private is not None
    return [opened.domain_secret, opened.enrol_private, opened.recovery_private, opened.vault_private]


def shows(text: str, secret: bytes) -> bool:
    """Tell if a text gives a secret away, as hexadecimal or as Python writes bytes."""
    return secret.hex() in text or secret.hex().upper() in text or repr(secret)[2:-1] in text
