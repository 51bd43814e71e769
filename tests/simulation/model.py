"""What must be true whatever happened: which points are committed, what they hold, and what sessions may say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

from engine.block import BLOCK_BYTES
from engine.errors import ForebayError
from engine.exitcodes import DONE, FAILED, IN_SPOOL, SOMETHING_MISSING
from engine.names import PointId
from engine.pipeline.report import SessionReport
from engine.ports import ObjectStore
from engine.recovery.access import Access, SystemAccess
from engine.recovery.places import Place, Places, Problems
from engine.recovery.restore import RestoreReport
from engine.vault.formatobject import StoreKind, read_format
from tests.scenario.recover import Recoverer
from tests.simulation.losses import Losses, Missing, require
from tests.simulation.machines import Machine
from tests.simulation.plans import Plan
from tests.simulation.stores import Broken, Kind, SimStore, calm_port

SESSION_S_MAX = 4 * 3600.0


@dataclass
class _Recoverer(Recoverer):
    """A recovery from a spool, too."""

    spool: ObjectStore | None = None

    def places(self) -> tuple[Places, Problems]:
        problems = Problems()
        stores = (("cache", self.cache), ("spool", self.spool), ("vault", self.vault))
        return Places([Place(name, name, store) for name, store in stores if store is not None], problems), problems

    async def open(self, places: Places, *, fresh_keys: bool = False) -> SystemAccess:
        await places.open(_check)
        assert self.access is not None
        return self.access.named(self.system)


async def _check(place: Place) -> None:
    await read_format(place.objects, cast("StoreKind", place.name))


@dataclass
class Model:
    """The points of all machines, and what was said of them."""

    stores: Mapping[Kind, SimStore]
    machines: list[Machine]
    access: Access
    losses: Losses
    now: Callable[[], int]
    cache_whole: set[str] = field(default_factory=set)  # roots whose session said that the cache got everything
    committed: set[str] = field(default_factory=set)  # roots that were ever whole in the vault or a spool
    uploaded: dict[str, int] = field(default_factory=dict)  # roots of the spool → events when their upload began
    reported: set[str] = field(default_factory=set)  # roots that a session with exit code 0 or 4 told of
    restored: int = 0

    def points(self, machine: Machine) -> list[str]:
        """Return the names of the machine's committed roots, whole in the vault or the spool, oldest first."""
        vault = self.stores["vault"].objects
        there = {name for name, made in machine.roots.items() if vault.get(name) == made.data}
        return sorted(there.union(self.waiting(machine)))

    def waiting(self, machine: Machine) -> list[str]:
        """Return the names of the roots that wait, whole, in the machine's spool, oldest first."""
        if not machine.spool.there:
            return []
        known = machine.roots
        return [name for name in machine.waiting() if name in known and machine.spool.get(name) == known[name].data]

    def cache_has(self, root: str) -> bool:
        """Tell whether the cache should give a point by itself, but for what it lost since."""
        return root in self.cache_whole and root not in self.stores["cache"].damaged()

    def look(self) -> None:
        """Take note of points that came to be, and of what stores lost."""
        for machine in self.machines:
            for roots in (self.committed, self.cache_whole, self.reported):
                roots -= machine.reused
            for root in machine.reused:
                self.uploaded.pop(root, None)
                self.losses.forget(root)
            machine.reused.clear()
        self.committed.update(*(self.points(machine) for machine in self.machines))
        self.losses.look(self.machines)

    def in_the_way(self, machine: Machine, plan: Plan) -> bool:
        """Tell whether anything keeps the vault, the cache or the machine from doing all that is asked of them."""
        there = "format" in self.stores["vault"].objects and not machine.settings.elsewhere
        return not (plan.calm and there and not machine.identity.vault_pending)

    def spool_fails(self, machine: Machine) -> bool:
        """Tell whether there is to be a spool, and is none."""
        return machine.settings.spool and not (machine.spool.there and machine.spool.get("format"))

    async def check_session(self, machine: Machine, plan: Plan, report: SessionReport, before: list[str]) -> None:
        """Compare what a session tells with what it was up against and with what lies in vault and spool."""
        told = f"{machine.name}: {report}"
        calm = not self.in_the_way(machine, plan)
        if not report.session:
            require(not calm, "a session could not begin though nothing was in its way", told)
            return
        self._check_route(machine, plan, report, told)
        self._check_exit_code(machine, plan, calm, report, told)
        if calm and machine.touched.isdisjoint(plan.volumes) and self._unharmed(machine):
            new = [name for name in plan.volumes if not any(name in machine.roots[root].contents for root in before)]
            expected = [f"volume {name!r}: there was" for name in new] + ["the spool"]
            problems = [one for one in report.problems if not any(words in one for words in expected)]
            require(not problems, "a session complains though nothing was ever damaged", told)
        if report.point is None:
            return
        machine.touched -= set(plan.volumes)
        root = f"root/{machine.system}/{report.point}"
        made = machine.roots[root]
        require(root in self.points(machine), "the session tells of a point that lies nowhere", told)
        # What it made must come after all it was shown, and all it should remember.
        known = {one for one in machine.seen if one in self.committed} | (set() if machine.forgetful else {*before})
        known -= {root, *machine.to_delete}
        require(not known or root > max(known), "a new point is not the newest", told)
        # What waits in a spool that is not used now it has not been told of.
        machine.forgetful &= not (calm and (machine.settings.spool or not machine.waiting()))
        routes = [change.route for change in report.route_history]
        # A vault may be lost after the point has got there, where the cache copies older pages from it.
        led = ("FALLBACK" in routes) if made.spooled else routes[0] == "VAULT"
        require(led, "a point went where the route does not lead", told)
        whole = self.stores["vault"].written.get(root) == made.data
        require(report.exit_code != DONE or whole, "exit code 0, and the point is not in the vault", told)
        if report.exit_code == IN_SPOOL:
            # Where a root could be unlinked and its folder not be synced, it may be back after a power cut.
            require(root in self.waiting(machine) or plan.ailing > 0, "exit code 3 without a spooled point", told)
        if made.spooled:
            await self._check_reliance(machine, root, told)
        if report.exit_code in (DONE, SOMETHING_MISSING):
            self.reported.add(root)
        await self._check_cache(machine, plan, report, root)

    def _check_route(self, machine: Machine, plan: Plan, report: SessionReport, told: str) -> None:
        routes = [change.route for change in report.route_history]
        require(routes[-1] == report.route, "the last route is not the route", told)
        for first, then in pairwise(routes):
            require(first != "FALLBACK" or then == "ABORTED", "a session returned from FALLBACK", told)
        require(machine.settings.spool or "FALLBACK" not in routes, "a session fell back to no spool", told)
        require(report.seconds < SESSION_S_MAX, "a session took for ever", told)

    def _check_exit_code(self, machine: Machine, plan: Plan, calm: bool, report: SessionReport, told: str) -> None:
        code = report.exit_code
        if code == FAILED:
            require(bool(report.error or report.problems), "a session failed without a word", told)
        incomplete = any(each.holes for each in report.uploaded) or any("is lost, nobody" in p for p in report.problems)
        may_fail = incomplete or machine.settings.room_bytes is not None or machine.settings.max_bytes is not None
        if calm and self.spool_fails(machine):
            require(code == SOMETHING_MISSING, "a session does not tell that there is no spool", told)
        elif calm and machine.paused:
            require(may_fail or code in (DONE, IN_SPOOL), "a session failed though nothing was in its way", told)
        elif calm:
            require(may_fail or code == DONE, "a session failed though nothing was in its way", told)
        if code in (DONE, IN_SPOOL, SOMETHING_MISSING):
            require(report.point is not None and report.error is None, "exit code 0 without a point", told)
        if machine.settings.spool and machine.spool.there and not (machine.disk.full or plan.ailing):
            waiting = len(machine.waiting())
            require(report.backlog in (waiting, 0), "a session counts its backlog wrongly", f"{waiting}, {told}")

    async def _check_reliance(self, machine: Machine, root: str, told: str) -> None:
        """Check that a point in the spool relies on what earlier points list, on the spool, and its own session."""
        made = machine.roots[root]
        allowed = made.kept | (made.sent if made.resumed else set())
        # One whose deletion was cut off before it began stays a point.
        stays = {*self.stores["vault"].written, *machine.waiting()}
        for older in self.committed & machine.roots.keys():
            if older < root and (older not in machine.to_delete or older in stays):
                allowed |= await self.losses.packs_of(machine, older)
        beyond = await self.losses.packs_of(machine, root) - allowed
        require(not beyond, f"a point in the spool relies on what no point lists: {sorted(beyond)}", told)

    async def _check_cache(self, machine: Machine, plan: Plan, report: SessionReport, root: str) -> None:
        if report.exit_code not in (DONE, IN_SPOOL) or report.cache != "ok":
            return
        # Older pages are copied from the vault: while that is not well the cache may wait for them.
        if machine.roots[root].spooled:
            near = self.stores["cache"].objects.keys() - self.stores["cache"].garbage()
            pages = [name for name in await self.losses.packs_of(machine, root) if name.startswith("page/")]
            if all(name in near for name in pages):
                self.cache_whole.add(root)
        elif plan.vault.calm:
            self.cache_whole.add(root)

    def _unharmed(self, machine: Machine) -> bool:
        """Tell whether nothing but failures and deaths ever happened to what a machine relies on."""
        late = any(name.startswith(f"root/{machine.system}") for name in self.stores["vault"].late)
        garbage = any(self.stores[kind].garbage() for kind in ("vault", "cache"))
        return not (late or self.losses.harmed or garbage)

    async def restore(self, machine: Machine, root: str, kinds: Iterable[Kind]) -> None:
        """Restore every volume of a point from these stores and compare; what is missing must have a reason."""
        stores = {kind: machine.spool.store() if kind == "spool" else self.stores[kind] for kind in kinds}
        ports: dict[Kind, ObjectStore] = {kind: calm_port(store) for kind, store in stores.items()}
        recoverer = _Recoverer(
            ports.get("vault"), ports.get("cache"), machine.name, access=self.access, spool=ports.get("spool")
        )
        point, made = PointId.parse_root(root), machine.roots[root]
        assert point is not None
        for volume, content in sorted(made.contents.items()):
            told = f"{machine.name}: {volume} of {point[1]} from {' and '.join(stores)}"
            try:
                done = await recoverer.restore(str(point[1]), volume)
            except ForebayError as error:
                raise Broken(f"a restore of a committed point failed: {told}: {error!r}") from error
            self.restored += 1
            missing = self.compare(content, done.content, done.report, told)
            if missing:
                near = "vault" not in stores and not self.cache_has(root)
                since, told = self._since(machine, root, volume), f"{told}: {done.report}"
                own = root not in self.uploaded
                case = Missing(machine, root, missing, content, stores, since, own, near, told)
                await self.losses.explain(case)

    def compare(self, content: bytes, got: bytes, report: RestoreReport, told: str) -> list[int]:
        """Check that a restore gave the exact bytes but for the holes it tells of; return the blocks missing."""
        holes = [block for first, count in report.holes for block in range(first, first + count)]
        require(report.exit_code == (FAILED if holes else DONE), "the exit code hides holes", f"{told}: {report}")
        expected = bytearray(content)
        for block in holes:
            start, stop = block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, len(content))
            expected[start:stop] = bytes(stop - start)
        require(got == expected, "a restore gave other bytes than were backed up", f"{told}: {report}")
        return holes

    def _since(self, machine: Machine, root: str, volume: str) -> Callable[[int], int]:
        """Return from when on each block of a volume can only be missing if the vault lost it later."""
        made = machine.roots[root]
        if root in self.uploaded:
            # All its packs were looked at before its root was put; what was gone then is said in a note.
            holes = self.losses.holes_of(machine, root, volume)
            return lambda block: 0 if block in holes else self.uploaded[root]
        if made.spooled:
            return lambda block: 0  # nobody could ask the vault
        # Packs of others and of older sessions are looked at once more after the root; a session that died may not
        # have come to that.
        last = made.put + 1 if root in self.reported else made.began
        checked = self._checked(machine, root, volume)
        return lambda block: last if block in checked else 0

    def _checked(self, machine: Machine, root: str, volume: str) -> set[int]:
        """Return the blocks of which a session checked, before it put its root, that their packs are there.

        Those are the blocks it staged: what changed since the point before, or everything in a full session. What did
        not change stays where it is; nobody asks about it (DESIGN.md §5, Relying on others).
        """
        made = machine.roots[root]
        content = made.contents[volume]
        older = sorted(one for one in self.committed & machine.roots.keys() if one < root)
        before = [one for one in older if volume in machine.roots[one].contents]
        known = b"" if made.full or not before else machine.roots[before[-1]].contents[volume]
        blocks = range(-(-len(content) // BLOCK_BYTES))
        return {
            block
            for block in blocks
            if content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            != known[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
        }
