"""Two real processes on one state directory, one of which only uploads: it gives way to a session (DESIGN.md §8)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_backlog import Backlog, waiting
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import Forge, fill, in_memory
from tests.scenario.halting import beside


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A machine whose vault is there again, with two points in the spool and changes that are in none."""
    with Forge() as forge, in_memory(tmp_path_factory.mktemp("turns")) as root:
        backlog = waiting(root / "template", forge, 2)
        backlog.machine.back()
        yield backlog


@pytest.fixture
def backlog(template: Backlog, tmp_path: Path) -> Iterator[Backlog]:
    with in_memory(tmp_path) as path:
        yield template.copy_to(path / "work")


def test_an_upload_gives_way_to_a_session_which_uploads_the_rest(backlog: Backlog) -> None:
    machine = backlog.machine
    with beside(machine, "uploading") as upload, beside(machine, "session") as session:
        upload.start(["upload"], Fault("link", f"{machine.vault}/data/"))
        upload.reached()
        session.start(["backup"], Fault("open", f"{session.holder.state}/lock.wanted", after=True))
        session.reached()
        session.release()
        upload.release()
        gave_way = upload.end()
        assert gave_way.code == 3
        assert gave_way.document["stopped"]
        # All its packs were on their way already: that point counts, the next waits.
        uploaded = [each["point"] for each in gave_way.document["uploaded"]]
        assert uploaded == sorted(backlog.spooled)[:1]
        assert gave_way.document["left"] == 1
        done = session.end()
    assert done.code == 0, done.stderr
    assert done.document["problems"] == []
    assert [each["point"] for each in done.document["uploaded"]] == [
        *sorted(backlog.spooled)[1:],
        done.document["point"],
    ]
    backlog.keep(done.document["point"])
    assert backlog.in_spool() == []
    backlog.stands()


def test_a_session_gives_way_while_it_uploads_and_to_nobody_before(backlog: Backlog) -> None:
    machine = backlog.machine
    with beside(machine, "first") as first, beside(machine, "second") as second:
        # Before its root in the spool it is a session: a second one, or an upload, has to go.
        first.start(["backup"], Fault("link", f"{machine.spool}/root/"))
        first.reached()
        assert machine.backup(expect=5)["exit_code"] == 5
        assert machine.run("upload", expect=5).document["exit_code"] == 5
        first.release()
        done = first.end()
        assert done.code == 0
        backlog.keep(done.document["point"])
        assert backlog.in_spool() == []
        # While it uploads what waits it gives way.
        machine.away()
        fill(machine, random.Random(3))
        backlog.keep(machine.backup(expect=3)["point"])
        machine.back()
        for path in (first.began, first.go_on):
            path.unlink()
        first.start(["backup"], Fault("link", f"{machine.vault}/page/"))
        first.reached()
        second.start(["backup"], Fault("open", f"{second.holder.state}/lock.wanted", after=True))
        second.reached()
        second.release()
        first.release()
        uploading, after = first.end(), second.end()
    assert uploading.code == 3
    assert uploading.document["backlog"] == 1
    assert uploading.document["problems"] == []
    backlog.keep(uploading.document["point"])
    assert after.code == 0, after.stderr
    assert after.document["problems"] == []
    assert len(after.document["uploaded"]) == 2
    backlog.keep(after.document["point"])
    assert backlog.in_spool() == []
    assert backlog.listed() == backlog.contents.keys()
    backlog.stands()


def test_whom_a_killed_upload_or_a_waiting_session_leaves_behind_costs_nobody_anything(backlog: Backlog) -> None:
    machine = backlog.machine
    (machine.state / "lock.offered").touch()
    (machine.state / "lock.wanted").touch()
    report = machine.backup()
    assert report["backlog"] == 0
    assert len(report["uploaded"]) == 3
    # One that waits no more says so to nobody: it may have come as the session began.
    machine.away()
    machine.backup(expect=3)
    machine.back()
    with beside(machine, "session") as session:
        session.start(["backup"], Fault("link", f"{machine.spool}/root/"))
        session.reached()
        (machine.state / "lock.wanted").touch()
        session.release()
        done = session.end()
    assert done.code == 0
    assert done.document["backlog"] == 0
    assert backlog.in_spool() == []
