"""The route: where vault-bound blocks go now. A pure table, and one record of the way a session took through it.

Rules (DESIGN.md §3.1, §3.2):
- A session opens as VAULT, or, when the vault cannot be used or points wait in the spool, as FALLBACK.
- What is lost may come back: the route is RECONNECTING while a window for it is open, and VAULT again if it does.
- What refuses does not come back by waiting: no window opens for it, and an open one ends.
- Without a spool there is nothing to fall back to: where FALLBACK would be next, ABORTED is.
- Nothing leads from FALLBACK back to VAULT: the points of a session lie in one place, and later ones are uploaded
  in order.
- ABORTED is the end. Whatever else ends a session leads there from everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, Literal, TypeAlias

import msgspec

Route: TypeAlias = Literal["VAULT", "RECONNECTING", "FALLBACK", "ABORTED"]


class Event(Enum):
    """What happens to a session's vault."""

    LOST = "it cannot be reached, and trying again did not help"
    REFUSED = "it answers, and refuses"
    BACK = "it answers again"
    CLOSED = "the time to wait for it is over"
    BACKLOG = "earlier points wait in the spool, and points are uploaded in order"
    FAILED = "the session ends for another reason"


class IllegalEvent(Exception):
    """An event that cannot happen on this route: a bug, not the world's doing."""


class Means(msgspec.Struct, frozen=True):
    """What there is to go on with: `window`: there is time to wait for the vault; `spool`: there is a spool."""

    window: bool
    spool: bool


# The routes an event leads to, the best first; the first one there are means for is taken.
_NEXT: Final[dict[tuple[Route, Event], tuple[Route, ...]]] = {
    ("VAULT", Event.LOST): ("RECONNECTING", "FALLBACK", "ABORTED"),
    ("VAULT", Event.REFUSED): ("FALLBACK", "ABORTED"),
    ("VAULT", Event.BACKLOG): ("FALLBACK",),
    ("VAULT", Event.FAILED): ("ABORTED",),
    ("RECONNECTING", Event.BACK): ("VAULT",),
    ("RECONNECTING", Event.REFUSED): ("FALLBACK", "ABORTED"),
    ("RECONNECTING", Event.CLOSED): ("FALLBACK", "ABORTED"),
    ("RECONNECTING", Event.FAILED): ("ABORTED",),
    ("FALLBACK", Event.FAILED): ("ABORTED",),
}


def next_route(route: Route, event: Event, means: Means) -> Route:
    """Return where `event` leads from `route`. Raises: IllegalEvent."""
    possible = {"RECONNECTING": means.window, "FALLBACK": means.spool}
    for candidate in _NEXT.get((route, event), ()):
        if possible.get(candidate, True):
            return candidate
    raise IllegalEvent(f"{event} on route {route}")


class RouteKeeper:
    """The route of one session; `changed` hears of every change. An illegal event raises and changes nothing."""

    def __init__(self, route: Route, changed: Callable[[Route], None]) -> None:
        self._route = route
        self._changed = changed

    @property
    def route(self) -> Route:
        """Where vault-bound blocks go now."""
        return self._route

    def on(self, event: Event, means: Means) -> Route:
        """Take an event; return the route it leads to. Raises: IllegalEvent."""
        self._route = next_route(self._route, event, means)
        self._changed(self._route)
        return self._route
