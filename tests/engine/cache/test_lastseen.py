"""When records were last seen, out of the stamps of several systems: what any of them said, and never an older day."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.lastseen import LISTINGS_MAX, StampedDays
from engine.cache.stamping import Stamping
from engine.cache.stamps import Seen
from engine.cache.trim import MIXED
from engine.cache.trimplan import Days
from engine.errors import StoreCorrupt, StoreUnavailable
from engine.ports import ObjectStore
from engine.vault.identity import Identity
from tests.engine.fakes_packs import ALICE, BOB, Team
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

pytestmark = pytest.mark.anyio
CAROL = b"c" * 16
TEAM = Team(members=[ALICE, BOB, CAROL])
DAY_MS = 86_400_000
START_MS = 1_577_836_800_000
COUNTS = {1: 3, 2: 9, 3: 1, 9: 40, 12: 2}  # records of each pack
KEYS = np.array(sorted(COUNTS), np.uint64)
EVERY = np.array([COUNTS[key] for key in sorted(COUNTS)])
LAST = 120


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def stamping(store: ObjectStore, writer: bytes, day: int) -> Stamping:
    identity = SimpleNamespace(keys=TEAM.keys, system=writer, signer=TEAM.signer(writer))
    return Stamping(store, cast(Identity, identity), TEAM, b"i" * 8, START_MS + day * DAY_MS)


def told(records: dict[tuple[int, int], int]) -> list[Seen]:
    """Return what says of (pack, record) that it was seen on a day."""
    said = []
    for key, count in sorted(COUNTS.items()):
        days = np.array([records.get((key, record), 0) for record in range(count)], np.uint16)
        if days.any():
            said.append(Seen(key, days[:1] if (days == days[0]).all() else days))
    return said


def last_seen(store: ObjectStore, last: int = LAST, believed: int = 150) -> StampedDays:
    return StampedDays(stamping(store, ALICE, 150), believed, last)


RECORDS = [(key, record) for key, count in COUNTS.items() for record in range(count)]
stamps = st.tuples(
    st.sampled_from([ALICE, BOB, CAROL]),
    st.integers(100, 140),
    st.dictionaries(st.sampled_from(RECORDS), st.integers(1, 100), max_size=30),
    st.sets(st.sampled_from(sorted(COUNTS)), max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(stamps, max_size=8), st.sampled_from([0, 101, LAST, 200]), st.sampled_from([99, 115, 130, 150, 65535]))
def test_what_any_system_says_of_a_record_counts_but_for_days_to_come(
    drawn: list[tuple[bytes, int, dict[tuple[int, int], int], set[int]]], last: int, believed: int
) -> None:
    async def main() -> None:
        store, model = MemoryStore(), dict.fromkeys(RECORDS, 0)
        floors = dict.fromkeys(COUNTS, 0)  # of each pack, the greatest day by which one stamp saw all of it
        for writer, day, records, whole in drawn:
            said = {record: day - back + 1 for record, back in records.items()}
            said |= {(key, record): day for key in whole for record in range(COUNTS[key])}
            await stamping(store, writer, day).add((), told(said))
            said = {record: when for record, when in said.items() if when <= believed}
            model |= {record: max(model[record], when) for record, when in said.items()}
            for key, count in COUNTS.items():
                floors[key] = max(floors[key], min(said.get((key, record), 0) for record in range(count)))
        seen = last_seen(store, last, believed)
        days = (await seen.packs(KEYS)).tolist()
        for key, day in zip(KEYS.tolist(), days, strict=True):
            expected = {model[key, record] for record in range(COUNTS[key])}
            if min(expected) > last and day != MIXED:
                assert last < max(expected) <= day <= believed
            elif day != MIXED:
                assert {day} == expected
            else:
                # What several stamps say of parts of a pack only its records tell.
                assert floors[key] <= last
                assert floors[key] < max(expected) or believed < 140
        # Asked again of any of them; of protected packs some protected day is enough.
        for rows in ([0, 1, 2, 3, 4], [3], [0, 4]):
            found = (await seen.records(KEYS[rows], EVERY[rows])).tolist()
            exact = [model[key, record] for key in KEYS[rows].tolist() for record in range(COUNTS[key])]
            assert [min(day, last + 1) for day in found] == [min(day, last + 1) for day in exact]
        assert seen.problems == []

    anyio.run(main)


async def some(store: MemoryStore) -> None:
    """Bob saw all of packs 1 and 2 long ago, and Carol one record of pack 2 later."""
    await stamping(store, BOB, 100).add((), told({(k, r): 100 for k in (1, 2) for r in range(COUNTS[k])}))
    await stamping(store, CAROL, 119).add((), told({(2, 4): 110, (2, 5): 119}))


def days(found: Days) -> list[int]:
    return [int(day) for day in found]


async def test_days_to_come_are_not_believed_and_others_in_the_same_stamp_are() -> None:
    store = MemoryStore()
    await some(store)
    assert days(await last_seen(store).packs(KEYS)) == [100, MIXED, 0, 0, 0]
    seen = last_seen(store, believed=115)
    assert days(await seen.packs(KEYS)) == [100, MIXED, 0, 0, 0]
    assert days(await seen.records(KEYS[[1]], EVERY[[1]])) == [100] * 4 + [110] + [100] * 4
    assert days(await last_seen(store, believed=99).packs(KEYS)) == [0, MIXED, 0, 0, 0]
    # Asked again, it begins anew.
    for _ in range(2):
        await seen.packs(KEYS[:3])
        assert days(await seen.records(KEYS[[1, 2]], EVERY[[1, 2]])) == [100] * 4 + [110] + [100] * 4 + [0]


async def test_no_packs_at_all_are_no_trouble() -> None:
    store = MemoryStore()
    await some(store)
    none = np.empty(0, np.uint64)
    seen = last_seen(store)
    assert days(await seen.packs(none)) == days(await seen.records(none, np.empty(0, np.int64))) == []


async def test_a_damaged_stamp_of_the_protected_days_is_told_and_an_older_one_passed_over() -> None:
    store = MemoryStore()
    await some(store)
    name = next(name for name in store.objects if CAROL.hex() in name)
    store.objects[name] = store.objects[name][:50] + b"?" + store.objects[name][51:]
    seen = last_seen(store)
    assert days(await seen.packs(KEYS)) == [100, 100, 0, 0, 0]
    assert [name in problem for problem in seen.problems] == [True]
    with pytest.raises(StoreCorrupt, match=name):
        await last_seen(store, last=118).packs(KEYS)
    # Of a clock that ran ahead nobody waits until its day has come.
    seen = last_seen(store, last=100, believed=118)
    await seen.packs(KEYS)
    assert [name in problem for problem in seen.problems] == [True]


@pytest.mark.parametrize("damaged", [True, False])
async def test_details_that_are_damaged_or_gone_count_as_the_newest_day_in_them(damaged: bool) -> None:
    store = MemoryStore()
    await some(store)
    name = next(name for name in store.objects if CAROL.hex() in name)
    seen = last_seen(store)
    await seen.packs(KEYS)
    if damaged:
        store.objects[name] = store.objects[name][:-1] + b"?"
    else:
        await store.delete(name)
    assert days(await seen.records(KEYS[[1]], EVERY[[1]])) == [119] * 9
    assert len(seen.problems) == damaged


async def test_a_stamp_that_counts_records_differently_counts_for_all_of_them() -> None:
    store = MemoryStore()
    await some(store)
    await stamping(store, ALICE, 115).add((), [Seen(2, np.array([115, 0, 0], np.uint16))])
    seen = last_seen(store)
    await seen.packs(KEYS)
    assert days(await seen.records(KEYS[[1]], EVERY[[1]])) == [115] * 5 + [119] + [115] * 3


async def test_stamps_renewed_while_they_are_read_are_read_again() -> None:
    store = MemoryStore()
    await some(store)
    (old,) = [name for name in store.objects if CAROL.hex() in name]
    plan, go = FaultPlan(), anyio.Event()
    reached = plan.stall("get", 1, go, prefix=f"stamp/{CAROL.hex()}/")
    seen = last_seen(FaultyStore(store, plan))
    found: list[list[int]] = []

    async def read() -> None:
        found.append(days(await seen.packs(KEYS)))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        await reached.wait()
        await stamping(store, CAROL, 125).renew((), told=told({(3, 0): 125}))
        assert old not in store.objects
        go.set()
    assert found == [[100, MIXED, 125, 0, 0]]
    assert days(await seen.records(KEYS[[1]], EVERY[[1]])) == [100] * 4 + [110, 119] + [100] * 3


async def test_stamps_that_never_stand_still_are_not_waited_for_for_ever() -> None:
    class Restless(MemoryStore):
        day = 125

        async def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
            await self.delete(name)
            self.day += 1
            await stamping(self, CAROL, self.day).add((), told({(3, 0): 125}))
            return await super().get(name, offset, length)

    store = Restless()
    await some(store)
    with pytest.raises(StoreUnavailable, match=f"changed {LISTINGS_MAX} times"):
        await last_seen(store).packs(KEYS)


async def test_packs_stamped_since_they_were_asked_for_are_told() -> None:
    store = MemoryStore()
    await some(store)
    seen = last_seen(store)
    await seen.packs(KEYS)
    assert not (await seen.since(KEYS)).any()
    await stamping(store, BOB, 130).add((), told({(2, 0): 130, (3, 0): 110}))
    assert (await seen.since(KEYS[:2])).tolist() == [False, True]
    # Later steps ask of other packs.
    await stamping(store, ALICE, 130).add((), told({(9, 0): 130}))
    assert (await seen.since(KEYS)).tolist() == [False, True, False, True, False]
