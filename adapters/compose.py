"""Builds the engine out of a configuration and the adapters: the one place that knows all of them."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from adapters.clock import SystemClock
from adapters.config import Config, Share, Spool, Volume
from adapters.openstore import PlacedStore, device_of, open_store, retention_of
from adapters.state import turns
from adapters.state.directory import StateDirectory
from adapters.state.pause import paused
from adapters.trackers.compare import CompareTracker
from adapters.trackers.hints import HintsTracker
from adapters.version import VERSION
from adapters.volumes.open import open_volume, volume_bytes
from engine.errors import ConfigError, StoreError, StoreUnavailable
from engine.events import EventLog
from engine.pipeline.bounded import BoundedStore
from engine.pipeline.kept import KeptStore
from engine.pipeline.retry import FailedTry, RetryingStore
from engine.pipeline.session import Session
from engine.pipeline.setup import CacheSetup, LockSetup, SessionSetup, SpoolSetup
from engine.pipeline.volume import VolumeSource
from engine.policy import (
    CacheErrorPolicy,
    LanePolicy,
    LockPolicy,
    QueuePolicy,
    ReconnectPolicy,
    RetryPolicy,
    SlowPolicy,
)
from engine.ports import ChangeTracker, Clock, ObjectStore
from engine.seal import Codec
from engine.vault.identity import Identity

if TYPE_CHECKING:
    from engine.cache.attempt import PointsHealed
    from engine.cache.healing import Healing
    from engine.cache.trimjob import TrimJob
    from engine.cache.verification import Verification
    from engine.vault.check import VaultCheck
    from engine.vault.verification import VaultVerification

WORKERS_MAX = 8
# Of packs in flight, for each of two lanes: with 128 MiB each a first backup to slow disks peaked at 434 MiB.
SHARED_IN_FLIGHT_BYTES = 96 << 20


# The spool is the last resort: what fails there twice fails the session.
SPOOL_RETRIES = RetryPolicy(retries_max=2)


def chosen_volumes(config: Config, names: Sequence[str]) -> list[Volume]:
    """Return the configured volumes called `names`, all of them if none is named. Raises: ConfigError."""
    known = {volume.name: volume for volume in config.volumes}
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no volume {name!r} in {config.source}; volumes: {', '.join(known)}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(config.volumes)


def source_of(volume: Volume) -> VolumeSource:
    """Return a configured volume as a session takes it."""
    tracker: ChangeTracker = CompareTracker()
    if volume.hints is not None:
        tracker = HintsTracker(volume.hints, partial(volume_bytes, volume.name, volume.path))
    return VolumeSource(
        volume.name, partial(open_volume, volume.name, volume.path), tracker, volume.on_read_error == "skip"
    )


async def build_session(
    config: Config,
    identity: Identity,
    state: StateDirectory,
    volumes: Sequence[Volume],
    *,
    full: bool,
    clock: Clock | None = None,
) -> Session:
    """Build a session over an open, locked state directory; what an earlier one left half-written is swept."""
    return Session(await build_setup(config, identity, state, volumes, full=full, clock=clock))


async def build_setup(
    config: Config,
    identity: Identity,
    state: StateDirectory,
    volumes: Sequence[Volume] = (),
    *,
    full: bool = False,
    clock: Clock | None = None,
) -> SessionSetup:
    """Return what a session, or an upload, is made of; see `build_session`."""
    clock = clock or SystemClock()
    owner = identity.system.hex()
    remote = open_store(config.vault.place, owner, connect_timeout_s=config.vault.connect_timeout_s)
    stores = [remote]
    policy = RetryPolicy(retries_max=config.vault.retries_max, retry_within_s=config.vault.retry_within_s)
    # A share's put looks at what it put; elsewhere something on the way may take an error for success.
    kept = remote if isinstance(config.vault.place, Share) else KeptStore(remote)
    vault = RetryingStore(kept, policy, clock, random.Random(), partial(_log_retry, "vault"))
    cache = None
    if (settings := config.active_cache) is not None:
        errors = CacheErrorPolicy(settings.on_error, settings.retries_max)
        near = open_store(settings.place, owner, "flush")
        stores.append(near)
        objects = RetryingStore(near, errors.retry(), clock, random.Random(), partial(_log_retry, "cache"))
        slow = SlowPolicy(settings.on_slow, settings.skip_after_s)
        cache = CacheSetup(objects, errors, slow, state.history, settings.trim.policy, device_of(near))
    spool = None
    if config.spool is not None:
        local = open_store(config.spool.path, owner, "flush")
        stores.append(local)
        spool = _spool(config.spool, local, state.path, clock, resume=config.vault.on_loss == "resume")
    async with anyio.create_task_group() as group:
        for store in stores:
            group.start_soon(_swept, store)
    return SessionSetup(
        identity=identity,
        state=state,
        history=state.history,
        clock=clock,
        vault=vault,
        cache=cache,
        spool=spool,
        lock=_lock(config, state),
        stand_ins=state.history,
        volumes=[source_of(volume) for volume in volumes],
        version=VERSION,
        codec=Codec[config.vault.compression.upper()],
        paranoid=config.vault.paranoid,
        delta=config.vault.delta,
        own_only=config.vault.share == "own",
        full=full,
        queue=QueuePolicy(config.queue.size_bytes),
        lane=_lane(config),
        reconnect=ReconnectPolicy(config.vault.reconnect_window_s, config.vault.reconnect_total_s),
        workers=min(os.cpu_count() or 1, WORKERS_MAX),
    )


async def build_verification(
    config: Config, identity: Identity, state: StateDirectory, *, read_share: float = 0.0, clock: Clock | None = None
) -> Verification:
    """Build a verification of the cache over an open state directory that was locked to be given away.

    `read_share`: of its packs, by size, what is read.
    """
    from engine.cache.verification import Verification, VerifySetup

    settings = config.active_cache
    assert settings is not None, "without a cache there is nothing to verify"
    clock = clock or SystemClock()
    near = open_store(settings.place, identity.system.hex(), "flush")
    retry = CacheErrorPolicy(settings.on_error, settings.retries_max).retry()
    return Verification(
        VerifySetup(
            identity=identity,
            state=state,
            history=state.history,
            clock=clock,
            cache=RetryingStore(near, retry, clock, random.Random(), partial(_log_retry, "cache")),
            volumes=[volume.name for volume in config.volumes],
            own_only=config.vault.share == "own",
            read_share=read_share,
            heals=settings.heal == "points",
            wanted=partial(turns.wanted, state.path),
            relax=state.mirror(identity.cache).relax if identity.cache is not None else lambda: None,
        )
    )


async def build_healing(
    config: Config,
    identity: Identity,
    state: StateDirectory,
    *,
    before: PointsHealed | None = None,
    clock: Clock | None = None,
) -> Healing:
    """Build the healing of restore points over an open state directory that was locked to be given away.

    `before`: see `Healing`.
    """
    from engine.cache.healing import Healing, HealSetup

    setup = HealSetup(
        session=await build_setup(config, identity, state, clock=clock),
        history=state.history,
        volumes=[volume.name for volume in config.volumes],
        wanted=partial(turns.wanted, state.path),
    )
    return Healing(setup, before)


async def build_vault_verification(
    config: Config,
    identity: Identity,
    state: StateDirectory,
    *,
    read_share: float = 0.0,
    carried: VaultCheck | None = None,
    clock: Clock | None = None,
) -> VaultVerification:
    """Build a verification of the vault over an open state directory that was locked to be given away.

    `read_share`: of the packs that restore points need, by size, what is read; `carried`: see `VaultVerification`.
    """
    from engine.vault.verification import VaultVerification, VaultVerifySetup

    return VaultVerification(
        VaultVerifySetup(
            session=await build_setup(config, identity, state, clock=clock),
            history=state.history,
            volumes=[volume.name for volume in config.volumes],
            read_share=read_share,
            wanted=partial(turns.wanted, state.path),
        ),
        carried,
    )


def report_stores(config: Config, identity: Identity) -> tuple[ObjectStore, ObjectStore | None]:
    """Return the vault and the cache for what is worth one try: the next report says the same again."""
    owner, settings = identity.system.hex(), config.active_cache
    vault = open_store(config.vault.place, owner, connect_timeout_s=config.vault.connect_timeout_s)
    return vault, open_store(settings.place, owner, "flush") if settings is not None else None


async def build_trimming(
    config: Config, identity: Identity, state: StateDirectory, *, clock: Clock | None = None
) -> TrimJob:
    """Build a trimming of the cache over an open state directory that was locked to be given away."""
    from engine.cache.trimjob import TrimJob, TrimSetup

    settings = config.active_cache
    assert settings is not None, "without a cache there is nothing to trim"
    clock = clock or SystemClock()
    near = open_store(settings.place, identity.system.hex(), "flush")
    await _swept(near)
    retry = CacheErrorPolicy(settings.on_error, settings.retries_max).retry()
    setup = TrimSetup(
        identity=identity,
        state=state,
        clock=clock,
        policy=settings.trim.policy,
        device=device_of(near),
        pack_bytes=config.vault.pack_size_bytes,
    )
    objects = RetryingStore(near, retry, clock, random.Random(), partial(_log_retry, "cache"))
    return TrimJob(setup, objects, partial(turns.wanted, state.path))


def _lock(config: Config, state: StateDirectory) -> LockSetup | None:
    """Return what keeps the vault's objects locked, if it is configured."""
    if config.vault.lock_s is None:
        return None
    retention = retention_of(config.vault.place, connect_timeout_s=config.vault.connect_timeout_s)
    return LockSetup(LockPolicy(config.vault.lock_s), retention, state.history)


