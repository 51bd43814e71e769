"""A simulated world: machines that share a vault and a cache, and what happens to them, step by step, from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Final

from engine.exitcodes import DONE
from engine.names import FORMAT
from engine.pipeline.report import SessionReport
from engine.vault.formatobject import FormatObject
from tests.simulation import clockwork
from tests.simulation.backlog import check_moves, check_upload
from tests.simulation.contents import changed, some_volume
from tests.simulation.founding import NAMES, Founded
from tests.simulation.losses import Losses, require
from tests.simulation.machines import Machine
from tests.simulation.misfortunes import Misfortunes
from tests.simulation.model import Model
from tests.simulation.plans import Plan
from tests.simulation.spools import OWN
from tests.simulation.stores import Broken, Kind, SimStore, Weather, any_weather, away, server_weather
from tests.simulation.themes import THEMES, VANISHINGS, WAYS

CALM_MAX: Final = 4
OLDER_MAX: Final = 4
EVERYWHERE: Final[tuple[Kind, ...]] = ("vault", "cache", "spool")


class Forked(Exception):
    """Two points have one name: what becomes of them is not simulated."""


class World:
    """One simulation. `told`: what happened, a line a step; `trace`: a digest of every single event."""

    def __init__(self, seed: int, founded: Sequence[Founded], folder: Path, theme: str | None = None) -> None:
        clockwork.begin(seed)
        self.chance = chance = random.Random(f"world {seed}")
        self.folder, self.told = folder, [f"seed {seed}"]
        self._trace = blake2b()
        self._events = self._step = 0
        self.sessions = 0
        self.log: list[str] | None = None
        self._likely = THEMES[theme or chance.choice(tuple(THEMES))]
        start = founded[chance.random() < self._likely.offline]
        names = NAMES[: min(1 if self._likely.alone else chance.choice((1, 1, 2)), len(start.identities))]
        vault = SimStore("vault", dict(start.vault), dict(start.vault))
        near = SimStore("cache", dict(start.cache), dict(start.cache), volatile=len(names) == 1)
        other = SimStore("elsewhere", {FORMAT: FormatObject("vault", b"elsewhere".ljust(16)).encode()})
        self.stores: dict[Kind, SimStore] = {"vault": vault, "cache": near, "elsewhere": other}
        self.machines = [
            Machine(
                start.identities[name],
                folder / name,
                self.stores,
                chance,
                self._event,
                self._now,
                random.Random(f"ills {seed} {name}"),
            )
            for name in names
        ]
        losses = Losses(self.stores, start.identities[names[0]].keys, self._now)
        self.model = Model(self.stores, self.machines, start.access, losses, self._now)
        rots = random.Random(f"rots {seed}")
        self.bad = Misfortunes(chance, self.stores, folder, self._tell, self.model.look, rots)
        for machine in self.machines:
            machine.vanish = self.bad.vanish
            machine.contents = {"data": some_volume(chance)}
            if chance.random() < 0.4:
                machine.contents["logs"] = some_volume(chance)
            for name, data in start.spools[machine.name].items():
                path = machine.spool.path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            machine.disk.settle()
            machine.settings.spool = chance.random() < self._likely.spool
            self.bad.settings(machine)

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
            try:
                await self.step()
            except Forked:
                return
        await self.converge(steps + 1)

    async def step(self) -> None:
        """Do something to the world, run a session or an upload, look at what is there."""
        machine = self.chance.choice(self.machines)
        likely, bad = self._likely, self.bad
        doings: list[tuple[float, Callable[[Machine], None]]] = [
            (0.85, self._change),
            (0.15, bad.settings),
            (0.06, bad.skew),
            (likely.damage, bad.damage),
            (likely.state, bad.lose_state),
            (likely.state, bad.copy_state),
            (likely.state, bad.roll_back),
            (likely.death / 5, bad.power_cut),
        ]
        doings += [
            (0.04, bad.switch_spool),
            (0.1, bad.pause),
            (0.15 if machine.settings.elsewhere else likely.moves, bad.switch_vault),
            (0.3 if FORMAT not in self.stores["vault"].objects else likely.moves, bad.move_vault),
            (likely.damage / 2, bad.damage_spool),
            (likely.losses, bad.empty_vault),
            (likely.losses if machine.spool.there else 0.5, bad.lose_spool),
        ]
        for share, what in doings:
            if self.chance.random() < share:
                what(machine)
        bad.rot_ahead(machine, likely.damage)
        self.model.look()
        await self._act(machine)
        await check_moves(self.model, machine, Plan(disk_full=True))
        await self._restores(machine)

    async def _act(self, machine: Machine) -> None:
        """Run a session, or something else."""
        if not machine.spool.there and not (machine.home / "spool.aside").is_dir() and self.chance.random() < 0.5:
            await self._new_spool(machine)
        if machine.identity.vault_pending and self.chance.random() < 0.3:
            await self._init(machine, self._plan(machine))
        waiting = self.model.waiting(machine)
        if machine.settings.spool and self.chance.random() < (0.4 if waiting else 0.03):
            await self._upload(machine, self._plan(machine))
        elif waiting and machine.settings.spool and self.chance.random() < self._likely.deletion:
            await self._delete(machine, self._plan(machine), self.chance.choice(waiting))
        else:
            await self._session(machine, self._plan(machine))

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
        if chance.random() < likely.away:
            plan.vault = away()
        if chance.random() < likely.death:
            if chance.random() < 0.5:
                plan.crash_at = round(2 ** chance.uniform(0, 9))
            else:
                plan.crash_on = chance.choice(likely.deaths), chance.choice((0, 0, 1, 2, 3))
        if chance.random() < likely.vanishing:
            plan.vanish_on = chance.choice(VANISHINGS)
        if chance.random() < 0.05:
            plan.way_on = chance.choice(WAYS)
        if machine.ills.random() < likely.weather / 5:
            plan.vault = server_weather(machine.ills)
        if machine.ills.random() < likely.weather / 5:
            plan.ailing = machine.ills.choice((0.02, 0.2, 1.0))
        return plan

    async def _session(self, machine: Machine, plan: Plan) -> SessionReport | None:
        before, unsettled = self.model.points(machine), machine.unsettled
        full = " in full" if plan.full else ""
        near = "" if machine.settings.cache else ", no cache"
        self._tell(f"{machine.name} backs up {plan.volumes}{full}, {plan}{near}")
        self.sessions += 1
        report = await machine.session(plan)
        if machine.forked:
            raise Forked
        if unsettled and self.model.in_the_way(machine, plan):
            # Where nobody can ask whether a root got there, it counts as not put: if it did, state is another fork's.
            machine.touched |= set(machine.contents)
        elif report is not None and report.point is not None:
            machine.unsettled = False
        self.model.look()
        await check_moves(self.model, machine, plan)
        if report is None:
            self._tell("  died")
            return None
        uploaded = f", uploaded {[each.point for each in report.uploaded]}" if report.uploaded else ""
        end = f"point {report.point}, {report.route}, cache {report.cache}{uploaded}, waiting {report.backlog}"
        self._tell(f"  exit {report.exit_code}, {end}, {report.error}")
        await self.model.check_session(machine, plan, report, before)
        return report

    async def _upload(self, machine: Machine, plan: Plan) -> int | None:
        before = self.model.waiting(machine)
        self._tell(f"{machine.name} uploads {len(before)} points, {plan}")
        report = await machine.upload(plan)
        self.model.look()
        await check_moves(self.model, machine, plan)
        if report is None:
            self._tell("  died")
            return None
        done = f"uploaded {[each.point for each in report.uploaded]}, lost {report.lost}, left {report.left}"
        self._tell(f"  exit {report.exit_code}, {done}, {report.error}")
        check_upload(self.model, machine, plan, report, before)
        return report.exit_code

    async def _delete(self, machine: Machine, plan: Plan, root: str) -> None:
        self._tell(f"{machine.name} deletes {root}, {plan}")
        done = await machine.delete(plan, root)
        self.model.look()
        await check_moves(self.model, machine, plan)
        self._tell(f"  {done or 'died'}")
        kept = root in self.model.waiting(machine)
        # On a disk that fails it may be gone, and what it alone needed not yet: that is an error, too.
        told = done is None or kept != done.startswith("deleted") or (not kept and plan.ailing > 0)
        require(told, "a point was not deleted", f"{root}: {done}")
        machine.touched |= set(machine.contents)

    async def _init(self, machine: Machine, plan: Plan) -> None:
        self._tell(f"{machine.name} makes its vault, {plan}")
        self._tell(f"  {await machine.init(plan) or 'died'}")

    async def _new_spool(self, machine: Machine) -> None:
        await machine.new_spool()
        self._tell(f"{machine.name} has a new spool")

    async def _restores(self, machine: Machine) -> None:
        """Restore the machine's newest point, and now and then another one of anybody's."""
        if points := self.model.points(machine):
            await self._restore(machine, points[-1])
        if self.chance.random() < 0.3:
            machine = self.chance.choice(self.machines)
            if points := self.model.points(machine):
                await self._restore(machine, self.chance.choice(points))

    async def _restore(self, machine: Machine, root: str) -> None:
        waits = root in self.model.waiting(machine)
        in_vault = self.stores["vault"].objects.get(root) == machine.roots[root].data
        reached = FORMAT in self.stores["vault"].objects
        ways: list[tuple[Kind, ...]] = []
        if reached and (in_vault or waits):
            ways += [EVERYWHERE if waits else EVERYWHERE[:2], ("vault", "spool") if not in_vault else ("vault",)]
        if waits:
            ways.append(("cache", "spool"))
        if ways:
            await self.model.restore(machine, root, self.chance.choice((*ways, ways[-1])))
        if self.model.cache_has(root) and self.chance.random() < 0.7:
            await self.model.restore(machine, root, ("cache",))

    async def converge(self, step: int) -> None:
        """Let all be well: the backlog goes, a session does all that is left, the next nothing; all points restore."""
        self._step = step
        for machine in self.machines:
            self.bad.settle(machine)
            if not machine.spool.there:
                await self._new_spool(machine)
            machine.clock.skew_ms = max(machine.clock.skew_ms, 0)
            machine.settings.cache = True
            if machine.identity.vault_pending:
                await self._init(machine, Plan())
            machine.settings.spool |= bool(self.model.waiting(machine))
            await self._empty_spool(machine)
            report = await self._come_to_rest(machine)
            require(report.cache == "ok", "the cache is well and is not used", str(report))
            newest = self.model.points(machine)[-1]
            for kinds in (EVERYWHERE[:2], EVERYWHERE[:1], EVERYWHERE[1:2]):
                await self.model.restore(machine, newest, kinds)
        for machine in self.machines:
            points = self.model.points(machine)
            for root in self.chance.sample(points, min(len(points), OLDER_MAX)):
                await self.model.restore(machine, root, EVERYWHERE[:2])

    async def _empty_spool(self, machine: Machine) -> None:
        """Let what waits go to the vault: an upload must leave nothing, and another one changes nothing."""
        if machine.settings.spool and self.chance.random() < 0.7:
            await self._upload(machine, Plan())
            there = dict(self.stores["vault"].objects)
            again = await self._upload(machine, Plan())
            require(again == DONE, "an upload leaves points in the spool", f"{machine.name}: {again}")
            require(self.stores["vault"].objects == there, "a second upload changes the vault", machine.name)

    async def _come_to_rest(self, machine: Machine) -> SessionReport:
        """Run sessions until one has nothing to send; return its report."""
        for number in range(CALM_MAX):
            report = await self._session(machine, Plan(sorted(machine.contents)))
            assert report is not None, "a session died of nothing"
            if number and not any(row.vault_blocks or row.cache_blocks for row in report.volumes.values()):
                require(report.route == "VAULT", "a session goes to the spool though all is well", str(report))
                left = [name for name in machine.spool.names() if name.startswith(OWN) and machine.settings.spool]
                require(not left, f"something is left in the spool: {left}", machine.name)
                return report
        raise Broken(f"{machine.name}: sessions go on sending what did not change")

    def _change(self, machine: Machine) -> None:
        for name in sorted(machine.contents):
            now, before = machine.contents[name], machine.before.get(name, b"")
            machine.contents[name] = changed(now, before, self.chance)
            if self.chance.random() < 0.4:
                machine.before[name] = now
