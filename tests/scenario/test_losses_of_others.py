"""What others in this field lost backups by, each case by its name; those of packs, and of what is said of them.

- a spooled point that relies on packs which vanish meanwhile: test_fallback.py, test_filling.py
- a resumed session whose packs hang on a root that is uploaded weeks later: test_crash_loss.py
- cloned and rolled-back state, and roots that vanish: test_state_loss.py with the vault there; with a spool here
- a neighbour's garbage under a valid id: test_neighbours.py and test_bad_packs.py for sessions; the rest here
- dedup against a pack that was never acknowledged, dedup against blocks that have vanished: here, the latter with the
  vault there in test_vanished_packs.py
- interrupted clean-up followed by a backup: here, and test_crash_spool.py (deletion)
- truncated and zero-length objects on a share; wrong clocks; 503 taken for success: test_losses_by_stores.py
"""

from __future__ import annotations

import random
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes import FakeClock
from tests.scenario import inprocess
from tests.scenario.crash_backlog import Backlog, waiting
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import KILLED, CrashMachine, Forge, change, check_whole, in_memory, made, objects
from tests.scenario.machine import BLOCK, overwrite
from tests.scenario.mallory import Mallory, identity_of

CLONED = "cloned or its state restored from a copy"


@pytest.fixture(scope="module")
def one(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A machine with one point in its vault, which is away, one in the spool, and changes that are in none."""
    with in_memory(tmp_path_factory.mktemp("one")) as path:
        yield waiting(path / "template", forge, 1, in_vault=1)


def settled(backlog: Backlog) -> None:
    """Bring the vault back, upload all, and have every point from there."""
    backlog.machine.back()
    backlog.upload_all()
    assert backlog.listed() >= backlog.contents.keys()
    backlog.stands()


@pytest.mark.parametrize("when", ["before the spooled point", "before a second one"])
def test_rolled_back_state_with_points_in_the_spool(one: Backlog, fast_path: Path, when: str) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine, generator = backlog.machine, random.Random(3)
    if when == "before the spooled point":
        machine.back()
        backlog.upload_all()
        old = shutil.copytree(machine.state, fast_path / "old")
        machine.away()
    else:
        old = shutil.copytree(machine.state, fast_path / "old")
    backlog.keep(machine.backup(expect=3)["point"])
    shutil.rmtree(machine.state)
    old.rename(machine.state)
    change(machine, generator)
    report = machine.backup(expect=3)
    assert any(CLONED in problem for problem in report["problems"])
    backlog.keep(report["point"])
    assert report["point"] == max(backlog.contents)
    assert not any(CLONED in problem for problem in machine.backup(expect=3)["problems"])
    backlog.contents |= dict.fromkeys(backlog.listed() - {*backlog.contents}, backlog.contents[report["point"]])
    settled(backlog)


def test_a_cloned_machine_with_points_in_its_spool(one: Backlog, fast_path: Path) -> None:
    """State and spool were copied: both machines upload the same points, and then their own."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    clone = Backlog(machine.copy_to(fast_path / "clone"), {**backlog.contents}, {**backlog.packs})
    shutil.rmtree(clone.machine.aside)
    clone.machine.vault, clone.machine.cache = machine.vault, machine.cache
    for number, each in enumerate((backlog, clone)):
        change(each.machine, random.Random(number))
        each.keep(each.machine.backup(expect=3)["point"])
    machine.back()
    for each in (backlog, clone):
        each.upload_all()
    both = backlog.contents.keys() | clone.contents.keys()
    assert len(both) == len(one.contents) + 2
    for turn, each in enumerate((backlog, clone, backlog)):
        report = each.machine.backup()
        # Whoever finds a newer point than its own reads all; the first to come has the newest, or is told so.
        assert turn != 1 or any(CLONED in problem for problem in report["problems"]), report["problems"]
        each.keep(report["point"])
        assert report["point"] == max(each.listed())
    with backlog.without_cache():
        backlog.restore_all()
        clone.restore_all()
    assert backlog.listed() >= both


def neighbour(backlog: Backlog, path: Path) -> CrashMachine:
    """Return another system in the same vault and cache, whose first point is made of the same volumes."""
    machine = backlog.machine
    other = CrashMachine(
        path / "other", machine.vault, machine.cache, name="db-02", volumes=machine.volumes, forge=machine.forge
    )
    other.init()
    return other


def test_a_neighbours_garbage_under_a_valid_id_is_not_relied_on_by_a_session_into_the_spool(
    one: Backlog, fast_path: Path
) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    machine.back()
    other = neighbour(backlog, fast_path)
    mallory = Mallory(identity_of(other), machine.vault)
    lies = [secrets.token_bytes(BLOCK) for _ in range(5)]
    name = mallory.pack_name(lies)
    mallory.put(str(name), secrets.token_bytes(name.size))
    mallory.publish([mallory.claim(name, lies)])
    backlog.keep(machine.backup()["point"])  # which has taken notice of what the neighbour lists
    machine.away()
    for number, block in enumerate(lies):
        overwrite(machine.volumes["data"], number, block)
    report = machine.backup(expect=3)
    assert report["volumes"]["data"]["vault_blocks"] == len(lies)
    backlog.keep(report["point"])
    machine.back()
    (machine.vault / str(name)).unlink()
    backlog.upload_all()
    with backlog.without_cache():
        backlog.restore_all()


def test_a_neighbours_pack_that_turns_to_garbage_under_spooled_points(forge: Forge, fast_path: Path) -> None:
    machine = made(fast_path / "work", forge, 0, spool=True, extra={"vault": "retries_max = 0"})
    backlog = Backlog(machine)
    other = neighbour(backlog, fast_path)
    other.backup()
    backlog.keep(machine.backup()["point"])
    lent = [path for path in (machine.vault / "data").rglob("*") if path.is_file()]
    assert {path.parent.name for path in lent} == {identity_of(other).system.hex()}
    machine.away()
    overwrite(machine.volumes["data"], 1, secrets.token_bytes(BLOCK))
    point = machine.backup(expect=3)["point"]
    backlog.keep(point)
    machine.back()
    for path in lent:
        path.write_bytes(secrets.token_bytes(path.stat().st_size))
    # By its name and size it is there: nobody who holds no key of the past can see more.
    assert machine.run("upload").document["problems"] == []
    backlog.restore_all()
    with backlog.without_cache():
        out = machine.root / "named"
        done = machine.run(
            "restore", point, "--volume", "data", "--to", str(out),
            "--passphrase-file", str(machine.passphrase_file), expect=1,
        )  # fmt: skip
        assert any(path.name in problem for path in lent for problem in done.document["problems"])
        lost = {block for first, count in done.document["holes"] for block in range(first, first + count)}
        content, restored = backlog.contents[point]["data"], out.read_bytes()
        for block in range(len(content) // BLOCK):
            at = slice(block * BLOCK, (block + 1) * BLOCK)
            assert restored[at] == (bytes(BLOCK) if block in lost else content[at])


@pytest.mark.parametrize("left", ["nothing", "a shorter one", "other bytes"])
def test_dedup_against_a_pack_that_was_never_acknowledged(one: Backlog, fast_path: Path, left: str) -> None:
    """Killed before its flush: what a power cut leaves of packs in the spool is not what was put there."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    before = objects(backlog.spool).keys()
    assert machine.attempt("backup", fault=Fault("link", f"{machine.spool}/page/")).code == KILLED
    new = [backlog.spool / name for name in objects(backlog.spool).keys() - before]
    assert new
    for path in new:
        size = path.stat().st_size
        path.unlink()
        if left != "nothing":
            path.write_bytes(bytes(size - 1 if left == "a shorter one" else size))
    report = machine.backup(expect=3)
    assert report["volumes"]["data"]["vault_blocks"] > 0
    backlog.keep(report["point"])
    settled(backlog)


@pytest.mark.parametrize("where", ["the spool", "the vault"])
def test_dedup_against_blocks_that_have_vanished(one: Backlog, fast_path: Path, where: str) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    (waits,) = backlog.spooled
    known = backlog.contents[waits if where == "the spool" else min(backlog.contents)]["data"]
    packs = backlog.spool / "data" if where == "the spool" else machine.aside / "data"
    for path in [path for path in packs.rglob("*") if path.is_file()]:
        path.unlink()
    # Content that lies nowhere else any more, in other places than before.
    for number in range(10):
        overwrite(machine.volumes["data"], 115 + number, known[(30 + number) * BLOCK : (31 + number) * BLOCK])
    report = machine.backup(expect=3)
    assert report["error"] is None
    backlog.keep(report["point"])
    machine.back()
    done = machine.run("upload").document  # with the cache, which has them all
    assert [each["holes"] for each in done["uploaded"]] == [{}, {}]
    with backlog.without_cache():
        backlog.restore_all()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_interrupted_clean_up_followed_by_a_backup(one: Backlog, fast_path: Path, count: int) -> None:
    """A session that was cut off left packs no point came to list; the sweep of them is killed in the middle."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    (waits,) = backlog.spooled
    before = objects(backlog.spool).keys()
    assert machine.attempt("backup", fault=Fault("link", f"{machine.spool}/root/")).code == KILLED
    orphans = {name for name in objects(backlog.spool).keys() - before if name.startswith(("data/", "page/"))}
    assert len(orphans) >= count
    for name, path in machine.volumes.items():
        path.write_bytes(backlog.contents[waits][name])  # nothing of what it sent is of use any more
    kind, at = ("data", count) if count < 3 else ("page", 1)
    sweep = Fault("unlink", f"{machine.spool}/{kind}/", count=at)
    assert machine.attempt("backup", fault=sweep).code == KILLED
    left = objects(backlog.spool).keys() & orphans
    assert left
    backlog.keep(max(backlog.listed()))
    backlog.restore_all("--only-cache")
    overwrite(machine.volumes["data"], 3, secrets.token_bytes(BLOCK))
    report = machine.backup(expect=3)
    assert report["backlog"] == 3
    assert not objects(backlog.spool).keys() & orphans
    backlog.keep(report["point"])
    settled(backlog)


def test_rolled_back_state_and_a_clock_that_stands_still(one: Backlog, fast_path: Path) -> None:
    """Two points of one name: neither may replace the other, and those behind are uploaded all the same."""
    backlog = one.copy_to(fast_path / "work")
    machine, generator = backlog.machine, random.Random(5)
    machine.back()
    backlog.upload_all()
    old = shutil.copytree(machine.state, fast_path / "old")
    change(machine, generator)
    first = inprocess.backup(machine, clock=FakeClock(1)).point
    assert first is not None
    backlog.keep(first)
    held = (machine.vault / "root").rglob(first)
    (root,) = [path.read_bytes() for path in held]
    shutil.rmtree(machine.state)
    old.rename(machine.state)
    assert machine.cache is not None
    machine.cache.rename(fast_path / "cache")  # nobody tells of the newer point
    machine.away()
    change(machine, generator)
    twin = inprocess.backup(machine, clock=FakeClock(1))
    assert (twin.exit_code, twin.point) == (3, first)
    change(machine, generator)
    later = inprocess.backup(machine, clock=FakeClock(1)).point
    assert later is not None
    backlog.keep(later)
    machine.back()
    (fast_path / "cache").rename(machine.cache)
    report = inprocess.upload(machine)
    (problem,) = report.problems
    assert f"restore point {first} waits in the spool: the vault has another one of that name" in problem
    assert [each.point for each in report.uploaded] == [later]
    assert report.left == 1
    assert [path.read_bytes() for path in (machine.vault / "root").rglob(first)] == [root]
    with backlog.without_cache():
        backlog.restore(later)
    check_whole(machine.vault, objects(machine.vault))


def test_a_root_that_vanished_from_the_spool(one: Backlog, fast_path: Path) -> None:
    """Packs that no point lists are swept: the next session relies on none of them, though the cache has the root."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    (root,) = (backlog.spool / "root").rglob("*-*")
    del backlog.contents[root.name]
    root.unlink()
    change(machine, random.Random(8))
    report = machine.backup(expect=3)
    assert any(f"the spool has lost restore point {root.name}" in problem for problem in report["problems"])
    backlog.keep(report["point"])
    settled(backlog)


@pytest.mark.parametrize("vault", ["away", "back"])
def test_a_root_that_vanished_from_the_spool_below_the_newest_point(one: Backlog, fast_path: Path, vault: str) -> None:
    """Only some volumes stand at it; what they lean on was swept, also where the newest point is there."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    (root,) = (backlog.spool / "root").rglob("*-*")
    change(machine, random.Random(8))
    newer = machine.backup("--volume", "data", expect=3)["point"]
    backlog.contents[newer] = {"data": machine.volumes["data"].read_bytes()}
    del backlog.contents[root.name]
    root.unlink()
    expected = "volume 'logs': the spool has lost what its last restore point was made of"
    if vault == "back":
        expected = f"volume 'logs': restore point {root.name}, which its local state stands at, is gone"
        machine.back()
        backlog.upload_all()
    report = machine.backup(expect=3 if vault == "away" else 0)
    assert [problem for problem in report["problems"] if problem.startswith(expected)]
    assert not [problem for problem in report["problems"] if "'data'" in problem]
    backlog.keep(report["point"])
    if vault == "away":
        machine.back()
        backlog.upload_all()
    assert backlog.listed() >= backlog.contents.keys()
    backlog.stands()


def test_what_is_made_after_a_deletion_comes_after_the_deleted_point(one: Backlog, fast_path: Path) -> None:
    """Also by a clock that is behind: there may be points in the vault that only the deleted one's order told of."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    assert machine.cache is not None
    machine.cache.rename(fast_path / "cache")  # it would have a copy of the root
    (root,) = (backlog.spool / "root").rglob("*-*")
    machine.run("points", "--delete", root.name, "--yes")
    del backlog.contents[root.name]
    for number in range(2):
        change(machine, random.Random(number))
        point = inprocess.backup(machine, clock=FakeClock(1)).point
        assert point is not None
        assert point.partition("-")[0] > max(root.name, *backlog.contents).partition("-")[0]
        backlog.keep(point)
    (fast_path / "cache").rename(machine.cache)
    settled(backlog)
