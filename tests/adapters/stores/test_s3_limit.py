"""How many puts run at once: pure decisions, and the places they give."""

from __future__ import annotations

import anyio
import pytest

from adapters.stores.s3limit import LEAST, MOST, START, PutLimit, Rounds

MIB = 1 << 20


def run_round(rounds: Rounds, now_s: float, rate: float, *, contended: bool = True) -> float:
    """Feed a round at `rate` bytes a second; return when it ended."""
    for _ in range(rounds.limit):
        now_s += 16 * MIB / rate
        rounds.ended(16 * MIB, now_s, contended=contended)
    return now_s


def driven(rate_of: dict[int, float] | None, count: int = 60) -> list[int]:
    """Return the limits of `count` rounds on a link that gives `rate_of[limit]`, or as much as puts ask for."""
    rounds, now_s, seen = Rounds(), 0.0, []
    rounds.ended(1, now_s, contended=True)
    for _ in range(count):
        rate = (rate_of or {}).get(rounds.limit, rounds.limit * 10e6)
        now_s = run_round(rounds, now_s, rate)
        seen.append(rounds.limit)
    return seen


def test_it_begins_with_four() -> None:
    assert (Rounds().limit, START) == (4, 4)


def test_a_link_that_gives_more_to_more_puts_gets_sixteen() -> None:
    seen = driven(None)
    assert max(seen) == MOST == seen[-1]


def test_a_link_that_is_full_is_tried_with_more_now_and_then_and_keeps_what_it_has() -> None:
    full = dict.fromkeys(range(1, 17), 20e6)
    seen = driven(full)
    assert set(seen) <= {START - 2, START, START + 2}
    assert seen.count(START + 2) < len(seen) / 4


def test_a_link_that_slows_down_with_more_puts_is_left_at_its_best() -> None:
    rate = {2: 20e6, 4: 40e6, 6: 60e6, 8: 50e6, 10: 30e6}
    assert max(driven(rate)[4:]) <= 8


def test_puts_that_nobody_waits_behind_say_nothing_about_the_limit() -> None:
    rounds = Rounds()
    now_s = 0.0
    for _ in range(50):
        now_s = run_round(rounds, now_s, 1e9, contended=False)
    assert rounds.limit == START


def test_being_asked_to_slow_down_halves_once_for_all_that_were_on_their_way() -> None:
    rounds = Rounds()
    rounds.limit = 16
    for began_s in (1.0, 1.5, 2.0):
        rounds.throttled(began_s, 3.0)
    assert rounds.limit == 8
    rounds.throttled(3.5, 4.0)
    assert rounds.limit == 4
    for at in range(10):
        rounds.throttled(5.0 + at, 5.5 + at)
    assert rounds.limit == LEAST


def test_after_a_throttling_it_grows_again() -> None:
    rounds = Rounds()
    rounds.limit = 2
    rounds.throttled(1.0, 2.0)
    now_s = 3.0
    for _ in range(60):
        now_s = run_round(rounds, now_s, rounds.limit * 10e6)
    assert rounds.limit == MOST


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_no_more_puts_run_than_there_are_places_and_all_get_one() -> None:
    limit = PutLimit(lambda: 0.0)
    limit.rounds.limit = 3
    running = most = done = 0

    async def put() -> None:
        nonlocal running, most, done
        async with limit.place(1):
            running += 1
            most = max(most, running)
            await anyio.lowlevel.checkpoint()
            running -= 1
            done += 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(put)
    assert (most, done) == (3, 20)


@pytest.mark.anyio
async def test_one_who_is_cancelled_while_waiting_or_when_it_is_his_turn_costs_nobody_a_place() -> None:
    limit = PutLimit(lambda: 0.0)
    limit.rounds.limit = 1
    entered = 0

    async def put(scope: anyio.CancelScope) -> None:
        nonlocal entered
        with scope:
            async with limit.place(1):
                entered += 1

    scopes = [anyio.CancelScope() for _ in range(4)]
    async with anyio.create_task_group() as group:
        async with limit.place(1):
            for scope in scopes:
                group.start_soon(put, scope)
            await anyio.wait_all_tasks_blocked()
            scopes[1].cancel()
            await anyio.wait_all_tasks_blocked()
        scopes[0].cancel()  # it is his turn, and he has not run since
    with anyio.fail_after(30):
        async with limit.place(1):
            assert entered >= 2


@pytest.mark.anyio
async def test_one_who_waits_behind_puts_that_get_on_is_not_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.stores.s3limit.LOOK_S", 0.001)
    limit = PutLimit(lambda: 0.0)
    limit.rounds.limit = 1
    looks = 0

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            group.cancel_scope.cancel()
        limit.moves += 1

    monkeypatch.setattr("adapters.stores.s3limit.moved", look)
    async with limit.place(1), anyio.create_task_group() as group:
        group.start_soon(limit._acquire)
        await anyio.wait_all_tasks_blocked()
        limit.moves += 1
    assert looks == 5
