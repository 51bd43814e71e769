"""The simulator (world.py) over a fixed set of seeds, the same every time, and proof that it finds mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS

SEEDS = 24
PARTS = 3
MUTATION_SEEDS = 40


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run simulations in a process of their own: they change it for good."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation.run", "--jobs", "1", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("part", range(PARTS))
def test_no_seed_breaks_a_promise(part: int) -> None:
    done = run("--seeds", str(SEEDS // PARTS), "--from", str(1 + part * SEEDS // PARTS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{SEEDS // PARTS} seeds, 0 failed" in done.stdout


def test_a_seed_says_all_that_happens() -> None:
    first = run("--traces", "--seeds", "4", "--from", "7")
    second = run("--traces", "--seeds", "2", "--from", "9")
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    traces = first.stdout.splitlines()
    assert len({line.split()[1] for line in traces}) == 4
    assert traces[2:] == second.stdout.splitlines()


@pytest.mark.parametrize("part", range(PARTS))
def test_every_mistake_made_on_purpose_is_found(part: int) -> None:
    names = [*MUTATIONS][part::PARTS]
    done = run("--mutation", *names, "--seeds", str(MUTATION_SEEDS))
    assert done.returncode == 0, done.stdout + done.stderr
    for line in done.stdout.splitlines():
        assert "simulation.stores.Broken" in line, f"the mistake broke the agent, not a promise: {line}"
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == names
