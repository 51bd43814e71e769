from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import FormatTooNew, StoreCorrupt
from engine.names import PointId, ReportId
from engine.note import KIND as NOTE_KIND
from engine.report import KIND, REPORT_BYTES_MAX, open_report, own_report
from engine.reportbody import TEXT_MAX, clipped, unprintable
from engine.signed import Header
from tests.engine.fakes_signed import DOMAIN, KEY, LISTING, POINT, SYSTEM, verify
from tests.engine.recovery.build import World
from tests.engine.reports import NOW, body, longest

GOLDEN = Path(__file__).parents[1] / "golden" / "reports" / "v1"
NUMBER = ReportId(POINT.order, POINT.incarnation)
NAME = NUMBER.name(SYSTEM)
HEADER = Header(DOMAIN, SYSTEM, POINT, b"", 3)
BODY = body()
REPORT = KIND.seal(HEADER, msgspec.msgpack.encode(BODY), LISTING, KEY.sign)


def test_a_report_comes_back() -> None:
    report = open_report(NAME, REPORT, LISTING, verify)
    assert (report.body, report.id, report.system, report.domain, report.certificate) == (
        BODY, NUMBER, SYSTEM, DOMAIN, 3,
    )  # fmt: skip
    assert ReportId.parse(NAME) == (SYSTEM, NUMBER)


def test_a_systems_own_report_is_opened_with_its_certificate() -> None:
    world = World()
    system = world.system()
    name, data = own_report(BODY, NUMBER, system.identity(world))
    assert name == NUMBER.name(system.id)

    def by_certificate(who: bytes, number: int, message: bytes, signature: bytes) -> bool:
        return (who, number) == (system.id, 1) and system.certificate.verify(message, signature)

    assert open_report(name, data, system.listing_key, by_certificate).body == BODY


def test_the_longest_report_there_can_be_is_one() -> None:
    world = World()
    system = world.system()
    name, data = own_report(longest(), NUMBER, system.identity(world))
    assert len(data) <= REPORT_BYTES_MAX
    assert open_report(name, data, system.listing_key, lambda *_: True).body == longest()


def test_a_report_under_another_name_is_refused_and_named() -> None:
    other = ReportId(NUMBER.order + 1, NUMBER.incarnation)
    for name in (other.name(SYSTEM), NUMBER.name(b"t" * 16), ReportId(NUMBER.order, b"j" * 8).name(SYSTEM), "report/x"):
        with pytest.raises(StoreCorrupt) as caught:
            open_report(name, REPORT, LISTING, verify)
        assert caught.value.name == name


