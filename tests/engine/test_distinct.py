from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.distinct import among, distinct

NUMBERS = st.lists(st.integers(0, 20) | st.integers(0, (1 << 64) - 1), max_size=40)


@given(st.lists(NUMBERS, min_size=1, max_size=3))
def test_every_value_is_there_once_in_ascending_order(lists: list[list[int]]) -> None:
    arrays = [np.array(numbers, dtype=np.uint64) for numbers in lists]
    found = distinct(*arrays)
    assert found.dtype == np.uint64
    assert found.tolist() == sorted({number for numbers in lists for number in numbers})


@pytest.mark.parametrize("numbers", [[], [3], [2, 2], [5, 1, 5, 1]])
def test_what_was_given_is_left_as_it_is(numbers: list[int]) -> None:
    given_numbers = np.array(numbers, dtype=np.int64)
    distinct(given_numbers)
    assert given_numbers.tolist() == numbers


@given(NUMBERS, NUMBERS)
def test_a_value_is_among_others_where_a_set_says_so(values: list[int], known: list[int]) -> None:
    found = among(np.array(values, np.uint64), np.array(sorted(known), np.uint64))
    assert found.tolist() == [value in set(known) for value in values]
