"""Hints are believed when everything about them is right; else nothing is known, and the user is told why."""

from __future__ import annotations

import json
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.trackers import hints
from adapters.trackers.compare import CompareTracker
from adapters.trackers.hints import HintsTracker
from engine.ports import Changes, ChangeTracker

SIZE = 1 << 40
HEAD = '{"generation": "tue", "since": "mon"}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "hints"


def changes(path: Path, text: str | bytes, generation: str | None = "mon", size: int = SIZE) -> Changes:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    tracker: ChangeTracker = HintsTracker(path, lambda: size)
    return tracker.changes(generation)


def line(offset: int, length: int) -> str:
    return json.dumps({"offset": offset, "length": length}) + "\n"


def test_comparing_knows_nothing_and_that_is_no_problem() -> None:
    tracker: ChangeTracker = CompareTracker()
    assert tracker.changes("mon") == tracker.changes(None) == Changes(None, None)


def test_extents_are_sorted_and_merged(path: Path) -> None:
    text = HEAD + line(300, 10) + line(0, 10) + line(10, 5) + line(305, 1) + line(302, 100) + line(SIZE - 1, 1)
    assert changes(path, text) == Changes([(0, 15), (300, 102), (SIZE - 1, 1)], "tue")


def test_no_extent_means_that_nothing_changed(path: Path) -> None:
    assert changes(path, HEAD) == Changes([], "tue")


def test_a_last_line_without_its_end_other_fields_and_a_right_count_are_accepted(path: Path) -> None:
    text = '{"since":"mon","tool":"x","extents":1,"generation":"tue"}\n{"length":5,"offset":1,"more":[1]}'
    assert changes(path, text) == Changes([(1, 5)], "tue")


def test_without_a_generation_only_the_files_own_is_taken(path: Path) -> None:
    assert changes(path, HEAD + line(0, 10), generation=None) == Changes(None, "tue")
    assert changes(path, '{"generation": "mon", "since": null}\n', generation=None) == Changes(None, "mon")


def test_a_missing_file_is_a_problem_only_when_a_point_has_a_generation(path: Path) -> None:
    assert HintsTracker(path, lambda: SIZE).changes(None) == Changes(None, None)
    found = HintsTracker(path, lambda: SIZE).changes("mon")
    assert (found.extents, found.generation) == (None, None)
    assert found.problem is not None
    assert found.problem.startswith(f"hints file {path} does not exist: the whole volume was compared")


@pytest.mark.parametrize("since", ['"sun"', "null", '"tue"', '"mon "', '"MON"'])
def test_hints_from_another_generation_are_not_believed(path: Path, since: str) -> None:
    found = changes(path, f'{{"generation": "tue", "since": {since}}}\n' + line(0, 10))
    assert (found.extents, found.generation) == (None, "tue")
    assert found.problem is not None
    assert "the newest point is of 'mon': the whole volume was compared" in found.problem


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "wrong first line"),
        ("\n" + HEAD, "wrong first line"),
        ("not json\n", "wrong first line"),
        ('{"generation": "tue"}\n', "wrong first line"),
        ('{"since": "mon"}\n', "wrong first line"),
        ('{"generation": "", "since": "mon"}\n', "wrong first line"),
        ('{"generation": 5, "since": "mon"}\n', "wrong first line"),
        ('{"generation": null, "since": "mon"}\n', "wrong first line"),
        (json.dumps({"generation": "x" * 257, "since": "mon"}) + "\n", "wrong first line"),
        ('["tue", "mon"]\n', "wrong first line"),
        (line(0, 10), "wrong first line"),
        (b"\xff\xfe" + HEAD.encode(), "wrong first line"),
        (HEAD[:-1] + " " * 4096 + "\n", "wrong line 2"),
        (HEAD + "nonsense\n", "wrong line 2"),
        (HEAD + line(0, 1) + "\n", "wrong line 3"),
        (HEAD + line(0, 1) + HEAD, "wrong line 3"),
        (HEAD + line(0, 10)[:-5] + "\n", "wrong line 2"),
        (HEAD + line(-1, 10), "wrong line 2"),
        (HEAD + line(5, 0), "wrong line 2"),
        (HEAD + line(5, -5), "wrong line 2"),
        (HEAD + '{"offset": 1.5, "length": 10}\n', "wrong line 2"),
        (HEAD + '{"offset": "1", "length": 10}\n', "wrong line 2"),
        (HEAD + '{"offset": true, "length": 10}\n', "wrong line 2"),
        (HEAD + '{"offset": 1}\n', "wrong line 2"),
        (HEAD + line(1 << 64, 1), "wrong line 2"),
        (HEAD + line(0, SIZE + 1), f"reaches beyond the volume's {SIZE} bytes in line 2"),
        (HEAD + line(0, 1) + line(SIZE, 1), f"reaches beyond the volume's {SIZE} bytes in line 3"),
        (HEAD + line((1 << 63) - 1, (1 << 63) - 1), f"reaches beyond the volume's {SIZE} bytes in line 2"),
        ('{"generation":"tue","since":"mon","extents":2}\n' + line(0, 1), "has 1 extents and says it has 2"),
        ('{"generation":"tue","since":"mon","extents":0}\n' + line(0, 1), "has 1 extents and says it has 0"),
    ],
)
def test_a_malformed_file_is_not_believed_and_the_line_is_named(path: Path, text: str | bytes, reason: str) -> None:
    found = changes(path, text)
    assert (found.extents, found.generation) == (None, None)
    assert found.problem is not None
    assert found.problem.startswith(f"hints file {path} ")
    assert reason in found.problem
    assert found.problem.endswith(": the whole volume was compared; check the tool that writes it")


