"""Names of objects in a store: built here, parsed here, nowhere else (docs/FORMAT.md, "Names").

Lower-case letters, digits, `-` and `/` only; a `.1` … `.9` suffix marks an object written again beside one of
the wrong size where deleting is forbidden.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar, Final, Self

import msgspec

FORMAT: Final = "format"
STAND_INS_MAX: Final = 9  # what stands for a damaged root may be damaged as well
RESERVED: Final = ("gc/", "pin/", "report/")

_PACK = re.compile(r"(data|page)/([0-9a-f]{32})/([0-9a-f]{64})-([1-9][0-9]{0,9})(?:\.([1-9]))?")
_NUMBERED = re.compile(r"([a-z]+)/([0-9a-f]{32})/([0-9a-f]{16})-([0-9a-f]{8})")
_STAMP = re.compile(r"stamp/([0-9a-f]{32})/([0-9a-f]{4})-([0-9a-f]{16})-([0-9a-f]{8})")
_ROOT = re.compile(r"root/([0-9a-f]{32})/([0-9a-f]{16})-([0-9a-f]{16})")
_POINT = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})")
_NOTE = re.compile(r"note/([0-9a-f]{32})/([0-9a-f]{16})-([0-9a-f]{16})-([a-z]{1,16})-([0-9a-f]{16})")
_REPORT = re.compile(r"report/([0-9a-f]{32})/([0-9a-f]{16})-([0-9a-f]{16})")
_SLOT = re.compile(r"key/([0-9a-f]{32})/([0-9a-f]{32})")
_CERT = re.compile(r"cert/([0-9a-f]{32})/([0-9a-f]{32})-([0-9a-f]{8})")


class PackName(msgspec.Struct, frozen=True, order=True):
    """A pack: `kind` "data" or "page", `writer` 16 bytes, `hash` 32 bytes (BLAKE3 of all its bytes), `size` bytes."""

    kind: str
    writer: bytes
    hash: bytes
    size: int

    @property
    def key(self) -> int:
        """The 8-byte prefix of the hash, little-endian: what a place holds."""
        return int.from_bytes(self.hash[:8], "little")

    def __str__(self) -> str:
        return f"{self.kind}/{self.writer.hex()}/{self.hash.hex()}-{self.size}"

    @classmethod
    def parse(cls, name: str) -> PackName | None:
        """Return the pack a name stands for, with or without a `.1` … `.9` suffix; None if it is none."""
        found = _PACK.fullmatch(name)
        if found is None:
            return None
        kind, writer, digest, size, _ = found.groups()
        return cls(kind, bytes.fromhex(writer), bytes.fromhex(digest), int(size))


class NumberedName(msgspec.Struct, frozen=True, order=True):
    """An object its writer numbers: `writer` 16 bytes, `incarnation` 8 bytes, `sequence` counted from 1."""

    folder: ClassVar[str]
    writer: bytes
    incarnation: bytes
    sequence: int

    def __str__(self) -> str:
        return f"{self.folder}/{self.writer.hex()}/{self.incarnation.hex()}-{self.sequence:08x}"

    @classmethod
    def parse(cls, name: str) -> Self | None:
        """Return the object a name stands for, or None."""
        found = _NUMBERED.fullmatch(name)
        if found is None or found[1] != cls.folder:
            return None
        _, writer, incarnation, sequence = found.groups()
        return cls(bytes.fromhex(writer), bytes.fromhex(incarnation), int(sequence, 16))


class FragmentName(NumberedName, frozen=True, order=True):
    """An index fragment."""

    folder: ClassVar[str] = "index"


class RemovalName(NumberedName, frozen=True, order=True):
    """A removal list."""

    folder: ClassVar[str] = "gc"


class CheckedName(NumberedName, frozen=True, order=True):
    """What one system tells of packs it has read."""

    folder: ClassVar[str] = "checked"


class PinName(NumberedName, frozen=True, order=True):
    """Pins of one system."""

    folder: ClassVar[str] = "pin"


class StampName(msgspec.Struct, frozen=True, order=True):
    """A stamp: `writer` 16 bytes, `day` since 2020-01-01, `incarnation` 8 bytes, `sequence` counted from 1."""

    writer: bytes
    day: int
    incarnation: bytes
    sequence: int

    def __str__(self) -> str:
        return f"stamp/{self.writer.hex()}/{self.day:04x}-{self.incarnation.hex()}-{self.sequence:08x}"

    @classmethod
    def parse(cls, name: str) -> StampName | None:
        """Return the stamp a name stands for, or None."""
        found = _STAMP.fullmatch(name)
        if found is None:
            return None
        writer, day, incarnation, sequence = found.groups()
        return cls(bytes.fromhex(writer), int(day, 16), bytes.fromhex(incarnation), int(sequence, 16))


class PointId(msgspec.Struct, frozen=True, order=True):
    """A restore point of a system: `order` (unsigned 64 bit), `incarnation` 8 bytes; compares oldest first."""

    order: int
    incarnation: bytes

    def __str__(self) -> str:
        return f"{self.order:016x}-{self.incarnation.hex()}"

    @classmethod
    def parse(cls, text: str) -> PointId | None:
        """Return the point a whole id stands for, or None."""
        found = _POINT.fullmatch(text)
        return cls(int(found[1], 16), bytes.fromhex(found[2])) if found is not None else None

    def root(self, system: bytes) -> str:
        """Return the name of this point's root object."""
        return f"root/{system.hex()}/{self}"

    def stand_ins(self) -> Iterator[PointId]:
        """Yield the points that may stand for this one, should its root be damaged: the next incarnations, in order."""
        number = int.from_bytes(self.incarnation, "big")
        for more in range(1, STAND_INS_MAX + 1):
            if number + more < 1 << 64:
                yield PointId(self.order, (number + more).to_bytes(8, "big"))

    def note(self, system: bytes, kind: str, digest: bytes) -> str:
        """Return the name of a note of `kind` to this point; `digest` is the BLAKE3 of the note's bytes."""
        return f"note/{system.hex()}/{self}-{kind}-{digest[:8].hex()}"

    @classmethod
    def parse_root(cls, name: str) -> tuple[bytes, PointId] | None:
        """Return (system, point) of a root's name, or None."""
        found = _ROOT.fullmatch(name)
        if found is None:
            return None
        system, order, incarnation = found.groups()
        return bytes.fromhex(system), cls(int(order, 16), bytes.fromhex(incarnation))

    @classmethod
    def parse_note(cls, name: str) -> tuple[bytes, PointId, str] | None:
        """Return (system, point, kind) of a note's name, or None."""
        found = _NOTE.fullmatch(name)
        if found is None:
            return None
        system, order, incarnation, kind, _ = found.groups()
        return bytes.fromhex(system), cls(int(order, 16), bytes.fromhex(incarnation)), kind


