"""What others in this field lost backups by, each case by its name; those of stores and clocks.

- truncated and zero-length objects on a share, as a disconnect leaves them: in vault, cache and spool
- wrong clocks, a day ahead or behind, of the agent and of stores
- 503 taken for success: a put that returns though nothing, or not all, is there
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.clock import SystemClock
from engine.errors import StoreRejected, StoreUnavailable
from tests.fakes import FakeClock, FaultPlan
from tests.scenario import inprocess
from tests.scenario.crash_backlog import Backlog, waiting
from tests.scenario.crash_machine import Forge, check_whole, in_memory, objects
from tests.scenario.machine import BLOCK, overwrite

DAY_MS = 86_400_000
HOW: dict[str, Callable[[bytes], bytes]] = {"zero-length": lambda _: b"", "truncated": lambda data: data[:-100]}


def cuts(*kinds: str) -> list[tuple[str, str]]:
    """Return what is done to objects of each kind; packs meet both ways."""
    ways = [*HOW]
    return [
        (kind, how) for number, kind in enumerate(kinds) for how in (ways if kind == "data" else ways[number % 2 :][:1])
    ]


@pytest.fixture(scope="module")
def one(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A machine whose vault is there again: a point in it, one in the spool, and changes that are in none."""
    with in_memory(tmp_path_factory.mktemp("one")) as path:
        backlog = waiting(path / "template", forge, 1, in_vault=1)
        backlog.machine.back()
        yield backlog


def cut_all(store: Path, kind: str, how: str) -> list[Path]:
    """Leave of every object of a kind what a disconnect leaves; return them."""
    found = [path for path in sorted((store / kind).rglob("*")) if path.is_file()]
    assert found, f"there is no {kind} in {store}"
    for path in found:
        path.write_bytes(HOW[how](path.read_bytes()))
    return found


@pytest.mark.parametrize("how", HOW)
def test_cut_objects_on_a_share_under_the_names_an_upload_needs_are_put_again(
    one: Backlog, fast_path: Path, how: str
) -> None:
    backlog = one.copy_to(fast_path / "work")
    vault = backlog.machine.vault
    for name in backlog.in_spool():
        if not name.startswith("index/"):
            (vault / name).parent.mkdir(parents=True, exist_ok=True)
            (vault / name).write_bytes(HOW[how]((backlog.spool / name).read_bytes()))
    backlog.upload_all()
    backlog.stands()


@pytest.mark.parametrize(("kind", "how"), cuts("data", "page", "index", "key", "cert"))
def test_cut_objects_in_the_vault_under_a_spooled_point(one: Backlog, fast_path: Path, kind: str, how: str) -> None:
    """The cache makes good what it holds; of what only the vault has the sentence says what to do."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    cut_all(machine.vault, kind, how)
    done = machine.run("upload", expect=None)
    if kind == "cert":
        assert done.code == 1
        assert "certificate" in done.document["error"]
        backlog.restore_all()
        report = machine.backup(expect=3)
        assert report["fallback"] is not None
        assert "certificate" in report["fallback"]
        return
    assert done.code == 0, done.document
    assert backlog.in_spool() == []
    backlog.restore_all()
    report = machine.backup("--full")
    backlog.keep(report["point"])
    if kind != "key":
        with backlog.without_cache():
            backlog.restore(report["point"])


@pytest.mark.parametrize(("kind", "how"), cuts("data", "page", "index", "root", "key", "cert"))
def test_cut_objects_in_the_spool(one: Backlog, fast_path: Path, kind: str, how: str) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    cut_all(backlog.spool, kind, how)
    backlog.restore(max(backlog.contents))  # what the spool has no more, cache and vault have
    machine.away()
    report = machine.backup(expect=3)
    backlog.keep(report["point"])
    machine.back()
    done = machine.run("upload").document
    assert [each["holes"] for each in done["uploaded"]] == [{}, {}]
    assert backlog.in_spool() == []
    check_whole(machine.vault, objects(machine.vault))
    backlog.stands()


@pytest.mark.parametrize(("kind", "how"), cuts("data", "page", "index", "root", "key", "cert"))
def test_cut_objects_in_the_cache(one: Backlog, fast_path: Path, kind: str, how: str) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    assert machine.cache is not None
    cut_all(machine.cache, kind, how)
    backlog.restore(max(backlog.contents))
    report = machine.backup()
    assert report["backlog"] == 0
    backlog.keep(report["point"])
    backlog.restore(report["point"])
    with backlog.without_cache():
        backlog.restore_all()


def test_objects_cut_in_vault_and_cache_at_once_are_named_and_never_wrong_bytes(one: Backlog, fast_path: Path) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    assert machine.cache is not None
    for store in (machine.vault, machine.cache):
        cut_all(store, "data", "zero-length")
    done = machine.run("upload", expect=1)
    ((each),) = done.document["uploaded"]
    assert each["holes"]
    out = machine.root / "named"
    restored = machine.restore(each["point"], "data", out, expect=1)
    lost = {block for first, count in restored.document["holes"] for block in range(first, first + count)}
    content, given = backlog.contents[each["point"]]["data"], out.read_bytes()
    for block in range(len(content) // BLOCK):
        at = slice(block * BLOCK, (block + 1) * BLOCK)
        assert given[at] == (bytes(BLOCK) if block in lost else content[at])
    report = machine.backup()
    backlog.contents = {}
    backlog.keep(report["point"])
    backlog.restore_all()


@pytest.mark.parametrize("days", [1, -1])
@pytest.mark.parametrize("spool", [False, True])
def test_wrong_clocks(one: Backlog, fast_path: Path, spool: bool, days: int) -> None:
    """A clock that jumps by a day and back, and stores whose files are a day off: order is never by clocks alone."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    if not spool:
        backlog.upload_all()
    now = SystemClock().now_ms()
    for number, offset in enumerate((0, days, 0, -days, 0)):
        assert machine.cache is not None
        for store in (machine.vault if not spool or number == 0 else backlog.spool, machine.cache, backlog.spool):
            for path in store.rglob("*"):
                os.utime(path, ((now - offset * DAY_MS) / 1000,) * 2)
        if spool:
            machine.away()
        overwrite(machine.volumes["data"], 5 + number, secrets.token_bytes(BLOCK))
        report = inprocess.backup(machine, clock=FakeClock(now + offset * DAY_MS + number))
        assert report.exit_code == (3 if spool else 0), report.error
        assert [problem for problem in report.problems if "the session went on into the spool" not in problem] == []
        assert sum(volume.vault_blocks for volume in report.volumes.values()) == 1 or number == 0
        assert str(report.point) > max(backlog.contents), "the newest is the last that was made"
        backlog.keep(str(report.point))
    if spool:
        machine.back()
        assert inprocess.upload(machine, clock=FakeClock(now - days * DAY_MS)).problems == []
        assert backlog.in_spool() == []
    assert backlog.listed() == backlog.contents.keys()
    assert machine.run("points").document["lost"] == []
    with backlog.without_cache():
        for turn in (0, 2, 4):
            backlog.restore_some(turn)
        backlog.contents["latest"] = backlog.contents[max(backlog.contents)]
        backlog.restore("latest")
    del backlog.contents["latest"]
    backlog.goes_on()


