"""Kill -9 at changes of a disk with a spool: sessions that write to it, and what deletes from it.

`FOREBAY_CRASH_STRIDE=1` kills at every single change, which takes minutes; by default it is every 23rd.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_backlog import Backlog, waiting
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import (
    KILLED,
    Aftermath,
    Forge,
    change,
    check_whole,
    in_memory,
    objects,
)

STRIDE = int(os.environ.get("FOREBAY_CRASH_STRIDE", "29"))
SHARDS = 2
CHAIN = 15


@pytest.fixture(scope="module")
def away(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A machine whose vault is away: two points in it, one in the spool, and changes that are in none."""
    with in_memory(tmp_path_factory.mktemp("away")) as path:
        yield waiting(path / "template", forge, 1)


@pytest.fixture(scope="module")
def fresh(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A machine without any point, whose vault went away before its first session."""
    with in_memory(tmp_path_factory.mktemp("fresh")) as path:
        yield waiting(path / "template", forge, 0, in_vault=0)


def changes_of(backlog: Backlog, path: Path, *arguments: str) -> int:
    """Return how many changes of a disk a command makes."""
    machine = backlog.copy_to(path).machine
    machine.attempt(*arguments)
    shutil.rmtree(path)
    return machine.changes


@pytest.mark.parametrize("which", ["fresh", "away"])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_session_into_the_spool_killed_at_any_change_costs_nothing(
    request: pytest.FixtureRequest, fast_path: Path, which: str, shard: int
) -> None:
    template: Backlog = request.getfixturevalue(which)
    changes = changes_of(template, fast_path / "whole", "backup")
    instants = range(1 + shard * STRIDE, changes + 1, SHARDS * STRIDE)
    killed = 0
    for kill_at in instants:
        backlog = template.copy_to(fast_path / "work")
        machine = backlog.machine
        after = Aftermath(machine, machine.spool)
        done = machine.attempt("backup", kill_at=kill_at, torn=kill_at % 2 == 0)
        killed += done.code == KILLED
        for point in after.of_kill():  # its root was put: it counts
            assert point in backlog.listed()
            after.content(point)
        after.of_next()
        after.content("latest", *(["--only-cache"] if killed % 2 else []))
        backlog.restore_some(killed, "--only-cache")
        machine.back()
        if killed % 3 == 0:
            backlog.upload_all()
        with backlog.without_cache():
            after.content("latest")
    assert killed >= len(instants) - 2


def test_sessions_into_the_spool_killed_at_random_never_cost_a_point(away: Backlog, fast_path: Path) -> None:
    backlog = away.copy_to(fast_path / "work")
    machine = backlog.machine
    generator = random.Random(41)
    changes = changes_of(away, fast_path / "whole", "backup")
    known = Aftermath(machine, machine.spool).known
    killed = 0
    for number in range(CHAIN):
        if number % 3 == 0:
            change(machine, generator)
        after = Aftermath(machine, machine.spool, swept=True)
        before = after.packs()
        done = machine.attempt("backup", kill_at=generator.randint(1, changes), torn=generator.random() < 0.5)
        killed += done.code == KILLED
        after.known = known
        for point in after.of_kill():
            backlog.keep(point)
        known = after.known if done.code == KILLED else after.known | (after.packs() - before)
    assert killed > CHAIN // 3
    after = Aftermath(machine, machine.spool, swept=True)
    after.known = known
    backlog.keep(after.of_next()["point"])
    assert backlog.contents.keys() <= backlog.listed()
    backlog.restore_all("--only-cache")
    machine.back()
    backlog.upload_all()
    backlog.stands()


def test_a_commit_into_the_spool_that_was_cut_off_is_known_after_its_upload(away: Backlog, fast_path: Path) -> None:
    """The root is in the spool, local state does not know it yet; then it leaves the spool."""
    late = 0
    for count in range(1, 9):
        backlog = away.copy_to(fast_path / "work")
        machine = backlog.machine
        assert machine.spool is not None
        # After the root local state follows: each of its files is replaced in turn.
        root = Fault("link", f"{machine.spool}/root/", ["touch", str(machine.root / "put")], after=True)
        done = machine.attempt("backup", faults=[root, Fault("replace", f"{machine.state}/", count=count)])
        if done.code != KILLED or not (machine.root / "put").exists():
            continue
        late += 1
        after = Aftermath(machine, machine.spool)
        machine.back()
        backlog.upload_all()
        with backlog.without_cache():
            after.content("latest")
        backlog.keep(max(backlog.listed()))
        backlog.goes_on()
    assert late >= 2


@pytest.mark.parametrize("which", ["older", "newest"])
def test_a_deletion_killed_at_any_change_is_done_or_can_be_done_again(
    two: Backlog, fast_path: Path, which: str
) -> None:
    point = sorted(two.spooled)[0 if which == "older" else -1]
    command = ("points", "--delete", point, "--yes")
    changes = changes_of(two, fast_path / "whole", *command)
    killed = 0
    instants = range(1, changes + 1, STRIDE)
    for kill_at in instants:
        backlog = two.copy_to(fast_path / "work")
        machine = backlog.machine
        killed += machine.attempt(*command, kill_at=kill_at, torn=kill_at % 2 == 0).code == KILLED
        left = {key: content for key, content in backlog.contents.items() if key != point}
        listed = backlog.listed()
        assert left.keys() <= listed
        if point in listed:
            backlog.restore(point)
        if kill_at % 3 == 0:
            done = machine.attempt(*command)
            assert done.code == (0 if point in listed else 2)
            assert point not in backlog.listed()
        backlog.contents = left if kill_at % 3 == 0 or point not in listed else backlog.contents
        report = machine.backup()
        assert {each["point"] for each in report["uploaded"]} >= two.spooled - {point}
        backlog.keep(report["point"])
        assert backlog.in_spool() == []
        assert backlog.listed() == backlog.contents.keys()
        check_whole(machine.vault, objects(machine.vault))
        with backlog.without_cache():
            backlog.restore_some(killed)
        backlog.goes_on()
    assert killed >= len(instants) - 2
