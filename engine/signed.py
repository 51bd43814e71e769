"""Sealed and signed objects of one system: what roots, notes and reports have in common (docs/FORMAT.md).

    magic 8 | version u16 | flags u16 | body length u32 | domain 16 | system 16 | order u64 | incarnation 8
    | fields of the kind | certificate number u32 | nonce 12 | AES-256-GCM(key, nonce, body, aad = all before)
    | signature 64

Order and incarnation are those of a restore point, of a report its own. The body length counts the ciphertext with its
tag. The signature covers a label and everything before it.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable
from typing import Final, TypeAlias, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from engine.errors import FormatTooNew, StoreCorrupt
from engine.names import PointId
from engine.subkeys import root_key

VERSION: Final = 1
OBJECT_BYTES_MAX: Final = 64 << 20
SIGNATURE_BYTES: Final = 64

Signer: TypeAlias = Callable[[bytes], bytes]
# (system 16 bytes, certificate number, message, signature 64 bytes) → is it that system's signature?
Verify: TypeAlias = Callable[[bytes, int, bytes, bytes], bool]

_COMMON: Final = struct.Struct("<8sHHI16s16sQ8s")
_NUMBER: Final = struct.Struct("<I")
_NONCE_BYTES: Final = 12
_TAG_BYTES: Final = 16

Body = TypeVar("Body")


class Header(msgspec.Struct, frozen=True):
    """What is readable without a key: `domain`, `system` 16 bytes each, the point, the kind's own `fields`.

    `point` is a restore point; of a report it is its own number.
    """

    domain: bytes
    system: bytes
    point: PointId
    fields: bytes
    certificate: int


class Kind(msgspec.Struct, frozen=True):
    """A kind of signed object: `magic` 8 bytes, `label` of its signatures, `field_bytes` of its own header fields.

    `key` derives the AES-256 key of its bodies from the listing key; no object is larger than `bytes_max`.
    """

    word: str
    magic: bytes
    label: bytes
    field_bytes: int
    key: Callable[[bytes], bytes] = root_key
    bytes_max: int = OBJECT_BYTES_MAX

    @property
    def _before_nonce(self) -> int:
        return _COMMON.size + self.field_bytes + _NUMBER.size

    @property
    def overhead_bytes(self) -> int:
        """Bytes of an object besides its plaintext body."""
        return self._before_nonce + _NONCE_BYTES + _TAG_BYTES + SIGNATURE_BYTES

    def seal(self, header: Header, body: bytes, listing_key: bytes, signer: Signer) -> bytes:
        """Return the object with `body` sealed under the system's 32-byte `listing_key` and signed by `signer`."""
        assert len(header.fields) == self.field_bytes
        nonce = secrets.token_bytes(_NONCE_BYTES)
        length = len(body) + _TAG_BYTES
        point = header.point
        common = _COMMON.pack(
            self.magic, VERSION, 0, length, header.domain, header.system, point.order, point.incarnation
        )
        before = common + header.fields + _NUMBER.pack(header.certificate) + nonce
        message = before + AESGCM(self.key(listing_key)).encrypt(nonce, body, before)
        return message + signer(self.label + message)

    def header(self, name: str, data: bytes) -> Header:
        """Return the header of an object whose shape was checked; neither signature nor seal are.

        Raises: StoreCorrupt, FormatTooNew.
        """
        if not self.overhead_bytes <= len(data) <= self.bytes_max or data[:8] != self.magic:
            raise StoreCorrupt(name, f"it is not a {self.word} object")
        _, version, flags, length, domain, system, order, incarnation = _COMMON.unpack_from(data)
        if version > VERSION or flags:
            raise FormatTooNew(f"object {name} was written by a newer version of Forebay: update this one to read it")
        if version < VERSION or length - _TAG_BYTES + self.overhead_bytes != len(data):
            raise StoreCorrupt(name, "it was cut, or its header is not whole")
        fields = data[_COMMON.size : _COMMON.size + self.field_bytes]
        (number,) = _NUMBER.unpack_from(data, _COMMON.size + self.field_bytes)
        return Header(domain, system, PointId(order, incarnation), fields, number)

    def open(self, name: str, data: bytes, listing_key: bytes, verify: Verify) -> tuple[Header, bytes]:
        """Return header and plaintext body, signature and seal checked.

        Raises: StoreCorrupt, FormatTooNew, and what `verify` raises.
        """
        header = self.header(name, data)
        message, signature = data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        if not verify(header.system, header.certificate, self.label + message, signature):
            raise StoreCorrupt(name, "its signature is not that of the system it names")
        at = self._before_nonce + _NONCE_BYTES
        try:
            cipher = AESGCM(self.key(listing_key))
            return header, cipher.decrypt(data[self._before_nonce : at], message[at:], message[:at])
        except InvalidTag:
            raise StoreCorrupt(name, "it does not open with this system's listing key") from None


def decode_body(name: str, decoder: msgspec.msgpack.Decoder[Body], body: bytes) -> Body:
    """Return a decoded MessagePack body. Raises: StoreCorrupt."""
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise StoreCorrupt(name, f"its body is not what it should be: {error}") from None