def test_what_is_no_file_is_not_believed_and_hangs_nothing(path: Path, tmp_path: Path) -> None:
    os.mkfifo(path)
    found = HintsTracker(path, lambda: SIZE).changes("mon")
    assert found == Changes(
        None, None, f"hints file {path} is no file: the whole volume was compared; check the tool that writes it"
    )
    found = HintsTracker(path / "below", lambda: SIZE).changes("mon")
    assert found.problem is not None
    assert "cannot be read (Not a directory)" in found.problem


def test_too_many_lines_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hints, "LINES_MAX", 10)
    assert changes(path, HEAD + line(0, 1) * 9).extents == [(0, 1)]
    found = changes(path, HEAD + line(0, 1) * 10)
    assert found.problem is not None
    assert "has more than 10 lines" in found.problem


def covered(extents: list[tuple[int, int]]) -> set[int]:
    return {position for offset, length in extents for position in range(offset, offset + length)}


@settings(max_examples=100, deadline=None)
@given(
    extents=st.lists(st.tuples(st.integers(0, 390), st.integers(1, 10)), max_size=60),
    extents_max=st.integers(1, 20),
    chunk_lines=st.integers(1, 20),
)
def test_the_answer_covers_all_hints_within_its_bound(
    tmp_path_factory: pytest.TempPathFactory, extents: list[tuple[int, int]], extents_max: int, chunk_lines: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "hints"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hints, "EXTENTS_MAX", extents_max)
        patch.setattr(hints, "CHUNK_LINES", chunk_lines)
        found = changes(path, HEAD + "".join(line(*extent) for extent in extents), size=400).extents
    assert found is not None
    assert len(found) <= extents_max
    assert all(start + length < following for (start, length), (following, _) in pairwise(found))
    assert covered(found) >= covered(extents)
    runs = sum(position - 1 not in covered(extents) for position in covered(extents))
    if runs <= extents_max and chunk_lines > len(extents):
        assert covered(found) == covered(extents)


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 200), flip=st.integers(0, 1600), tail=st.binary(max_size=20))
def test_a_damaged_file_gives_hints_or_a_problem_and_never_an_exception(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int, tail: bytes
) -> None:
    text = bytearray((HEAD + line(0, 10) + line(65536, 4096) + line(1 << 30, 777)).encode())[:cut]
    if text:
        text[flip // 8 % len(text)] ^= 1 << flip % 8
    found = changes(tmp_path_factory.getbasetemp() / "hints", bytes(text) + tail)
    assert (found.extents is None) == (found.problem is not None)
    assert found.problem is None or "\n" not in found.problem
    for offset, length in found.extents or []:
        assert 0 <= offset < offset + length <= SIZE


def test_very_many_hints_keep_within_the_bound(path: Path) -> None:
    chosen = random.Random(1)
    text = HEAD + "".join(line(chosen.randrange(SIZE // 4096) * 4096, 4096) for _ in range(300_000))
    found = changes(path, text).extents
    assert found is not None
    assert 100_000 < len(found) <= hints.EXTENTS_MAX
    assert sum(length for _, length in found) < SIZE // 5
