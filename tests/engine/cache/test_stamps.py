"""Stamps: what is written is what is read, by this program and by one of its own; anything else is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.stamps import (
    DAYS_MAX,
    STAMP_HEADER_BYTES,
    STAMP_READ_MAX,
    Seen,
    StampDetails,
    day_of,
    encode_stamps,
    head_bytes,
    later,
    merged,
    newest_days,
    open_head,
)
from engine.errors import StoreCorrupt
from engine.names import StampName
from engine.subkeys import DomainKeys
from tests.engine.fakes_packs import ALICE, BOB, Team

TEAM = Team()
GOLDEN = Path(__file__).parents[2] / "golden" / "stamps" / "v1"
DAY = 2500

Said = dict[int, list[int]]  # pack key → day of each record; one: of all

drawn_days = st.one_of(
    st.integers(1, DAY).map(lambda day: [day]),
    st.lists(st.sampled_from([0, 1, 7, DAY - 1, DAY]), min_size=2, max_size=40).filter(any),
)
drawn = st.dictionaries(st.integers(0, (1 << 64) - 1), drawn_days, max_size=20)


def seen(said: Said) -> Iterator[Seen]:
    return (Seen(pack, np.array(days, np.uint16)) for pack, days in sorted(said.items()))


def names(writer: bytes = ALICE, day: int = DAY) -> Iterator[StampName]:
    return (StampName(writer, day, b"i" * 8, number) for number in range(1, 1000))


def written(said: Said, bytes_max: int = STAMP_READ_MAX) -> list[tuple[StampName, bytes]]:
    return list(encode_stamps(seen(said), names(), 0, TEAM.keys, TEAM.signer(ALICE), bytes_max))


def read(name: StampName, data: bytes) -> Said:
    """Return what a stamp says, reading its head alone first, as from a store."""
    size = head_bytes(name, data[:STAMP_HEADER_BYTES])
    head = open_head(name, data[:size], TEAM.keys, TEAM)
    assert head.size == len(data)
    details = StampDetails(head, data[head.details_at :])
    return {int(pack): details.seen(row).days.tolist() for row, pack in enumerate(head.packs)}


def plain(said: Said) -> Said:
    """Return the same with one day where all are the same."""
    return {pack: days if len(set(days)) > 1 else days[:1] for pack, days in said.items()}


@settings(max_examples=100, deadline=None)
@given(drawn, st.sampled_from([STAMP_READ_MAX, 400]))
def test_what_is_written_is_read_however_many_stamps_it_takes(said: Said, bytes_max: int) -> None:
    found: Said = {}
    stamps = written(said, bytes_max)
    for name, data in stamps:
        found |= read(name, data)
    assert found == plain(said)
    assert len({name for name, _ in stamps}) == len(stamps)
    heads = [open_head(name, data, TEAM.keys, TEAM) for name, data in stamps]
    packs, days = newest_days(heads)
    assert dict(zip(packs.tolist(), days.tolist(), strict=True)) == {pack: max(each) for pack, each in said.items()}


@settings(max_examples=100, deadline=None)
@given(drawn, drawn)
def test_of_two_sources_the_later_day_counts(first: Said, second: Said) -> None:
    found = {each.pack: each.days.tolist() for each in merged([seen(first), seen(second)])}
    assert list(found) == sorted(first.keys() | second.keys())
    for pack, days in found.items():
        mine, others = first.get(pack, [0]), second.get(pack, [0])
        count = max(len(mine), len(others))
        if len({len(mine), len(others), 1}) <= 2:
            whole = [each * count if len(each) == 1 else each for each in (mine, others)]
            assert (days * count if len(days) == 1 else days) == [max(pair) for pair in zip(*whole, strict=True)]
        else:
            assert days == [max(max(mine), max(others))]


def test_more_days_than_a_pack_can_have_count_as_later_ones() -> None:
    days = [0, *range(1, DAYS_MAX + 50)]
    ((name, data),) = written({1: days})
    found = read(name, data)[1]
    assert len(set(found)) == DAYS_MAX
    assert all(after >= before for before, after in zip(days, found, strict=True))
    assert found[0] == 0
    assert found[-100:] == days[-100:]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_and_no_forgery_is_read_as_something_else(data: st.DataObject) -> None:
    said: Said = {1: [DAY], 2: [0, DAY, 7], 9: [3, 4, 5, 6] * 9}
    ((name, whole),) = written(said)
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["flip", "cut", "more", "sealed again"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "cut":
        del damaged[at:]
    elif kind == "more":
        damaged += b"x"
    else:
        damaged[at] ^= data.draw(st.integers(1, 255))
    if kind == "sealed again":
        reseal(damaged)
    try:
        assert read(name, bytes(damaged)) is not None
        # Only who has the keys can say something else, in a form that is right.
        assert kind == "sealed again"
    except (StoreCorrupt, AssertionError):
        assert kind != "sealed again" or bytes(damaged) != whole


def reseal(data: bytearray) -> None:
    """Sign what was changed, as a member could."""
    count, details = struct.unpack_from("<II", data, 16)
    stop = STAMP_HEADER_BYTES + 16 * count
    if stop + 128 + details != len(data):
        return
    data[72:104] = blake3(data[stop + 128 :]).digest()
    checksum = blake3(data[:stop]).digest()
    mac = TEAM.keys.mac(b"forebay stamp v1\0", checksum)
    signed = TEAM.signer(ALICE)(b"forebay stamp v1\0" + TEAM.keys.domain + checksum + mac)
    data[stop : stop + 128] = checksum + mac + signed


@given(st.binary(max_size=300))
def test_no_bytes_are_a_stamp_by_chance(data: bytes) -> None:
    name = next(names())
    for read_it in (head_bytes, lambda name, data: open_head(name, data, None, None)):
        with pytest.raises(StoreCorrupt):
            read_it(name, data)


@pytest.mark.parametrize(
    ("writer", "day", "reason"),
    [(BOB, DAY, "copied here from another name"), (ALICE, DAY + 1, "copied here from another name")],
)
def test_a_stamp_under_another_name_is_none(writer: bytes, day: int, reason: str) -> None:
    ((_, data),) = written({1: [DAY]})
    with pytest.raises(StoreCorrupt, match=reason):
        open_head(StampName(writer, day, b"i" * 8, 1), data, TEAM.keys, TEAM)


def test_a_stranger_s_stamp_counts_for_nothing() -> None:
    name = StampName(b"m" * 16, DAY, b"i" * 8, 1)
    ((_, data),) = encode_stamps(seen({1: [DAY]}), iter([name]), 0, TEAM.keys, TEAM.signer(name.writer))
    with pytest.raises(StoreCorrupt, match="not signed by system"):
        open_head(name, data, TEAM.keys, TEAM)


def test_days_count_from_2020() -> None:
    assert day_of(1_577_836_800_000 + 86_400_000) == 1
    assert day_of(1_577_836_800_000 + 10 * 86_400_000 - 1) == 9
    assert day_of(0) == 1
    assert day_of(1 << 60) == 0xFFFF


def test_one_day_stands_for_all_records() -> None:
    assert later(np.array([5], np.uint16), np.array([0, 9], np.uint16)).tolist() == [5, 9]


def golden() -> tuple[StampName, DomainKeys, Ed25519PrivateKey, Said]:
    """Return what the golden stamp was made of."""
    said: Said = {
        0x0102030405060708: [2500],
        0x1112131415161718: [0, 2500, 2500, 0, 2499],
        0x2122232425262728: [number % 20 + 2400 for number in range(45)],
        0xFFFFFFFFFFFFFFFF: [2400, 2401] * 9,
    }
    keys = DomainKeys.of(bytes(range(16)), bytes(range(32)))
    return (
        StampName(bytes(range(16, 32)), 2500, bytes(range(8)), 3),
        keys,
        Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
        said,
    )


class OneSystem:
    """Knows one system's key."""

    def __init__(self, system: bytes, key: Ed25519PrivateKey) -> None:
        self._system, self._key = system, key.public_key()

    def verify(self, writer: bytes, message: bytes, signature: bytes) -> bool:
        self._key.verify(signature, message)
        return writer == self._system


