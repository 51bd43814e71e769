"""What a session is made of: the composition root fills it in, the stages take what they need of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from engine.pipeline.bounded import BoundedStore
from engine.pipeline.volume import VolumeSource
from engine.policy import CacheErrorPolicy, LanePolicy, LockPolicy, QueuePolicy, ReconnectPolicy, SlowPolicy, TrimPolicy
from engine.ports import Clock, Device, ObjectStore, Retention
from engine.seal import Codec
from engine.state import CacheHistory, History, LockNotes, StandInNotes, StateStore
from engine.vault.identity import Identity


class CacheSetup(msgspec.Struct, frozen=True):
    """The cache of a session: the object store behind its retry stage, and what its errors and slowness cost.

    `history`: where it is noted that there was a session with it, so that verification begins. `trim`: how much it may
    hold, looked at when the session is over; None: nobody looks. `device`: what it lies on, if that can be asked.
    """

    objects: ObjectStore
    errors: CacheErrorPolicy
    slow: SlowPolicy
    history: CacheHistory | None = None
    trim: TrimPolicy | None = None
    device: Device | None = None


class SpoolSetup(msgspec.Struct, frozen=True):
    """The spool of a session: the object store behind its stages; `where` is its path, for sentences.

    `resume`: a session that loses its vault goes on with what the vault lacks, instead of starting again.
    `no_upload` says, in a sentence, why the backlog is not to be uploaded now, None: it may be; `paused` likewise, but
    for pauses alone: what is short of room does not wait for the upload window. From `offer` on the session only
    uploads, and gives way; `wanted` tells whether somebody waits for the state directory.
    """

    objects: BoundedStore
    where: str
    resume: bool = False
    no_upload: Callable[[], str | None] = lambda: None
    paused: Callable[[], str | None] = lambda: None
    offer: Callable[[], None] = lambda: None
    wanted: Callable[[], bool] = lambda: False


class LockSetup(msgspec.Struct, frozen=True):
    """Locks in the vault: how long, who sets them, and where it is noted until when."""

    policy: LockPolicy
    vault: Retention
    notes: LockNotes


class SessionSetup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a session is made of. `vault` is the object store behind its retry stage."""

    identity: Identity
    state: StateStore
    history: History
    clock: Clock
    vault: ObjectStore
    cache: CacheSetup | None
    volumes: Sequence[VolumeSource]
    version: str
    spool: SpoolSetup | None = None
    lock: LockSetup | None = None
    stand_ins: StandInNotes | None = None
    codec: Codec = Codec.ZSTD
    paranoid: bool = False
    delta: bool = True
    own_only: bool = False
    full: bool = False
    queue: QueuePolicy = msgspec.field(default_factory=QueuePolicy)
    lane: LanePolicy = msgspec.field(default_factory=LanePolicy)
    reconnect: ReconnectPolicy = msgspec.field(default_factory=ReconnectPolicy)
    workers: int = 2
    seed: int | None = None
