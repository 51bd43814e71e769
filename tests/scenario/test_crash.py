"""Kill -9 at every change a session makes on a disk, and at random times: no point is ever lost, the next goes on.

`FOREBAY_CRASH_STRIDE=1` kills at every single change, which takes minutes; by default it is every 17th.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_machine import (
    KILLED,
    Aftermath,
    CrashMachine,
    Forge,
    change,
    in_memory,
    leftovers,
    made,
)
from tests.scenario.machine import Machine, finish

SHARDS = 4
STRIDE = int(os.environ.get("FOREBAY_CRASH_STRIDE", "21"))
TWICE = 20
CHAIN = 100
REAL = 8


@pytest.fixture(scope="module")
def template(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    """A machine with two points, and changes that are in none."""
    with in_memory(tmp_path_factory.mktemp("crash")) as path:
        yield made(path / "template", forge)


@pytest.fixture(scope="module")
def fresh(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    """A machine without any point."""
    with in_memory(tmp_path_factory.mktemp("crash")) as path:
        yield made(path / "fresh", forge, 0)


def changes_of(template: CrashMachine, path: Path) -> int:
    """Return how many changes of a disk the template's next session makes."""
    machine = template.copy_to(path)
    machine.backup()
    shutil.rmtree(path)
    return machine.changes


@pytest.mark.parametrize("which", ["fresh", "template"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_session_killed_at_any_change_of_a_disk_costs_nothing(
    request: pytest.FixtureRequest, fast_path: Path, which: str, shard: int
) -> None:
    template: CrashMachine = request.getfixturevalue(which)
    changes = changes_of(template, fast_path / "whole")
    instants = range(1 + shard * STRIDE + shard % STRIDE, changes + 1, SHARDS * STRIDE)
    killed = 0
    for kill_at in instants:
        machine = template.copy_to(fast_path / "work")
        after = Aftermath(machine)
        done = machine.attempt("backup", kill_at=kill_at, torn=kill_at % 2 == 0)
        killed += done.code == KILLED
        for point in after.of_kill():  # its root was put: it counts
            assert point in {row["id"] for row in machine.points()}
            after.content(point)
        after.of_next()
        after.content("latest", *(["--only-cache"] if killed % 2 else []))
    # Threads make a few changes more or less: only at the end may a session have been faster.
    assert killed >= len(instants) - 2


def test_the_session_after_a_kill_may_be_killed_as_well(template: CrashMachine, fast_path: Path) -> None:
    changes = changes_of(template, fast_path / "whole")
    generator = random.Random(2)
    for _ in range(TWICE):
        machine = template.copy_to(fast_path / "work")
        after = Aftermath(machine)
        # Late ones first: a commit that happened, or nearly did, is what the second has to settle.
        machine.attempt("backup", kill_at=generator.randint(changes * 2 // 3, changes), torn=True)
        after.of_kill()
        machine.attempt("backup", kill_at=generator.randint(1, changes), torn=generator.random() < 0.5)
        after.of_kill()
        after.of_next()
        after.content("latest", "--only-cache")


def test_a_hundred_kills_at_random_times_never_cost_a_point(template: CrashMachine, fast_path: Path) -> None:
    machine = template.copy_to(fast_path / "work")
    generator = random.Random(200)
    kept: dict[str, dict[str, bytes]] = {}
    seconds = machine.backup()["seconds"]
    known = Aftermath(machine).known
    killed = 0
    for number in range(CHAIN):
        if number % 3 == 0:
            change(machine, generator)
        contents = {name: path.read_bytes() for name, path in machine.volumes.items()}
        after = Aftermath(machine)
        before = after.packs()
        done = machine.attempt("backup", kill_after_s=generator.uniform(0, seconds * 1.3))
        killed += done.code == KILLED
        if done.code != KILLED:
            assert done.document["problems"] == []
        # A pack that was put by a session killed before the answer was kept is known to nobody, and is sent again.
        after.known = known
        kept.update((point, contents) for point in after.of_kill())
        known = after.known if done.code == KILLED else after.known | (after.packs() - before)
        if number % 25 == 24:
            check_sample(machine, kept, generator)
    assert killed > CHAIN // 4
    after = Aftermath(machine)
    after.known = known
    after.of_next()
    after.content("latest", "--only-cache")
    assert kept.keys() <= {row["id"] for row in machine.points()}


def check_sample(machine: CrashMachine, kept: dict[str, dict[str, bytes]], generator: random.Random) -> None:
    """Restore some of the points that were ever committed."""
    assert kept.keys() <= {row["id"] for row in machine.points()}
    for point in generator.sample(sorted(kept), min(2, len(kept))):
        for name, content in kept[point].items():
            (machine.root / "out").unlink(missing_ok=True)
            machine.restore(point, name, machine.root / "out")
            assert (machine.root / "out").read_bytes() == content


def test_a_process_of_its_own_is_killed_from_outside(template: CrashMachine, fast_path: Path) -> None:
    machine = template.copy_to(fast_path / "work")
    generator = random.Random(8)
    machine.write_config()
    outside = Machine(machine.root, machine.vault, machine.cache, volumes=machine.volumes)
    for number in range(REAL):
        change(machine, generator)
        after = Aftermath(machine)
        process = subprocess.Popen(
            outside.command("backup", "--json"),
            env=outside.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            out, err = process.communicate(timeout=0.1 + 0.15 * number)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            assert process.returncode in (KILLED, 0), "killed, unless it ended at that very moment"
        else:
            finish(subprocess.CompletedProcess(process.args, process.returncode, out, err), 0)
        after.of_kill()
    after = Aftermath(machine)
    after.of_next()
    after.content("latest")
    assert leftovers(machine.vault) == []
