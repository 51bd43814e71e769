"""How large a request to a share is: the faster the line answers, the larger."""

from __future__ import annotations

from itertools import pairwise

import pytest

from adapters.stores.smbpace import PIECE_FIRST, PIECE_MAX, PIECE_MIN, QUICK_S, SLOW_S, Pace

STALL_S = 30.0  # after so long without an answer a call counts as hung


def pieces(bytes_per_s: float, count: int, ahead: int = 4) -> list[int]:
    """Return the sizes of requests on a line that carries `ahead` of them at once."""
    pace, sizes = Pace(), []
    for _ in range(count):
        sizes.append(pace.piece_bytes)
        pace.took(sizes[-1], ahead * sizes[-1] / bytes_per_s)
    return sizes


def test_requests_grow_as_long_as_they_are_answered_at_once() -> None:
    sizes = pieces(1e9, 10)
    assert (sizes[0], sizes[-1]) == (PIECE_FIRST, PIECE_MAX)
    assert all(later == min(PIECE_MAX, 2 * sooner) for sooner, later in pairwise(sizes))


@pytest.mark.parametrize("bytes_per_s", [20_000, 35_000, 100_000, 1e6])
def test_on_a_thin_line_every_request_is_answered_long_before_it_counts_as_hung(bytes_per_s: float) -> None:
    sizes = pieces(bytes_per_s, 50)
    assert max(4 * size / bytes_per_s for size in sizes) < STALL_S
    assert 4 * sizes[-1] / bytes_per_s <= SLOW_S or sizes[-1] == PIECE_MIN


def test_what_was_smaller_than_allowed_shows_no_more_room() -> None:
    pace = Pace()
    pace.took(PIECE_FIRST - 1, QUICK_S / 2)
    assert pace.piece_bytes == PIECE_FIRST


def test_requests_shrink_to_a_bound_and_grow_again() -> None:
    pace = Pace()
    for _ in range(20):
        pace.took(pace.piece_bytes, SLOW_S * 2)
    assert pace.piece_bytes == PIECE_MIN
    pace.took(PIECE_MIN, QUICK_S / 2)
    assert pace.piece_bytes == 2 * PIECE_MIN
