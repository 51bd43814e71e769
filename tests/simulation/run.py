"""Runs simulations, each from one seed that says all that happens in it.

python -m tests.simulation.run --seeds 1000 --from 1     as many as one likes; those that fail tell step by step
python -m tests.simulation.run --show 17                 one, with every event
python -m tests.simulation.run --mutation all            mistakes made on purpose: is each found? (mutations.py)
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.simulation import clockwork, composing, disk, founding
from tests.simulation.founding import Founded
from tests.simulation.inchild import answer_of
from tests.simulation.mutations import MUTATIONS
from tests.simulation.stores import Broken
from tests.simulation.world import World

STEPS = 16
FAILURES_MAX = 5  # after so many no further seed is begun
PROMISE_MAX = 200
TOLD_EVERY = 1000
_inherited: list[Callable[[int], Outcome]] = []
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None


@dataclass
class Outcome:
    """What came of one seed. `trace`: a digest of its events; `failure`: the promise broken, with a traceback."""

    seed: int
    trace: str
    told: list[str]
    failure: str | None
    log: list[str]
    sessions: int
    restores: int

    @property
    def promise(self) -> str:
        """What was broken, in a line."""
        lines = self.failure.strip().splitlines() if self.failure else [""]
        return next((line.strip("| ") for line in reversed(lines) if Broken.__name__ in line), lines[-1])


def simulate(
    seed: int,
    founded: Sequence[Founded],
    folder: Path,
    steps: int = STEPS,
    *,
    theme: str | None = None,
    show: bool = False,
) -> Outcome:
    """Run one simulation in a folder below `folder`; `theme` (world.THEMES) None: the seed says which."""
    home = folder / f"{os.getpid()}"
    world = World(seed, founded, home, theme)
    world.log = [] if show else None
    failure: str | None = None
    try:
        clockwork.run(lambda: world.run(steps))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever a simulation ends with is what came of it
        failure = "".join(traceback.format_exception(error))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return Outcome(seed, world.trace, world.told, failure, world.log or [], world.sessions, world.model.restored)


def prepare() -> Sequence[Founded]:
    """Make this process one for simulations, and found the domains they begin with."""
    clockwork.install()
    disk.install()
    composing.install()
    return clockwork.run(founding.found)


def simulated(seeds: Iterable[int], founded: Sequence[Founded], steps: int, jobs: int) -> Iterator[Outcome]:
    """Run many seeds, in as many processes, and yield what came of each as it ends."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        one = partial(simulate, founded=founded, folder=Path(folder), steps=steps)
        if jobs == 1:
            yield from map(one, seeds)
            return
        _inherited.append(one)  # keys cannot be sent to another process
        with multiprocessing.get_context("fork").Pool(jobs) as pool:
            yield from pool.imap_unordered(_one, seeds)


def _one(seed: int) -> Outcome:
    return _inherited[0](seed)


def run_seeds(founded: Sequence[Founded], seeds: Sequence[int], steps: int, jobs: int) -> int:
    """Run seeds and tell of those that failed; return how many."""
    done = failed = sessions = restores = 0
    started = time.monotonic()
    for outcome in simulated(seeds, founded, steps, jobs):
        done, sessions, restores = done + 1, sessions + outcome.sessions, restores + outcome.restores
        if outcome.failure is not None:
            failed += 1
            again = f"python -m tests.simulation.run --show {outcome.seed}"
            print("\n".join(outcome.told), outcome.failure, f"every event of it: {again}\n", sep="\n", flush=True)
            if failed == FAILURES_MAX:
                break
        if done % TOLD_EVERY == 0:
            print(f"{done} seeds, {failed} failed, {time.monotonic() - started:.0f} s", flush=True)
    took_s = time.monotonic() - started
    print(f"{done} seeds, {failed} failed: {sessions} sessions, {restores} restores, {took_s:.0f} s")
    return failed


def show(founded: Sequence[Founded], seed: int, steps: int) -> int:
    """Run one seed and print every event of it; return 1 if it failed."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        outcome = simulate(seed, founded, Path(folder), steps, show=True)
    print("\n".join(outcome.log), outcome.failure or "no promise was broken", f"trace {outcome.trace}", sep="\n")
    return 1 if outcome.failure else 0


def caught(founded: Sequence[Founded], mutation: str, seeds: Sequence[int], folder: Path) -> str:
    """Make a mistake, in a child process, and return the first seed that finds it, and how; "": none of them does.

    Seeds begin with the one that is known to have found it.
    """

    def first_found() -> str:
        theme, first, mutate = MUTATIONS[mutation]
        mutate()
        for seed in (first, *seeds):
            outcome = simulate(seed, founded, folder, theme=theme)
            if outcome.failure is not None:
                return f"seed {seed}: {outcome.promise[:PROMISE_MAX]}"
        return ""

    return answer_of(first_found)


def run_mutations(founded: Sequence[Founded], names: Iterable[str], seeds: Sequence[int]) -> int:
    """Run mutations; print what finds them, and return how many nothing does."""
    missed = 0
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        for name in names:
            found = caught(founded, name, seeds, Path(folder))
            missed += not found
            print(f"{name}: {found or f'NOT FOUND by {len(seeds)} seeds'}", flush=True)
    return missed


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="tests.simulation.run")
    parser.add_argument("--seeds", type=int, default=100, metavar="COUNT")
    parser.add_argument("--from", dest="first", type=int, default=1, metavar="SEED")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--show", type=int, metavar="SEED")
    parser.add_argument("--mutation", choices=[*MUTATIONS, "all"], nargs="+")
    parser.add_argument("--traces", action="store_true", help="print the digest of each seed's events")
    given = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets of names and bytes
        again = [sys.executable, "-m", "tests.simulation.run", *sys.argv[1:]]
        os.execve(sys.executable, again, {**os.environ, "PYTHONHASHSEED": "0"})
    founded = prepare()
    seeds = range(given.first, given.first + given.seeds)
    if given.show is not None:
        return show(founded, given.show, given.steps)
    if given.mutation:
        return run_mutations(founded, MUTATIONS if "all" in given.mutation else given.mutation, seeds)
    if given.traces:
        for outcome in simulated(seeds, founded, given.steps, given.jobs):
            print(outcome.seed, outcome.trace)
        return 0
    return 1 if run_seeds(founded, seeds, given.steps, given.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
