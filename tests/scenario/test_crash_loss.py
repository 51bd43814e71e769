"""Killed right after the vault was lost in mid-session; and packs in the vault whose root comes much later."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_backlog import Backlog, waiting
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import (
    KILLED,
    Aftermath,
    CrashMachine,
    Forge,
    change,
    fill,
    in_memory,
    lasting,
    objects,
    records,
)

# Where the session is killed once it writes to the spool: operation, place in the spool, after it.
INSTANTS = [
    ("open", "tmp/", False),
    ("link", "data/", True),
    ("link", "page/", True),
    ("link", "index/", False),
    ("link", "root/", False),
    ("link", "root/", True),
]


@pytest.fixture(scope="module", params=["restart", "resume"])
def template(
    request: pytest.FixtureRequest, forge: Forge, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Backlog]:
    """A machine with a point in its vault and one session's changes, and its `on_loss`."""
    extra = {"vault": f'retries_max = 0\non_loss = "{request.param}"'}
    with in_memory(tmp_path_factory.mktemp("loss")) as path:
        backlog = waiting(path / "template", forge, 0, in_vault=1, extra=extra)
        backlog.machine.back()
        yield backlog


def loss(machine: CrashMachine) -> Fault:
    """Take the vault away right after its first new pack got its name; no put that has begun gets any further."""
    aside = machine.aside
    broken = f"mv '{machine.vault}' '{aside}' && rm -r '{aside}/tmp' && touch '{aside}/tmp'"
    return Fault("link", f"{machine.vault}/data/", ["sh", "-c", broken], after=True)


def found(machine: CrashMachine) -> None:
    """Bring the vault back."""
    (machine.aside / "tmp").unlink()
    machine.back()


@pytest.mark.parametrize("instant", INSTANTS)
@pytest.mark.parametrize("returns", ["at once", "later"])
def test_killed_after_the_switch_the_next_session_goes_on(
    template: Backlog, fast_path: Path, instant: tuple[str, str, bool], returns: str
) -> None:
    backlog = template.copy_to(fast_path / "work")
    machine = backlog.machine
    operation, place, later = instant
    in_spool = Aftermath(machine, machine.spool)
    before = lasting(machine.vault)
    kill = Fault(operation, f"{machine.spool}/{place}", after=later)
    assert machine.attempt("backup", faults=[loss(machine), kill]).code == KILLED
    assert machine.aside.exists()
    lost = {name: digest for name, digest in lasting(machine.aside).items() if name != "tmp"}
    assert before.items() <= lost.items()
    assert len({name for name in lost.keys() - before.keys() if name.startswith("data/")}) == 1
    backlog.restore_all("--only-cache")
    for point in in_spool.of_kill():
        # With `resume` it needs what is in the vault: the cache may not have got that far.
        backlog.keep(point)
    if returns == "later":
        backlog.keep(in_spool.of_next()["point"])
        in_spool.content("latest", "--only-cache")
        found(machine)
        backlog.upload_all()
    else:
        found(machine)
        in_vault = Aftermath(machine)
        in_vault.known = {name for name in before if name.startswith("data/")}
        in_vault.known |= machine.acknowledged(machine.vault)
        report = in_vault.of_next() if len(backlog.contents) == 1 else machine.backup()
        assert report["problems"] == []
        backlog.keep(report["point"])
    assert lost.items() <= objects(machine.vault).items()
    assert backlog.in_spool() == []
    assert backlog.listed() == backlog.contents.keys()
    backlog.stands()


@pytest.mark.parametrize("template", ["resume"], indirect=True)
def test_packs_in_the_vault_count_for_a_root_that_is_uploaded_much_later(template: Backlog, fast_path: Path) -> None:
    backlog = template.copy_to(fast_path / "work")
    machine, generator = backlog.machine, random.Random(5)
    before = objects(machine.vault)
    # All its blocks are acknowledged when it comes to the pages.
    gone = Fault("link", f"{machine.vault}/page/", ["mv", str(machine.vault), str(machine.aside)], after=True)
    done = machine.attempt("backup", fault=gone, expect=3)
    assert [each["route"] for each in done.document["route_history"]] == ["VAULT", "FALLBACK"]
    backlog.keep(done.document["point"])
    sent = {name for name in objects(machine.aside).keys() - before.keys() if name.startswith("data/")}
    spooled = objects(backlog.spool).keys()
    assert sent
    assert not records(machine.aside, sent).keys() & records(backlog.spool, {*spooled}).keys(), "nothing goes twice"
    machine.back()
    # Meanwhile: another system in the same vault, sessions of this one that wait as well, one of them killed.
    machine.run("upload", "--pause", "2h")
    other = CrashMachine(
        fast_path / "other", machine.vault, machine.cache, name="web-02", volumes=machine.volumes, forge=machine.forge
    )
    other.init()
    for _ in range(2):
        change(machine, generator)
        fill(machine, generator)
        assert other.backup()["problems"] == []
        machine.attempt("backup", kill_at=generator.randint(100, 250))
        backlog.keep(machine.backup(expect=3)["point"])
    machine.run("upload", "--resume")
    for _ in range(5):
        machine.attempt("upload", kill_at=generator.randint(30, 200), torn=True)
        assert sent <= objects(machine.vault).keys()
        backlog.restore_some(generator.randrange(10))
    backlog.upload_all()
    assert backlog.listed() >= backlog.contents.keys()
    backlog.stands()