KEPT: dict[str, Callable[[bytes], bytes | None]] = {"nothing": lambda _: None, "half": lambda data: data[:-99]}
ACKNOWLEDGED = [
    *[("data/", kept) for kept in KEPT],
    *[("root/", kept) for kept in KEPT],
    ("page/", "nothing"),
    ("index/", "nothing"),
]


@pytest.mark.parametrize(("prefix", "kept"), ACKNOWLEDGED)
def test_503_taken_for_success_by_a_session(one: Backlog, fast_path: Path, prefix: str, kept: str) -> None:
    """It is seen before the session tells of a point."""
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    backlog.upload_all()
    plan = FaultPlan().acknowledge_only(prefix=prefix, instead=KEPT[kept])
    report = inprocess.backup(machine, around=inprocess.by_plan(plan))
    # A pack is sent again; of anything else the vault counts as lost after the retries, of which there are none here.
    assert report.exit_code == (0 if prefix in ("data/", "page/") else 3), report.error
    assert report.problems
    backlog.keep(str(report.point))
    assert str(report.point) in backlog.listed()
    with backlog.without_cache():
        backlog.restore(str(report.point))
    if report.exit_code == 3:
        backlog.upload_all()
    check_whole(machine.vault, {name: each for name, each in objects(machine.vault).items() if kept == "nothing"})
    backlog.stands()


@pytest.mark.parametrize(("prefix", "kept"), ACKNOWLEDGED)
def test_503_taken_for_success_by_an_upload(one: Backlog, fast_path: Path, prefix: str, kept: str) -> None:
    """Nothing leaves the spool before all of it is in the vault."""
    backlog = one.copy_to(fast_path / "work")
    plan = FaultPlan().acknowledge_only(prefix=prefix, instead=KEPT[kept])
    before = {name: each for name, each in objects(backlog.spool).items() if not name.startswith("tmp/")}
    with pytest.raises(StoreRejected if prefix in ("data/", "page/") else StoreUnavailable, match="acknowledged"):
        inprocess.upload(backlog.machine, around=inprocess.by_plan(plan))
    assert objects(backlog.spool) == before
    assert backlog.spooled <= backlog.listed()
    backlog.upload_all()
    backlog.stands()


def test_a_503_that_passes_costs_a_retry(one: Backlog, fast_path: Path) -> None:
    backlog = one.copy_to(fast_path / "work")
    plan = FaultPlan()
    for prefix in ("root/", "index/"):
        plan.acknowledge_only(prefix=prefix)
    done = inprocess.upload(backlog.machine, around=inprocess.by_plan(plan, retries_max=1))
    assert (done.problems, done.left) == ([], 0)
    backlog.stands()


def test_a_vault_that_keeps_nothing_of_what_it_acknowledges_gets_no_point(one: Backlog, fast_path: Path) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    backlog.upload_all()
    machine.spool = None
    before = objects(machine.vault).keys()
    report = inprocess.backup(machine, around=inprocess.by_plan(FaultPlan().acknowledge_only(1, 10_000)))
    assert (report.exit_code, report.point) == (1, None)
    assert report.error is not None
    assert objects(machine.vault).keys() == before
    report = inprocess.backup(machine)
    assert report.exit_code == 0
    backlog.keep(str(report.point))
    with backlog.without_cache():
        backlog.restore_all()
