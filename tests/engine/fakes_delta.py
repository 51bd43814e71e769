"""An encoder of delta records of its own, for tests of reading them: it also makes well-sealed ones that lie."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.block import PART_BYTES, PARTS, PLACE, ref_of
from engine.seal import Codec, Sealer, build_header
from engine.subkeys import record_keys

NOWHERE = np.zeros(1, PLACE)[0]


@dataclass
class SourceBlock:
    """A block a delta takes parts from: its ref, and the place it is said to lie at."""

    ref: bytes
    place: np.void = NOWHERE


def pieces(content: bytes) -> list[bytes]:
    return [content[at : at + PART_BYTES] for at in range(0, len(content), PART_BYTES)]


def encode_delta(
    subkey: bytes,
    content: bytes,
    sources: Sequence[SourceBlock],
    part_map: Sequence[int],
    *,
    ref: bytes | None = None,
    bitmap: int | None = None,
    block_length: int | None = None,
) -> bytes:
    """Return the delta of `content` whose parts come from where `part_map` (16 numbers) says; stored uncompressed.

    The keyword arguments make a well-sealed record that lies.
    """
    ref = ref or ref_of(subkey, content)
    parts_key, links_key = record_keys(ref[16:])
    length = len(content) if block_length is None else block_length
    travelling = [number for number, origin in enumerate(part_map) if origin == 255]
    own = b"".join(pieces(content)[number] for number in travelling)
    named = sum(1 << number for number in travelling) if bitmap is None else bitmap
    plain = struct.pack("<H", named) + own
    links = b"".join(record_keys(source.ref[16:])[0] + source.place.tobytes() for source in sources) + bytes(part_map)
    parts_nonce, links_nonce = secrets.token_bytes(12), secrets.token_bytes(12)
    extension = struct.pack("<IB3x", length, len(sources)) + b"".join(source.ref[:16] for source in sources)
    extension += links_nonce + struct.pack("<I", len(links) + 16)
    body_length = len(extension) + len(links) + 16 + len(plain) + 16
    frame = build_header(ref[:16], 1, Codec.NONE, len(plain), body_length, parts_nonce) + extension
    sealed_links = AESGCM(links_key).encrypt(links_nonce, links, frame)
    return frame + sealed_links + AESGCM(parts_key).encrypt(parts_nonce, plain, frame)


def map_of(content: bytes, origins: dict[int, int]) -> list[int]:
    """Return the map of a delta of `content`: `origins` gives part number → source, the rest travels."""
    count = len(pieces(content))
    return [origins.get(number, 255) if number < count else 254 for number in range(PARTS)]


def seal_whole(subkey: bytes, content: bytes) -> bytes:
    return Sealer(Codec.ZSTD, subkey).seal(ref_of(subkey, content), content)
