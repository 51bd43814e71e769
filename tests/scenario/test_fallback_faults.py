"""What goes wrong beside the loss itself: volumes that die while it is waited for, vaults that hang, answers lost."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from adapters.stores.calls import Call
from adapters.stores.folderfiles import FolderFiles
from engine.errors import StoreUnavailable
from engine.pipeline.retry import RetryingStore
from engine.policy import RetryPolicy
from engine.ports import ObjectStore
from tests.fakes import FakeClock, FaultPlan, FaultyStore
from tests.scenario import inprocess
from tests.scenario.crash_backlog import Backlog, waiting
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import Forge, check_whole, in_memory, lasting, made, objects
from tests.scenario.machine import BLOCK, random_volume
from tests.scenario.test_fallback import watch
from tests.scenario.test_reconnect import Weather

STALL_S = 1.5
# So many packs are on their way that reading stops for the vault, long before the end of the volume.
BLOCKS = 1800


@pytest.fixture(scope="module")
def one(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A machine whose vault is there again: a point in it, one in the spool, and changes that are in none."""
    with in_memory(tmp_path_factory.mktemp("one")) as path:
        backlog = waiting(path / "template", forge, 1, in_vault=1)
        backlog.machine.back()
        yield backlog


class Dying(Weather):
    """The volume is cut short as soon as the session waits for the vault."""

    def __init__(self, vault: Path, volume: Path) -> None:
        super().__init__(vault)
        self._volume = volume

    async def sleep(self, seconds: float) -> None:
        os.truncate(self._volume, BLOCK)
        await super().sleep(seconds)


@pytest.mark.parametrize(
    ("spool", "on_loss", "lasts_s", "on_read_error"),
    [(False, "restart", 600, "fail"), (True, "restart", None, "skip"), (True, "resume", None, "fail")],
)
def test_a_volume_that_dies_while_the_vault_is_waited_for_fails_the_session_cleanly(
    forge: Forge,
    fast_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spool: bool,
    on_loss: str,
    lasts_s: float | None,
    on_read_error: str,
) -> None:
    extra = {
        "vault": f'retries_max = 0\nreconnect_window = "30 min"\non_loss = "{on_loss}"\ncompression = "none"',
        "queue": 'size = "8 MiB"',
    }
    machine = made(fast_path / "work", forge, 0, spool=spool, extra=extra)
    volume = random_volume(machine.volumes["data"], 30)
    machine.volumes = {"data": volume}
    machine.volume_extra = {"data": f'on_read_error = "{on_read_error}"'}
    point, kept = machine.backup()["point"], volume.read_bytes()
    before = objects(machine.vault).keys()
    random_volume(volume, BLOCKS, seed=2)
    weather = Dying(machine.vault, volume)
    weather.lasts_s = lasts_s
    watch(weather, machine.vault, monkeypatch)
    weather.puts_until_away["data/"] = 1
    report = inprocess.backup(machine, clock=weather)
    assert (report.exit_code, report.point) == (1, None)
    assert report.error is not None
    assert "volume 'data'" in report.error
    assert "\n" not in report.error
    assert report.route == "ABORTED"
    weather.back()
    assert {name for name in objects(machine.vault).keys() - before if name.startswith("root/")} == set()
    assert [row["id"] for row in machine.points()] == [point]
    out = machine.root / "out"
    machine.restore(point, "data", out)
    assert out.read_bytes() == kept
    # The volume is well again: the next session makes a point of it.
    random_volume(volume, 40, seed=2)
    report = inprocess.backup(machine)
    assert (report.exit_code, report.backlog) == (0, 0), report.error
    out.unlink()
    machine.restore("latest", "data", out)
    assert out.read_bytes() == volume.read_bytes()


