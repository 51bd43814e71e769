"""Local state lost, damaged, cloned or rolled back, and a vault that lost things: said, and gone on from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import KILLED, CrashMachine, Forge, in_memory, lasting, made, records
from tests.scenario.machine import BLOCK, overwrite

DAMAGES = ("deleted", "flipped", "cut")
# Every file of a state directory but the identity; {vault} and {cache} stand for store ids.
FILES = (
    "incarnation",
    "newest",
    "journal",
    "sessions",
    "history.sqlite",
    "history.sqlite-journal",
    "lock",
    "volumes/*/head",
    "volumes/*/map",
    "volumes/*/map.sums",
    "volumes/*/missing",
    "volumes/*/staged",
    "volumes/*/staged.masks",
    "volumes/*/staged.sums",
    "volumes/*/staged.seal",
    "volumes/*/parts",
    "volumes/*/origins",
    "volumes/*/parts.sums",
    "volumes/*/staged.parts",
    "volumes/*/staged.origins",
    "volumes/*/staged.parts.sums",
    "volumes/*/staged.parts.masks",
    "index/{vault}/*",
    "index/{cache}/*",
    "index/{vault}.acks",
    "index/{cache}.acks",
)


@pytest.fixture(scope="module")
def quiet(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    """A machine with two points and changes that are in none of them."""
    with in_memory(tmp_path_factory.mktemp("quiet")) as root:
        yield made(root / "template", forge)


@pytest.fixture(scope="module")
def killed(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrashMachine]:
    """The same, killed right after it had put the root of a third point: the commit happened, nobody noted it."""
    with in_memory(tmp_path_factory.mktemp("killed")) as root:
        machine = made(root / "template", forge)
        fault = Fault("link", f"{machine.vault}/root/", after=True)
        assert machine.attempt("backup", fault=fault).code == KILLED
        yield machine


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with in_memory(tmp_path) as path:
        yield path


def damage(path: Path, how: str) -> None:
    """Delete a file, cut it in half, or flip a bit in its middle, which also an empty one has after this."""
    if how == "deleted":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2 : len(data) // 2 + 1] = bytes([data[len(data) // 2] ^ 16]) if data else b"?"
    path.write_bytes(data)


def files_of(machine: CrashMachine, pattern: str) -> list[Path]:
    cache_id = (machine.cache / "format").read_bytes()[12:28].hex() if machine.cache else ""
    return sorted(machine.state.glob(pattern.format(vault=machine.vault_id, cache=cache_id)))


def check_next(machine: CrashMachine, path: Path, *, sends_again: bool = False) -> list[str]:
    """Run a session, restore what it made, and look for what was sent twice; return its problems."""
    before = lasting(machine.vault)
    report = machine.backup()
    after = lasting(machine.vault)
    assert before.items() <= after.items()
    old, new = (records(machine.vault, {*names}) for names in (before, after.keys() - before.keys()))
    if not sends_again:
        assert not new.keys() & old.keys(), "what the vault has was sent again"
    check_restore(machine, path, report["point"])
    problems: list[str] = report["problems"]
    return problems


def check_restore(machine: CrashMachine, path: Path, point: str, *arguments: str) -> None:
    for name, volume in machine.volumes.items():
        (path / "out").unlink(missing_ok=True)
        machine.restore(point, name, path / "out", *arguments)
        assert (path / "out").read_bytes() == volume.read_bytes(), name


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("which", ["quiet", "killed"])
def test_any_file_of_local_state_may_be_lost_or_damaged(
    request: pytest.FixtureRequest, path: Path, which: str, pattern: str
) -> None:
    template: CrashMachine = request.getfixturevalue(which)
    found = files_of(template, pattern)
    if which == "killed" or pattern not in ("journal", "sessions", "volumes/*/staged.seal"):
        assert found, f"there is no {pattern} in a state directory any more: what replaced it?"
    # Of several files of a kind each meets one kind of damage at least, and each kind of damage one file.
    for number, how in enumerate(DAMAGES if found else ()):
        machine = template.copy_to(path / "work")
        damage(files_of(machine, pattern)[number % len(found)], how)
        # What an interrupted session sent is known only to the log of what was acknowledged.
        problems = check_next(machine, path, sends_again=which == "killed" and pattern == "index/{vault}.acks")
        assert all("\n" not in problem for problem in problems)
        machine.run("status", expect=None)
        # Once is enough: the session after it has nothing to say and nothing to send.
        report = machine.backup()
        assert report["problems"] == [], pattern
        assert sum(volume["vault_blocks"] + volume["cache_blocks"] for volume in report["volumes"].values()) == 0
        machine.run("status")


@pytest.mark.parametrize("which", ["quiet", "killed"])
def test_everything_but_the_identity_may_be_lost(request: pytest.FixtureRequest, path: Path, which: str) -> None:
    template: CrashMachine = request.getfixturevalue(which)
    machine = template.copy_to(path / "work")
    for entry in machine.state.iterdir():
        if entry.name != "identity":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    problems = check_next(machine, path, sends_again=which == "killed")
    assert sum("everything was read and compared" in problem for problem in problems) == len(machine.volumes)
    assert machine.backup()["problems"] == []


def test_a_cloned_state_directory_is_recognised_and_both_go_on(quiet: CrashMachine, path: Path) -> None:
    machine = quiet.copy_to(path / "work")
    original, clone = machine.state, path / "clone"
    machine.backup()
    shutil.copytree(original, clone)
    aside = path / "aside"
    points = {machine.backup()["point"]}
    for turn in range(4):
        original.rename(aside)
        clone.rename(original)
        aside.rename(clone)
        overwrite(machine.volumes["data"], turn, bytes([turn + 1]) * BLOCK)
        problems = check_next(machine, path)
        assert any("cloned or its state restored from a copy" in problem for problem in problems), problems
        # As long as only one of them runs there is nothing to say.
        report = machine.backup()
        assert report["problems"] == []
        points.add(report["point"])
    assert points <= {row["id"] for row in machine.points()}


def test_a_rolled_back_state_directory_is_recognised(quiet: CrashMachine, path: Path) -> None:
    machine = quiet.copy_to(path / "work")
    shutil.copytree(machine.state, path / "old")
    for number in range(3):
        overwrite(machine.volumes["data"], number, bytes([number + 1]) * BLOCK)
        machine.backup()
    shutil.rmtree(machine.state)
    (path / "old").rename(machine.state)
    overwrite(machine.volumes["data"], 1, b"y" * BLOCK)
    problems = check_next(machine, path)
    assert any("cloned or its state restored from a copy" in problem for problem in problems), problems
    assert machine.backup()["problems"] == []


def test_a_state_directory_rolled_back_into_its_own_commit_is_recognised(killed: CrashMachine, path: Path) -> None:
    machine = killed.copy_to(path / "work")
    shutil.copytree(machine.state, path / "old")
    machine.backup()
    overwrite(machine.volumes["data"], 1, b"y" * BLOCK)
    machine.backup()
    shutil.rmtree(machine.state)
    (path / "old").rename(machine.state)
    problems = check_next(machine, path)
    assert any("cloned or its state restored from a copy" in problem for problem in problems), problems


@pytest.mark.parametrize("count", [1, 2])
def test_a_vault_that_lost_its_newest_roots_is_noticed(quiet: CrashMachine, path: Path, count: int) -> None:
    machine = quiet.copy_to(path / "work")
    machine.backup()
    roots = sorted((machine.vault / "root" / machine.owner).iterdir())
    for root in roots[-count:]:
        root.unlink()
    lost = machine.run("points").document["lost"]
    assert roots[-1].name in {row["id"] for row in lost}
    problems = check_next(machine, path)
    assert any("the vault has lost restore point" in problem for problem in problems), problems
    assert machine.backup()["problems"] == []


def test_a_vault_that_lost_all_roots_is_noticed(quiet: CrashMachine, path: Path) -> None:
    machine = quiet.copy_to(path / "work")
    for root in (machine.vault / "root" / machine.owner).iterdir():
        root.unlink()
    problems = check_next(machine, path)
    assert any("the vault has lost restore point" in problem for problem in problems), problems
    assert machine.backup()["problems"] == []


@pytest.mark.parametrize("kind", ["data", "page", "index"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_vault_that_lost_or_damaged_objects_gets_a_good_point_again(
    quiet: CrashMachine, path: Path, kind: str, how: str
) -> None:
    template = quiet.copy_to(path / "template")
    template.backup()
    names = sorted((template.vault / kind / template.owner).iterdir())
    for name in names:
        machine = template.copy_to(path / "work")
        shutil.rmtree(machine.cache or "")
        machine.cache = None
        damage(machine.vault / kind / machine.owner / name.name, how)
        out = path / "out"
        out.unlink(missing_ok=True)
        restored = machine.restore("latest", "data", out, expect=None)
        if restored.code == 0:
            assert out.read_bytes() == machine.volumes["data"].read_bytes()
        elif kind != "index":
            assert name.name in str(restored.document) + restored.stderr
        report = machine.backup("--full")
        if how == "flipped" and kind == "data":
            continue  # of its right size: only reading it shows the damage, and restores say so
        check_restore(machine, path, report["point"])
