"""Locks over many days, by sessions in this process: what a point needs is locked as long as the point."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
import pytest

from adapters.clock import SystemClock
from adapters.compose import build_setup
from adapters.config import load_config
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.block import Bytes
from engine.errors import StoreError, StoreRejected, StoreUnavailable
from engine.index import PackIndex
from engine.names import PackName
from engine.packread import PackReads
from engine.pagesources import PageSources, PageStore
from engine.pipeline.report import SessionReport
from engine.pipeline.session import Session
from engine.pipeline.setup import LockSetup, SessionSetup
from engine.pipeline.upload import Upload
from engine.policy import DAY_S, LockPolicy
from engine.ports import ObjectStore
from engine.runs import RunReader
from engine.stage import Stage
from tests.scenario.inprocess import newest_root
from tests.scenario.machine import Machine, overwrite, random_volume

T = TypeVar("T")
POLICY = LockPolicy(30 * DAY_S)
BLOCKS = 330  # six packs of 4 MiB


class Calendar(SystemClock):
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now_ms(self) -> int:
        return super().now_ms() + round(self.ahead_s * 1000)


class LockingStore(Stage):
    """A vault that locks what is put, and remembers until which day (implements `Retention`)."""

    def __init__(self, clock: Calendar) -> None:
        self._clock = clock
        self.until: dict[str, int] = {}
        self.extended: list[str] = []
        self.refusal: StoreError | None = None
        self.failure: StoreError | None = None

    def stand_before(self, inner: ObjectStore) -> None:
        self._inner = inner

    @property
    def now_s(self) -> float:
        return self._clock.now_ms() / 1000

    async def check_lock(self) -> None:
        if self.refusal is not None:
            raise self.refusal

    async def extend_lock(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        await self.stat(name)
        self.extended.append(name)
        self.until[name] = max(self.until.get(name, 0), POLICY.needed_day(self.now_s))

    async def put(self, name: str, data: Bytes) -> None:
        await super().put(name, data)
        point = name.startswith(("root/", "note/"))
        self.until.setdefault(name, (POLICY.point_day if point else POLICY.needed_day)(self.now_s))


class Locked:
    """A machine whose vault locks, from day to day."""

    def __init__(self, root: Path) -> None:
        volume = root / "data.img"
        self.machine = Machine(root / "m", root / "vault", volumes={"data": volume}, spool=root / "spool")
        self.machine.extra["vault"] = 'compression = "none"'
        self.clock = Calendar()
        self.store = LockingStore(self.clock)

    def on_day(self, day: float) -> SessionReport:
        """Change a block and run a session so many days from now; what it extended is in `store.extended`."""
        self.clock.ahead_s = day * DAY_S
        self.store.extended.clear()
        overwrite(self.machine.volumes["data"], 3, os.urandom(65536))
        return self.run(lambda setup: Session(setup).run())

    def run(self, work: Callable[[SessionSetup], Awaitable[T]]) -> T:
        self.machine.write_config()
        config = load_config(self.machine.config)
        identity = files.load(config.system.identity_file)

        async def main() -> T:
            with StateDirectory.open(config.system.state_dir) as state:
                setup = await build_setup(config, identity, state, [*config.volumes], clock=self.clock)
                self.store.stand_before(setup.vault)
                lock = LockSetup(POLICY, self.store, state.history)
                return await work(msgspec.structs.replace(setup, vault=self.store, lock=lock))

        return anyio.run(main)

    def needed(self) -> set[str]:
        """Return all packs the newest point needs."""
        root = newest_root(self.machine)

        async def packs(setup: SessionSetup) -> set[str]:
            pages = PageSources([PageStore(PackReads(setup.vault, PackIndex()).read)], setup.identity.keys.pages)
            (volume,) = root.body.volumes
            tables = [await RunReader(pages, run).table() for run in volume.runs]
            return {str(name) for table in tables for name in table.names()}

        return self.run(packs)

    def check(self) -> set[str]:
        """Check that all the newest point needs is locked as long as it is; return the packs it needs."""
        needed = self.needed()
        assert {"data", "page"} == {str(name).partition("/")[0] for name in needed}
        point_day = POLICY.point_day(self.store.now_s)
        assert {name for name in needed if self.store.until[name] < point_day} == set()
        return needed


@pytest.fixture(scope="module")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a machine that is enrolled and has no point yet."""
    root = tmp_path_factory.mktemp("founded")
    random_volume(root / "data.img", BLOCKS)
    Locked(root).machine.init()
    return root


