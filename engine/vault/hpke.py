"""Sealing to a public key that the machine which seals cannot open: HPKE, RFC 9180, base mode, single shot.

Suite: KEM 0x647a (ML-KEM-768 + X25519, "X-Wing"), KDF 0x0001 (HKDF-SHA256), AEAD 0x0002 (AES-256-GCM), empty
associated data. A private key is the 64-byte ML-KEM seed followed by the 32-byte X25519 key, a public key the
1184-byte ML-KEM key followed by the 32-byte X25519 key, a ciphertext the 1120-byte encapsulation followed by
the AEAD's output (docs/FORMAT.md, "Keys").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke as _hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

if TYPE_CHECKING:
    from engine.block import Bytes

SEED_BYTES: Final = 64
X25519_BYTES: Final = 32
PRIVATE_BYTES: Final = SEED_BYTES + X25519_BYTES
MLKEM_PUBLIC_BYTES: Final = 1184
PUBLIC_BYTES: Final = MLKEM_PUBLIC_BYTES + X25519_BYTES
OVERHEAD_BYTES: Final = 1120 + 16  # encapsulation and AEAD tag
KEY_ID_BYTES: Final = 8

_SUITE: Final = _hpke.Suite(_hpke.KEM.MLKEM768_X25519, _hpke.KDF.HKDF_SHA256, _hpke.AEAD.AES_256_GCM)


def generate() -> tuple[bytes, bytes]:
    """Return a new (private key of 96 bytes, public key of 1216 bytes)."""
    private = MLKEM768PrivateKey.generate().private_bytes_raw() + X25519PrivateKey.generate().private_bytes_raw()
    return private, public_of(private)


def public_of(private: bytes) -> bytes:
    """Return the public key (1216 bytes) of a private key (96 bytes). Raises: ValueError for another length."""
    mlkem, x25519 = _private_halves(private)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def seal(public: bytes, plaintext: Bytes, info: bytes) -> bytes:
    """Return `plaintext` sealed to `public`, bound to `info`; `OVERHEAD_BYTES` longer.

    Raises: ValueError if `public` is no public key.
    """
    if len(public) != PUBLIC_BYTES:
        raise ValueError(f"a public key has {PUBLIC_BYTES} bytes, not {len(public)}")
    key = _hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public[:MLKEM_PUBLIC_BYTES]),
        X25519PublicKey.from_public_bytes(public[MLKEM_PUBLIC_BYTES:]),
    )
    return _SUITE.encrypt(plaintext, key, info)


def open(private: bytes, ciphertext: Bytes, info: bytes) -> bytes:
    """Return the plaintext `seal` was given. Raises: ValueError if key, info or ciphertext is not the right one."""
    key = _hpke.MLKEM768X25519PrivateKey(*_private_halves(private))
    try:
        return _SUITE.decrypt(ciphertext, key, info)
    except InvalidTag:
        raise ValueError("sealed to another key, or damaged") from None


def key_id(public: bytes) -> bytes:
    """Return the 8 bytes that roots name a recovery key by."""
    return blake3(public).digest(KEY_ID_BYTES)


def _private_halves(private: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    if len(private) != PRIVATE_BYTES:
        raise ValueError(f"a private key has {PRIVATE_BYTES} bytes, not {len(private)}")
    return (
        MLKEM768PrivateKey.from_seed_bytes(private[:SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(private[SEED_BYTES:]),
    )
