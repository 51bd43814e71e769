"""What lives as long as one event loop of the program: connections that several stores share, closed at its end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar, cast


class Closing(Protocol):
    """What is to be closed."""

    def aclose(self) -> Awaitable[None]:
        """Close it."""
        ...


T = TypeVar("T", bound=Closing)

_kept: ContextVar[tuple[dict[Hashable, Any], AsyncExitStack]] = ContextVar("forebay_lifetime")


@asynccontextmanager
async def lifetime() -> AsyncIterator[None]:
    """Close what is made by `shared` in the body, or in tasks begun there, when the body ends."""
    async with AsyncExitStack() as stack:
        token = _kept.set(({}, stack))
        try:
            yield
        finally:
            _kept.reset(token)


def shared(key: Hashable, make: Callable[[], T]) -> T:
    """Return what was made for `key` in this lifetime; the first time, make it. Raises: LookupError outside of one."""
    kept, stack = _kept.get()
    if key not in kept:
        kept[key] = made = make()
        stack.push_async_callback(made.aclose)
    return cast("T", kept[key])
