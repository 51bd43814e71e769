"""The different values of an array, without all that numpy would import for it."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)


def distinct(*arrays: npt.NDArray[T]) -> npt.NDArray[T]:
    """Return the different values of one-dimensional `arrays` (one at least), ascending.

    As `np.unique` and `np.union1d` do, which import `numpy.ma` at their first call: that takes 9 ms.
    """
    values = np.concatenate(arrays)
    values.sort()
    first = np.ones(len(values), dtype=np.bool_)
    np.not_equal(values[1:], values[:-1], out=first[1:])
    return values[first]


def among(values: npt.NDArray[T], known: npt.NDArray[T]) -> npt.NDArray[np.bool_]:
    """Tell which `values` are among `known`, which ascend: without the copies of both that `np.isin` sorts."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    found: npt.NDArray[np.bool_] = known[known.searchsorted(values).clip(max=len(known) - 1)] == values
    return found
