"""Stall bounds: a call to the outside fails when it moves nothing for a time, not when it takes long.

A put of 64 MiB over a thin line takes minutes and is well; one that has moved no byte for 30 s is not
(DESIGN.md §3.2). Whoever waits sets the bound with `StallBound`; whoever moves bytes, however deep below, says
so with `moved`. An adapter that never says it has the bound for its whole call.
"""

from __future__ import annotations

from contextvars import ContextVar
from types import TracebackType

from anyio import CancelScope, current_time

_bounds: ContextVar[tuple[tuple[CancelScope, float], ...]] = ContextVar("forebay_stall_bounds", default=())


def moved() -> None:
    """Tell every stall bound around the running call that bytes have moved; from the event loop's thread only."""
    now = current_time()
    for scope, stall_s in _bounds.get():
        scope.deadline = now + stall_s


class StallBound:
    """Cancel the body once nothing has `moved` for `stall_s` seconds; `stalled` then tells so.

    Tasks started in the body report to the same bound. No async generator may yield inside the body.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._scope = CancelScope()

    @property
    def stalled(self) -> bool:
        """Whether the body was cancelled by this bound."""
        return self._scope.cancelled_caught

    def __enter__(self) -> StallBound:
        self._scope.deadline = current_time() + self._stall_s
        self._scope.__enter__()
        self._token = _bounds.set((*_bounds.get(), (self._scope, self._stall_s)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        _bounds.reset(self._token)
        return bool(self._scope.__exit__(kind, error, trace))
