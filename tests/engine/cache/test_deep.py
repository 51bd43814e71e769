"""Which packs are read, and in which order."""

from __future__ import annotations

import numpy as np

from engine.cache.checks import READ_AGAIN_DAYS, READ_MYSELF_DAYS
from engine.cache.deep import plan, with_read
from engine.upkeep import CheckedPacks
from tests.engine.cache.test_comparison import as_pack, view
from tests.engine.fakes_packs import ALICE, BOB

TODAY = 2500


def keys(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.array(sorted(values), np.uint64)


def checked(days: dict[int, int]) -> CheckedPacks:
    return CheckedPacks(keys(*days), np.array([days[key] for key in sorted(days)], np.uint16))


def test_own_packs_are_read_in_turn_and_others_that_are_used_after_thirty_days() -> None:
    packs = [as_pack(ALICE, 1, [(1, 1)]), as_pack(ALICE, 2, [(2, 2)]), as_pack(ALICE, 3, [(3, 3)])]
    others = [as_pack(BOB, 4, [(4, 4)]), as_pack(BOB, 5, [(5, 5)]), as_pack(BOB, 6, [(6, 6)])]
    views = [view(pack, number) for number, pack in enumerate([*packs, *others], 1)]
    one, two, gone = (pack.name.key for pack in packs)
    used, lately, unused = (pack.name.key for pack in others)
    present = keys(one, two, used, lately, unused)
    days = {one: TODAY - 1, two: TODAY - 2, used: TODAY - READ_AGAIN_DAYS, lately: TODAY - READ_AGAIN_DAYS + 1}
    found = plan(views, present, keys(used, lately), checked(days), checked({}), TODAY)
    assert found.keys.tolist() == [used, two, one]
    assert gone not in found.keys.tolist()
    assert unused not in found.keys.tolist()
    size = packs[0].name.size
    assert found.total_bytes == 3 * size
    assert found.within(0).tolist() == []
    assert found.within(-5).tolist() == []
    assert found.within(1).tolist() == [used]
    assert found.within(size).tolist() == [used]
    assert found.within(size + 1).tolist() == [used, two]
    assert found.within(9 * size).tolist() == [used, two, one]
    after = with_read(checked(days), found.within(size), TODAY, present)
    assert dict(zip(after.keys.tolist(), after.days.tolist(), strict=True)) == {**days, used: TODAY}
    assert plan(views, present, keys(used, lately), after, checked({}), TODAY).keys.tolist() == [two, one]


def test_packs_that_are_gone_are_forgotten() -> None:
    after = with_read(checked({1: 5, 2: 6}), keys(3), TODAY, keys(2, 3))
    assert dict(zip(after.keys.tolist(), after.days.tolist(), strict=True)) == {2: 6, 3: TODAY}
    assert plan([], keys(), keys(), after, checked({}), TODAY).within(100).tolist() == []


def test_what_others_read_lately_waits_but_not_for_ever() -> None:
    pack = as_pack(BOB, 4, [(4, 4)])
    key, views = pack.name.key, [view(pack, 1)]

    def due(mine: int, theirs: int) -> bool:
        found = plan(views, keys(key), keys(key), checked({key: mine}), checked({key: theirs}), TODAY)
        return bool(found.keys.tolist() == [key])

    assert due(0, 0)
    assert due(0, TODAY), "read by this system never"
    assert not due(TODAY - READ_MYSELF_DAYS + 1, TODAY - READ_AGAIN_DAYS + 1)
    assert due(TODAY - READ_MYSELF_DAYS + 1, TODAY - READ_AGAIN_DAYS)
    assert due(TODAY - READ_MYSELF_DAYS, TODAY)
    assert not due(TODAY - READ_AGAIN_DAYS + 1, 0)
