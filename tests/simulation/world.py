"""A simulated world: machines that share a vault and a cache, and what happens to them, step by step, from one seed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from engine.pipeline.report import SessionReport
from tests.simulation import clockwork
from tests.simulation.machines import NAMES, Founded, Machine, Plan, changed, some_volume
from tests.simulation.model import Model, require
from tests.simulation.stores import Broken, Kind, SimStore, Weather, any_weather

# Where much happens in few events: in a random choice of events it would hardly ever be met.
DEATHS: Final = (
    *["vault put root"] * 3,
    *["replace journal"] * 2,
    "put index",
    "put data",
    "put page",
    *["cache flush"] * 3,
    "cache put",
    "unlink journal",
    "replace head",
    "replace newest",
    "unlink sessions",
    "unlink staged.seal",
    "ftruncate",
    "create",
)
VANISHINGS: Final = (*["vault put root"] * 4, "put index", "put page", "put data", "cache put root")


@dataclass(frozen=True)
class Likely:
    """How likely it is in a step that a store is not well, the machine dies, objects are damaged and so on.

    `power_cut`: of the deaths, those that lose what was not durable; `alone`: there is one machine, and its cache.
    """

    weather: float = 0.4
    death: float = 0.4
    damage: float = 0.0
    vanishing: float = 0.0
    state: float = 0.0
    power_cut: float = 0.7
    deaths: tuple[str, ...] = DEATHS
    alone: bool = False


THEMES: Final = {
    "everything": Likely(damage=0.15, vanishing=0.08, state=0.06),
    "failures": Likely(weather=0.8, death=0.2),
    "deaths": Likely(weather=0.15, death=0.7),
    "cuts": Likely(weather=0.0, death=0.6, power_cut=1.0, deaths=("cache put data", "cache flush"), alone=True),
    "losses": Likely(weather=0.1, death=0.1, damage=0.3, vanishing=0.4),
    "confusion": Likely(weather=0.3, death=0.3, damage=0.05, state=0.25),
}
DAY_MS: Final = 86_400_000
CALM_MAX: Final = 4
OLDER_MAX: Final = 4


class World:
    """One simulation. `told`: what happened, a line a step; `trace`: a digest of every single event."""

    def __init__(self, seed: int, founded: Founded, folder: Path, theme: str | None = None) -> None:
        clockwork.begin(seed)
        self.chance = chance = random.Random(f"world {seed}")
        self.folder, self.told = folder, [f"seed {seed}"]
        self._trace = blake2b()
        self._events = self._step = 0
        self.sessions = 0
        self.log: list[str] | None = None
        self._likely = THEMES[theme or chance.choice(tuple(THEMES))]
        names = NAMES[: 1 if self._likely.alone else chance.choice((1, 1, 2))]
        vault = SimStore("vault", dict(founded.vault), dict(founded.vault))
        near = SimStore("cache", dict(founded.cache), dict(founded.cache), volatile=len(names) == 1)
        self.stores: dict[Kind, SimStore] = {"vault": vault, "cache": near}
        self.machines = [
            Machine(founded.identities[name], folder / name, self.stores, chance, self._event, self._now)
            for name in names
        ]
        keys = founded.identities[names[0]].keys
        self.model = Model(self.stores, self.machines, founded.access, keys, self._now)
        # Where pages are never lost, every block that is missing must have a reason of its own.
        self._fragile = chance.choice((("data/",), ("data/", "page/", "index/", "root/")))
        self._copies: dict[str, Path] = {}
        for machine in self.machines:
            machine.vanish = self._vanish
            machine.contents = {"data": some_volume(chance)}
            if chance.random() < 0.4:
                machine.contents["logs"] = some_volume(chance)
            self._settings(machine)

    def _now(self) -> int:
        return self._events

    def _event(self, what: str) -> None:
        self._events += 1
        self._trace.update(what.encode())
        if self.log is not None:
            self.log.append(what)

    @property
    def trace(self) -> str:
        """A digest of everything that happened so far."""
        return self._trace.hexdigest()[:32]

    def _tell(self, what: str) -> None:
        what = what.replace(str(self.folder), "")  # which is another one every time
        self.told.append(f"{self._step}: {what}")
        self._event(what)

    async def run(self, steps: int) -> None:
        """Run `steps` random steps, then let all faults stop, and check that everything comes right."""
        for number in range(1, steps + 1):
            self._step = number
            await self.step()
        await self.converge(steps + 1)

    async def step(self) -> None:
        """Do something to the world, run a session, look at what is there."""
        machine = self.chance.choice(self.machines)
        likely = self._likely
        doings: list[tuple[float, Callable[[Machine], None]]] = [
            (0.85, self._change),
            (0.15, self._settings),
            (0.06, self._skew),
            (likely.damage, self._damage),
            (likely.state, self._lose_state),
            (likely.state, self._copy_state),
            (likely.state, self._roll_back),
            (likely.death / 5, self._power_cut),
        ]
        for share, what in doings:
            if self.chance.random() < share:
                what(machine)
        self.model.look()
        await self._session(machine, self._plan(machine))
        self.model.look()
        await self._restores(machine)

    def _plan(self, machine: Machine) -> Plan:
        chance, likely = self.chance, self._likely
        names = sorted(machine.contents)
        plan = Plan(
            names if chance.random() < 0.8 else [chance.choice(names)],
            any_weather(chance) if chance.random() < likely.weather else Weather(),
            any_weather(chance) if chance.random() < likely.weather * 0.6 else Weather(),
            full=chance.random() < 0.05,
            power_cut=chance.random() < likely.power_cut,
            disk_full=chance.random() < likely.state / 2,
        )
        if chance.random() < likely.death:
            if chance.random() < 0.5:
                plan.crash_at = round(2 ** chance.uniform(0, 9))
            else:
                plan.crash_on = chance.choice(likely.deaths), chance.choice((0, 0, 1, 2, 3))
        if chance.random() < likely.vanishing:
            plan.vanish_on = chance.choice(VANISHINGS)
        return plan

    async def _session(self, machine: Machine, plan: Plan) -> SessionReport | None:
        before = self.model.points(machine)
        line = f"{machine.name} backs up {plan.volumes}{' in full' if plan.full else ''}, vault {plan.vault.name}"
        line += f", cache {plan.cache.name if machine.settings.cache else 'off'}"
        line += f"{', disk full' if plan.disk_full else ''}"
        if plan.crash_at or plan.crash_on[0]:
            line += f", {'power cut' if plan.power_cut else 'killed'} at {plan.crash_at or plan.crash_on}"
        line += f", packs vanish on {plan.vanish_on}" if plan.vanish_on else ""
        self._tell(line)
        self.sessions += 1
        report = await machine.session(plan)
        if report is None:
            self._tell("  died")
            return None
        self._tell(f"  exit {report.exit_code}, point {report.point}, cache {report.cache}, {report.error}")
        self.model.check_session(machine, plan, report, before)
        return report

    async def _restores(self, machine: Machine) -> None:
        """Restore the machine's newest point, and now and then another one of anybody's."""
        if points := self.model.points(machine):
            await self._restore(machine, points[-1])
        if self.chance.random() < 0.3:
            machine = self.chance.choice(self.machines)
            if points := self.model.points(machine):
                await self._restore(machine, self.chance.choice(points))

    async def _restore(self, machine: Machine, root: str) -> None:
        both: list[Kind] = ["vault", "cache"]
        await self.model.restore(machine, root, self.chance.choice((both, both[:1], both[:1])))
        if self.model.cache_has(root) and self.chance.random() < 0.7:
            await self.model.restore(machine, root, both[1:])

    async def converge(self, step: int) -> None:
        """Let all be well: a session must do all that is left to do, the one after it nothing; all points restore."""
        self._step = step
        everywhere: list[list[Kind]] = [["vault", "cache"], ["vault"], ["cache"]]
        for machine in self.machines:
            machine.clock.skew_ms = max(machine.clock.skew_ms, 0)
            machine.settings.cache = True
            report = await self._come_to_rest(machine)
            self.model.look()
            require(report.cache == "ok", "the cache is well and is not used", str(report))
            newest = self.model.points(machine)[-1]
            for kinds in everywhere:
                await self.model.restore(machine, newest, kinds)
        for machine in self.machines:
            points = self.model.points(machine)
            for root in self.chance.sample(points, min(len(points), OLDER_MAX)):
                await self.model.restore(machine, root, everywhere[0])

    async def _come_to_rest(self, machine: Machine) -> SessionReport:
        """Run sessions until one has nothing to send; return its report."""
        for number in range(CALM_MAX):
            report = await self._session(machine, Plan(sorted(machine.contents), Weather(), Weather()))
            assert report is not None, "a session died of nothing"
            if number and not any(row.vault_blocks or row.cache_blocks for row in report.volumes.values()):
                return report
        raise Broken(f"{machine.name}: sessions go on sending what did not change")

    def _change(self, machine: Machine) -> None:
        for name in sorted(machine.contents):
            now, before = machine.contents[name], machine.before.get(name, b"")
            machine.contents[name] = changed(now, before, self.chance)
            if self.chance.random() < 0.4:
                machine.before[name] = now

    def _settings(self, machine: Machine) -> None:
        chance, has = self.chance, machine.settings
        has.delta = chance.random() < 0.8
        has.compression = chance.choice(("lz4", "zstd", "none"))
        has.share = chance.choice(("vault", "vault", "own"))
        has.window_s = chance.choice((0, 60, 1800))
        has.cache = chance.random() < 0.85
        has.on_error = chance.choice(("warn", "warn", "error", "fail"))
        has.on_slow = chance.choice(("wait", "wait", "skip"))
        has.retries_max = chance.choice((0, 1, 5))
        has.hints = chance.random() < 0.3
        self._tell(f"{machine.name}: {has}")

    def _skew(self, machine: Machine) -> None:
        machine.clock.skew_ms = self.chance.choice((-DAY_MS, 0, 0, DAY_MS))
        self._tell(f"{machine.name}: the clock is wrong by {machine.clock.skew_ms} ms")

    def _damage(self, machine: Machine) -> None:
        """Let objects rot, lose their end, or vanish."""
        kind = self.chance.choice(("vault", "vault", "cache"))
        store = self.stores["vault" if kind == "vault" else "cache"]
        whole = [name for name in sorted(store.written) if name.startswith(self._fragile)]
        whole = [name for name in whole if store.objects.get(name) == store.written[name]]
        for name in self.chance.sample(whole, min(len(whole), self.chance.choice((1, 2, 5)))):
            data = store.objects.pop(name)
            how = self.chance.choice(("vanished", "rotted", "is short", "is short"))
            if how == "rotted":
                at = self.chance.randrange(len(data))
                store.objects[name] = data[:at] + bytes([data[at] ^ 1 << self.chance.randrange(8)]) + data[at + 1 :]
            elif how == "is short":
                store.objects[name] = data[: self.chance.choice((0, self.chance.randrange(len(data))))]
            store.unsynced.discard(name)
            self._tell(f"{kind}: {name} {how}")

    def _lose_state(self, machine: Machine) -> None:
        """Lose a part of local state, or all of it."""
        part = self.chance.choice(("volumes", "index", "newest", "journal", "sessions", "incarnation", ""))
        path = machine.disk.root / "state" / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        machine.disk.settle()
        machine.touched = set(machine.contents)
        self._tell(f"{machine.name}: lost {part or 'all'} of its state")

    def _power_cut(self, machine: Machine) -> None:
        self._tell(f"{machine.name}: its power is cut while it does nothing")
        machine.cut_power()

    def _vanish(self) -> None:
        """Let packs vanish from the vault, now, whatever is going on."""
        vault = self.stores["vault"]
        packs = [name for name in sorted(vault.objects) if name.startswith(self._fragile)]
        packs = [name for name in packs if name.startswith(("data/", "page/"))]
        for name in self.chance.sample(packs, min(len(packs), self.chance.choice((1, 3, len(packs))))):
            del vault.objects[name]
            self._tell(f"vault: {name} vanished in the middle of a session")
        self.model.look()

    def _copy_state(self, machine: Machine) -> None:
        copy = self.folder / f"{machine.name}.copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(machine.disk.root, copy)
        self._copies[machine.name] = copy
        self._tell(f"{machine.name}: its state is copied")

    def _roll_back(self, machine: Machine) -> None:
        if (copy := self._copies.get(machine.name)) is None:
            return
        shutil.rmtree(machine.disk.root)
        shutil.copytree(copy, machine.disk.root)
        machine.disk.settle()
        machine.touched = set(machine.contents)
        self._tell(f"{machine.name}: its state is rolled back to the copy")
