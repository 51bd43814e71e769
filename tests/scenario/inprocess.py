"""Sessions of a `Machine` in this process: the same composition as the command line, without its start."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec

from adapters.compose import build_setup, chosen_volumes
from adapters.config import load_config
from adapters.lifetime import lifetime
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from adapters.stores.folder import FolderStore
from engine.pipeline.kept import KeptStore
from engine.pipeline.report import SessionReport, UploadReport
from engine.pipeline.retry import RetryingStore
from engine.pipeline.session import Session
from engine.pipeline.setup import SessionSetup
from engine.pipeline.upload import Upload
from engine.policy import RetryPolicy
from engine.ports import Clock, ObjectStore
from engine.root import Root, open_root
from engine.vault.certificate import Certificates
from tests.fakes import FakeClock, FaultPlan, FaultyStore
from tests.scenario.machine import Machine

T = TypeVar("T")
# Puts a stage around the vault of a session, or takes its place; the same for the cache.
Around = Callable[[ObjectStore], ObjectStore]


def by_plan(plan: FaultPlan, retries_max: int = 0) -> Around:
    """Return what has a vault fail by plan, with the real stages above it."""

    def around(vault: ObjectStore) -> ObjectStore:
        policy = RetryPolicy(retries_max=retries_max)
        return RetryingStore(KeptStore(FaultyStore(vault, plan)), policy, FakeClock(), random.Random(1))

    return around


def backup(
    machine: Machine,
    *,
    full: bool = False,
    clock: Clock | None = None,
    around: Around = lambda vault: vault,
    near: Around = lambda cache: cache,
) -> SessionReport:
    """Run one session, by `clock` or the system's, and return its report."""

    async def work(setup: SessionSetup) -> SessionReport:
        if (cache := setup.cache) is not None:
            setup = msgspec.structs.replace(setup, cache=msgspec.structs.replace(cache, objects=near(cache.objects)))
        return await Session(setup).run()

    return _run(machine, work, clock, around, full=full)


def upload(machine: Machine, *, clock: Clock | None = None, around: Around = lambda vault: vault) -> UploadReport:
    """Upload the backlog and return the report. Raises: what an upload raises."""

    async def work(setup: SessionSetup) -> UploadReport:
        run = Upload(setup)
        await run.open()
        await run.all()
        return run.report

    return _run(machine, work, clock, around)


def _run(
    machine: Machine,
    work: Callable[[SessionSetup], Awaitable[T]],
    clock: Clock | None,
    around: Around,
    *,
    full: bool = False,
) -> T:
    machine.write_config()
    config = load_config(machine.config)
    identity = files.load(config.system.identity_file)

    async def main() -> T:
        with StateDirectory.open(config.system.state_dir) as state:
            setup = await build_setup(config, identity, state, chosen_volumes(config, ()), full=full, clock=clock)
            return await work(msgspec.structs.replace(setup, vault=around(setup.vault)))

    async def living() -> T:
        async with lifetime():
            return await main()

    return anyio.run(living)


def newest_root(machine: Machine) -> Root:
    """Open the newest root in the vault with what the agent holds."""
    identity = files.load(load_config(machine.config).system.identity_file)

    async def main() -> Root:
        store = FolderStore(machine.vault, "test")
        certificates = await Certificates.load(store, identity.domain, identity.vault_public)
        names = [info.name async for info in store.list(f"root/{identity.system.hex()}/")]
        data = bytes(await store.get(max(names)))
        return open_root(max(names), data, identity.listing_key, certificates.verify_number)

    return anyio.run(main)


def stored_bytes(folder: Path, *kinds: str) -> int:
    """Return the bytes of all objects of the kinds ("data", "page", …) in a store's folder."""
    return sum(path.stat().st_size for kind in kinds for path in (folder / kind).rglob("*") if path.is_file())
