"""The format object: the marker that makes a folder or a prefix a store (docs/FORMAT.md, "Format object").

Magic, version, kind and the checksum in the last 16 bytes keep their places in every version to come, so that a
newer store is told from a damaged one.
"""

from __future__ import annotations

import secrets
import struct
from typing import Final, Literal, TypeAlias

import msgspec
from blake3 import blake3

from engine.errors import FormatTooNew, ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import FORMAT
from engine.ports import ObjectStore

StoreKind: TypeAlias = Literal["vault", "cache", "spool"]
Use: TypeAlias = Literal["read", "write", "collect"]

STORE_ID_BYTES: Final = 16
FLAG_SIZES_HIDDEN: Final = 1  # reserved in flags_read: records hide sizes and links; not understood yet
KNOWN_FLAGS: Final = 0

_MAGIC: Final = b"FOREBAY\n"
_VERSION: Final = 1
_LAYOUT: Final = struct.Struct("<8sHBB16sIII")
_CHECKSUM_BYTES: Final = 16
_SIZE: Final = _LAYOUT.size + _CHECKSUM_BYTES
_SIZE_MAX: Final = 4096
_KINDS: Final[dict[StoreKind, int]] = {"vault": 1, "cache": 2, "spool": 3}


class FormatObject(msgspec.Struct, frozen=True):
    """What a store says about itself: `store` is its random 16-byte id; flags are mandatory for their use."""

    kind: StoreKind
    store: bytes
    flags_read: int = 0
    flags_write: int = 0
    flags_collect: int = 0

    def encode(self) -> bytes:
        """Return the 56 bytes of the object."""
        flags = (self.flags_read, self.flags_write, self.flags_collect)
        body = _LAYOUT.pack(_MAGIC, _VERSION, _KINDS[self.kind], 0, self.store, *flags)
        return body + blake3(body).digest(_CHECKSUM_BYTES)

    def require(self, use: Use) -> None:
        """Return if this version may `use` the store; whoever writes or collects must be able to read, too.

        Raises: FormatTooNew.
        """
        mandatory = {
            "read": self.flags_read,
            "write": self.flags_read | self.flags_write,
            "collect": self.flags_read | self.flags_write | self.flags_collect,
        }[use]
        unknown = mandatory & ~KNOWN_FLAGS
        if unknown:
            raise FormatTooNew(
                f"the {self.kind} uses features this version of forebay does not know (flags {unknown:#x}, "
                f"needed to {use} it); install a newer forebay"
            )


def new_store(kind: StoreKind) -> FormatObject:
    """Return the format object of a new store with a random id."""
    return FormatObject(kind, secrets.token_bytes(STORE_ID_BYTES))


def parse_format(data: bytes, use: Use = "read") -> FormatObject:
    """Return the format object in `data`, good for `use`. Raises: StoreCorrupt, FormatTooNew."""
    if data[: len(_MAGIC)] != _MAGIC:
        raise StoreCorrupt(FORMAT, "it does not begin with the right magic bytes; is this a forebay store?")
    if not _SIZE <= len(data) <= _SIZE_MAX:
        raise StoreCorrupt(FORMAT, f"it has {len(data)} bytes instead of {_SIZE}")
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if blake3(body).digest(_CHECKSUM_BYTES) != checksum:
        raise StoreCorrupt(FORMAT, "its checksum is wrong")
    version = int.from_bytes(data[8:10], "little")
    if version > _VERSION:
        raise FormatTooNew(
            f"the store was written in format version {version}, this version of forebay knows {_VERSION}; "
            "install a newer forebay"
        )
    if version != _VERSION or len(data) != _SIZE:
        raise StoreCorrupt(FORMAT, f"version {version} with {len(data)} bytes does not exist")
    _, _, code, reserved, store, *flags = _LAYOUT.unpack(body)
    kind = next((kind for kind, known in _KINDS.items() if known == code), None)
    if kind is None or reserved:
        raise StoreCorrupt(FORMAT, f"its kind {code} is none of 1 (vault), 2 (cache), 3 (spool)")
    found = FormatObject(kind, store, *flags)
    found.require(use)
    return found


async def read_format(objects: ObjectStore, kind: StoreKind, use: Use = "read") -> FormatObject:
    """Read a store's format object and check that it is one of `kind`, good for `use`.

    Raises: StoreUnavailable (no marker means away, never empty), StoreCorrupt, FormatTooNew, StoreRejected (a store
    of another kind).
    """
    try:
        data = bytes(await objects.get(FORMAT, 0, _SIZE_MAX + 1))
    except ObjectMissing:
        raise StoreUnavailable(
            f"the {kind} holds no forebay store (no object {FORMAT!r}): mount it, or run 'forebay init' if it is new"
        ) from None
    found = parse_format(data, use)
    if found.kind != kind:
        raise StoreRejected(f"this store is a {found.kind}, not a {kind}; check the configured path")
    return found
