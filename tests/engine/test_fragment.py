"""Index fragments: written, opened, refused."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.acks import PackAck
from engine.columns import U32
from engine.errors import StoreCorrupt
from engine.fragment import INDEX_LABEL, encode_fragment, open_fragment, view_fragment
from engine.names import FragmentName, PackName
from engine.trailer import make_trailer
from tests.engine.fakes_packs import ALICE, BOB, Team, ack, random_ids

TEAM = Team()
NAME = FragmentName(ALICE, b"i" * 8, 3)
COVERED = [FragmentName(ALICE, b"h" * 8, 2), FragmentName(ALICE, b"i" * 8, 1)]
FOREIGN = PackName("data", BOB, b"\xee" * 32, 5000)


def example_packs(count: int = 5) -> list[PackAck]:
    ids = random_ids(np.random.default_rng(1), count * 2)
    second = ack(ALICE, 2, ids[count:], delta=[1])
    second = PackAck(second.name, second.ids, second.offsets, second.lengths, ((1, FOREIGN), (1, second.name)))
    return [ack(ALICE, 1, ids[:count]), second]


def encode(packs: list[PackAck], covers: list[FragmentName] | None = None) -> bytes:
    return encode_fragment(NAME, packs, TEAM.keys, TEAM.signer(ALICE), covers or [])


def resealed(data: bytes) -> bytes:
    """Return `data`, changed, with a trailer that fits it again: what the writer itself could forge."""
    body = data[:-128]
    return body + make_trailer(INDEX_LABEL, blake3(body).digest(), TEAM.keys, TEAM.signer(ALICE))


def test_a_fragment_lists_every_entry_in_order() -> None:
    packs = example_packs(200)
    fragment = open_fragment(NAME, encode(packs, COVERED), TEAM.keys, TEAM)
    columns = fragment.columns
    listed = {
        (lo, hi, fragment.rows[row]["hash"].tobytes(), offset, length)
        for lo, hi, row, offset, length in zip(*(column.tolist() for column in columns), strict=True)
    }
    assert listed == {
        (lo, hi, pack.name.hash, offset, length)
        for pack in packs
        for (lo, hi), offset, length in zip(
            pack.ids.tolist(), pack.offsets.tolist(), pack.lengths.tolist(), strict=True
        )
    }
    keys = list(zip(columns.lo.tolist(), columns.hi.tolist(), strict=True))
    assert keys == sorted(keys)
    assert fragment.covers == tuple(COVERED)


def test_sources_stay_with_their_delta() -> None:
    packs = example_packs()
    fragment = open_fragment(NAME, encode(packs), TEAM.keys, TEAM)
    assert len(fragment.sources) == 2
    for entry, row in fragment.sources.tolist():
        assert (fragment.columns.lo[entry], fragment.columns.hi[entry]) == tuple(packs[1].ids[1])
        assert fragment.rows[row]["hash"].tobytes() in (FOREIGN.hash, packs[1].name.hash)


@pytest.mark.parametrize("count", [3, 4])
def test_a_fragment_is_laid_out_as_the_format_says(count: int) -> None:
    ids = random_ids(np.random.default_rng(2), count)
    pack = ack(ALICE, 1, ids, delta=[0])
    pack = PackAck(pack.name, pack.ids, pack.offsets, pack.lengths, ((0, FOREIGN),))
    data = encode([pack], COVERED)
    assert data[:8] == b"FBINDEX\x01"
    assert struct.unpack_from("<HHI", data, 8) == (1, 1, count)
    assert data[16:56] == TEAM.keys.domain + ALICE + b"i" * 8
    assert struct.unpack_from("<5IQ", data, 56)[:5] == (3, 2, 2, 1, 0)
    order = sorted(range(count), key=lambda at: tuple(ids[at].tolist()))
    expected = ids[order, 0].tobytes() + ids[order, 1].tobytes()
    row = sorted([pack.name.hash, FOREIGN.hash]).index(pack.name.hash)
    expected += struct.pack(f"<{count}I", *[row] * count)
    expected += pack.offsets[order].tobytes() + pack.lengths[order].tobytes() + bytes(4 * (count % 2))
    for name in sorted([pack.name, FOREIGN], key=lambda each: each.hash):
        expected += name.writer + name.hash + struct.pack("<II", name.size, 0)
    for cover in COVERED:
        expected += cover.incarnation + struct.pack("<II", cover.sequence, 0)
    expected += struct.pack("<II", order.index(0), 1 - row)
    assert data[80:-128] == expected
    checksum = blake3(data[:-128]).digest()
    mac = TEAM.keys.mac(b"forebay index v1\0", checksum)
    signature = TEAM.signer(ALICE)(b"forebay index v1\0" + TEAM.keys.domain + checksum + mac)
    assert data[-128:] == checksum + mac + signature


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_of_a_fragment_is_noticed(data: st.DataObject) -> None:
    damaged = bytearray(encode(example_packs(), COVERED))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreCorrupt, match=r"index/6161.*00000003"):
        open_fragment(NAME, bytes(damaged), TEAM.keys, TEAM)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=300))
@settings(max_examples=200, deadline=None)
def test_cut_grown_and_random_bytes_are_no_fragment(cut: int, noise: bytes) -> None:
    good = encode(example_packs(), COVERED)
    body = good[:-128]
    for data in (
        noise,
        good[: cut % len(good)],
        good + noise,
        resealed(body[: cut % len(body)] + bytes(128)),
        resealed(body + noise + bytes(128)),
        resealed(good[:80] + noise + bytes(128)),
    ):
        with pytest.raises(StoreCorrupt):
            open_fragment(NAME, data, TEAM.keys, TEAM)


@given(st.data())
@settings(max_examples=600, deadline=None)
def test_what_a_writer_forges_is_refused_or_stays_within_its_own_packs(data: st.DataObject) -> None:
    forged = bytearray(encode(example_packs(), COVERED))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(forged) - 129))
        forged[at] = data.draw(st.integers(0, 255))
    try:
        fragment = open_fragment(NAME, resealed(bytes(forged)), TEAM.keys, TEAM)
    except StoreCorrupt:
        return
    columns, rows = fragment.columns, fragment.rows
    keys = list(zip(columns.lo.tolist(), columns.hi.tolist(), strict=True))
    assert keys == sorted(keys)
    for row, offset, length in zip(columns.pack, columns.offset, columns.length, strict=True):
        assert rows[row]["writer"].tobytes() == ALICE
        assert 64 <= int(offset) < int(offset) + (int(length) & 0x7FFFFFFF) < int(rows[row]["size"])
    assert all(name.writer == ALICE for name in fragment.covers)


Change = Callable[[bytearray, int], None]


def put(offset: int, layout: str, value: int) -> Change:
    """Return a change of the integer `offset` bytes into a section."""
    return lambda data, at: struct.pack_into("<" + layout, data, at + offset, value)


# Ten entries: columns at 80, 160, 240, 280, 320; three packs at 360; two covers at 528; two source rows at 560.
FORGERIES: dict[str, tuple[int, Change]] = {
    "entries out of order": (80, put(0, "Q", (1 << 64) - 1)),
    "a pack row that does not exist": (240, put(0, "I", 3)),
    "a huge pack row": (240, put(0, "I", 0xFFFFFFFF)),
    "an offset in the pack's header": (280, put(0, "I", 63)),
    "an offset beyond the pack": (280, put(0, "I", 0xFFFFFFFF)),
    "a length of nothing": (320, put(0, "I", 0)),
    "a length no record has": (320, put(0, "I", 0x7FFFFFFF)),
    "a pack of no size": (360, put(48, "I", 0)),
    "a pack of an impossible size": (360, put(48, "I", 81 << 20)),
    "a pack of an unknown kind": (360, put(52, "I", 2)),
    "packs out of order": (360, put(16, "Q", (1 << 64) - 1)),
    "covers out of order": (528, put(0, "Q", (1 << 64) - 1)),
    "a cover in an unknown form": (528, put(12, "I", 1)),
    "a source of an entry that does not exist": (560, put(0, "I", 10)),
    "a source pack that does not exist": (560, put(4, "I", 3)),
    "a flag from the future": (10, put(0, "H", 3)),
    "merged without saying so": (10, put(0, "H", 0)),
    "a version from the future": (8, put(0, "H", 2)),
    "bytes that are reserved": (72, put(0, "Q", 1)),
    "more entries than bytes": (12, put(0, "I", 0xFFFFFFFF)),
    "more packs than bytes": (60, put(0, "I", 0xFFFFFFFF)),
    "more covers than bytes": (64, put(0, "I", 0xFFFFFFFF)),
    "more sources than bytes": (68, put(0, "I", 0xFFFFFFFF)),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_each_forgery_is_refused(forgery: str) -> None:
    data = bytearray(encode(example_packs(), COVERED))
    assert len(data) == 80 + 280 + 3 * 56 + 2 * 16 + 2 * 8 + 128
    section, change = FORGERIES[forgery]
    change(data, section)
    with pytest.raises(StoreCorrupt):
        open_fragment(NAME, resealed(bytes(data)), TEAM.keys, TEAM)


def test_records_in_packs_of_another_system_are_refused() -> None:
    data = encode([ack(BOB, 1, random_ids(np.random.default_rng(1), 3))])
    with pytest.raises(StoreCorrupt, match="another system"):
        open_fragment(NAME, data, TEAM.keys, TEAM)


def test_a_source_for_a_record_that_is_no_delta_is_refused() -> None:
    pack = ack(ALICE, 1, random_ids(np.random.default_rng(1), 3))
    pack = PackAck(pack.name, pack.ids, pack.offsets, pack.lengths, ((1, FOREIGN),))
    with pytest.raises(StoreCorrupt, match="no delta"):
        open_fragment(NAME, encode([pack]), TEAM.keys, TEAM)


@pytest.mark.parametrize(
    "name", [FragmentName(BOB, b"i" * 8, 3), FragmentName(ALICE, b"j" * 8, 3), FragmentName(ALICE, b"i" * 8, 4)]
)
def test_a_fragment_replayed_under_another_name_is_refused(name: FragmentName) -> None:
    with pytest.raises(StoreCorrupt, match="copied here from another name"):
        open_fragment(name, encode(example_packs()), TEAM.keys, TEAM)


def test_a_fragment_of_a_stranger_is_refused() -> None:
    data = encode(example_packs())
    with pytest.raises(StoreCorrupt, match="not signed by system 6161"):
        open_fragment(NAME, data, TEAM.keys, Team(members=[BOB]))
    with pytest.raises(StoreCorrupt, match="another domain"):
        view_fragment(NAME, data, b"e" * 16)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_the_ack_log_forgets_what_is_damaged(entry: bytes) -> None:
    decoded = PackAck.decode(entry)
    assert decoded is None or len(decoded.ids) == len(decoded.offsets) == len(decoded.lengths) > 0


def test_an_ack_comes_back_as_it_was() -> None:
    pack = example_packs()[1]
    back = PackAck.decode(pack.encode())
    assert back is not None
    assert (back.name, back.sources) == (pack.name, pack.sources)
    assert np.array_equal(back.ids, pack.ids)
    assert np.array_equal(back.offsets, pack.offsets)
    assert np.array_equal(back.lengths, pack.lengths)
    assert back.lengths.dtype == U32
