from __future__ import annotations

from typing import Any

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import FormatTooNew, StoreCorrupt
from engine.names import PointId
from engine.note import KIND, NOTE_KINDS, NoteBody, open_note, seal_note
from engine.signed import Header
from tests.engine.fakes_signed import COMMON, DOMAIN, KEY, LISTING, POINT, SYSTEM, verify

SIGNED: dict[str, Any] = {key: value for key, value in COMMON.items() if key != "recovery_key_id"}
BODY = NoteBody(
    kind="incomplete", time=9, text="The cache lacked them.", holes={"data": [(3, 4)]}, sessions=[b"n" * 16]
)
NAME, NOTE = seal_note(BODY, **SIGNED)


@pytest.mark.parametrize("kind", NOTE_KINDS)
def test_a_note_comes_back_with_the_point_it_is_about(kind: Any) -> None:
    body = msgspec.structs.replace(BODY, kind=kind)
    name, data = seal_note(body, **SIGNED)
    note = open_note(name, data, LISTING, verify)
    assert (note.body, note.point, note.system, note.domain, note.certificate) == (body, POINT, SYSTEM, DOMAIN, 3)
    parsed = PointId.parse_note(name)
    assert parsed == (SYSTEM, POINT, kind)


def test_the_bytes_are_those_of_the_format() -> None:
    assert NOTE[:16] == b"FBNOTE\x00\x01" + bytes([1, 0, 0, 0]) + (len(NOTE) - 80 - 64).to_bytes(4, "little")
    assert NOTE[16:68] == DOMAIN + SYSTEM + POINT.order.to_bytes(8, "little") + b"i" * 8 + (3).to_bytes(4, "little")
    KEY.public_key().verify(NOTE[-64:], b"forebay note v1\0" + NOTE[:-64])


def test_notes_of_the_same_words_do_not_share_a_name() -> None:
    assert seal_note(BODY, **SIGNED)[0] != NAME


def test_a_note_under_another_name_is_refused_and_named() -> None:
    other = PointId(POINT.order + 1, POINT.incarnation)
    digest = bytes.fromhex(NAME.rsplit("-", 1)[1])
    for name in (
        other.note(SYSTEM, "incomplete", digest),
        POINT.note(b"t" * 16, "incomplete", digest),
        POINT.note(SYSTEM, "removed", digest),
        POINT.note(SYSTEM, "incomplete", b"x" * 8),
        "note/x",
    ):
        with pytest.raises(StoreCorrupt) as caught:
            open_note(name, NOTE, LISTING, verify)
        assert caught.value.name == name


def named(data: bytes) -> str:
    return POINT.note(SYSTEM, "incomplete", blake3(data).digest())


@settings(max_examples=200)
@given(st.data())
def test_a_note_cut_lengthened_or_flipped_is_refused_even_under_a_name_that_fits(data: st.DataObject) -> None:
    flipped = bytearray(NOTE)
    bit = data.draw(st.integers(0, len(NOTE) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    cut = NOTE[: data.draw(st.integers(0, len(NOTE) - 1))]
    for damaged in (cut, bytes(flipped), NOTE + b"x"):
        with pytest.raises((StoreCorrupt, FormatTooNew)):
            open_note(NAME, damaged, LISTING, verify)
        with pytest.raises((StoreCorrupt, FormatTooNew)):
            open_note(named(damaged), damaged, LISTING, verify)


def test_a_newer_note_is_named_and_not_called_damage() -> None:
    newer = NOTE[:8] + b"\2" + NOTE[9:]
    with pytest.raises(FormatTooNew, match=named(newer)):
        open_note(named(newer), newer, LISTING, verify)


@pytest.mark.parametrize(
    "plain",
    [
        {"kind": "removed", "time": 1},
        {"kind": "unheard-of", "time": 1},
        {"kind": "incomplete"},
        {"kind": "incomplete", "time": -1},
        {"kind": "incomplete", "time": 1, "holes": {"data": [(1, 0)]}},
        {"kind": "incomplete", "time": 1, "holes": [1]},
        {"kind": "incomplete", "time": 1, "sessions": [b"short"]},
        [],
        None,
    ],
)
def test_a_signed_note_that_makes_no_sense_is_refused(plain: object) -> None:
    data = KIND.seal(Header(DOMAIN, SYSTEM, POINT, b"", 3), msgspec.msgpack.encode(plain), LISTING, KEY.sign)
    with pytest.raises(StoreCorrupt):
        open_note(named(data), data, LISTING, verify)


def test_another_key_neither_opens_nor_signs_a_note() -> None:
    with pytest.raises(StoreCorrupt, match="listing key"):
        open_note(NAME, NOTE, b"m" * 32, verify)
    with pytest.raises(StoreCorrupt, match="signature"):
        open_note(NAME, NOTE, LISTING, lambda *arguments: False)
