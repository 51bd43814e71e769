"""A bounded number of workers on one list of work, where the first error of ours ends them all and comes out alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from engine.errors import ForebayError


async def run_workers(work: Callable[[], Awaitable[None]], count: int) -> None:
    """Run `work` in `count` tasks until all have returned. Raises: what the first of them raised."""
    failure: ForebayError | None = None

    async def guarded() -> None:
        nonlocal failure
        try:
            await work()
        except ForebayError as error:
            failure = failure or error
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(guarded)
    if failure is not None:
        raise failure
