"""Pins: what is written, who is believed, how much and for how long."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.block import Ids
from engine.cache import pins as module
from engine.cache.pins import COUNT_DAYS, IDS_MAX, PINS_MAX, Pinning, encode_pins, open_pins, read_pins
from engine.errors import StoreCorrupt
from engine.names import PinName, StampName
from engine.subkeys import DomainKeys
from engine.vault.identity import Identity
from tests.engine.fakes_packs import ALICE, BOB, Team
from tests.fakes import MemoryStore

pytestmark = pytest.mark.anyio
GOLDEN = Path(__file__).parents[2] / "golden" / "pins" / "v1"
TEAM = Team()
DAY_MS, START_MS = 86_400_000, 1_577_836_800_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def ids(*numbers: int) -> Ids:
    return np.array([(number % 3, number) for number in numbers], np.uint64).reshape(-1, 2)


def pinning(store: MemoryStore, writer: bytes = ALICE, day: int = 100) -> Pinning:
    identity = SimpleNamespace(keys=TEAM.keys, system=writer, signer=TEAM.signer(writer))
    return Pinning(store, cast(Identity, identity), b"i" * 8, START_MS + day * DAY_MS)


async def pinned(store: MemoryStore, day: int = 100, system: bytes = ALICE) -> tuple[list[int], list[str]]:
    found, problems = await read_pins(store, TEAM.keys, TEAM, system, START_MS + day * DAY_MS)
    return sorted(found[:, 1].tolist()), problems


def names(store: MemoryStore) -> list[str]:
    return sorted(name for name in store.objects if name.startswith("pin/"))


async def test_what_is_pinned_is_read_by_everybody_until_it_is_dropped() -> None:
    store = MemoryStore()
    assert await pinned(store) == ([], [])
    alice = pinning(store)
    await alice.pin(ids(5, 1, 5, 9))
    await alice.pin(ids(7))
    await pinning(store, BOB).pin(ids(1, 2))
    assert await pinned(store, system=BOB) == ([1, 2, 5, 7, 9], [])
    assert len(names(store)) == 3
    # Another process of the same system counts on, and drops what its last one left.
    again = pinning(store)
    await again.pin(ids(11))
    assert len(names(store)) == 4
    await again.drop()
    assert await pinned(store) == ([1, 2], [])


async def test_pins_of_a_system_that_is_gone_count_until_it_showed_no_sign_of_life_for_long() -> None:
    store = MemoryStore()
    await pinning(store, BOB, 100).pin(ids(1))
    assert (await pinned(store, 100 + COUNT_DAYS))[0] == [1]
    assert (await pinned(store, 101 + COUNT_DAYS))[0] == []
    assert (await pinned(store, 101 + COUNT_DAYS, system=BOB))[0] == [1], "its own count, whatever their age"
    # A stamp is a sign of life, and only its name is looked at.
    store.objects[str(StampName(BOB, 150, b"i" * 8, 1))] = b""
    assert (await pinned(store, 150 + COUNT_DAYS))[0] == [1]
    assert (await pinned(store, 151 + COUNT_DAYS))[0] == []
    # A day that is to come is none.
    store.objects.clear()
    await pinning(store, BOB, 60_000).pin(ids(1))
    assert (await pinned(store, 100 + COUNT_DAYS))[0] == []


async def test_what_a_system_may_pin_is_bounded_for_itself_and_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    alice = pinning(store)
    monkeypatch.setattr(module, "IDS_MAX", 10)
    monkeypatch.setattr(module, "PINNED_MAX", 12)
    await alice.pin(ids(*range(8)))
    await alice.pin(ids(*range(8, 20)))
    assert alice.left_out == 10
    assert len((await pinned(store))[0]) == 10
    # With a second one that pins each has half of what all may pin together.
    await pinning(store, BOB).pin(ids(*range(100, 109)))
    found, problems = await pinned(store)
    assert len([number for number in found if number < 100]) == len([number for number in found if number >= 100]) == 6
    assert [ALICE.hex() in problem or BOB.hex() in problem for problem in problems] == [True, True]


async def test_pins_that_were_never_dropped_do_not_become_ever_more() -> None:
    store = MemoryStore()
    for number in range(PINS_MAX + 20):
        await pinning(store).pin(ids(number))
    assert len(names(store)) == PINS_MAX
    assert (await pinned(store))[0] == list(range(20, PINS_MAX + 20))


async def test_pins_of_strangers_are_ignored_and_of_members_damaged_ones_are_not() -> None:
    store = MemoryStore()
    stranger = b"s" * 16
    await pinning(store, stranger).pin(ids(1))
    assert await pinned(store) == ([], [])
    await pinning(store, BOB).pin(ids(2))
    (name,) = (name for name in names(store) if BOB.hex() in name)
    data = store.objects[name]
    for wrong in (
        data[:-1], data + b"x", data[:70] + b"x" + data[71:], b"", b"X" + data[1:],
        encode_pins(PinName(BOB, b"i" * 8, 2), 100, ids(2), TEAM.keys, TEAM.signer(BOB)),
        encode_pins(PinName(BOB, b"i" * 8, 1), 100, ids(2), TEAM.keys, TEAM.signer(stranger)),
        encode_pins(PinName(BOB, b"i" * 8, 1), 100, ids(2), DomainKeys.of(b"o" * 16, b"other!" * 6), TEAM.signer(BOB)),
    ):  # fmt: skip
        store.objects[name] = wrong
        with pytest.raises(StoreCorrupt) as caught:
            await pinned(store)
        assert caught.value.name == name


def test_what_is_pinned_fits_into_what_is_read() -> None:
    many = np.stack((np.arange(IDS_MAX, dtype=np.uint64), np.zeros(IDS_MAX, np.uint64)), axis=1)
    name = PinName(ALICE, b"i" * 8, 1)
    data = encode_pins(name, 1, many, TEAM.keys, TEAM.signer(ALICE))
    assert len(open_pins(name, data, TEAM.keys, TEAM).ids) == IDS_MAX


def golden() -> tuple[PinName, DomainKeys, Ed25519PrivateKey, Sequence[int]]:
    """Return what the golden pins were made of."""
    keys = DomainKeys.of(bytes(range(16)), bytes(range(32)))
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    return PinName(bytes(range(16, 32)), bytes(range(8)), 3), keys, key, [5, 1, 4, 2, 9]


class OneSystem:
    """Knows one system's key."""

    def __init__(self, system: bytes, key: Ed25519PrivateKey) -> None:
        self._system, self._key = system, key.public_key()

    def verify(self, writer: bytes, message: bytes, signature: bytes) -> bool:
        self._key.verify(signature, message)
        return writer == self._system


def test_the_golden_pins_are_read_and_would_be_written_the_same() -> None:
    name, keys, key, numbers = golden()
    data = GOLDEN.with_suffix(".bin").read_bytes()
    found = open_pins(name, data, keys, OneSystem(name.writer, key))
    assert (found.day, sorted(found.ids[:, 1].tolist())) == (2500, sorted(numbers))
    assert encode_pins(name, 2500, ids(*numbers), keys, key.sign) == data


def test_the_golden_pins_are_what_the_format_says() -> None:
    """Read them by the document alone, with nothing of the program."""
    data = GOLDEN.with_suffix(".bin").read_bytes()
    expected = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="ascii"))
    assert data[:12] == b"FBPIN\0\0\x01" + struct.pack("<HH", 1, 2500)
    (count,) = struct.unpack_from("<I", data, 12)
    assert data[16:32] == bytes(range(16))
    assert data[32:56] == bytes(range(16, 32)) + bytes(range(8))
    assert struct.unpack_from("<II", data, 56) == (3, 0)
    assert [data[64 + 16 * row : 80 + 16 * row].hex() for row in range(count)] == expected
    stop = 64 + 16 * count
    assert len(data) == stop + 128
    assert data[stop : stop + 32] == blake3(data[:stop]).digest()
