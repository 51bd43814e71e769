"""What slots, certificates and the identity file share: magic, length, one MessagePack map; sizes checked first."""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec

# Byte strings of one exact length, checked while decoding.
Bytes16: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Bytes32: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Bytes64: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]
PrivateKey: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=96, max_length=96)]
PublicKey: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=1216, max_length=1216)]
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=0xFFFFFFFF)]

MAGIC_BYTES: Final = 8
FRAME_BYTES: Final = MAGIC_BYTES + 4
FORMAT_VERSION: Final = 1
SLOTS_MAX: Final = 64  # in one store: each costs an Argon2id run
SLOT_BYTES_MAX: Final = 16384
ENROL_LABEL: Final = b"forebay enrol v1\0"  # before what the vault key signs: a domain and its enrolment key

_Body = TypeVar("_Body", bound=msgspec.Struct)


def encode_frame(magic: bytes, body: msgspec.Struct) -> bytes:
    """Return magic, u32 length of the body and the body as a MessagePack map."""
    encoded = msgspec.msgpack.encode(body)
    return magic + len(encoded).to_bytes(4, "little") + encoded


def frame_end(data: bytes, magic: bytes) -> int:
    """Return where the frame at the start of `data` ends. Raises: ValueError with the reason."""
    if len(data) < FRAME_BYTES:
        raise ValueError(f"it has only {len(data)} bytes")
    if data[:MAGIC_BYTES] != magic:
        raise ValueError("it does not begin with the right magic bytes")
    end = FRAME_BYTES + int.from_bytes(data[MAGIC_BYTES:FRAME_BYTES], "little")
    if end > len(data):
        raise ValueError("its length field points beyond its end")
    return end


def decode_body(data: bytes, body: type[_Body]) -> _Body:
    """Decode a MessagePack map; unknown fields are ignored. Raises: ValueError with the reason."""
    try:
        return msgspec.msgpack.decode(data, type=body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its fields cannot be read ({error})") from None
