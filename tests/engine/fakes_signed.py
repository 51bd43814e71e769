"""One system's keys and one point of it, for roots and notes."""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.names import PointId

DOMAIN, SYSTEM, LISTING = b"d" * 16, b"s" * 16, b"l" * 32
POINT = PointId(1_790_000_000_000, b"i" * 8)
NAME = POINT.root(SYSTEM)
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
COMMON = dict[str, Any](
    domain=DOMAIN,
    system=SYSTEM,
    point=POINT,
    recovery_key_id=b"r" * 8,
    certificate=3,
    listing_key=LISTING,
    signer=KEY.sign,
)


def verify(system: bytes, number: int, message: bytes, signature: bytes) -> bool:
    try:
        KEY.public_key().verify(signature, message)
    except InvalidSignature:
        return False
    return (system, number) == (SYSTEM, 3)
