"""Rooms: aligned memory that is used again once nobody can see it any more, and never before."""

from __future__ import annotations

import tracemalloc

import numpy as np

from engine.rooms import ALIGNMENT, FREE_ROOMS_MAX, Rooms


def address(view: memoryview) -> int:
    found: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return found


def test_a_room_lies_at_the_start_of_a_page_and_is_as_long_as_asked_for() -> None:
    rooms = Rooms(100_001)
    taken = [rooms.take() for _ in range(5)]
    assert [address(room) % ALIGNMENT for room in taken] == [0] * 5
    assert [len(room) for room in taken] == [100_001] * 5


def test_rooms_in_use_are_never_the_same() -> None:
    rooms = Rooms(1 << 16)
    taken = [rooms.take() for _ in range(10)]
    for number, room in enumerate(taken):
        room[:] = bytes([number]) * len(room)
    assert [set(room) for room in taken] == [{number} for number in range(10)]


def test_a_room_comes_back_when_its_last_view_is_gone_whatever_kind_that_is() -> None:
    rooms = Rooms(1 << 16)
    whole = rooms.take()
    where = address(whole)
    inner = whole[100:200]
    views: list[object] = [inner.cast("B"), np.frombuffer(inner, np.uint8)[3:], memoryview(inner)]
    del whole, inner
    while views:
        assert address(rooms.take()) != where
        views.pop()
    assert where in {address(room) for room in [rooms.take(), rooms.take()]}


def test_of_many_rooms_few_are_kept() -> None:
    rooms = Rooms(1 << 20)
    tracemalloc.start()
    try:
        taken = [rooms.take() for _ in range(3 * FREE_ROOMS_MAX)]
        assert tracemalloc.get_traced_memory()[0] >= len(taken) << 20
        taken.clear()
        assert tracemalloc.get_traced_memory()[0] < (FREE_ROOMS_MAX + 1) << 20
    finally:
        tracemalloc.stop()
