"""Simulated machines: each with a disk, a clock, volumes and settings of its own, running the real agent."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

import adapters.cli.deleting
import adapters.cli.upload
import adapters.compose
from adapters.config import Config, parse_config
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from adapters.state.pause import Pause, end_pause, paused, set_pause
from adapters.stores.folder import FolderStore
from engine.block import BLOCK_BYTES
from engine.errors import ForebayError
from engine.exitcodes import DONE, IN_SPOOL, SOMETHING_MISSING, of_error
from engine.names import PackName, PointId
from engine.pipeline.report import SessionReport, UploadReport
from engine.pipeline.volume import VolumeSource
from engine.ports import Changes
from engine.root import open_root
from engine.vault.adoption import adopt_spool
from engine.vault.certificate import Certificates
from engine.vault.formatobject import new_store
from engine.vault.identity import Identity
from engine.vault.offline import create_pending
from tests.fakes import MemoryVolume
from tests.simulation.clockwork import VirtualClock
from tests.simulation.disk import Died, Disk, powered
from tests.simulation.plans import Dropped, Plan, Published, RootMade, Settings
from tests.simulation.spools import OWN, SpoolFolder
from tests.simulation.stores import Broken, Kind, Port, SimStore, Weather

T = TypeVar("T")

FOUNDING: Final = ("format", "key/", "cert/")

PORTS: Final[dict[str, Port]] = {}  # by the path that stands for them in a configuration
MACHINES: Final[dict[str, Machine]] = {}  # by name
OPENED: Final[list[StateDirectory]] = []  # state directories that may not be closed


class Machine:
    """One machine. `contents`: its volumes as they are; `told` hears all it does; `ills`: a chance for later ills."""

    def __init__(
        self,
        identity: Identity,
        home: Path,
        stores: Mapping[Kind, SimStore],
        chance: random.Random,
        told: Callable[[str], None],
        now: Callable[[], int],
        ills: random.Random,
    ) -> None:
        self.home, self.stores, self.chance, self.ills, self._told = home, stores, chance, ills, told
        self.name, self.system = identity.name, identity.system.hex()
        self.clock, self.settings = VirtualClock(), Settings()
        self.disk = Disk(home / "disk", self.event)
        self.spool = SpoolFolder(home / "disk" / "spool")
        self.identity = self.become(identity)
        self.contents: dict[str, bytes] = {}
        self.before: dict[str, bytes] = {}  # what they held at some time before
        self.roots: dict[str, RootMade] = {}  # every root it tried to put
        self.stands: dict[str, set[str]] = {}  # a root of the spool → names of those put into the vault in its stead
        self.seen: set[str] = set()  # its roots that whole listings showed since it last began something
        self.published: list[Published] = []
        self.dropped: list[Dropped] = []
        self.reused: set[str] = set()  # names of roots that got other bytes
        self.to_delete: set[str] = set()  # roots somebody wanted deleted
        self.network = "home"
        self._now, self._began = now, 0
        self.generations: dict[str, bytes] = {}
        self.events = 0
        self._crash_at: int | None = None
        self._crash_on = "", 0
        self._vanish_on = self._way_on = ""
        self.vanish: Callable[[], None] = lambda: None
        self._dead = False
        self._backing_up: dict[str, bytes] = {}
        self._full, self._own, self._sent, self._kept = False, set[str](), set[str](), set[str]()
        self.touched: set[str] = set()  # volumes whose state was lost, rolled back or given up since they were saved
        self.forked = False  # what it forgot has the name of what it did since
        self.unsettled = False  # it may have put a root without hearing of it
        self.forgetful = False  # its state was lost or rolled back: it may not know what it did
        MACHINES[self.name] = self

    def become(self, identity: Identity) -> Identity:
        """Keep an identity as `init` does."""
        self.identity = identity
        files.save(self.home / "identity", identity)
        return identity

    def event(self, what: str) -> None:
        """Count something the machine does; it may be the last."""
        if self._dead:
            raise Died(False)
        self.events += 1
        self._told(f"{self.name} {self.events} {what}")
        if self._vanish_on and self._vanish_on in what:
            self._vanish_on = ""
            self.vanish()
        if self._way_on and self._way_on in what and (self.disk.root / "state").is_dir():
            self._way_on = ""
            (self.disk.root / "state" / "lock.wanted").touch()
        if self._crash_on[0] and self._crash_on[0] in what:
            self._crash_at, self._crash_on = self.events + self._crash_on[1], ("", 0)
        if self.events == self._crash_at:
            self._dead = True
            raise Died(True)

    def may(self, op: str, name: str) -> bool:
        """Tell whether this system may put, or delete, an object of this name."""
        if name.startswith((f"stamp/{self.system}/", f"report/{self.system}/")):
            return True
        own = name.startswith(OWN) and name.split("/")[1] == self.system
        return op == "put" and (own or (self.identity.vault_pending and name.startswith(FOUNDING)))

    def _may_in(self, kind: Kind, op: str, name: str) -> bool:
        """Tell the same of one store: from a cache its writer removes index fragments that were cut, or merged."""
        merged = kind == "cache" and op == "delete" and name.startswith(f"index/{self.system}/")
        return merged or self.may(op, name)

    def puts(self, kind: Kind, name: str, data: bytes) -> None:
        """Remember what was put, and what a root stands for. Raises: Broken."""
        self._own.add(name)
        if kind in ("vault", "spool"):
            (self._sent if kind == "vault" else self._kept).add(name)
        if not name.startswith("root/") or kind == "cache":
            return
        if kind == "vault" and (original := self._stands_for(name, data)) is not None:
            self._put_instead(original, name, data)
            return
        known = self.roots.get(name)
        waited = known is not None and known.spooled
        if known is not None and known.data != data:
            self._reuse(name, known.data)
            waited = False
        if kind == "vault":
            self._publish(name, name if waited else None)
        if not (kind == "vault" and waited):
            self.roots[name] = RootMade(
                data, self._backing_up, self._full, self._own, self._sent, self._kept, self._began, self._now() + 1,
                kind == "spool", self.settings.on_loss == "resume",
            )  # fmt: skip

    def _reuse(self, root: str, data: bytes) -> None:
        """Let a root have the name of one that got nowhere: state that was brought back knows nothing of that one."""
        there = data in (self.stores["vault"].objects.get(root), self.spool.get(root))
        # State that was brought back, a clock that is behind, and nobody to ask: only then may names meet.
        self.forked |= there and self.forgetful and root not in self.seen
        if (there and not self.forked) or self.to_delete & {root}:
            raise Broken(f"{root} is put with other bytes than before")
        self.reused.add(root)

    def _stands_for(self, name: str, data: bytes) -> str | None:
        """Return the root a root says it stands for."""
        known = Certificates(self.identity.domain, self.identity.vault_public, [self.identity.certified()], [])
        instead = open_root(name, data, self.identity.listing_key, known.verify_number).body.stands_for
        return instead.point.root(self.identity.system) if instead is not None else None

    def _put_instead(self, original: str, name: str, data: bytes) -> None:
        """Let a root that waits have another name in the vault, where its own has rotted. Raises: Broken."""
        vault, made = self.stores["vault"].objects, self.roots[original]
        whole = [one for one in self.published_as(original) if vault.get(one) == self.roots[one].data]
        if any(one != name for one in whole):
            raise Broken(f"{original} gets one name more: {name} besides {whole}")
        known = self.roots.get(name)
        if known is not None and known.data != data:
            self._reuse(name, known.data)
        self.stands.setdefault(original, set()).add(name)
        self._publish(name, original)
        self.roots[name] = dataclasses.replace(made, data=data)

    def published_as(self, root: str) -> list[str]:
        """Return the names under which the vault has got a root that waits, or waited, in the spool."""
        written = self.stores["vault"].written
        names = sorted({root} | self.stands.get(root, set()))
        return [name for name in names if name in self.roots and written.get(name) == self.roots[name].data]

    def _publish(self, root: str, waits: str | None) -> None:
        whole = frozenset(
            name
            for name, data in self.stores["vault"].objects.items()
            if (pack := PackName.parse(name)) is not None and pack.size == len(data)
        )
        self.published.append(Published(root, self._began, whole, self.waiting(), waits))

    def waiting(self) -> tuple[str, ...]:
        """Return the roots that lie in the spool and have no `removed` note there, oldest first."""
        found = [PointId.parse_note(name) for name in self.spool.names(f"note/{self.system}/")]
        removed = {note[1] for note in found if note is not None and note[2] == "removed"}
        roots = [(name, PointId.parse_root(name)) for name in self.spool.names(f"root/{self.system}/")]
        return tuple(name for name, parsed in roots if parsed is not None and parsed[1] not in removed)

    def sees(self, names: set[str]) -> None:
        """Remember which of this system's roots a listing gave."""
        self.seen |= {name for name in names if name.startswith(f"root/{self.system}/")}

    def deletes(self, name: str) -> None:
        """Look at what is about to leave the spool. Raises: Broken."""
        if name.startswith("root/"):
            kept = bool(self.published_as(name))
            reason = name in self.to_delete or name in self.spool.ruined or name not in self.spool.written
            if not kept and not (reason and name not in self.waiting()):
                raise Broken(f"{name} is deleted from the spool, and the vault never had it")
        elif (pack := PackName.parse(name)) is not None and len(self.spool.get(name) or b"") == pack.size:
            self.dropped.append(Dropped(name, self.waiting(), name in self.spool.left))

    def port(self, kind: Kind, weather: Weather) -> Port:
        """Return this machine's way to a store."""
        puts = partial(self.puts, kind)
        return Port(self.stores[kind], weather, self.chance, self.event, partial(self._may_in, kind), puts, self.sees)

    def config(self) -> Config:
        """Return the configuration."""
        has = self.settings
        near = f'[cache]\npath = "/{self.name}/cache"\non_error = "{has.on_error}"\non_slow = "{has.on_slow}"\n'
        system = f'[system]\nname = "{self.name}"\nstate_dir = "{self.disk.root}/state"\n'
        text = [
            f'{system}identity_file = "{self.home}/identity"',
            *(f'[[volume]]\nname = "{name}"\npath = "/{self.name}/volumes/{name}"' for name in self.contents),
            f'[vault]\nurl = "file:///{self.name}/vault"\nreconnect_window = "{has.window_s} s"',
            f'delta = {str(has.delta).lower()}\ncompression = "{has.compression}"\nshare = "{has.share}"',
            f'on_loss = "{has.on_loss}"',
            f"{near}retries_max = {has.retries_max}" if has.cache else "",
            f'[spool]\npath = "{self.spool.path}"' if has.spool else "",
            f'upload_window = "{has.upload_window}"' if has.spool and has.upload_window else "",
        ]
        config = parse_config("\n".join(text), self.home / "forebay.toml")
        if config.spool is None or has.max_bytes is None:
            return config
        small = msgspec.structs.replace(config.spool, max_size_bytes=has.max_bytes)  # no file may say so little
        return msgspec.structs.replace(config, spool=small)

    async def session(self, plan: Plan) -> SessionReport | None:
        """Run a session; None: the machine died in it, and has its power back."""
        self._full, self._backing_up = plan.full, {name: self.contents[name] for name in plan.volumes}

        async def backup() -> SessionReport:
            config = self.config()
            try:
                state = StateDirectory.open(config.system.state_dir)
                volumes = adapters.compose.chosen_volumes(config, plan.volumes)
                session = await adapters.compose.build_session(
                    config, self.identity, state, volumes, full=plan.full, clock=self.clock
                )
                return await session.run()
            except ForebayError as error:  # what the command line would end with
                return SessionReport(session="", exit_code=of_error(error), error=str(error), route="ABORTED")

        report = await self._run(plan, backup)
        if report is None or report.point is None:
            self.unsettled |= any(made.began == self._began for made in self.roots.values())
        failed = report is None or report.exit_code not in (DONE, IN_SPOOL, SOMETHING_MISSING)
        if plan.disk_full or (plan.full and failed):
            self.touched |= set(self.contents)
        return report

    async def upload(self, plan: Plan) -> UploadReport | None:
        """Run `forebay upload`; None: the machine died in it."""

        async def upload() -> UploadReport:
            told = _Told()
            try:
                await adapters.cli.upload._upload(told.context(self.config()), self.config())
            except ForebayError as error:
                return UploadReport(error=str(error), exit_code=of_error(error))
            assert isinstance(told.document, UploadReport)
            return told.document

        return await self._run(plan, upload)

    async def delete(self, plan: Plan, root: str) -> str | None:
        """Run `forebay points --delete`; return what came of it, None: the machine died in it."""
        parsed = PointId.parse_root(root)
        assert parsed is not None
        self.to_delete.add(root)

        async def delete() -> str:
            told = _Told()
            try:
                chosen = await adapters.cli.deleting._choose(self.config(), str(parsed[1]))
                await adapters.cli.deleting._delete(told.context(self.config()), self.config(), chosen.point)
            except ForebayError as error:
                return f"not deleted: {error}"
            return f"deleted: {told.document}"

        return await self._run(plan, delete)

    async def init(self, plan: Plan) -> str | None:
        """Make the vault of a domain that was founded without one, as `forebay init` does; None: it died in it."""

        async def init() -> str:
            try:
                self.become(await create_pending(PORTS[f"/{self.name}/vault"], self.identity))
            except ForebayError as error:
                return f"no vault: {error}"
            return "the vault is made"

        return await self._run(plan, init)

    async def new_spool(self) -> None:
        """Make an empty spool and adopt it, as `forebay init --spool` does."""
        await FolderStore.create(self.spool.path, new_store("spool").encode())
        spool = FolderStore(self.spool.path, self.system, "flush")
        self.become((await adopt_spool(spool, self.identity)).identity)
        self.disk.settle()

    async def _run(self, plan: Plan, work: Callable[[], Awaitable[T]]) -> T | None:
        """Do something on this machine; None: the machine died, and has its power back."""
        self.events, self._crash_at, self.disk.full = 0, plan.crash_at, plan.disk_full
        self._vanish_on, self._crash_on, self._way_on = plan.vanish_on, plan.crash_on, plan.way_on
        self._began, self._own, self._sent, self.seen = self._now(), set(), set(), set()
        self._kept = set(self.spool.written)
        self.disk.fails = partial(self._fails, plan.ailing)
        vault = self.port("vault", plan.vault)
        if self.settings.elsewhere:
            vault = Port(self.stores["elsewhere"], plan.vault, self.chance, self.event, _never, _nothing)
        PORTS[f"/{self.name}/vault"] = vault
        PORTS[f"/{self.name}/cache"] = self.port("cache", plan.cache)
        try:
            with powered(self.disk):
                return await work()
        except BaseException:
            if not self._dead:
                raise
        finally:
            if self._dead and plan.power_cut:
                self.cut_power()
            while OPENED:
                OPENED.pop().close()
            self.disk.full, self.disk.fails = False, partial(self._fails, 0.0)
            self._dead, self._crash_at, self._crash_on = False, None, ("", 0)
            self._vanish_on = self._way_on = ""
            self.spool.reckon()
        return None

    def _fails(self, share: float, path: str) -> bool:
        return share > 0 and path.startswith(str(self.spool.path)) and self.ills.random() < share

    def cut_power(self) -> None:
        """Let the machine, and a cache of its own, lose what is not durable."""
        self.disk.power_cut(self.chance)
        self.spool.after_cut()
        if self.stores["cache"].volatile:
            self.stores["cache"].power_cut(self.chance)

    def pause(self, pause: Pause | None) -> None:
        """Run `forebay upload --pause` or `--resume`."""
        state = self.disk.root / "state"
        if state.is_dir() and pause is not None:
            set_pause(state, pause)
        elif state.is_dir():
            end_pause(state)

    @property
    def paused(self) -> bool:
        """Whether nothing is to be uploaded now."""
        with powered(self.disk):
            config, now_ms = self.config().spool, self.clock.now_ms()
            window = adapters.compose.outside(config.upload_window_minutes, now_ms) if config is not None else None
            return window is not None or paused(self.disk.root / "state", now_ms) is not None

    def source(self, name: str) -> VolumeSource:
        """Return a volume as sessions take it."""
        return VolumeSource(name, lambda: MemoryVolume(name, bytearray(self.contents[name])), _Tracker(self, name))


class _Told:
    """Stands in for the terminal of a command, and keeps what the command gives there."""

    def __init__(self) -> None:
        self.document: Any = None

    def context(self, config: Config) -> Any:
        """Return this as the context of a command."""
        self.config, self.quiet, self.stopped = config, False, ""
        return self

    def emit(self, document: Any, text: str = "") -> None:
        self.document = document

    def progress(self, what: str) -> _Told:
        return self

    def __enter__(self) -> _Told:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    async def watch(self, snapshot: Callable[[], Any]) -> None:
        """Show nothing."""


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


def _never(op: str, name: str) -> bool:
    return False


def _nothing(name: str, data: bytes) -> None:
    pass
