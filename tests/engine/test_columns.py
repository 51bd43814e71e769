"""Searching sorted columns by guesses, and source rows that follow their entries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columns import NO_SOURCES, U32, U64, Column64, Columns, Listing, SourceRows, concatenate, lower_bound

LAST = (1 << 64) - 1
ENTRIES = 100_000  # enough to be searched by guesses


def evenly(generator: np.random.Generator) -> Column64:
    return np.sort(generator.integers(0, LAST, ENTRIES, dtype=np.uint64, endpoint=True))


def crafted(generator: np.random.Generator) -> Column64:
    """Ids that all lie where nobody would guess, many of them equal."""
    return np.sort(generator.integers(LAST - 500, LAST, ENTRIES, dtype=np.uint64, endpoint=True))


def half_crafted(generator: np.random.Generator) -> Column64:
    column = evenly(generator)
    column[: ENTRIES // 2] = column[ENTRIES // 3]
    return np.sort(column)


@pytest.mark.parametrize("make", [evenly, crafted, half_crafted])
@pytest.mark.parametrize("keys", [1, 64, 3000])
def test_guesses_find_what_halving_finds(make: Callable[[np.random.Generator], Column64], keys: int) -> None:
    generator = np.random.default_rng(keys)
    column = make(generator)
    near = column[generator.integers(0, ENTRIES, keys)]
    for asked in (
        near,
        near + np.uint64(1),
        near - np.uint64(1),
        generator.integers(0, LAST, keys, dtype=np.uint64, endpoint=True),
        np.resize(np.array([0, 1, LAST - 1, LAST], np.uint64), keys),
        np.resize(np.array([column[0], column[-1]], np.uint64), keys),
    ):
        assert np.array_equal(lower_bound(column, asked), column.searchsorted(asked))


def test_guesses_in_a_column_out_of_order_stay_within_it() -> None:
    generator = np.random.default_rng(1)
    column = generator.permutation(evenly(generator))
    at = lower_bound(column, generator.integers(0, LAST, 3000, dtype=np.uint64))
    assert int(at.min()) >= 0
    assert int(at.max()) <= ENTRIES


pairs = st.sets(st.tuples(st.integers(0, 20), st.integers(0, 5)))


def rows(of: set[tuple[int, int]]) -> SourceRows:
    table = np.array(sorted(of), U32).reshape(-1, 2)
    return SourceRows(table[:, 0].copy(), table[:, 1].copy())


def tuples(sources: SourceRows) -> list[tuple[int, int]]:
    return list(zip(sources.entry.tolist(), sources.pack.tolist(), strict=True))


@given(pairs, st.lists(st.integers(0, 20)), st.integers(0, 20), st.integers(0, 21))
@settings(max_examples=200, deadline=None)
def test_sources_are_found_by_entry(of: set[tuple[int, int]], asked: list[int], start: int, stop: int) -> None:
    sources = rows(of)
    which, packs = sources.find(np.array(asked, np.intp))
    found = list(zip(which.tolist(), packs.tolist(), strict=True))
    assert found == [(at, pack) for at, entry in enumerate(asked) for other, pack in sorted(of) if other == entry]
    stop = max(start, stop)
    assert tuples(sources.part(start, stop)) == sorted((e - start, p) for e, p in of if start <= e < stop)


@given(pairs, st.permutations(range(21)), st.integers(0, 21))
@settings(max_examples=200, deadline=None)
def test_sources_follow_entries_that_move(of: set[tuple[int, int]], order: list[int], kept: int) -> None:
    column = np.arange(21, dtype=U64)
    number = np.arange(21).astype(U32)
    listing = Listing(Columns(column, column, number, number, number), rows(of))
    taken = listing.take(np.array(order[:kept], np.intp))
    place = {entry: at for at, entry in enumerate(order[:kept])}
    assert tuples(taken.sources) == sorted((place[e], p) for e, p in of if e in place)
    both = concatenate([listing, Listing(listing.columns, NO_SOURCES), taken])
    by_id: dict[int, list[int]] = {}
    for entry, pack in tuples(both.sources):
        by_id.setdefault(int(both.columns.lo[entry]), []).append(pack)
    expected = {e: sorted([p for o, p in of if o == e] * (1 + (e in place))) for e, _ in of}
    assert {entry: sorted(packs) for entry, packs in by_id.items()} == expected
