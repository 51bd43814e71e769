"""A year of twenty systems that share a cache (year.py): one seed, and proof that it finds mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SEED = 8
MUTATIONS = ("first_stamp_counts", "bits_not_settled", "business_hours_ignored", "due_too_late")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run years in a process of their own: they change it for good."""
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation.year", *arguments],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_promise_is_broken_in_a_year() -> None:
    done = run("--from", str(SEED))
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    assert f"seed {SEED}: ok" in done.stdout


def test_mistakes_made_on_purpose_are_found() -> None:
    # Whatever changes what the agent does changes what comes of a seed: one of a few finds each.
    done = run("--seeds", "4", "--mutation", *MUTATIONS)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == list(MUTATIONS)
    for line in lines:
        assert "simulation.stores.Broken" in line, f"the mistake broke the code, not a promise: {line}"