@settings(max_examples=200)
@given(st.data())
def test_a_report_cut_lengthened_or_flipped_is_refused(data: st.DataObject) -> None:
    flipped = bytearray(REPORT)
    bit = data.draw(st.integers(0, len(REPORT) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    cut = REPORT[: data.draw(st.integers(0, len(REPORT) - 1))]
    for damaged in (cut, bytes(flipped), REPORT + b"x"):
        with pytest.raises((StoreCorrupt, FormatTooNew)):
            open_report(NAME, damaged, LISTING, verify)


@settings(max_examples=200)
@given(st.binary(max_size=400) | st.builds(lambda rest: REPORT[:80] + rest, st.binary(max_size=400)))
def test_garbage_is_refused_and_named(data: bytes) -> None:
    with pytest.raises((StoreCorrupt, FormatTooNew), match=NAME):
        open_report(NAME, data, LISTING, verify)


def test_a_newer_report_is_named_and_not_called_damage() -> None:
    newer = REPORT[:8] + b"\2" + REPORT[9:]
    with pytest.raises(FormatTooNew, match=NAME):
        open_report(NAME, newer, LISTING, verify)


def test_what_is_too_large_for_a_report_is_none_even_if_it_is_signed() -> None:
    large = KIND.seal(HEADER, bytes(REPORT_BYTES_MAX), LISTING, KEY.sign)
    with pytest.raises(StoreCorrupt, match="no report is larger than 65536 bytes"):
        open_report(NAME, large, LISTING, verify)


def changed(**more: Any) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(BODY)
    return plain | more


def of_cache(**more: Any) -> dict[str, Any]:
    return changed(cache=msgspec.to_builtins(BODY)["cache"] | more)


def test_what_a_later_version_adds_is_passed_over() -> None:
    plain = changed(mood="good")
    data = KIND.seal(HEADER, msgspec.msgpack.encode(plain), LISTING, KEY.sign)
    assert open_report(NAME, data, LISTING, verify).body == BODY


@pytest.mark.parametrize(
    "plain",
    [
        {"version": "1", "name": "x"},
        changed(time=-1),
        changed(time=1 << 63),
        changed(time=1.5),
        changed(name=""),
        changed(name="x" * 256),
        changed(name="web\x1b[2J01"),
        changed(name="web\u202e10"),
        changed(warnings=["one\ntwo"]),
        changed(warnings=["x" * 241]),
        changed(warnings=["x"] * 11),
        changed(sessions=[msgspec.to_builtins(BODY)["sessions"][0]] * 11),
        changed(sessions=[{"started": 1}]),
        of_cache(colour="\x07"),
        of_cache(blocks=-1),
        of_cache(room={"day": 1}),
        of_cache(enabled="yes"),
        [],
        None,
    ],
)
def test_a_signed_report_that_makes_no_sense_is_refused(plain: object) -> None:
    data = KIND.seal(HEADER, msgspec.msgpack.encode(plain), LISTING, KEY.sign)
    with pytest.raises(StoreCorrupt, match=NAME):
        open_report(NAME, data, LISTING, verify)


def test_another_key_neither_opens_nor_signs_a_report() -> None:
    with pytest.raises(StoreCorrupt, match="listing key"):
        open_report(NAME, REPORT, b"m" * 32, verify)
    with pytest.raises(StoreCorrupt, match="signature"):
        open_report(NAME, REPORT, LISTING, lambda *arguments: False)


def test_a_note_is_no_report_even_with_its_magic_put_in() -> None:
    note = NOTE_KIND.seal(HEADER, msgspec.msgpack.encode(BODY), LISTING, KEY.sign)
    for data in (note, REPORT[:8] + note[8:]):
        with pytest.raises(StoreCorrupt):
            open_report(NAME, data, LISTING, verify)


@given(st.text(max_size=400))
def test_what_is_told_in_a_report_is_printable_and_bounded(text: str) -> None:
    told = clipped(text)
    assert told.isprintable()
    assert len(told) <= TEXT_MAX
    assert told == text or not text.isprintable() or len(text) > TEXT_MAX
    assert not unprintable(msgspec.structs.replace(BODY, warnings=[told]))


def golden_header() -> tuple[str, Header, Ed25519PrivateKey]:
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    point = PointId(NOW, bytes(range(8)))
    system = bytes(range(16, 32))
    return ReportId(point.order, point.incarnation).name(system), Header(bytes(range(16)), system, point, b"", 2), key


def test_the_golden_report_is_read_and_would_be_written_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    name, header, key = golden_header()
    data = GOLDEN.with_suffix(".bin").read_bytes()
    report = open_report(name, data, bytes(range(32)), lambda *_: True)
    assert report.body == BODY
    assert report.certificate == 2
    monkeypatch.setattr(secrets, "token_bytes", lambda count: bytes(range(count)))
    assert KIND.seal(header, msgspec.msgpack.encode(BODY), bytes(range(32)), key.sign) == data


def test_a_report_of_before_points_were_told_is_read_as_one_that_does_not_know() -> None:
    name, _, _ = golden_header()
    data = GOLDEN.with_name("before_points.bin").read_bytes()
    told = open_report(name, data, bytes(range(32)), lambda *_: True).body
    cache = BODY.cache
    assert cache is not None
    unknown = {
        field: msgspec.structs.replace(line, points=None)
        for field in ("last_attempt", "last_completed", "last_passed")
        if (line := getattr(cache, field)) is not None
    }
    assert told == msgspec.structs.replace(BODY, cache=msgspec.structs.replace(cache, **unknown))


def test_the_golden_report_is_what_the_format_says() -> None:
    """Read it by the document alone, with nothing of the program."""
    data = GOLDEN.with_suffix(".bin").read_bytes()
    assert data[:12] == b"FBRPRT\x00\x01" + bytes([1, 0, 0, 0])
    assert int.from_bytes(data[12:16], "little") == len(data) - 80 - 64
    assert data[16:48] == bytes(range(32))
    assert data[48:64] == NOW.to_bytes(8, "little") + bytes(range(8))
    assert data[64:68] == bytes([2, 0, 0, 0])
    signer = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    signer.verify(data[-64:], b"forebay report v1\0" + data[:-64])
    key = blake3(bytes(range(32)), derive_key_context="forebay 2026 v1 reports").digest()
    plain = AESGCM(key).decrypt(data[68:80], data[80:-64], data[:80])
    assert msgspec.msgpack.decode(plain) == json.loads(GOLDEN.with_suffix(".json").read_text(encoding="ascii"))
