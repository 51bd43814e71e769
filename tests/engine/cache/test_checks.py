"""What systems tell each other of packs they have read: who is believed, for how long, and what is kept."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.cache import checks as module
from engine.cache.checks import (
    CHECKED_MAX,
    CHECKS_READ_MAX,
    checked_by_others,
    encode_checks,
    open_checks,
    tell_checks,
    without,
)
from engine.errors import StoreCorrupt
from engine.names import CheckedName
from engine.subkeys import DomainKeys
from engine.upkeep import CheckedPacks
from engine.vault.identity import Identity
from tests.engine.fakes_packs import ALICE, BOB, Team
from tests.fakes import MemoryStore

pytestmark = pytest.mark.anyio
GOLDEN = Path(__file__).parents[2] / "golden" / "checks" / "v1"
TEAM = Team()
TODAY = 2500


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def checked(days: dict[int, int]) -> CheckedPacks:
    return CheckedPacks(np.array(sorted(days), np.uint64), np.array([days[key] for key in sorted(days)], np.uint16))


def as_days(found: CheckedPacks) -> dict[int, int]:
    return dict(zip(found.keys.tolist(), found.days.tolist(), strict=True))


async def tell(store: MemoryStore, writer: bytes, days: dict[int, int], today: int = TODAY) -> None:
    identity = SimpleNamespace(keys=TEAM.keys, system=writer, signer=TEAM.signer(writer))
    await tell_checks(store, cast(Identity, identity), b"i" * 8, checked(days), today)


async def heard(store: MemoryStore, *used: int, system: bytes = ALICE, today: int = TODAY) -> dict[int, int]:
    return as_days(await checked_by_others(store, TEAM.keys, TEAM, system, np.array(used, np.uint64), today))


async def test_what_others_read_within_thirty_days_is_heard_of_packs_that_are_used() -> None:
    store = MemoryStore()
    assert await heard(store, 1, 2) == {}
    await tell(store, BOB, {1: TODAY, 2: TODAY - 29, 3: TODAY - 30, 4: TODAY - 1})
    await tell(store, ALICE, {3: TODAY})
    assert await heard(store, 1, 2, 3) == {1: TODAY, 2: TODAY - 29}
    assert await heard(store) == {}
    assert await heard(store, 1, 2, 3, 4, system=BOB) == {3: TODAY}
    # What is older is not told at all, and what is to come is not believed.
    assert await heard(store, 1, today=TODAY - 1) == {}
    # The new one takes the place of the old one.
    await tell(store, BOB, {2: TODAY + 1}, TODAY + 1)
    assert len([name for name in store.objects if name.startswith(f"checked/{BOB.hex()}/")]) == 1
    assert await heard(store, 1, 2, today=TODAY + 1) == {2: TODAY + 1}


async def test_who_is_no_member_or_forges_tells_nothing() -> None:
    store = MemoryStore()
    stranger = b"s" * 16
    await tell(store, stranger, {1: TODAY})
    assert await heard(store, 1) == {}
    name = CheckedName(BOB, b"i" * 8, 1)
    good = encode_checks(name, checked({1: TODAY, 2: TODAY}), TEAM.keys, TEAM.signer(BOB))
    wrong_order = CheckedPacks(np.array([2, 1], np.uint64), np.array([TODAY] * 2, np.uint16))
    other = DomainKeys.of(b"o" * 16, b"other!" * 6)
    for wrong in (
        good[:-1], good + b"x", good[:66] + b"x" + good[67:], b"", b"X" + good[1:],
        encode_checks(name, wrong_order, TEAM.keys, TEAM.signer(BOB)),
        encode_checks(CheckedName(BOB, b"i" * 8, 2), checked({1: TODAY}), TEAM.keys, TEAM.signer(BOB)),
        encode_checks(name, checked({1: TODAY}), TEAM.keys, TEAM.signer(stranger)),
        encode_checks(name, checked({1: TODAY}), other, TEAM.signer(BOB)),
    ):  # fmt: skip
        store.objects[str(name)] = wrong
        assert await heard(store, 1) == {}
        with pytest.raises(StoreCorrupt):
            open_checks(name, wrong, TEAM.keys, TEAM)
    store.objects[str(name)] = good
    assert await heard(store, 1) == {1: TODAY}


async def test_of_too_many_those_read_last_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    monkeypatch.setattr(module, "CHECKED_MAX", 2)
    await tell(store, BOB, {1: TODAY, 2: TODAY - 9, 3: TODAY - 1})
    assert await heard(store, 1, 2, 3) == {1: TODAY, 3: TODAY - 1}
    many = CheckedPacks(np.arange(CHECKED_MAX, dtype=np.uint64), np.zeros(CHECKED_MAX, np.uint16))
    assert len(encode_checks(CheckedName(BOB, b"i" * 8, 1), many, TEAM.keys, TEAM.signer(BOB))) <= CHECKS_READ_MAX


def test_damaged_packs_are_not_told_of() -> None:
    assert as_days(without(checked({1: 5, 2: 6, 3: 7}), np.array([2, 9], np.uint64))) == {1: 5, 3: 7}


def golden() -> tuple[CheckedName, DomainKeys, Ed25519PrivateKey, dict[int, int]]:
    """Return what the golden checks were made of."""
    keys = DomainKeys.of(bytes(range(16)), bytes(range(32)))
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    days = {0x0102030405060708: 2500, 0x1112131415161718: 2471, 0xFFFFFFFFFFFFFFFF: 2499}
    return CheckedName(bytes(range(16, 32)), bytes(range(8)), 3), keys, key, days


class OneSystem:
    """Knows one system's key."""

    def __init__(self, system: bytes, key: Ed25519PrivateKey) -> None:
        self._system, self._key = system, key.public_key()

    def verify(self, writer: bytes, message: bytes, signature: bytes) -> bool:
        self._key.verify(signature, message)
        return writer == self._system


def test_the_golden_checks_are_read_and_would_be_written_the_same() -> None:
    name, keys, key, days = golden()
    data = GOLDEN.with_suffix(".bin").read_bytes()
    assert as_days(open_checks(name, data, keys, OneSystem(name.writer, key))) == days
    assert encode_checks(name, checked(days), keys, key.sign) == data


def test_the_golden_checks_are_what_the_format_says() -> None:
    """Read them by the document alone, with nothing of the program."""
    data = GOLDEN.with_suffix(".bin").read_bytes()
    expected = json.loads(GOLDEN.with_suffix(".json").read_text(encoding="ascii"))
    assert data[:12] == b"FBCHECK\x01" + struct.pack("<HH", 1, 0)
    (count,) = struct.unpack_from("<I", data, 12)
    assert data[16:56] == bytes(range(16)) + bytes(range(16, 32)) + bytes(range(8))
    assert struct.unpack_from("<II", data, 56) == (3, 0)
    packs = struct.unpack_from(f"<{count}Q", data, 64)
    days = struct.unpack_from(f"<{count}H", data, 64 + 8 * count)
    assert {f"{pack:016x}": day for pack, day in zip(packs, days, strict=True)} == expected
    stop = 64 + 10 * count
    assert len(data) == stop + 128
    assert data[stop : stop + 32] == blake3(data[:stop]).digest()
