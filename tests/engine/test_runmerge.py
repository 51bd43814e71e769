from __future__ import annotations

import random

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runmerge import covered, plan_merge
from tests.engine.fakes_volume_model import SPACE, Pieces, VolumeModel, blocks_of, changes, chosen, ranges


@settings(max_examples=40, deadline=None)
@given(st.lists(changes, min_size=1, max_size=7), st.integers(0, 1 << 30), st.data())
def test_runs_say_what_a_dictionary_says_through_changes_sizes_and_merges(
    steps: list[tuple[Pieces, Pieces, int, bool]],
    seed: int,
    data: st.DataObject,
) -> None:
    async def main() -> None:
        model = VolumeModel(seed)
        for writes, zeros, blocks, merging in steps:
            await model.add(model.change(chosen(writes), chosen(zeros), blocks))
            planned = plan_merge([run.descriptor.entries + run.descriptor.zeros for run in model.runs], runs_max=3)
            if planned:
                await model.merge(*planned)
            elif merging and len(model.runs) > 1:
                start = data.draw(st.integers(0, len(model.runs) - 2))
                await model.merge(start, data.draw(st.integers(start + 2, len(model.runs))))
            assert [run.descriptor.base for run in model.runs] == [True] + [False] * (len(model.runs) - 1)
            first = data.draw(st.integers(0, SPACE))
            await model.check(first, data.draw(st.integers(first, SPACE)))
        await model.check()

    anyio.run(main)


@settings(max_examples=30, deadline=None)
@given(ranges, st.lists(ranges, max_size=3), st.lists(ranges, max_size=3), st.integers(0, 1 << 30))
def test_covered_is_what_the_merged_runs_name_and_no_newer_one(
    first: Pieces,
    writes: list[Pieces],
    zeros: list[Pieces],
    seed: int,
) -> None:
    async def main() -> None:
        model = VolumeModel(seed)
        await model.add(model.change(chosen(first), set(), SPACE))
        named: list[dict[int, bool]] = [dict.fromkeys(chosen(first), True)]
        for written, zeroed in zip(writes, zeros, strict=False):
            await model.add(model.change(chosen(written), chosen(zeroed), SPACE))
            named.append(dict.fromkeys(chosen(zeroed), False) | dict.fromkeys(chosen(written), True))
        readers = [run.read(model.vault) for run in model.runs]
        for start in range(len(readers)):
            for stop in range(start + 1, len(readers) + 1):
                expected: dict[int, bool] = {}
                for names in named[start:stop]:
                    expected |= names
                for names in named[stop:]:
                    expected = {block: kind for block, kind in expected.items() if block not in names}
                found: dict[int, bool] = {}
                last = -1
                async for part in covered(readers[start:stop], readers[stop:]):
                    stretch = dict.fromkeys(part.blocks.tolist(), True) | dict.fromkeys(blocks_of(part), False)
                    assert min(stretch) > last
                    last = max(stretch)
                    assert not found.keys() & stretch.keys()
                    found |= stretch
                assert found == expected

    anyio.run(main)


def written(sizes: list[int], runs_max: int = 16) -> float:
    """Return what is written in all when runs of these sizes come one by one, in relation to their sum."""
    runs: list[int] = []
    total = 0
    for size in sizes:
        runs.append(size)
        total += size
        if planned := plan_merge(runs, runs_max):
            start, stop = planned
            runs[start:stop] = [sum(runs[start:stop])]
            total += runs[start]
        assert len(runs) <= runs_max
    return total / sum(sizes)


@pytest.mark.parametrize(("days", "factor"), [(16, 1.0), (100, 2.0), (365, 2.8), (1000, 3.4), (10_000, 5.3)])
def test_equal_daily_increments_are_written_a_small_factor_of_what_changed(days: int, factor: float) -> None:
    assert written([1000] * days) <= factor


@pytest.mark.parametrize(("days", "factor"), [(100, 2.6), (1000, 4.0), (10_000, 6.5)])
def test_increments_of_any_sizes_are_written_a_small_factor_of_what_changed(days: int, factor: float) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        assert written([rng.randint(1, 1000) for _ in range(days)]) <= factor
        assert written([int(10 * rng.paretovariate(1.1)) for _ in range(days)]) <= factor
        assert written([1000 if day % 7 < 5 else 30 for day in range(days)]) <= factor
        assert written([1 + day for day in range(days)]) <= factor
        assert written([1 + days - day for day in range(days)]) <= factor


def test_a_large_base_is_not_written_again_for_small_increments() -> None:
    runs = [1_000_000] + [100] * 16
    for _ in range(1000):
        planned = plan_merge(runs)
        assert planned is not None
        start, stop = planned
        assert start > 0
        runs[start:stop] = [sum(runs[start:stop])]
        while len(runs) <= 16:
            runs.append(100)


@given(st.lists(st.integers(0, 1 << 40), max_size=40), st.integers(1, 20))
def test_a_merge_is_planned_only_when_there_are_too_many_and_leaves_few_enough(sizes: list[int], runs_max: int) -> None:
    planned = plan_merge(sizes, runs_max)
    assert (planned is None) == (len(sizes) <= runs_max)
    if planned:
        start, stop = planned
        assert 0 <= start < stop <= len(sizes)
        assert len(sizes) - (stop - start - 1) <= runs_max


def test_of_equally_good_merges_the_newest_is_chosen() -> None:
    assert plan_merge([1, 99, 1, 1, 99, 1, 1], 6) == (5, 7)
    assert plan_merge([0] * 17) == (15, 17)
    assert plan_merge([1] * 16) is None
    assert plan_merge([1] * 17) == (0, 17)
    assert plan_merge([100] + [1] * 16) == (1, 17)
