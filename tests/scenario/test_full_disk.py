"""Disks that are full or read-only under vault, cache and state directory: one sentence, no harm, and on from there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.adapters.disks import tmpfs, tool
from tests.scenario.crash_machine import Aftermath, CrashMachine, Forge, in_memory, made

pytestmark = pytest.mark.root

MIB = 1 << 20
# Bytes left on the disk: nothing, not even a small file, not a pack, one pack and not two.
ROOM = (0, 4096, 64 << 10, MIB, 5 * MIB)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("full")) as root:
        yield made(root / "template", forge)


@pytest.fixture
def machine(template: CrashMachine, tmp_path: Path) -> Iterator[CrashMachine]:
    with in_memory(tmp_path) as path:
        machine = template.copy_to(path / "work")
        machine.extra = {"vault": "retries_max = 1", "cache": "retries_max = 1"}
        yield machine


@contextmanager
def disk_of(folder: Path) -> Iterator[Path]:
    """Put a folder on a disk of its own."""
    aside = folder.with_name(f"{folder.name}-aside")
    folder.rename(aside)
    with tmpfs(folder, 256 * MIB):
        folder.chmod(0o700)
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield folder


def leave(disk: Path, room_bytes: int) -> None:
    """Make the disk so small that this much is free."""
    tool("mount", "-o", f"remount,size={shutil.disk_usage(disk).used + room_bytes}", disk)


def check_sentence(text: str, *parts: str) -> None:
    assert text
    assert "\n" not in text
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("room", ROOM)
def test_a_full_vault_ends_the_session_and_nothing_else(machine: CrashMachine, room: int) -> None:
    with disk_of(machine.vault) as disk:
        after = Aftermath(machine)
        leave(disk, room)
        for _ in range(2):
            report = machine.backup(expect=1)
            check_sentence(report["error"], str(machine.vault), "no space left")
            assert report["point"] is None
        assert after.of_kill() == []
        assert len(machine.points()) == 2
        leave(disk, 200 * MIB)
        after.of_next()
        after.content("latest")


@pytest.mark.parametrize("room", ROOM)
def test_a_full_state_directory_ends_the_session_and_nothing_else(machine: CrashMachine, room: int) -> None:
    with disk_of(machine.state) as disk:
        after = Aftermath(machine)
        leave(disk, room if room < MIB else 128 << 10)
        for _ in range(2):
            done = machine.run("backup", expect=None)
            assert done.code in (0, 1)
            if done.code:
                check_sentence(done.document["error"], str(machine.state), "full")
        points = after.of_kill()
        assert len(machine.points()) == 2 + len(points)
        leave(disk, 200 * MIB)
        report = machine.backup()
        assert report["problems"] == []
        after.content("latest")
        after.content("latest", "--only-cache")


@pytest.mark.parametrize(("on_error", "code"), [("warn", 0), ("error", 4), ("fail", 1)])
@pytest.mark.parametrize("room", ROOM[::2])
def test_a_full_cache_costs_what_on_error_says(machine: CrashMachine, room: int, on_error: str, code: int) -> None:
    machine.extra["cache"] += f'\non_error = "{on_error}"'
    assert machine.cache is not None
    with disk_of(machine.cache) as disk:
        after = Aftermath(machine)
        leave(disk, room)
        report = machine.backup(expect=code)
        if on_error == "fail":
            check_sentence(report["error"], str(machine.cache), "no space left")
        else:
            assert report["cache"] == "given up"
            (problem,) = report["problems"]
            check_sentence(problem, str(machine.cache), "no space left", "put there later")
            after.content(report["point"])
        after.of_kill()
        leave(disk, 200 * MIB)
        report = after.of_next()
        assert report["cache"] == "ok"
        assert sum(volume["cache_blocks"] for volume in report["volumes"].values()) > 0
        after.content("latest", "--only-cache")


@pytest.mark.parametrize("place", ["vault", "state"])
def test_a_read_only_disk_ends_the_session_and_nothing_else(machine: CrashMachine, place: str) -> None:
    folder = machine.vault if place == "vault" else machine.state
    with disk_of(folder) as disk:
        after = Aftermath(machine)
        tool("mount", "-o", "remount,ro", disk)
        done = machine.run("backup", expect=1)
        check_sentence(done.document["error"], str(folder), "ead-only")
        assert after.of_kill() == []
        assert len(machine.points()) == 2
        tool("mount", "-o", "remount,rw", disk)
        after.of_next()
        after.content("latest")


@pytest.mark.parametrize(("on_error", "code"), [("warn", 0), ("error", 4), ("fail", 1)])
def test_a_read_only_cache_costs_what_on_error_says(machine: CrashMachine, on_error: str, code: int) -> None:
    machine.extra["cache"] += f'\non_error = "{on_error}"'
    assert machine.cache is not None
    with disk_of(machine.cache) as disk:
        after = Aftermath(machine)
        tool("mount", "-o", "remount,ro", disk)
        report = machine.backup(expect=code)
        check_sentence(report["error"] or report["problems"][0], str(machine.cache), "read-only")
        after.of_kill()
        tool("mount", "-o", "remount,rw", disk)
        after.of_next()
        after.content("latest", "--only-cache")