def _spool(settings: Spool, local: PlacedStore, state_dir: Path, clock: Clock, *, resume: bool) -> SpoolSetup:
    kept = RetryingStore(local, SPOOL_RETRIES, clock, random.Random(), partial(_log_retry, "spool"))
    where, free = str(settings.path), partial(_free_bytes, settings.path)

    def paused_now() -> str | None:
        return paused(state_dir, clock.now_ms())

    return SpoolSetup(
        BoundedStore(kept, where, settings.max_size_bytes, free),
        where,
        resume=resume,
        no_upload=lambda: paused_now() or outside(settings.upload_window_minutes, clock.now_ms()),
        paused=paused_now,
        offer=partial(turns.offer, state_dir),
        wanted=partial(turns.wanted, state_dir),
    )


def _lane(config: Config) -> LanePolicy:
    """Return the bounds of a lane: never less than two packs, one that fills and one that is put."""
    pack_bytes = config.vault.pack_size_bytes
    if config.active_cache is None:
        return LanePolicy(pack_bytes)
    return LanePolicy(pack_bytes, max(SHARED_IN_FLIGHT_BYTES, 2 * pack_bytes))


def outside(window: tuple[int, int] | None, now_ms: int) -> str | None:
    """Return, in a sentence, that it is not the time for uploads; `window`: from, to in minutes of the local day."""
    if window is None:
        return None
    now = datetime.fromtimestamp(now_ms / 1000).astimezone()
    minute, (start, end) = now.hour * 60 + now.minute, window
    if (start <= minute < end) if start < end else (minute >= start or minute < end):
        return None
    return f"it is not in the upload window from {start // 60:02}:{start % 60:02} to {end // 60:02}:{end % 60:02}"


def _free_bytes(path: Path) -> int:
    try:
        return shutil.disk_usage(path).free
    except OSError as error:
        raise StoreUnavailable(f"folder {path} cannot be asked how much room it has: {error.strerror}") from error


async def _swept(store: PlacedStore) -> None:
    try:
        await store.sweep()
    except StoreError:
        # The session finds out for itself, and says it in the words that fit: a vault is not a cache.
        return


def _log_retry(store: str, failed: FailedTry) -> None:
    EventLog("retry").warning(
        "store_call_failed",
        component=store,
        operation=failed.operation,
        object=failed.name,
        retry=failed.retry,
        wait_s=round(failed.wait_s, 2),
        error=str(failed.error),
    )
