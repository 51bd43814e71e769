"""Merging sorted columns: a union, in order, in bounded chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columns import NO_SOURCES, U32, U64, Columns, Listing, sort_order
from engine.merge import count_kept, merge_listings
from engine.names import PackName
from engine.packtable import DROPPED, JoinedTable, pack_name, rows_of

# Few values, so that ids, halves of ids, and whole entries collide all the time.
half = st.sampled_from([0, 1, 2, 5, (1 << 63), (1 << 64) - 1])
entry = st.tuples(half, half, st.integers(0, 2), st.integers(64, 66))


def columns(entries: Sequence[tuple[int, int, int, int]]) -> Columns:
    rows = np.array(entries, dtype=U64).reshape(-1, 4)
    order = sort_order(rows[:, 0], rows[:, 1])
    lo, hi, pack, offset = (np.ascontiguousarray(rows[order, at]) for at in range(4))
    return Columns(lo, hi, pack.astype(U32), offset.astype(U32), np.full(len(rows), 60, U32))


def listing(entries: Sequence[tuple[int, int, int, int]]) -> Listing:
    return Listing(columns(entries), NO_SOURCES)


def tuples(listed: Listing) -> list[tuple[int, int, int, int]]:
    part = listed.columns
    return list(zip(part.lo.tolist(), part.hi.tolist(), part.pack.tolist(), part.offset.tolist(), strict=True))


@given(st.lists(st.lists(entry, max_size=60), max_size=5), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_a_merge_is_the_union_in_order(parts: list[list[tuple[int, int, int, int]]], entries_max: int) -> None:
    identity = np.arange(3, dtype=U32)
    chunks = list(merge_listings([(listing(part), identity) for part in parts], entries_max))
    merged = [each for chunk in chunks for each in tuples(chunk)]
    assert Counter(merged) == Counter(each for part in parts for each in part)
    assert [each[:2] for each in merged] == sorted(each[:2] for each in merged)
    assert all(chunk.entries <= max(entries_max, len(parts)) for chunk in chunks)


@given(st.lists(entry, max_size=60), st.sets(st.integers(0, 2)), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_dropped_packs_and_rows_without_a_pack_are_left_out(
    entries: list[tuple[int, int, int, int]], dropped: set[int], entries_max: int
) -> None:
    # Row 2 lies outside the map: what a damaged mirror may hold.
    row_map = np.array([DROPPED if row in dropped else row + 7 for row in range(2)], dtype=U32)
    merged = [each for chunk in merge_listings([(listing(entries), row_map)], entries_max) for each in tuples(chunk)]
    expected = [(lo, hi, row + 7, offset) for lo, hi, row, offset in entries if row < 2 and row not in dropped]
    assert Counter(merged) == Counter(expected)
    assert count_kept(columns(entries), row_map) == len(expected)


def test_tables_are_joined_row_by_row_and_only_equal_rows_are_one() -> None:
    first, second = PackName("data", b"a" * 16, b"1" * 32, 500), PackName("page", b"b" * 16, b"2" * 31 + b"\0", 500)
    # The same hash with another size: a neighbour's claim about someone else's pack.
    lie = PackName("data", b"a" * 16, b"1" * 32, 501)
    tables = [rows_of([first, second]), rows_of([second]), rows_of([lie])]
    masks = [np.zeros(len(table), np.bool_) for table in tables]
    joined = JoinedTable(tables)
    rows = joined.rows()
    assert sorted(pack_name(row) for row in rows) == sorted([first, second, lie])
    for table, row_map in zip(tables, joined.maps, strict=True):
        assert [pack_name(rows[at]) for at in row_map] == [pack_name(row) for row in table]
    assert np.array_equal(joined.rows(1, 2), rows[1:2])
    masks[0][:] = True
    joined = JoinedTable(tables, masks)
    assert sorted(pack_name(row) for row in joined.rows()) == sorted([second, lie])
    assert joined.maps[0].tolist() == [DROPPED, DROPPED]
    assert len(JoinedTable([])) == len(JoinedTable([]).rows()) == 0


names = st.builds(
    PackName,
    st.sampled_from(["data", "page"]),
    st.sampled_from([b"a" * 16, b"b" * 16]),
    st.sampled_from([b"1" * 32, b"1" * 31 + b"2", b"3" * 32]),
    st.integers(1, 2),
)


@given(st.lists(st.lists(names, max_size=6), max_size=4), st.data())
@settings(max_examples=200, deadline=None)
def test_a_joined_table_has_every_row_that_is_kept(parts: list[list[PackName]], data: st.DataObject) -> None:
    tables = [rows_of(part) for part in parts]
    masks = [np.array(data.draw(st.lists(st.booleans(), min_size=len(t), max_size=len(t))), np.bool_) for t in tables]
    joined = JoinedTable(tables, masks)
    rows = joined.rows()
    wanted = set()
    for table, mask, row_map in zip(tables, masks, joined.maps, strict=True):
        for row, gone, at in zip(table, mask.tolist(), row_map.tolist(), strict=True):
            assert (at == DROPPED) == gone
            if not gone:
                wanted.add(pack_name(row))
                assert pack_name(rows[at]) == pack_name(row)
    assert {pack_name(row) for row in rows} == wanted
