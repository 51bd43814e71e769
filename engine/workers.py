"""Work done side by side, where the first error of ours ends all of it and comes out alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import anyio

from engine.errors import ForebayError

T = TypeVar("T")


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


async def read_ahead(
    sizes: Sequence[int],
    read: Callable[[int], Awaitable[T]],
    take: Callable[[int, T], Awaitable[None]],
    enough: Callable[[], bool] = lambda: False,
    *,
    bytes_max: int,
    at_once: int,
) -> int:
    """Read things of these sizes side by side, and have each taken in its order, one after the other.

    `read` and `take` are told the position. What is being read, or waits to be taken, has `bytes_max` bytes together
    (or is a single one), and is no more than `at_once` things. Where `enough` tells so, no other is begun. Return how
    many were taken. Raises: what the first of `read` and `take` raised.
    """
    begun = taken = held = 0
    changed = anyio.Condition()

    async def work() -> None:
        nonlocal begun, taken, held
        while True:
            async with changed:
                while begun < len(sizes) and not enough() and held and held + sizes[begun] > bytes_max:
                    await changed.wait()
                if begun == len(sizes) or enough():
                    return
                number, begun = begun, begun + 1
                held += sizes[number]
            what = await read(number)
            async with changed:
                while taken < number:
                    await changed.wait()
            await take(number, what)
            del what  # what is begun next has its room
            async with changed:
                taken, held = taken + 1, held - sizes[number]
                changed.notify_all()

    await run_workers(work, min(at_once, len(sizes)))
    return taken
