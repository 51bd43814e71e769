"""Kill -9 at every change a session makes on a disk, and at random times: no point is ever lost, the next goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_machine import KILLED, Aftermath, Forge, in_memory, made

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
