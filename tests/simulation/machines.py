"""Simulated machines: each with a disk, a clock, volumes and settings of its own, running the real agent."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import adapters.compose
from adapters.config import Volume, parse_config
from adapters.state.directory import StateDirectory
from adapters.stores.folder import FolderStore
from engine.block import BLOCK_BYTES, PART_BYTES, PARTS
from engine.errors import ForebayError
from engine.exitcodes import DONE, SOMETHING_MISSING, of_error
from engine.names import FORMAT
from engine.pipeline.report import SessionReport
from engine.pipeline.volume import VolumeSource
from engine.policy import LanePolicy
from engine.ports import Changes
from engine.recovery.access import Access, by_passphrase
from engine.recovery.places import Place, Places, Problems
from engine.vault.adoption import adopt_cache
from engine.vault.formatobject import new_store
from engine.vault.founding import enrol
from engine.vault.identity import Identity
from engine.vault.slots import KdfCost
from tests.fakes import MemoryVolume
from tests.simulation import clockwork
from tests.simulation.clockwork import VirtualClock, put_in
from tests.simulation.disk import Died, Disk, powered
from tests.simulation.stores import Kind, Port, SimStore, Weather, calm_port

PASSPHRASE: Final = "correct horse battery staple wagon"
NAMES: Final = ("web-01", "db-02")
BLOCKS_MAX: Final = 24
PACK_BYTES: Final = 300_000
_FOUNDED_FROM: Final = 7  # the seed of all keys: identities are the same in every simulation

_ports: Final[dict[str, Port]] = {}  # by the path that stands for them in a configuration
_machines: Final[dict[str, Machine]] = {}  # by name


@dataclass(frozen=True)
class Founded:
    """A vault and a cache with a domain, and systems enrolled in it; simulations begin with copies of it."""

    vault: dict[str, bytes]
    cache: dict[str, bytes]
    identities: dict[str, Identity]
    access: Access


async def found() -> Founded:
    """Found the domain all simulations begin with."""
    clockwork.begin(_FOUNDED_FROM)
    vault, near = SimStore("vault"), SimStore("cache")
    vault.objects[FORMAT], near.objects[FORMAT] = new_store("vault").encode(), new_store("cache").encode()
    ports = [
        Port(store, Weather(), random.Random(0), lambda what: None, lambda op, name: True, lambda name, data: None)
        for store in (vault, near)
    ]
    identities = {}
    for name in NAMES:
        enrolled = await enrol(ports[0], name, PASSPHRASE, None, KdfCost.cheapest(), VirtualClock())
        identities[name] = (await adopt_cache(ports[1], enrolled.identity)).identity
    places = Places([Place("vault", "vault", calm_port(vault))], Problems())
    access = await by_passphrase(PASSPHRASE, None, places)
    return Founded(vault.objects, near.objects, identities, access)


@dataclass
class Settings:
    """What a machine's configuration says, as far as a simulation changes it."""

    delta: bool = True
    compression: str = "lz4"
    share: str = "vault"
    window_s: int = 0
    cache: bool = True
    on_error: str = "warn"
    on_slow: str = "wait"
    retries_max: int = 3
    hints: bool = False


@dataclass
class Plan:
    """One session: of which volumes, in which weather, and where the machine dies, if it does.

    `crash_at`: at which of its events; `crash_on`: so many events after the first of this name. `vanish_on`: packs
    vanish from the vault at the first event of this name.
    """

    volumes: list[str]
    vault: Weather
    cache: Weather
    full: bool = False
    crash_at: int | None = None
    crash_on: tuple[str, int] = "", 0
    power_cut: bool = False
    disk_full: bool = False
    vanish_on: str = ""

    @property
    def calm(self) -> bool:
        dies = self.crash_at is not None or self.crash_on[0]
        return self.vault.calm and self.cache.calm and not (dies or self.disk_full or self.vanish_on)


@dataclass(frozen=True)
class RootMade:
    """A root a session tried to put: its bytes, what the volumes held, and whether it was a full session.

    `own`: the names of what the session put. `began`, `put`: how many events there were in the world when the session
    began, and with the put of the root.
    """

    data: bytes
    contents: dict[str, bytes]
    full: bool
    own: set[str]
    began: int
    put: int