def test_the_golden_stamp_is_read_and_would_be_written_the_same() -> None:
    name, keys, key, said = golden()
    data = GOLDEN.with_suffix(".bin").read_bytes()
    head = open_head(name, data, keys, OneSystem(name.writer, key))
    assert head.since == 2499
    details = StampDetails(head, data[head.details_at :])
    assert {int(pack): details.seen(row).days.tolist() for row, pack in enumerate(head.packs)} == said
    assert list(encode_stamps(seen(said), iter([name]), 2499, keys, key.sign)) == [(name, data)]


def test_the_golden_stamp_is_what_the_format_says() -> None:
    """Read it by the document alone, with nothing of the program."""
    data = GOLDEN.with_suffix(".bin").read_bytes()
    expected = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="ascii"))
    assert data[:12] == b"FBSTAMP\x01" + struct.pack("<HH", 1, 2500)
    count, details = struct.unpack_from("<II", data, 16)
    after = 104 + 16 * count + 128
    assert blake3(data[after:]).digest() == data[72:104]
    assert len(data) == after + details
    found = {}
    for row in range(count):
        pack, at, newest, oldest = struct.unpack_from("<QIHH", data, 104 + 16 * row)
        days = [newest]
        if at:
            records, number, zero = struct.unpack_from("<IHH", data, after + at - 1)
            assert zero == 0
            table: Sequence[int] = struct.unpack_from(f"<{number}H", data, after + at + 7)
            width = 1 if number <= 2 else 2 if number <= 4 else 4 if number <= 16 else 8
            packed = int.from_bytes(data[after + at + 7 + 2 * number :], "little")
            days = [table[packed >> width * record & (1 << width) - 1] for record in range(records)]
            assert (max(days), min(days)) == (newest, oldest)
        found[f"{pack:016x}"] = days
    assert found == expected
