"""Work done side by side, where the first error of ours ends all of it and comes out alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from engine.errors import ForebayError


async def run_workers(work: Callable[[], Awaitable[None]], count: int) -> None:
    """Run `work` in `count` tasks until all have returned. Raises: what the first of them raised."""
    await together(*[work] * count)


async def together(*works: Callable[[], Awaitable[None]]) -> None:
    """Do all of `works` side by side. Raises: what the first of them raised."""
    failure: ForebayError | None = None

    async def guarded(work: Callable[[], Awaitable[None]]) -> None:
        nonlocal failure
        try:
            await work()
        except ForebayError as error:
            failure = failure or error
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for each in works:
            group.start_soon(guarded, each)
    if failure is not None:
        raise failure