class Machine:
    """One machine. `contents`: its volumes as they are now; `told` hears of everything it does."""

    def __init__(
        self,
        identity: Identity,
        home: Path,
        stores: Mapping[Kind, SimStore],
        chance: random.Random,
        told: Callable[[str], None],
        now: Callable[[], int],
    ) -> None:
        self.identity, self.home, self.stores, self.chance, self._told = identity, home, stores, chance, told
        self.name, self.system = identity.name, identity.system.hex()
        self.clock, self.settings = VirtualClock(), Settings()
        self.disk = Disk(home / "disk", self.event)
        self.contents: dict[str, bytes] = {}
        self.before: dict[str, bytes] = {}  # what they held at some time before
        self.roots: dict[str, RootMade] = {}  # every root it tried to put
        self._now, self._began = now, 0
        self.generations: dict[str, bytes] = {}
        self.events = 0
        self._crash_at: int | None = None
        self._crash_on = "", 0
        self._vanish_on = ""
        self.vanish: Callable[[], None] = lambda: None
        self._dead = False
        self._backing_up: dict[str, bytes] = {}
        self._full, self._own = False, set[str]()
        self.touched: set[str] = set()  # volumes whose state was lost, rolled back or given up since they were saved
        _machines[self.name] = self

    def event(self, what: str) -> None:
        """Count something the machine does; it may be the last."""
        if self._dead:
            raise Died(False)
        self.events += 1
        self._told(f"{self.name} {self.events} {what}")
        if self._vanish_on and self._vanish_on in what:
            self._vanish_on = ""
            self.vanish()
        if self._crash_on[0] and self._crash_on[0] in what:
            self._crash_at, self._crash_on = self.events + self._crash_on[1], ("", 0)
        if self.events == self._crash_at:
            self._dead = True
            raise Died(True)

    def may(self, op: str, name: str) -> bool:
        """Tell whether this system may put an object of this name."""
        kind, _, rest = name.partition("/")
        return op == "put" and kind in ("data", "page", "index", "root", "note") and rest.startswith(f"{self.system}/")

    def puts(self, name: str, data: bytes) -> None:
        """Remember what was put in a session, and what a root stands for."""
        self._own.add(name)
        if name.startswith("root/"):
            self.roots[name] = RootMade(data, self._backing_up, self._full, self._own, self._began, self._now() + 1)

    def port(self, kind: Kind, weather: Weather) -> Port:
        """Return this machine's way to a store."""
        return Port(self.stores[kind], weather, self.chance, self.event, self.may, self.puts)

    def toml(self) -> str:
        """Return the configuration file."""
        has = self.settings
        near = f'[cache]\npath = "/{self.name}/cache"\non_error = "{has.on_error}"\non_slow = "{has.on_slow}"\n'
        return "\n".join(
            [
                f'[system]\nname = "{self.name}"\nstate_dir = "{self.disk.root}/state"',
                *(f'[[volume]]\nname = "{name}"\npath = "/{self.name}/volumes/{name}"' for name in self.contents),
                f'[vault]\nurl = "file:///{self.name}/vault"\nreconnect_window = "{has.window_s} s"',
                f'delta = {str(has.delta).lower()}\ncompression = "{has.compression}"\nshare = "{has.share}"',
                f"{near}retries_max = {has.retries_max}" if has.cache else "",
            ]
        )

    async def session(self, plan: Plan) -> SessionReport | None:
        """Run a session; None: the machine died in it, and has its power back."""
        self.events, self._crash_at, self.disk.full = 0, plan.crash_at, plan.disk_full
        self._full, self._vanish_on, self._crash_on = plan.full, plan.vanish_on, plan.crash_on
        self._began, self._own = self._now(), set()
        self._backing_up = {name: self.contents[name] for name in plan.volumes}
        _ports[f"/{self.name}/vault"] = self.port("vault", plan.vault)
        _ports[f"/{self.name}/cache"] = self.port("cache", plan.cache)
        config = parse_config(self.toml(), self.home / "forebay.toml")
        state: StateDirectory | None = None
        report: SessionReport | None = None
        try:
            with powered(self.disk):
                state = StateDirectory.open(config.system.state_dir)
                volumes = adapters.compose.chosen_volumes(config, plan.volumes)
                session = await adapters.compose.build_session(
                    config, self.identity, state, volumes, full=plan.full, clock=self.clock
                )
                report = await session.run()
        except ForebayError as error:  # what the command line would end with
            report = SessionReport(session="", exit_code=of_error(error), error=str(error), route="ABORTED")
        except BaseException:
            if not self._dead:
                raise
        finally:
            if self._dead and plan.power_cut:
                self.cut_power()
            if state is not None:
                state.close()
            if not (self._dead and plan.power_cut):
                self.disk.full = False
            self._dead, self._crash_at, self._crash_on, self._vanish_on = False, None, ("", 0), ""
        failed = report is None or report.exit_code not in (DONE, SOMETHING_MISSING)
        if plan.disk_full or (plan.full and failed):
            self.touched |= set(self.contents)
        return report

    def cut_power(self) -> None:
        """Let the machine, and a cache of its own, lose what is not durable."""
        self.disk.power_cut(self.chance)
        if self.stores["cache"].volatile:
            self.stores["cache"].power_cut(self.chance)

    def source(self, name: str) -> VolumeSource:
        """Return a volume as sessions take it."""
        return VolumeSource(name, lambda: MemoryVolume(name, bytearray(self.contents[name])), _Tracker(self, name))


