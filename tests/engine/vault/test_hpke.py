from __future__ import annotations

import hashlib
import hmac

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.vault import hpke
from tests.engine.vault.fakes_vault import flips

PRIVATE, PUBLIC = hpke.generate()


def stranger_open(private: bytes, sealed: bytes, info: bytes) -> bytes:
    """RFC 9180 base mode and X-Wing, written from docs/FORMAT.md with primitives only."""
    suite = b"HPKE" + bytes.fromhex("647a00010002")
    mlkem, x25519 = MLKEM768PrivateKey.from_seed_bytes(private[:64]), X25519PrivateKey.from_private_bytes(private[64:])
    ephemeral = sealed[1088:1120]
    shared = hashlib.sha3_256(
        mlkem.decapsulate(sealed[:1088])
        + x25519.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        + ephemeral
        + x25519.public_key().public_bytes_raw()
        + bytes.fromhex("5c2e2f2f5e5c")
    ).digest()

    def extract(salt: bytes, label: bytes, key: bytes) -> bytes:
        return hmac.digest(salt or bytes(32), b"HPKE-v1" + suite + label + key, "sha256")

    def expand(key: bytes, label: bytes, context: bytes, length: int) -> bytes:
        block = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context + b"\1"
        return hmac.digest(key, block, "sha256")[:length]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    key, nonce = expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
    return AESGCM(key).decrypt(nonce, sealed[1120:], b"")


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=64))
def test_what_is_sealed_opens_to_the_same_bytes(plaintext: bytes, info: bytes) -> None:
    sealed = hpke.seal(PUBLIC, plaintext, info)
    assert len(sealed) == len(plaintext) + hpke.OVERHEAD_BYTES
    assert hpke.open(PRIVATE, sealed, info) == plaintext


def test_a_stranger_opens_it_with_primitives_only() -> None:
    assert stranger_open(PRIVATE, hpke.seal(PUBLIC, b"listing key", b"some info"), b"some info") == b"listing key"


def test_sizes_are_those_of_the_format() -> None:
    assert (len(PRIVATE), len(PUBLIC)) == (96, 1216)
    assert hpke.public_of(PRIVATE) == PUBLIC


def test_another_info_or_another_key_opens_nothing() -> None:
    sealed = hpke.seal(PUBLIC, b"plain", b"info")
    with pytest.raises(ValueError, match="another key"):
        hpke.open(PRIVATE, sealed, b"other info")
    with pytest.raises(ValueError, match="another key"):
        hpke.open(hpke.generate()[0], sealed, b"info")


def test_every_flipped_bit_is_noticed() -> None:
    sealed = hpke.seal(PUBLIC, b"plain", b"info")
    for damaged in flips(sealed, 13):
        with pytest.raises(ValueError, match="damaged"):
            hpke.open(PRIVATE, damaged, b"info")


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=1300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="damaged"):
        hpke.open(PRIVATE, data, b"info")


def test_keys_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="public key has 1216"):
        hpke.seal(PUBLIC[:-1], b"", b"")
    with pytest.raises(ValueError, match="private key has 96"):
        hpke.open(PRIVATE + b"x", b"", b"")
    with pytest.raises(ValueError, match="private key has 96"):
        hpke.public_of(b"")


def test_the_key_id_is_the_start_of_the_hash_of_the_public_key() -> None:
    assert hpke.key_id(PUBLIC) == blake3(PUBLIC).digest()[:8]
