"""Notes to a root: signed objects of their own, read together with the root they are about (docs/FORMAT.md, "Note").

The name of a note ends with the beginning of its hash, so that notes are never written over each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias, get_args

import msgspec
from blake3 import blake3

from engine.errors import StoreCorrupt
from engine.names import PointId
from engine.signed import Header, Kind, Signer, Verify, decode_body

if TYPE_CHECKING:
    from engine.vault.identity import Identity

KIND: Final = Kind("note", b"FBNOTE\x00\x01", b"forebay note v1\0", 0)

NoteKind: TypeAlias = Literal["incomplete", "superseded", "held", "removed", "abandoned"]
NOTE_KINDS: Final[tuple[str, ...]] = get_args(NoteKind)


class NoteBody(msgspec.Struct, frozen=True, kw_only=True):
    """What a note says: `time` in ms since 1970 UTC; `text` is one sentence for people.

    Kind incomplete: `holes`, per volume, ranges (first block, count) that cannot be given back; `damaged`, keys (8
    bytes) of packs the point needs that were there and did not hold together; `whole`: nothing is missing any more.
    Kind abandoned: `sessions`, 16-byte ids of the sessions given up.
    """

    kind: NoteKind
    time: Annotated[int, msgspec.Meta(ge=0)]
    text: str = ""
    holes: dict[str, list[tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=1)]]]] = {}
    sessions: list[Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]] = []
    damaged: list[Annotated[bytes, msgspec.Meta(min_length=8, max_length=8)]] = []
    whole: bool = False


class Note(msgspec.Struct, frozen=True):
    """A note that was opened."""

    domain: bytes
    system: bytes
    point: PointId
    certificate: int
    body: NoteBody


_BODY: Final = msgspec.msgpack.Decoder(NoteBody)


def seal_note(
    body: NoteBody,
    *,
    domain: bytes,
    system: bytes,
    point: PointId,
    certificate: int,
    listing_key: bytes,
    signer: Signer,
) -> tuple[str, bytes]:
    """Return (name, bytes) of the note object about `point` of `system`."""
    data = KIND.seal(Header(domain, system, point, b"", certificate), msgspec.msgpack.encode(body), listing_key, signer)
    return point.note(system, body.kind, blake3(data).digest()), data


def incomplete_by(notes: Iterable[NoteBody]) -> NoteBody | None:
    """Return the note by which a point is incomplete: the last one that says what it lacks, None if it is whole."""
    told = [note for note in notes if note.kind == "incomplete"]
    last = max(told, key=lambda note: (note.time, not note.whole), default=None)
    return None if last is None or last.whole else last


def own_note(body: NoteBody, point: PointId, identity: Identity) -> tuple[str, bytes]:
    """Return (name, bytes) of a note about `point` of the system that `identity` is of."""
    return seal_note(
        body,
        domain=identity.domain,
        system=identity.system,
        point=point,
        certificate=identity.certificate_number,
        listing_key=identity.listing_key,
        signer=identity.signer,
    )


def open_note(name: str, data: bytes, listing_key: bytes, verify: Verify) -> Note:
    """Return the note in `data`, the object stored under `name`.

    Raises: StoreCorrupt (cut, flipped, swapped, not signed by the system), FormatTooNew, and what `verify` raises.
    """
    header = KIND.header(name, data)
    parsed = PointId.parse_note(name)
    if parsed is None or name != header.point.note(header.system, parsed[2], blake3(data).digest()):
        raise StoreCorrupt(name, "its content is not what it is named after")
    _, plain = KIND.open(name, data, listing_key, verify)
    body = decode_body(name, _BODY, plain)
    if body.kind != parsed[2]:
        raise StoreCorrupt(name, f"it is a note of the kind {body.kind!r}")
    return Note(header.domain, header.system, header.point, header.certificate, body)