@dataclass(frozen=True)
class _Tracker:
    """A change tracker that knows what changed since any generation, in whole blocks and some more."""

    machine: Machine
    volume: str

    def changes(self, generation: str | None) -> Changes:
        machine, now = self.machine, self.machine.contents[self.volume]
        if not machine.settings.hints:
            return Changes(None, None)
        fresh = f"{self.volume}-{len(machine.generations)}"
        machine.generations[fresh] = now
        then = machine.generations.get(generation or "")
        if then is None:
            return Changes(None, fresh)
        extents: list[tuple[int, int]] = []
        for offset in range(0, len(now), BLOCK_BYTES):
            length = min(BLOCK_BYTES, len(now) - offset)
            if then[offset : offset + BLOCK_BYTES] == now[offset : offset + length] and machine.chance.random() < 0.95:
                continue
            if extents and sum(extents[-1]) == offset:
                extents[-1] = extents[-1][0], extents[-1][1] + length
            else:
                extents.append((offset, length))
        return Changes(extents, fresh)


@cache
def pool(count: int = 10) -> list[bytes]:
    """Return blocks that any volume of any system may hold."""
    chance = random.Random(11)
    return [bytes(BLOCK_BYTES), *(chance.randbytes(BLOCK_BYTES) for _ in range(count))]


def some_block(chance: random.Random) -> bytes:
    """Return a block: zeros, one that others may have, one that compresses, or one nobody has."""
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(pool())
    if kind < 0.5:
        return chance.randbytes(64) * (BLOCK_BYTES // 64)
    return chance.randbytes(BLOCK_BYTES)


def some_volume(chance: random.Random) -> bytes:
    """Return a volume of up to `BLOCKS_MAX` blocks, often with a short one at its end."""
    blocks = b"".join(some_block(chance) for _ in range(chance.randrange(1, BLOCKS_MAX)))
    return blocks + chance.choice((b"", chance.randbytes(777), bytes(PART_BYTES)))


def changed(content: bytes, before: bytes, chance: random.Random) -> bytes:
    """Return a volume with blocks and parts of blocks rewritten, some as they were `before`, or of another size."""
    out = bytearray(content)
    if chance.random() < 0.08:
        size = chance.randrange(BLOCKS_MAX * BLOCK_BYTES)
        out = out[:size] if size < len(out) else out + bytes(size - len(out))
    blocks = len(out) // BLOCK_BYTES
    for _ in range(chance.choice((0, 1, 2, 6)) if blocks else 0):
        at = chance.randrange(blocks) * BLOCK_BYTES
        old = before[at : at + BLOCK_BYTES]
        block = old if len(old) == BLOCK_BYTES and chance.random() < 0.3 else some_block(chance)
        out[at : at + BLOCK_BYTES] = block
    for _ in range(chance.choice((0, 2, 4, 8)) if blocks else 0):
        at = chance.randrange(blocks) * BLOCK_BYTES + chance.randrange(PARTS) * PART_BYTES
        data = chance.randbytes(chance.choice((1, 100, PART_BYTES)))
        out[at : at + len(data)] = data
    return bytes(out)


def _folder_store(root: Path, *arguments: Any, **named: Any) -> Port | FolderStore:
    port = _ports.get(str(root))
    return port if port is not None else FolderStore(root, *arguments, **named)


class _SmallLane(LanePolicy, frozen=True):
    """A lane with packs so small that a volume of a MiB needs several: below the bounds of a real one."""

    def __post_init__(self) -> None:
        pass


def _small_lane(config: object) -> LanePolicy:
    return _SmallLane(PACK_BYTES, 3 * PACK_BYTES, unflushed_records_max=6)


def _source_of(volume: Volume) -> VolumeSource:
    return _machines[volume.path.parts[1]].source(volume.name)


def install() -> None:
    """Let sessions be composed of simulated stores and volumes, and of small packs."""
    put_in(adapters.compose, FolderStore=_folder_store, _lane=_small_lane, source_of=_source_of)
