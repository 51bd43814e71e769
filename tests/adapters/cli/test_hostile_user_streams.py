from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from tests.adapters.cli import hostile


@contextmanager
def unwritable(place: hostile.Place) -> Iterator[IO[bytes]]:
    """Give a stream on which every write fails, as on a full disk."""
    with place.config.open("rb") as stream:
        yield stream


@contextmanager
def without_reader() -> Iterator[int]:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        yield writing
    finally:
        os.close(writing)


def points(place: hostile.Place) -> int:
    return len(json.loads(place.process("points", "--json").stdout)["points"])


@pytest.mark.parametrize("progress", ["lines", "bar", "none"])
def test_a_log_that_cannot_be_written_costs_no_backup(place: hostile.Place, progress: str) -> None:
    with unwritable(place) as stream:
        ran = place.process("backup", "--progress", progress, "-v", stderr=stream)
    assert (ran.returncode, ran.stdout.startswith("Restore point ")) == (0, True)
    assert points(place) == 1


def test_a_log_nobody_reads_any_more_costs_no_backup(place: hostile.Place) -> None:
    with without_reader() as writing:
        ran = place.process("backup", "--progress", "lines", stderr=writing, stdout=writing)
    assert ran.returncode == 0
    assert points(place) == 1


def test_a_result_that_cannot_be_written_is_a_failure_in_one_sentence(place: hostile.Place) -> None:
    for arguments in (["backup", "--progress", "none"], ["status"], ["--help"], ["completion", "bash"]):
        with unwritable(place) as stream:
            ran = place.process(*arguments, stdout=stream)
        assert ran.returncode == 1, arguments
        assert "forebay: the result could not be written to stdout (" in ran.stderr
        assert "Traceback" not in ran.stderr
    assert points(place) == 1


def test_a_usage_error_stays_one_when_its_document_cannot_be_written(place: hostile.Place) -> None:
    with unwritable(place) as stream:
        assert place.process("nothing", "--json", stdout=stream).returncode == 2


def test_a_reader_that_has_seen_enough_is_no_failure(place: hostile.Place) -> None:
    with without_reader() as writing:
        ran = place.process("points", stdout=writing)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_closed_streams_are_no_failure_and_no_files_take_their_place(place: hostile.Place) -> None:
    starter = (
        "import os, runpy, sys\n"
        "for number in (0, 1, 2): os.close(number)\n"
        "sys.stdin = sys.stdout = sys.stderr = None\n"
        "sys.argv[:] = ['forebay', *sys.argv[1:]]\n"
        "runpy.run_module('adapters.main', run_name='__main__')\n"
    )
    arguments = [sys.executable, "-c", starter, *place.arguments("backup", "--progress", "lines")[3:]]
    assert subprocess.run(arguments, cwd=hostile.ROOT, check=False, timeout=60).returncode == 0
    assert points(place) == 1
    assert subprocess.run([*arguments[:-3], "nothing"], cwd=hostile.ROOT, check=False, timeout=60).returncode == 2
