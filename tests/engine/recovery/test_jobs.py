"""Cutting blocks into groups and jobs: nothing is left out or read twice, and what is read together stays bounded."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import DELTA_FLAG, PLACE
from engine.names import PackName
from engine.packread import GAP_BYTES, Extents
from engine.recovery import jobs
from engine.recovery.jobs import Located, Packs, Spots, cut_jobs, groups, locate
from engine.seal import RECORD_BYTES_MAX, RECORD_BYTES_MIN

NAMES = {key: PackName("data", b"a" * 16, bytes([key]) * 32, 64 << 20) for key in range(1, 4)}

rows = st.tuples(
    st.integers(1, 4),  # one key more than there are packs
    st.integers(0, 80 << 20),
    st.integers(0, RECORD_BYTES_MAX + 10),
    st.booleans(),
)


def located(drawn: list[tuple[int, int, int, bool]]) -> tuple[Located, Packs]:
    places = np.array([(key, offset, length | DELTA_FLAG * delta) for key, offset, length, delta in drawn], PLACE)
    packs = Packs()
    return locate(np.arange(len(drawn)) * 3, places, "vault", packs, NAMES.get), packs


def possible(row: tuple[int, int, int, bool]) -> bool:
    key, offset, length, _ = row
    return key in NAMES and RECORD_BYTES_MIN <= length <= RECORD_BYTES_MAX and offset + length <= 64 << 20


@given(st.lists(rows, max_size=60))
@settings(max_examples=200, deadline=None)
def test_impossible_places_are_left_out_and_the_rest_is_located(drawn: list[tuple[int, int, int, bool]]) -> None:
    found, packs = located(drawn)
    expected = [(at * 3, *row) for at, row in enumerate(drawn) if possible(row)]
    assert found.positions.tolist() == [position for position, *_ in expected]
    for (_, key, offset, length, delta), spot, is_delta in zip(
        expected, found.spots.listed(), found.deltas.tolist(), strict=True
    ):
        assert packs[spot[0]] == ("vault", NAMES[key])
        assert packs.names[spot[0]] == str(NAMES[key])
        assert (spot[1], spot[2], is_delta) == (offset, length, delta)


@given(st.lists(rows, max_size=80))
@settings(max_examples=200, deadline=None)
def test_whole_blocks_each_get_into_one_job_that_stays_small(drawn: list[tuple[int, int, int, bool]]) -> None:
    found, _ = located([(*row[:3], False) for row in drawn])
    (group,) = groups(found)
    made = list(cut_jobs(group, [], jobs.Sources.of([], Spots(*np.zeros((3, 0), np.int64)), {}), {}))
    wholes = [[block for block in job.blocks if isinstance(block, tuple)] for job in made]
    given_spots = sorted(block for several in wholes for block in several)
    assert given_spots == sorted(zip(found.positions.tolist(), found.spots.listed(), strict=True))
    for job, several in zip(made, wholes, strict=True):
        assert 0 < len(job.blocks) <= jobs.JOB_BLOCKS
        ranges = sorted((number, *each) for number, several in job.ranges.items() for each in several)
        assert ranges == sorted(spot for _, spot in several)
        assert read_together(ranges, GAP_BYTES) <= jobs.JOB_BYTES + RECORD_BYTES_MAX + GAP_BYTES


def read_together(ranges: list[tuple[int, int, int]], gap_bytes: int) -> int:
    """Return the bytes that are read for ranges, with the gaps between them."""
    total, last = 0, (-1, 0)
    for number, offset, length in ranges:
        stop = offset + length
        near = last[0] == number and offset - last[1] <= gap_bytes
        total += max(0, stop - last[1]) if near else length
        last = (number, max(last[1], stop) if near else stop)
    return total


@given(st.lists(rows, max_size=80), st.integers(1, 200_000), st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_groups_keep_the_order_and_hold_no_more_than_they_may(
    drawn: list[tuple[int, int, int, bool]], held_bytes: int, deltas_max: int
) -> None:
    found, _ = located(drawn)
    before = jobs.HELD_BYTES, jobs.GROUP_DELTAS
    try:
        jobs.HELD_BYTES, jobs.GROUP_DELTAS = held_bytes, deltas_max  # type: ignore[misc]
        cut = list(groups(found))
    finally:
        jobs.HELD_BYTES, jobs.GROUP_DELTAS = before  # type: ignore[misc]
    assert np.concatenate([group.positions for group in cut]).tolist() == found.positions.tolist()
    for group in cut:
        spots = sorted(group.spots.at(group.deltas).listed())
        assert len(spots) <= max(1, deltas_max)
        assert len(spots) <= 1 or read_together(spots, jobs.HELD_GAP_BYTES) <= held_bytes


def test_what_was_fetched_is_cut_out_of_where_it_lies() -> None:
    extents = Extents([(100, b"abcdef"), (10, b"0123456789")])
    assert bytes(extents.cut(12, 3) or b"") == b"234"
    assert bytes(extents.cut(100, 6) or b"") == b"abcdef"
    assert [extents.cut(*each) for each in ((9, 2), (18, 4), (0, 1), (104, 3), (200, 1))] == [None] * 5
    offsets = np.array([12, 100, 9, 18, 0, 104, 200], np.int64)
    lengths = np.array([3, 6, 2, 4, 1, 3, 1], np.int64)
    assert extents.cover(offsets, lengths).tolist() == [True, True, False, False, False, False, False]
    assert not Extents([]).cover(offsets, lengths).any()


def test_what_is_held_is_not_read_again() -> None:
    spots = Spots(*np.array([[0, 0, 1, -1], [64, 9000, 64, 0], [5000, 60_000, 70_000, 100]], np.int64))
    bounds = np.array([0, 2, 2, 4], np.int64)
    mains, others = jobs.Sources(bounds, spots, spots.missing({})).mains()
    assert mains.listed() == [(0, 9000, 60_000), (-1, 0, 0), (1, 64, 70_000)]
    assert others.tolist() == [5000 + GAP_BYTES, 0, 0]
    missing = spots.missing({0: Extents([(0, bytes(70_000))]), 7: Extents([])})
    assert missing.tolist() == [False, False, True, False]
    mains, others = jobs.Sources(bounds, spots, missing).mains()
    assert mains.listed() == [(-1, 0, 0), (-1, 0, 0), (1, 64, 70_000)]
    assert others.tolist() == [0, 0, 0]


def test_whole_blocks_that_lie_among_the_deltas_of_a_group_are_not_read_again() -> None:
    found, packs = located([(1, 64, 60_000, False), (1, 70_000, 60_000, False)])
    held = {packs.number("vault", 1, NAMES.get): Extents([(0, bytes(65_000))])}
    (job,) = cut_jobs(found, [], jobs.Sources.of([], Spots(*np.zeros((3, 0), np.int64)), held), held)
    assert [block[0] for block in job.blocks if isinstance(block, tuple)] == [0, 3]
    assert job.ranges == {0: [(70_000, 60_000)]}
