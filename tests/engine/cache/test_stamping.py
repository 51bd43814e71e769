"""Stamps of several systems in one cache: what each says stays true, and there are never many of one system."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.cache.stamping
from engine.cache.packbits import PackBits
from engine.cache.stamping import OWN_STAMPS_MAX, OlderStamps, Stamping, _oldest_of
from engine.cache.stamps import Seen, encode_stamps, merged
from engine.names import StampName
from engine.scratch import MemoryScratch
from engine.vault.identity import Identity
from tests.engine.fakes_packs import ALICE, BOB, Team
from tests.fakes import MemoryStore

pytestmark = pytest.mark.anyio
TEAM = Team()
DAY_MS = 86_400_000
START_MS = 1_577_836_800_000
COUNTS = {1: 3, 2: 9, 3: 1, 9: 40}  # records of each pack


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Cut(Exception):
    """The power went."""


Model = dict[tuple[int, int], int]  # (pack, record) → newest day


def stamping(store: MemoryStore, writer: bytes, day: int) -> Stamping:
    identity = SimpleNamespace(keys=TEAM.keys, system=writer, signer=TEAM.signer(writer))
    return Stamping(store, cast(Identity, identity), TEAM, b"i" * 8, START_MS + day * DAY_MS)


def bits(records: set[tuple[int, int]]) -> list[PackBits]:
    found = PackBits.none()
    for pack in sorted({pack for pack, _ in records}):
        flags = [(pack, record) in records for record in range(COUNTS[pack])]
        one = PackBits(
            np.array([pack], np.uint64), np.array([COUNTS[pack]], np.uint32), np.packbits(flags, bitorder="little")
        )
        found = PackBits.together([found, one])
    return [found]


async def said(store: MemoryStore, writer: bytes) -> Model:
    """Return what the stamps of a system say."""
    reader = stamping(store, writer, 1)
    found: Model = {}
    for name in (await reader.listed()).get(writer, []):
        head = await reader.head(name)
        details = await reader.details(head)
        for row, pack in enumerate(head.packs.tolist()):
            days = details.seen(row).days.tolist()
            for record in range(COUNTS[pack]):
                day = days[0] if len(days) == 1 else days[record]
                if day:
                    found[pack, record] = max(found.get((pack, record), 0), day)
    return found


records = st.sets(st.sampled_from([(pack, record) for pack, count in COUNTS.items() for record in range(count)]))
steps = st.lists(st.tuples(st.sampled_from(["add", "renew"]), records, st.integers(0, 3)), max_size=12)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_the_latest_day_of_each_record_is_kept_however_it_is_written(
    drawn: list[tuple[str, set[tuple[int, int]], int]],
) -> None:
    anyio.run(written_and_read, drawn)


async def written_and_read(drawn: list[tuple[str, set[tuple[int, int]], int]]) -> None:
    store, model, day = MemoryStore(barrier=True), Model(), 100
    for how, seen, days in drawn:
        day += days
        one = stamping(store, ALICE, day)
        problems = await (one.add(bits(seen)) if how == "add" else one.renew(bits(seen), np.array(sorted(COUNTS))))
        assert problems == []
        store.power_cut()
        model.update(dict.fromkeys(seen, day))
        assert await said(store, ALICE) == model
        if how == "renew":
            assert len(store.objects) == bool(model)


async def test_there_are_never_many_stamps_of_one_system() -> None:
    store = MemoryStore()
    for day in range(100, 100 + 3 * OWN_STAMPS_MAX):
        assert await stamping(store, ALICE, day).add(bits({(1, day % 3)})) == []
        assert len(store.objects) <= OWN_STAMPS_MAX
    found = await said(store, ALICE)
    assert sorted(found.values()) == [99 + 3 * OWN_STAMPS_MAX - step for step in (2, 1, 0)]


async def test_of_stamps_that_follow_each_other_one_at_a_time_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.cache.stamping, "encode_stamps", partial(encode_stamps, bytes_max=400))
    generator = np.random.default_rng(1)

    def some(packs: list[int]) -> PackBits:
        flags = generator.integers(0, 256, 3 * len(packs), dtype=np.uint8)
        return PackBits(np.array(packs, np.uint64), np.full(len(packs), 24, np.uint32), flags)

    store, first, second = MemoryStore(), some([*range(10, 90, 2)]), some([*range(11, 60, 3)])
    await stamping(store, ALICE, 100).renew([first])
    await stamping(store, ALICE, 101).add([second])
    one, older = stamping(store, ALICE, 102), OlderStamps(MemoryScratch())
    heads = await one.own_heads()
    assert len(heads) > 6
    for head in reversed(heads):
        older.add(head, await one.details(head))
    sources = older.said(200, None)
    assert len(sources) == 2
    said = {each.pack: each.days.tolist() for each in merged(sources)}
    assert [*said] == sorted({*first.keys.tolist(), *second.keys.tolist()})
    for bits, day in ((first, 100), (second, 101)):
        for row, pack in enumerate(bits.keys.tolist()):
            there = np.unpackbits(bits.bits[3 * row : 3 * row + 3], bitorder="little")
            assert all(known >= day for known, flag in zip(said[pack], there, strict=True) if flag)


async def test_what_was_said_of_packs_that_are_gone_is_forgotten() -> None:
    store = MemoryStore()
    await stamping(store, ALICE, 100).add(bits({(1, 0), (2, 0)}))
    oldest: list[int] = []
    await stamping(store, ALICE, 101).renew(bits({(3, 0)}), np.array([2, 3], np.uint64), oldest=oldest.append)
    assert await said(store, ALICE) == {(2, 0): 100, (3, 0): 101}
    await stamping(store, ALICE, 102).renew(bits({(3, 0)}), np.array([3], np.uint64), oldest=oldest.append)
    await stamping(store, ALICE, 103).renew(bits(set()), np.array([9], np.uint64), oldest=oldest.append)
    assert oldest == [100, 102, 0]


async def test_others_stamps_are_left_alone_and_who_asks_for_own_ones_reads_none_of_them() -> None:
    store = Reading()
    await stamping(store, BOB, 100).add(bits({(1, 0)}))
    await stamping(store, ALICE, 101).renew(bits({(1, 1)}))
    await stamping(store, ALICE, 101).add(bits({(2, 1)}))
    assert await said(store, BOB) == {(1, 0): 100}
    store.gets.clear()
    heads = await stamping(store, ALICE, 101).own_heads()
    assert [head.packs.tolist() for head in heads] == [[1], [2]]
    assert store.gets == [str(head.name) for head in heads]
    # One that is damaged says nothing.
    store.objects[str(heads[0].name)] = b"x" * 100
    assert [head.name for head in await stamping(store, ALICE, 101).own_heads()] == [heads[1].name]


class Reading(MemoryStore):
    """Notes what is read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.gets: list[str] = []

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        self.gets.append(name)
        return await super().get(name, offset, length)


