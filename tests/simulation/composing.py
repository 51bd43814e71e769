"""Lets the agent's commands be composed of simulated stores, volumes and clocks, on whichever machine they run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import adapters.clock
import adapters.compose
import adapters.openstore
import adapters.state.pause
from adapters.config import Volume
from adapters.state.directory import StateDirectory
from adapters.stores.folder import FolderStore
from engine.pipeline.volume import VolumeSource
from engine.policy import LanePolicy
from engine.spoolroom import RESERVE_BYTES
from tests.simulation.clockwork import VirtualClock, put_in
from tests.simulation.disk import CURRENT
from tests.simulation.machines import MACHINES, OPENED, PORTS, Machine
from tests.simulation.spools import SpoolStore
from tests.simulation.stores import Port

PACK_BYTES: Final = 300_000
PLENTY_BYTES: Final = 1 << 40


def _on(path: Path) -> Machine:
    """Return the machine on whose disk a path lies."""
    return next(machine for machine in MACHINES.values() if machine.disk.below(str(path)))


def _open_store(place: Path, owner: str, sync: Literal["put", "flush"] = "put", **_: float) -> Port | FolderStore:
    port = PORTS.get(str(place))
    if port is not None:
        return port
    machine = _on(place)
    spool = SpoolStore(place, owner, sync)
    spool.folder, spool.may, spool.deletes = machine.spool, machine.may, machine.deletes
    spool.puts, spool.sees = partial(machine.puts, "spool"), machine.sees
    return spool


def _free_bytes(path: Path) -> int:
    machine = _on(path)
    room = machine.settings.room_bytes
    if room is None:
        return PLENTY_BYTES
    used = sum(len(machine.spool.get(name) or b"") for name in machine.spool.names())
    return RESERVE_BYTES + max(0, room - used)


def _clock() -> VirtualClock:
    disk = CURRENT.get()
    return next(machine.clock for machine in MACHINES.values() if machine.disk is disk)


def _network_mark() -> str:
    disk = CURRENT.get()
    return next(machine.network for machine in MACHINES.values() if machine.disk is disk)


class _SmallLane(LanePolicy, frozen=True):
    """A lane with packs so small that a volume of a MiB needs several: below the bounds of a real one."""

    def __post_init__(self) -> None:
        pass


def _small_lane(config: object) -> LanePolicy:
    return _SmallLane(PACK_BYTES, 3 * PACK_BYTES, unflushed_records_max=6)


def _source_of(volume: Volume) -> VolumeSource:
    return MACHINES[volume.path.parts[1]].source(volume.name)


def install() -> None:
    """Let commands be composed of simulated stores and volumes, and of small packs."""
    put_in(
        adapters.compose,
        open_store=_open_store,
        _lane=_small_lane,
        source_of=_source_of,
        _free_bytes=_free_bytes,
    )
    put_in(adapters.openstore, open_store=_open_store)
    put_in(adapters.clock, SystemClock=_clock)
    put_in(adapters.state.pause, network_mark=_network_mark)
    opened = StateDirectory.__init__

    def noted(state: StateDirectory, *arguments: Any, **named: Any) -> None:
        OPENED.append(state)
        opened(state, *arguments, **named)

    put_in(StateDirectory, __init__=noted)
