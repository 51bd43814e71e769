"""The table of routes, exhaustively: every route, every event, whatever there is to go on with."""

from __future__ import annotations

from itertools import product
from typing import get_args

import pytest

from engine.pipeline.route import Event, IllegalEvent, Means, Route, RouteKeeper, next_route

ROUTES: tuple[Route, ...] = get_args(Route)
MEANS = [Means(window, spool) for window, spool in product((False, True), repeat=2)]

# What DESIGN.md §3.1 and §3.2 say, written down once more: route, event, window, spool → route.
EXPECTED: dict[tuple[Route, Event, bool, bool], Route] = {
    ("VAULT", Event.LOST, False, False): "ABORTED",
    ("VAULT", Event.LOST, False, True): "FALLBACK",
    ("VAULT", Event.LOST, True, False): "RECONNECTING",
    ("VAULT", Event.LOST, True, True): "RECONNECTING",
    ("VAULT", Event.REFUSED, False, False): "ABORTED",
    ("VAULT", Event.REFUSED, False, True): "FALLBACK",
    ("VAULT", Event.REFUSED, True, False): "ABORTED",
    ("VAULT", Event.REFUSED, True, True): "FALLBACK",
    ("RECONNECTING", Event.REFUSED, False, False): "ABORTED",
    ("RECONNECTING", Event.REFUSED, False, True): "FALLBACK",
    ("RECONNECTING", Event.REFUSED, True, False): "ABORTED",
    ("RECONNECTING", Event.REFUSED, True, True): "FALLBACK",
    ("RECONNECTING", Event.CLOSED, False, False): "ABORTED",
    ("RECONNECTING", Event.CLOSED, False, True): "FALLBACK",
    ("RECONNECTING", Event.CLOSED, True, False): "ABORTED",
    ("RECONNECTING", Event.CLOSED, True, True): "FALLBACK",
    **{("VAULT", Event.BACKLOG, window, True): "FALLBACK" for window in (False, True)},
    **{("RECONNECTING", Event.BACK, means.window, means.spool): "VAULT" for means in MEANS},
    **{
        (route, Event.FAILED, means.window, means.spool): "ABORTED"
        for route in ("VAULT", "RECONNECTING", "FALLBACK")
        for means in MEANS
    },
}


@pytest.mark.parametrize("means", MEANS, ids=str)
@pytest.mark.parametrize("event", Event, ids=str)
@pytest.mark.parametrize("route", ROUTES)
def test_every_event_leads_where_it_should_or_is_illegal_and_changes_nothing(
    route: Route, event: Event, means: Means
) -> None:
    heard: list[Route] = []
    keeper = RouteKeeper(route, heard.append)
    expected = EXPECTED.get((route, event, means.window, means.spool))
    if expected is None:
        with pytest.raises(IllegalEvent, match=f"on route {route}"):
            keeper.on(event, means)
        assert (keeper.route, heard) == (route, [])
    else:
        assert keeper.on(event, means) == expected
        assert (keeper.route, heard) == (expected, [expected])


def reachable(start: Route) -> set[Route]:
    found: set[Route] = set()
    todo = [start]
    while todo:
        route = todo.pop()
        for event, means in product(Event, MEANS):
            try:
                following = next_route(route, event, means)
            except IllegalEvent:
                continue
            if following not in found:
                found.add(following)
                todo.append(following)
    return found


def test_nothing_leads_from_fallback_back_to_the_vault_and_nothing_out_of_aborted() -> None:
    assert reachable("FALLBACK") == {"ABORTED"}
    assert reachable("ABORTED") == set()
    assert reachable("VAULT") == {"VAULT", "RECONNECTING", "FALLBACK", "ABORTED"}