@pytest.fixture
def locked(founded: Path, tmp_path: Path) -> Locked:
    return Locked(shutil.copytree(founded, tmp_path / "copy"))


def test_what_points_need_is_locked_as_long_as_they_are_and_not_all_at_once(locked: Locked) -> None:
    first = locked.on_day(0)
    assert first.problems == []
    assert [name for name in locked.store.extended if PackName.parse(name)] == [], "its own put locked it"
    old = locked.check()
    counts: list[int] = []
    needed = old
    for day in (1, 14, 16, 20, 24, 28, 30, 33, 59, 90):
        assert locked.on_day(day).problems == []
        needed = locked.check()
        counts.append(len([name for name in locked.store.extended if name in old]))
        assert len(locked.store.extended) == len(set(locked.store.extended))
    assert old & needed, "most of the volume never changed"
    assert counts[:2] == [0, 0], "they have more than three quarters of their time left"
    assert 0 < counts[2] < len(old)
    assert sum(counts) < 4 * len(old)


def test_keys_and_certificates_stay_locked_too(locked: Locked) -> None:
    locked.on_day(0)
    others = {name for name in locked.store.extended if PackName.parse(name) is None}
    assert {name.partition("/")[0] for name in others} == {"key", "cert", "index"}
    locked.on_day(0.01)
    assert locked.store.extended == []
    locked.on_day(29)
    locked.on_day(31)
    for name in others:
        assert locked.store.until[name] >= POLICY.point_day(locked.store.now_s)


def test_without_the_notes_everything_is_locked_anew_once(locked: Locked) -> None:
    locked.on_day(0)
    old = locked.check()
    (locked.machine.state / "history.sqlite").unlink()
    assert locked.on_day(1).problems == []
    assert old & locked.check() <= {*locked.store.extended}
    locked.on_day(1.01)
    assert old.isdisjoint(locked.store.extended)


@pytest.mark.parametrize(
    "failure", [StoreUnavailable("the server went away"), StoreRejected("the rights were withdrawn")]
)
def test_what_could_not_be_locked_is_told_and_done_by_the_next_session(locked: Locked, failure: StoreError) -> None:
    locked.on_day(0)
    locked.store.failure = failure
    report = locked.on_day(40)
    assert report.point is not None
    assert report.exit_code == 0
    (problem,) = report.problems
    assert "objects of the vault that the restore point needs are not locked for as long as it yet" in problem
    assert str(failure) in problem
    locked.store.failure = None
    assert locked.on_day(40.1).problems == []
    locked.check()


def test_a_pack_that_is_gone_is_noticed_when_its_lock_is_extended(locked: Locked) -> None:
    locked.on_day(0)
    name = max(name for name in locked.check() if name.startswith("data/"))
    (locked.machine.vault / name).unlink()
    (problem,) = locked.on_day(40).problems
    assert name in problem
    assert "is gone from the vault" in problem


def test_what_stands_in_for_a_damaged_pack_is_locked_in_its_stead(locked: Locked) -> None:
    locked.on_day(0)
    name = PackName.parse(max(name for name in locked.check() if name.startswith("data/")))
    assert name is not None
    standing = msgspec.structs.replace(name, hash=bytes(32))
    path = locked.machine.vault / str(standing)
    path.write_bytes(b"as good as any")

    async def note(setup: SessionSetup) -> None:
        assert setup.stand_ins is not None
        setup.stand_ins.add_stand_in(setup.identity.vault, name, standing)

    locked.run(note)
    assert locked.on_day(40).problems == []
    assert str(standing) in locked.store.extended


def test_a_vault_that_does_not_lock_is_refused_and_the_backlog_is_locked_once_it_does(locked: Locked) -> None:
    locked.on_day(0)
    locked.store.refusal = StoreRejected("the bucket has no Object Lock")
    report = locked.on_day(45)
    assert (report.route, report.exit_code) == ("FALLBACK", 3)
    assert "the vault refuses: the bucket has no Object Lock" in str(report.fallback)
    locked.store.refusal = None

    async def upload(setup: SessionSetup) -> list[str]:
        run = Upload(setup)
        await run.open()
        await run.all()
        return run.report.problems

    locked.store.extended.clear()
    assert locked.run(upload) == []
    needed = locked.check()
    put = {name for name in needed if name not in locked.store.extended}
    assert put, "what the upload put was locked by its put"
    assert math.isclose(len(put) + len(locked.store.extended), len(needed), abs_tol=4)