def test_a_vault_that_hangs_at_the_opening_is_away(
    one: Backlog, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    machine.extra["vault"] += '\nconnect_timeout = "1 s"'
    probe: Callable[[FolderFiles, Call], None] = FolderFiles.probe
    ended = threading.Event()

    def hangs(files: FolderFiles, call: Call) -> None:
        if Path(files.root) == machine.vault:
            ended.wait()
        probe(files, call)

    with monkeypatch.context() as patch:
        patch.setattr(FolderFiles, "probe", hangs)
        report = inprocess.backup(machine)
        ended.set()
    assert report.exit_code == 3, report.error
    assert report.fallback is not None
    assert "did not answer" in report.fallback
    backlog.keep(str(report.point))
    backlog.upload_all()
    backlog.stands()


def hanging(prefix: str, first: int = 1) -> Callable[[ObjectStore], ObjectStore]:
    """Return what makes all puts of names with this prefix hang from the `first` on."""

    def around(vault: ObjectStore) -> ObjectStore:
        plan = FaultPlan()
        for call in range(first, first + 40):
            plan.stall("put", call, until=anyio.Event(), prefix=prefix)
        return RetryingStore(
            FaultyStore(vault, plan), RetryPolicy(retries_max=0, stall_s=STALL_S), FakeClock(), random.Random(1)
        )

    return around


@pytest.mark.parametrize("prefix", ["data/", "root/"])
def test_a_vault_that_hangs_in_mid_session_is_lost(one: Backlog, fast_path: Path, prefix: str) -> None:
    backlog = one.copy_to(fast_path / "work")
    backlog.upload_all()
    report = inprocess.backup(backlog.machine, around=hanging(prefix))
    assert report.exit_code == 3, report.error
    assert [change.route for change in report.route_history] == ["VAULT", "FALLBACK"]
    assert report.fallback is not None
    assert "moved nothing" in report.fallback
    backlog.keep(str(report.point))
    backlog.upload_all()
    backlog.stands()


@pytest.mark.parametrize("prefix", ["data/", "root/"])
def test_a_vault_that_hangs_during_an_upload_costs_only_time(one: Backlog, fast_path: Path, prefix: str) -> None:
    backlog = one.copy_to(fast_path / "work")
    before = objects(backlog.spool)
    with pytest.raises(StoreUnavailable, match="moved nothing"):
        inprocess.upload(backlog.machine, around=hanging(prefix))
    assert objects(backlog.spool) == before
    backlog.upload_all()
    backlog.stands()


@pytest.mark.parametrize("prefix", ["data/", "page/", "index/", "root/", "all, with retries"])
def test_acknowledgements_lost_during_an_upload_make_no_second_object(
    one: Backlog, fast_path: Path, prefix: str
) -> None:
    plain = one.copy_to(fast_path / "plain")
    plain.upload_all()
    backlog = one.copy_to(fast_path / "work")
    plan = FaultPlan()
    for each in (prefix,) if prefix.endswith("/") else ("data/", "page/", "index/", "root/"):
        plan.lose_acknowledgement("put", prefix=each)
    if prefix.endswith("/"):
        with pytest.raises(StoreUnavailable, match="acknowledgement was lost"):
            inprocess.upload(backlog.machine, around=inprocess.by_plan(plan, 0))
        assert backlog.in_spool(), "what nobody acknowledged is kept"
        backlog.upload_all()
    else:
        assert inprocess.upload(backlog.machine, around=inprocess.by_plan(plan, 1)).left == 0
    vault, expected = lasting(backlog.machine.vault), lasting(plain.machine.vault)
    kinds = ("data/", "page/", "root/", "note/")
    assert [each for each in vault.items() if each[0].startswith(kinds)] == [
        each for each in expected.items() if each[0].startswith(kinds)
    ]
    assert len(vault) == len(expected), "of the index there is one of each, too"
    check_whole(backlog.machine.vault, vault)
    backlog.stands()


@pytest.mark.parametrize(("place", "count"), [("data/", 2), ("page/", 1), ("root/", 1)])
@pytest.mark.parametrize("command", ["upload", "backup"])
def test_an_upload_that_is_told_to_stop_in_the_middle_of_a_point_goes_on_from_there(
    one: Backlog, fast_path: Path, command: str, place: str, count: int
) -> None:
    backlog = one.copy_to(fast_path / "work")
    machine = backlog.machine
    stop = Fault("link", f"{machine.vault}/{place}", ["sh", "-c", "kill -TERM $PPID"], count)
    done = machine.attempt(command, fault=stop, expect=1)
    assert "stopped before it was done" in done.document["error"]
    sent = {name for name in objects(machine.vault) if name.startswith("data/")}
    assert not backlog.spooled - backlog.listed()
    for point in backlog.listed() - backlog.contents.keys():
        backlog.keep(point)
    backlog.upload_all()
    assert sent <= objects(machine.vault).keys()
    backlog.stands()
