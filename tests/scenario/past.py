"""Sessions, verifications and trimmings of days gone by: by the same composition, with a clock that is slow."""

from __future__ import annotations

import time

import anyio

from adapters.clock import SystemClock
from adapters.compose import build_trimming, build_verification
from adapters.config import load_config
from adapters.lifetime import lifetime
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.cache.trimrecord import TrimRecord, TrimReport
from tests.scenario.inprocess import backup
from tests.scenario.machine import Machine

DAY_MS = 86_400_000


class DaysAgo(SystemClock):
    """The machine's clock as it was so many days ago."""

    def __init__(self, days: int) -> None:
        self._days = days

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000 - self._days * DAY_MS


def lived(machine: Machine, days_ago: int) -> None:
    """Let a machine have backed up and verified its cache on that day."""
    report = backup(machine, clock=DaysAgo(days_ago))
    assert (report.exit_code, report.cache) == (0, "ok")
    verify(machine, days_ago)


def verify(machine: Machine, days_ago: int) -> None:
    """Let a machine have verified its cache on that day."""
    config = load_config(machine.config)
    identity = files.load(config.system.identity_file)

    async def main() -> None:
        async with lifetime():
            with StateDirectory.open(config.system.state_dir, yields=True) as state:
                assert await (await build_verification(config, identity, state, clock=DaysAgo(days_ago))).run()

    anyio.run(main)


def trim(machine: Machine, days_ago: int = 0) -> TrimReport:
    """Trim the cache as of that day."""
    machine.write_config()
    config = load_config(machine.config)
    identity = files.load(config.system.identity_file)

    async def main() -> TrimReport:
        async with lifetime():
            with StateDirectory.open(config.system.state_dir, yields=True) as state:
                job = await build_trimming(config, identity, state, clock=DaysAgo(days_ago))
                assert await job.run()
                assert job.report is not None
                return job.report

    return anyio.run(main)


def record_of(machine: Machine) -> TrimRecord | None:
    """Return what a machine noted of its last trimming."""
    config = load_config(machine.config)
    store = files.load(config.system.identity_file).cache
    assert store is not None
    with StateDirectory.open(config.system.state_dir, lock=False) as state:
        return state.trim_notes(store).last()
