"""Kill -9 at every change a session makes on a disk, and at random times: no point is ever lost, the next goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_machine import (
    KILLED,
    CrashMachine,
    Forge,
    check_whole,
    in_memory,
    leftovers,
    made,
    objects,
    records,
)

SHARDS = 4
CHAIN = 200


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    with Forge() as forge:
        yield forge


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as path:
        yield path


class Aftermath:
    """What must be true of a machine whose session was killed, then after the next session."""

    def __init__(self, machine: CrashMachine) -> None:
        self.machine = machine
        self.vault, self.cache = objects(machine.vault), self._cached()

    def _cached(self) -> dict[str, bytes]:
        return objects(self.machine.cache) if self.machine.cache is not None else {}

    def of_kill(self) -> list[str]:
        """Check the stores as the killed session left them: nothing changed, nothing half; return its points."""
        vault, cache = objects(self.machine.vault), self._cached()
        assert self.vault.items() <= vault.items()
        assert self.cache.items() <= cache.items()
        check_whole(self.machine.vault, vault)
        if self.machine.cache is not None:
            check_whole(self.machine.cache, cache)
        known = self.machine.acknowledged()
        assert known <= vault.keys()
        self.known = known | {name for name in self.vault if name.startswith("data/")}
        added = vault.keys() - self.vault.keys()
        self.vault, self.cache = vault, cache
        return [name.rpartition("/")[2] for name in sorted(added) if name.startswith("root/")]

    def of_next(self) -> None:
        """Run the next session and check that it needed nothing twice and left nothing behind."""
        machine = self.machine
        report = machine.backup()
        assert report["problems"] == []
        before, vault = self.vault, objects(machine.vault)
        assert before.items() <= vault.items()
        check_whole(machine.vault, vault)
        sent = records(machine.vault, vault.keys() - before.keys())
        held = records(machine.vault, self.known)
        assert not sent.keys() & held.keys(), "what was acknowledged was sent again"
        assert all(len(packs) == 1 for packs in sent.values())
        assert leftovers(machine.vault) == []
        if machine.cache is not None:
            check_whole(machine.cache, objects(machine.cache))
            assert leftovers(machine.cache) == []

    def content(self, point: str, *arguments: str) -> None:
        """Restore every volume of a point and compare it with what the volumes hold."""
        for name, path in self.machine.volumes.items():
            target = self.machine.root / "out"
            target.unlink(missing_ok=True)
            self.machine.restore(point, name, target, *arguments)
            assert target.read_bytes() == path.read_bytes(), f"{name} of {point}"


@pytest.mark.parametrize("points", [0, 2])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_session_killed_at_any_change_of_a_disk_costs_nothing(
    forge: Forge, fast_path: Path, points: int, shard: int
) -> None:
    template = made(fast_path / "template", forge, points)
    whole = template.copy_to(fast_path / "whole")
    whole.backup()
    changes = whole.changes
    shutil.rmtree(fast_path / "whole")
    stride = SHARDS * (1 if points else 3)
    killed = 0
    for kill_at in range(1 + shard, changes + 1, stride):
        machine = template.copy_to(fast_path / "work")
        after = Aftermath(machine)
        done = machine.attempt("backup", kill_at=kill_at, torn=kill_at % 2 == 0)
        killed += done.code == KILLED
        for point in after.of_kill():  # its root was put: it counts
            assert point in {row["id"] for row in machine.points()}
            after.content(point)
        after.of_next()
        after.content("latest", *(["--only-cache"] if killed % 2 else []))
    assert killed > changes // stride * 0.8
