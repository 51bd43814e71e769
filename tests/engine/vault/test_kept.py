"""What a verification of the vault counts with: packs that are needed and there, ranges that are lost."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.names import PackName
from engine.packtable import PACK_ROW, rows_of
from engine.vault import kept as module
from engine.vault.kept import Needs, holes_digest
from engine.vault.mending import LostRun, joined


def pack(number: int, writer: int = 1, size: int = 5000, kind: str = "data") -> PackName:
    return PackName(kind, bytes([writer]) * 16, number.to_bytes(32, "big"), size)


def test_what_is_needed_is_there_if_a_pack_of_the_name_with_the_size_was_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "JOINED_AT_ONCE", 3)
    needs = Needs()
    # Hashes that end in zero bytes, and tables that share packs.
    for table in ([pack(1), pack(256)], [pack(256), pack(1 << 200), pack(4, kind="page")], [pack(9, writer=2)], []):
        needs.add(rows_of(table))
    needs.close()
    assert sorted(needs.names(~needs.there)) == sorted(
        [pack(1), pack(256), pack(1 << 200), pack(4, kind="page"), pack(9, writer=2)]
    )
    assert needs.prefixes() == [f"data/{'01' * 16}/", f"data/{'02' * 16}/", f"page/{'01' * 16}/"]
    needs.see([pack(1 << 200), pack(4), pack(9), pack(1, size=4999), pack(7), pack(4, kind="page")])
    needs.see([])
    assert sorted(needs.names(needs.there)) == sorted([pack(1 << 200), pack(4, kind="page")])
    nothing = Needs()
    nothing.close()
    nothing.see([pack(1)])
    assert nothing.prefixes() == []


def test_a_table_of_many_packs_is_held_once() -> None:
    hashes = np.sort(np.random.default_rng(3).integers(0, 256, (1 << 17, 32), np.uint8).view("S32").reshape(-1))
    rows = np.zeros(len(hashes), PACK_ROW)
    rows["hash"] = hashes.view(np.uint8).reshape(-1, 32)
    rows["size"] = 1
    needs = Needs()
    tracemalloc.start()
    needs.add(rows)
    needs.close()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert needs.rows is rows
    assert most < rows.nbytes
    # What one table lacks of another is put in between.
    needs = Needs()
    for part in (rows[::2], rows[1::3], rows):
        needs.add(part)
    needs.close()
    assert np.array_equal(needs.rows, rows)


def test_holes_are_the_same_in_whatever_order_they_come() -> None:
    one = holes_digest({"a": [(1, 2)], "b": [(3, 4)]}, [b"x" * 8, b"y" * 8])
    assert one == holes_digest({"b": [(3, 4)], "c": [], "a": [(1, 2)]}, [b"y" * 8, b"x" * 8])
    assert one != holes_digest({"a": [(1, 2)], "b": [(3, 5)]}, [b"x" * 8, b"y" * 8])
    assert one != holes_digest({"a": [(1, 2)], "b": [(3, 4)]}, [b"x" * 8])


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)), st.integers(0, 60), st.integers(0, 60))
def test_a_run_knows_which_blocks_it_lost(first: set[int], more: set[int], begin: int, end: int) -> None:
    run = LostRun()
    batches = [sorted(first), sorted(number + 61 for number in more)]
    for batch in batches:
        run.add(np.array(batch, np.uint64))
    run.close()
    lost = {number for batch in batches for number in batch}
    asked = np.arange(130, dtype=np.uint64)
    if lost:
        assert set(asked[run.among(asked)].tolist()) == lost
        assert run.extent == (min(lost), max(lost) + 1)
    assert run.any_in(begin, begin + end) == any(begin <= number < begin + end for number in lost)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=30), st.integers(1, 8))
def test_of_too_many_holes_the_nearest_are_joined(steps: list[tuple[int, int]], count_max: int) -> None:
    ranges, at = [], 0
    for gap, count in steps:
        at += gap
        ranges.append((at, count))
        at += count
    found = joined(ranges, count_max)
    assert len(found) <= max(count_max, 0) or found == ranges == []
    covered = {block for start, count in found for block in range(start, start + count)}
    assert {block for start, count in ranges for block in range(start, start + count)} <= covered
    if len(ranges) <= count_max:
        assert found == ranges
