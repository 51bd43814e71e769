"""Stall bounds: a call fails when nothing moves, not when it takes long."""

from __future__ import annotations

import anyio
import pytest

from engine.liveness import StallBound, moved
from tests.engine.pipeline.fakes_pipeline import run


def test_a_body_that_moves_nothing_is_cancelled_after_the_bound() -> None:
    async def scenario() -> None:
        with StallBound(30) as bound:
            await anyio.sleep_forever()
        assert bound.stalled
        assert anyio.current_time() == 30

    run(scenario)


def test_every_move_starts_the_bound_anew() -> None:
    async def scenario() -> None:
        with StallBound(30) as bound:
            for _ in range(3):
                await anyio.sleep(20)
                moved()
            await anyio.sleep_forever()
        assert bound.stalled
        assert anyio.current_time() == 90

    run(scenario)


def test_a_body_that_ends_in_time_is_left_alone() -> None:
    async def scenario() -> None:
        with StallBound(30) as bound:
            await anyio.sleep(29)
        await anyio.sleep(100)
        assert not bound.stalled
        moved()

    run(scenario)


def test_an_error_of_the_body_passes() -> None:
    async def scenario() -> None:
        with pytest.raises(KeyError), StallBound(30):
            raise KeyError

    run(scenario)


def test_moves_reach_every_bound_around_and_from_tasks_inside_but_none_beside() -> None:
    async def scenario() -> None:
        ends: dict[str, float] = {}

        async def beside() -> None:
            with StallBound(30):
                await anyio.sleep_forever()
            ends["beside"] = anyio.current_time()

        async def move_twice() -> None:
            for _ in range(2):
                await anyio.sleep(20)
                moved()

        async with anyio.create_task_group() as group:
            group.start_soon(beside)
            with StallBound(25):
                with StallBound(30):
                    async with anyio.create_task_group() as inner:
                        inner.start_soon(move_twice)
                        await anyio.sleep_forever()
                ends["inner"] = anyio.current_time()
            ends["outer"] = anyio.current_time()
        assert ends == {"outer": 65, "beside": 30}

    run(scenario)
