"""Packs: built, named by their bytes, checked, refused."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StoreCorrupt
from engine.names import PackName
from engine.pack import (
    PACK_BYTES_MAX,
    PACK_LABEL,
    PACK_READ_MAX,
    FinishedPack,
    PackBuilder,
    check_pack,
    footer_start,
    read_footer,
    scan_records,
    stand_in_for,
)
from engine.subkeys import DomainKeys
from engine.trailer import make_trailer
from tests.engine.fakes_delta import SourceBlock, encode_delta, map_of, seal_whole
from tests.engine.fakes_packs import ALICE, BOB, SESSION, Team

TEAM = Team()
CONTENTS = [bytes([number]) * (number * 37 + 1) for number in range(1, 9)]


def pack_with_delta() -> FinishedPack:
    """Return a pack of one whole record and a delta whose source lies in another pack."""
    noise = random.Random(3).randbytes(20000)
    changed = noise[:4096] + bytes(4096) + noise[8192:]
    builder = TEAM.builder()
    delta = encode_delta(TEAM.keys.blocks, changed, [SourceBlock(TEAM.ref(noise))], map_of(changed, {0: 0, 2: 0}))
    first = TEAM.pack([noise], BOB).name
    second = TEAM.pack([b"another"], ALICE).name
    builder.add(seal_whole(TEAM.keys.blocks, b"whole"), day=7)
    builder.add(delta, sources=[first, second])
    return builder.finish()


def renamed(data: bytes, like: PackName) -> PackName:
    return PackName(like.kind, like.writer, blake3(data).digest(), len(data))


def resealed(data: bytes, like: PackName) -> tuple[PackName, bytes]:
    """Return `data`, changed, with a trailer and a name that fit it again: what a member could forge."""
    body, tail = data[: -12 - 128], data[-12:]
    whole = body + make_trailer(PACK_LABEL, blake3(body).digest(), TEAM.keys, TEAM.signer(like.writer)) + tail
    return renamed(whole, like), whole


def test_a_pack_lists_what_it_holds() -> None:
    pack = TEAM.pack(CONTENTS)
    entries = check_pack(pack.name, pack.data, TEAM.keys, TEAM)
    assert np.array_equal(entries.ids, pack.ids)
    assert np.array_equal(entries.offsets, pack.offsets)
    assert np.array_equal(entries.lengths, pack.lengths)
    assert [TEAM.ref(content)[:16] for content in CONTENTS] == [row.tobytes() for row in entries.ids]
    assert pack.name.size == len(pack.data)
    assert pack.name.hash == blake3(pack.data).digest()
    places = pack.places()
    assert {int(key) for key in places["pack"]} == {pack.name.key}


def test_a_pack_is_laid_out_as_the_format_says() -> None:
    pack = pack_with_delta()
    data, count, sources = pack.data, 2, 2
    assert data[:8] == b"FBPACK\x00\x01"
    assert struct.unpack_from("<HBBI", data, 8) == (1, 0, 0, 0)
    assert data[16:64] == TEAM.keys.domain + ALICE + SESSION
    (start,) = struct.unpack_from("<I", data, len(data) - 12)
    assert data[-8:] == b"FBPEND\x00\x01"
    assert struct.unpack_from("<II", data, start) == (count, sources)
    at = start + 8
    assert data[at : at + 32] == pack.ids.tobytes()
    assert struct.unpack_from("<2I2I2H", data, at + 32) == (*pack.offsets, *pack.lengths, 7, 0)
    assert pack.lengths[1] & 1 << 31
    at += 32 + 20
    rows = sorted((pack.sources[0][1], pack.sources[1][1]), key=lambda name: name.hash)
    assert data[at : at + 104] == b"".join(name.writer + name.hash + struct.pack("<I", name.size) for name in rows)
    assert at + 104 + 128 + 12 == len(data)
    checksum = blake3(data[: -12 - 128]).digest()
    mac = TEAM.keys.mac(b"forebay pack v1\0", checksum)
    assert data[-140:-12] == checksum + mac + TEAM.signer(ALICE)(
        b"forebay pack v1\0" + TEAM.keys.domain + checksum + mac
    )


def test_deltas_name_the_packs_of_their_sources() -> None:
    pack = pack_with_delta()
    entries = check_pack(pack.name, pack.data, TEAM.keys, TEAM)
    assert set(entries.sources) == {name for _, name in pack.sources}
    assert [entry for entry, _ in pack.sources] == [1, 1]
    assert entries.days.tolist() == [7, 0]


def test_what_stands_in_for_a_pack_holds_the_same_records_at_the_same_offsets() -> None:
    pack = pack_with_delta()
    other = stand_in_for(pack, TEAM.keys, TEAM.signer(pack.name.writer))
    entries, same = check_pack(pack.name, pack.data, None, None), check_pack(other.name, other.data, TEAM.keys, TEAM)
    assert (other.name.kind, other.name.writer, other.name.size) == (pack.name.kind, pack.name.writer, pack.name.size)
    assert other.name != pack.name
    assert (other.sources, same.sources) == (pack.sources, entries.sources)
    for column in ("ids", "offsets", "lengths", "days"):
        assert np.array_equal(getattr(same, column), getattr(entries, column))
    start = footer_start(pack.name, bytes(pack.data[-12:]))
    assert bytes(other.data[64:start]) == bytes(pack.data[64:start])
    assert stand_in_for(pack, TEAM.keys, TEAM.signer(pack.name.writer)).data == other.data


def test_a_full_pack_takes_no_more_but_an_empty_one_takes_anything() -> None:
    builder = TEAM.builder()
    assert builder.room(5 << 20)
    record = TEAM.pack([b"x"]).data[64:121]
    assert builder.add(record) == 64
    assert (builder.size, builder.count) == (64 + len(record), 1)
    assert builder.room((4 << 20) - builder.size)
    assert not builder.room((4 << 20) - builder.size + 1)


def test_a_scan_of_the_records_rebuilds_the_index() -> None:
    pack = TEAM.pack(CONTENTS)
    stop = footer_start(pack.name, pack.data[-12:])
    found = list(scan_records(pack.name, pack.data, stop))
    assert [offset for offset, _ in found] == pack.offsets.tolist()
    assert b"".join(header.id for _, header in found) == pack.ids.tobytes()
    scan = scan_records(pack.name, pack.data, len(pack.data))
    assert [next(scan)[0] for _ in CONTENTS] == pack.offsets.tolist()
    with pytest.raises(StoreCorrupt):
        next(scan)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_of_a_pack_is_noticed(data: st.DataObject) -> None:
    pack = TEAM.pack(CONTENTS)
    damaged = bytearray(pack.data)
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(StoreCorrupt, match=pack.name.hash.hex()):
        check_pack(pack.name, bytes(damaged), None, None)


@given(st.integers(0, 3000), st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_a_cut_or_grown_pack_is_noticed(cut: int, more: bytes) -> None:
    pack = TEAM.pack(CONTENTS)
    data = bytes(pack.data)
    for damaged in (data[: cut % len(data)], data + more + b"!"):
        with pytest.raises(StoreCorrupt):
            check_pack(pack.name, damaged, None, None)
        with pytest.raises(StoreCorrupt):
            check_pack(renamed(damaged, pack.name), damaged, None, None)


FIELDS = [0, 8, 10, 11, 12, 32, 64 + 16, 64 + 17, 64 + 18, 64 + 24]


@pytest.mark.parametrize("position", [*FIELDS, *range(-356, -140, 3), *range(-12, 0)])
def test_what_is_inconsistent_is_refused_even_if_a_member_sealed_it(position: int) -> None:
    pack = TEAM.pack(CONTENTS)
    for bit in (0, 7):
        damaged = bytearray(pack.data)
        damaged[position] ^= 1 << bit
        name, data = resealed(bytes(damaged), pack.name)
        days_at = len(data) - 140 - 2 * len(CONTENTS)
        if position < 0 and days_at <= len(data) + position < len(data) - 140:
            check_pack(name, data, TEAM.keys, TEAM)
            continue
        with pytest.raises(StoreCorrupt):
            check_pack(name, data, TEAM.keys, TEAM)


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_random_bytes_are_no_pack_and_no_footer(data: bytes) -> None:
    name = PackName("data", ALICE, blake3(data).digest(), max(1, len(data)))
    with pytest.raises(StoreCorrupt):
        check_pack(name, data, None, None)
    with pytest.raises(StoreCorrupt):
        read_footer(name, data, 0)
    with pytest.raises(StoreCorrupt):
        footer_start(name, data[-12:])


def test_a_footer_can_be_read_by_ranges() -> None:
    pack = pack_with_delta()
    start = footer_start(pack.name, pack.data[-12:])
    entries = read_footer(pack.name, pack.data[start:], start)
    assert np.array_equal(entries.ids, pack.ids)
    for cut in range(1, len(pack.data) - start):
        with pytest.raises(StoreCorrupt):
            read_footer(pack.name, pack.data[start:-cut], start)


def test_a_pack_of_another_name_writer_kind_or_domain_is_refused() -> None:
    pack = TEAM.pack(CONTENTS)
    name = pack.name
    for wrong in (
        PackName("data", BOB, name.hash, name.size),
        PackName("page", name.writer, name.hash, name.size),
        PackName("data", name.writer, bytes(32), name.size),
        PackName("data", name.writer, name.hash, name.size + 1),
    ):
        with pytest.raises(StoreCorrupt):
            check_pack(wrong, pack.data, TEAM.keys, TEAM)
    with pytest.raises(StoreCorrupt, match="another domain"):
        check_pack(name, pack.data, DomainKeys.of(b"e" * 16, b"secret" * 6), None)
    with pytest.raises(StoreCorrupt, match="MAC"):
        check_pack(name, pack.data, DomainKeys.of(b"d" * 16, b"other!" * 6), None)
    with pytest.raises(StoreCorrupt, match="not signed"):
        check_pack(name, pack.data, TEAM.keys, Team(members=[BOB]))


def test_sizes_no_pack_has_are_refused_unread() -> None:
    for size in (1, 200, 81 << 20):
        with pytest.raises(StoreCorrupt, match="no pack is"):
            footer_start(PackName("data", ALICE, bytes(32), size), bytes(12))


def test_a_pack_of_the_smallest_records_stays_within_what_readers_take_for_a_pack() -> None:
    builder = PackBuilder("data", TEAM.keys, ALICE, SESSION, TEAM.signer(ALICE), PACK_BYTES_MAX)
    smallest = seal_whole(TEAM.keys.blocks, b"x")
    for _ in range(PACK_BYTES_MAX // len(smallest)):
        if not builder.room(len(smallest)):
            break
        builder.add(smallest)
    finished = builder.finish()
    assert finished.name.size <= PACK_READ_MAX
    assert footer_start(finished.name, bytes(finished.data[-12:])) > 0
