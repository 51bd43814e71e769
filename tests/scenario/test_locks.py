"""One session at a time on a state directory, whoever looks on, and however the one that runs ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.adapters.disks import tool
from tests.scenario.crash_machine import KILLED, CrashMachine, Forge, in_memory, made
from tests.scenario.halting import halted
from tests.scenario.machine import Machine


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("locks")) as root:
        yield made(root / "template", forge)


@pytest.fixture
def machine(template: CrashMachine, tmp_path: Path) -> Iterator[CrashMachine]:
    with in_memory(tmp_path) as path:
        yield template.copy_to(path / "work")


def test_a_second_session_says_so_and_the_first_goes_on(machine: CrashMachine) -> None:
    with halted(machine) as first:
        pid = (machine.state / "lock.pid").read_text(encoding="ascii")
        for second in (machine, Machine(machine.root, machine.vault, machine.cache, volumes=machine.volumes)):
            done = second.run("backup", expect=5)
            assert done.document["exit_code"] == 5
            sentence = done.document["error"]
            assert str(machine.state) in sentence
            assert f"process {pid}" in sentence
            assert "\n" not in sentence
    assert first[0].code == 0
    assert first[0].document["problems"] == []
    assert machine.backup()["problems"] == []


def test_whoever_only_looks_is_not_kept_out(machine: CrashMachine, tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in machine.volumes.items()}
    old = machine.points()
    with halted(machine) as first:
        assert machine.run("status").document["newest_point"] == old[0]["id"]
        assert machine.points() == old
        machine.run("check-config")
        machine.restore("latest", "data", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() != before["data"]  # of the point before the changes
    assert first[0].code == 0


def test_a_killed_session_frees_the_lock(machine: CrashMachine) -> None:
    with halted(machine) as first:
        tool("kill", "-9", (machine.state / "lock.pid").read_text(encoding="ascii"))
    assert first[0].code == KILLED
    assert (machine.state / "lock.pid").exists()
    report = machine.backup()
    assert report["problems"] == []
    assert sum(volume["vault_blocks"] for volume in report["volumes"].values()) == 0
