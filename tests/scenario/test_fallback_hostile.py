"""Done to a spool while points wait in it: nothing is lost that can be saved, nothing claimed that is not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import anyio
import msgspec
import pytest

from adapters.compose import build_setup, chosen_volumes
from adapters.config import load_config
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.errors import StoreCorrupt, StoreError, StoreRejected, StoreUnavailable
from engine.pipeline.report import SessionReport
from engine.pipeline.session import Session
from engine.ports import Clock
from tests.fakes import FakeClock, FaultPlan, FaultyStore
from tests.scenario.inprocess import backup
from tests.scenario.machine import Machine
from tests.scenario.past import DaysAgo
from tests.scenario.test_fallback import Spooled


@pytest.fixture
def spooled(tmp_path: Path) -> Spooled:
    return Spooled(tmp_path, cache=False)


def with_points(spooled: Spooled) -> tuple[str, bytes]:
    """Leave one point in the spool and bring the vault back."""
    spooled.machine.backup()
    spooled.away()
    content = spooled.change(1)
    point = spooled.machine.backup(expect=3)["point"]
    spooled.back()
    return point, content


@pytest.mark.parametrize("how", ["not configured", "emptied", "forged"])
def test_a_session_without_the_spool_its_state_stands_at_sends_what_only_the_spool_has(
    spooled: Spooled, how: str
) -> None:
    point, _ = with_points(spooled)
    if how == "forged":
        (root,) = spooled.machine.vault.glob("root/*/*")
        root.with_name(point).write_bytes(bytes(4000))
    if how != "emptied":
        spooled.machine.extra["vault"] = spooled.machine.extra["vault"].split("[spool]")[0]
    shutil.rmtree(spooled.spool)
    spooled.spool.mkdir()
    content = spooled.change(3)
    report = spooled.machine.backup(expect=4 if how == "emptied" else 0)
    assert any("waits in a spool that cannot be used" in problem for problem in report["problems"])
    spooled.restores("latest", content)


@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_damaged_page_pack_in_the_spool_makes_no_good_point_in_the_vault(spooled: Spooled, share: float) -> None:
    point, _ = with_points(spooled)
    (pack,) = (path for path in (spooled.spool / "page").rglob("*") if path.is_file())
    data = bytearray(pack.read_bytes())
    data[100 + int(share * (len(data) - 200))] ^= 1
    pack.write_bytes(data)
    done = spooled.machine.run("upload", expect=1)
    assert any(pack.name in problem for problem in done.document["problems"])
    assert {row["id"]: row["state"] for row in spooled.machine.points()}[point] == "incomplete"
    # Its data is in the vault all the same, and the next point leans on nothing that is lost.
    content = spooled.change(2)
    assert spooled.machine.backup()["volumes"]["data"]["vault_blocks"] <= 30
    spooled.restores("latest", content)


def session(
    machine: Machine, plan: FaultPlan, wanted: Callable[[], bool] = lambda: False, clock: Clock | None = None
) -> SessionReport:
    """Run one session over a vault in which goes wrong what the plan says; `wanted`: another one waits for its end."""
    machine.write_config()
    config = load_config(machine.config)
    identity = files.load(config.system.identity_file)

    async def main() -> SessionReport:
        with StateDirectory.open(config.system.state_dir) as state:
            setup = await build_setup(config, identity, state, chosen_volumes(config, ()), clock=clock)
            assert setup.spool is not None
            spool = msgspec.structs.replace(setup.spool, wanted=wanted)
            return await Session(
                msgspec.structs.replace(setup, vault=FaultyStore(setup.vault, plan), spool=spool)
            ).run()

    return anyio.run(main)


def test_with_a_backlog_a_vault_that_breaks_off_at_the_opening_costs_nothing(spooled: Spooled) -> None:
    spooled.machine.extra["vault"] = spooled.machine.extra["vault"].replace(
        "on_loss", 'reconnect_window = "30 min"\non_loss'
    )
    with_points(spooled)
    for plan in (
        FaultPlan().fail("list", 1, 1000),
        FaultPlan().fail("list", 1, 1000, prefix="index/", error=lambda: StoreRejected("no right by plan")),
        FaultPlan().fail("get", 1, 1000),
    ):
        report = session(spooled.machine, plan)
        assert (report.exit_code, report.error) == (3, None)
        assert [change.route for change in report.route_history] in (["FALLBACK"], ["VAULT", "FALLBACK"])
    spooled.restores("latest", spooled.volume.read_bytes())


def test_a_vault_that_takes_no_upload_to_make_room_sends_the_session_into_the_spool(tmp_path: Path) -> None:
    spooled = Spooled(tmp_path, spool='max_size = "256 MiB"', cache=False)
    with_points(spooled)
    used = sum(path.stat().st_size for path in spooled.spool.rglob("*") if path.is_file())
    with (spooled.spool / "ballast").open("wb") as ballast:
        ballast.truncate((256 << 20) - used - (10 << 20))
    content = spooled.change(2)
    report = session(spooled.machine, FaultPlan().fail("put", 1, 1000, error=lambda: StoreRejected("quota by plan")))
    assert (report.exit_code, report.error, report.backlog) == (3, None, 2)
    assert report.fallback is not None
    assert "quota by plan" in report.fallback
    spooled.restores("latest", content)


@pytest.mark.parametrize("name", ["sessions", "history.sqlite"])
def test_damaged_local_state_costs_no_session_that_has_a_spool(spooled: Spooled, name: str) -> None:
    with_points(spooled)
    path = spooled.machine.state / name
    path.write_bytes(b"\xff" * 5000)
    content = spooled.change(2)
    report = spooled.machine.backup()
    assert len(report["uploaded"]) == 2
    spooled.restores("latest", content)


def test_vault_and_cache_that_are_away_cost_a_probe_each(tmp_path: Path) -> None:
    spooled = Spooled(tmp_path)
    spooled.machine.extra["vault"] = spooled.machine.extra["vault"].replace("retries_max = 0", "retries_max = 5")
    spooled.machine.backup()
    spooled.away()
    assert spooled.machine.cache is not None
    spooled.machine.cache.rename(tmp_path / "cache-aside")
    content = spooled.change(1)
    done = spooled.machine.run("backup", expect=3)
    assert "store_call_failed" not in done.stderr
    assert done.document["cache"] == "away"
    spooled.back()
    done = spooled.machine.run("upload")
    assert "store_call_failed" not in done.stderr
    assert any(problem.startswith("cache:") for problem in done.document["problems"])
    spooled.restores("latest", content)


@pytest.mark.parametrize("seconds", [1, 3600])
def test_a_vault_that_was_away_at_the_opening_is_asked_again_at_the_end_of_a_long_session(
    spooled: Spooled, seconds: int
) -> None:
    spooled.machine.backup()
    content = spooled.change(2)
    clock = Passing(seconds)
    report = session(spooled.machine, FaultPlan().fail("probe"), clock=clock)
    assert report.route == "FALLBACK"
    assert (report.exit_code, len(report.uploaded), report.backlog) == ((3, 0, 1) if seconds == 1 else (0, 1, 0))
    spooled.restores("latest", content)


class Passing(FakeClock):
    """A clock on which the reading of a volume takes so long: it goes on with the date it is asked for."""

    def __init__(self, seconds: int) -> None:
        super().__init__()
        self._seconds = seconds

    def now_ms(self) -> int:
        self.advance(self._seconds)
        return super().now_ms()


def test_the_upload_of_a_session_gives_way_and_the_next_one_goes_on(spooled: Spooled) -> None:
    with_points(spooled)
    spooled.change(2)
    report = session(spooled.machine, FaultPlan(), wanted=lambda: True)
    assert (report.exit_code, report.uploaded, report.backlog) == (3, [], 2)
    asked = 0

    def wanted() -> bool:
        nonlocal asked
        asked += 1
        return asked > 4

    spooled.change(3)
    report = session(spooled.machine, FaultPlan(), wanted=wanted)
    assert report.error is None
    assert (report.exit_code, 0 < len(report.uploaded) < 3) == (3, True)
    assert report.backlog == 3 - len(report.uploaded)
    content = spooled.change(4)
    assert spooled.machine.backup()["backlog"] == 0
    spooled.restores("latest", content)


@pytest.mark.parametrize("error", [StoreRejected, StoreUnavailable, lambda text: StoreCorrupt("format", text)])
def test_an_upload_that_fails_costs_neither_point_nor_report(
    spooled: Spooled, error: Callable[[str], StoreError]
) -> None:
    point, _ = with_points(spooled)
    spooled.change(2)
    report = session(spooled.machine, FaultPlan().fail("put", 1, 1000, error=lambda: error("by plan")))
    assert (report.exit_code, report.backlog, report.uploaded) == (3, 2, [])
    assert report.point is not None
    assert report.point > point
    content = spooled.change(4)
    assert len(spooled.machine.backup()["uploaded"]) == 3
    spooled.restores("latest", content)


@pytest.mark.parametrize(("op", "prefix"), [("get", "root/"), ("list", "index/")])
def test_a_point_comes_after_all_the_vault_showed_before_it_refused(
    spooled: Spooled, op: Literal["get", "list"], prefix: str
) -> None:
    newest = backup(spooled.machine, clock=DaysAgo(-1)).point
    assert newest is not None
    (spooled.machine.state / "newest").unlink()
    content = spooled.change(1)
    plan = FaultPlan().fail(op, 1, 1000, prefix=prefix, error=lambda: StoreRejected("no right by plan"))
    report = session(spooled.machine, plan)
    assert (report.route, report.error) == ("FALLBACK", None)
    assert str(report.point) > newest
    spooled.restores("latest", content)


def test_a_deleted_point_does_not_lend_its_name_to_a_state_that_was_rolled_back(spooled: Spooled) -> None:
    machine = spooled.machine
    backup(machine)
    copy = spooled.root / "copy"
    shutil.copytree(machine.state, copy)
    spooled.away()
    deleted = backup(machine, clock=DaysAgo(-1)).point
    assert deleted is not None
    machine.run("points", "--delete", deleted, "--yes")
    spooled.back()
    content = b""
    for seed in range(2):  # the note lies in the spool at first, and in the vault from the end of the first session on
        shutil.rmtree(machine.state)
        shutil.copytree(copy, machine.state)
        content = spooled.change(seed)
        report = backup(machine)
        assert (report.exit_code, report.backlog) == (0, 0)
        assert str(report.point) > deleted
        assert not list(spooled.spool.glob("note/*/*"))
        if seed == 0:
            next(machine.vault.glob(f"root/*/{report.point}")).unlink()
    spooled.restores("latest", content)


def test_a_point_in_a_new_spool_comes_after_those_that_were_lost_with_the_old_one(spooled: Spooled) -> None:
    spooled.away()
    lost = backup(spooled.machine, clock=DaysAgo(-1)).point
    assert lost is not None
    shutil.rmtree(spooled.spool)
    spooled.machine.init("--spool")
    assert str(backup(spooled.machine).point) > lost