@pytest.mark.parametrize(("said_days", "oldest"), [([[0, 0]], 0), ([[0], [7, 0], [0, 9]], 7), ([[9], [0]], 9), ([], 0)])
def test_the_oldest_day_is_of_what_has_one(said_days: list[list[int]], oldest: int) -> None:
    heard: list[int] = []
    given = [Seen(pack, np.array(days, np.uint16)) for pack, days in enumerate(said_days)]
    assert list(_oldest_of(iter(given), heard.append)) == given
    assert heard == [oldest]


async def test_a_clock_that_ran_ahead_is_taken_back_once_the_others_show_it() -> None:
    store = MemoryStore()
    await stamping(store, ALICE, 500).add(bits({(1, 0)}))
    # Alone, nobody knows which of two times is right.
    assert "behind the stamps" in (await stamping(store, ALICE, 100).renew(bits({(1, 1)})))[0]
    assert await said(store, ALICE) == {(1, 0): 500, (1, 1): 500}
    await stamping(store, BOB, 100).add(bits({(2, 0)}))
    assert await stamping(store, ALICE, 100).renew(bits({(1, 1)})) == []
    assert await said(store, ALICE) == {(1, 0): 100, (1, 1): 100}


@pytest.mark.parametrize("how", ["add", "renew"])
async def test_what_was_seen_is_not_set_back_by_a_clock_that_went_back_if_another_saw_that_day(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    carol, dave = b"c" * 16, b"d" * 16
    monkeypatch.setattr(TEAM, "members", [ALICE, BOB, carol, dave])
    store = MemoryStore()
    for writer, day in ((dave, 94), (carol, 95), (ALICE, 100), (BOB, 100)):
        await stamping(store, writer, day).add(bits({(1, 0)}))
    one = stamping(store, ALICE, 96)
    (problem,) = await (one.add(bits({(2, 0)})) if how == "add" else one.renew(bits({(2, 0)})))
    assert "4 days behind" in problem
    assert await said(store, ALICE) == {(1, 0): 100, (2, 0): 100}


async def test_a_damaged_stamp_is_named_and_replaced_and_a_strange_object_is_left_alone() -> None:
    store = MemoryStore()
    await stamping(store, ALICE, 100).add(bits({(1, 0)}))
    (name,) = store.objects
    store.objects[name] = store.objects[name][:-1] + b"x" * 9
    store.objects["stamp/readme"] = b"hello"
    stranger = str(StampName(b"m" * 16, 100, b"i" * 8, 1))
    store.objects[stranger] = b"anything"
    problems = await stamping(store, ALICE, 101).renew(bits({(1, 1)}))
    assert [name in problem for problem in problems] == [True]
    assert {"stamp/readme", stranger} < store.objects.keys()
    assert name not in store.objects
    assert await said(store, ALICE) == {(1, 1): 101}


@pytest.mark.parametrize("cut", range(6))
async def test_cut_off_anywhere_nothing_that_was_said_is_lost(cut: int) -> None:
    store = MemoryStore()
    for day in (100, 101):
        await stamping(store, ALICE, day).add(bits({(1, day % 3), (9, day % 40)}))
    before = await said(store, ALICE)
    left = cut

    def counted(real: Any) -> Any:
        async def call(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Cut
            left -= 1
            return await real(*arguments)

        return call

    broken = SimpleNamespace(
        list=store.list, get=counted(store.get), put=counted(store.put), delete=counted(store.delete)
    )
    one = stamping(cast(MemoryStore, broken), ALICE, 102)
    with suppress(Cut):
        await one.renew(bits({(2, 0)}))
    after = await said(store, ALICE)
    assert before.items() <= after.items()
    await stamping(store, ALICE, 102).renew(bits({(2, 0)}))
    assert await said(store, ALICE) == before | {(2, 0): 102}
    assert len(store.objects) == 1