class ReportId(msgspec.Struct, frozen=True, order=True):
    """A report of a system: `order` (unsigned 64 bit), `incarnation` 8 bytes; compares oldest first."""

    order: int
    incarnation: bytes

    def name(self, system: bytes) -> str:
        """Return the name of the report object."""
        return f"report/{system.hex()}/{self.order:016x}-{self.incarnation.hex()}"

    @classmethod
    def parse(cls, name: str) -> tuple[bytes, ReportId] | None:
        """Return (system, report) of a report's name, or None."""
        found = _REPORT.fullmatch(name)
        if found is None:
            return None
        system, order, incarnation = found.groups()
        return bytes.fromhex(system), cls(int(order, 16), bytes.fromhex(incarnation))


def slot_name(domain: bytes, slot: bytes) -> str:
    """Return the name of a key slot."""
    return f"key/{domain.hex()}/{slot.hex()}"


def parse_slot(name: str) -> tuple[bytes, bytes] | None:
    """Return (domain, slot) of a key slot's name, or None."""
    found = _SLOT.fullmatch(name)
    return (bytes.fromhex(found[1]), bytes.fromhex(found[2])) if found else None


def certificate_name(domain: bytes, system: bytes, number: int) -> str:
    """Return the name of certificate `number` (from 1) of a system."""
    return f"cert/{domain.hex()}/{system.hex()}-{number:08x}"


def parse_certificate(name: str) -> tuple[bytes, bytes, int] | None:
    """Return (domain, system, number) of a certificate's name, or None."""
    found = _CERT.fullmatch(name)
    return (bytes.fromhex(found[1]), bytes.fromhex(found[2]), int(found[3], 16)) if found else None
