"""What must be true whatever happened: which points are committed, what they hold, and what may be missing of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from engine.block import BLOCK_BYTES, DELTA_FLAG, ref_of
from engine.errors import ForebayError
from engine.exitcodes import DONE, FAILED, SOMETHING_MISSING
from engine.fragment import open_fragment
from engine.names import FragmentName, PackName, PointId
from engine.pack import check_pack
from engine.packtable import pack_names
from engine.pipeline.report import SessionReport
from engine.ports import ObjectStore
from engine.recovery.access import Access
from engine.recovery.restore import RestoreReport
from engine.subkeys import DomainKeys
from tests.scenario.recover import Recoverer
from tests.simulation.machines import Machine, Plan, RootMade
from tests.simulation.stores import Broken, Kind, SimStore, calm_port

SESSION_S_MAX = 4 * 3600.0


@lru_cache(maxsize=4096)
def ids_in(name: str, data: bytes) -> dict[bytes, bool]:
    """Return the ids of the records of a whole pack, and whether each is whole."""
    pack = PackName.parse(name)
    assert pack is not None
    entries = check_pack(pack, data, None, None)
    deltas = (entries.lengths & DELTA_FLAG) != 0
    return {ident.tobytes(): not delta for ident, delta in zip(entries.ids, deltas.tolist(), strict=True)}


@dataclass
class Model:
    """The points of all machines, and what the world did to the stores.

    `lost_at`: what was once found to be gone from a store, or short → how many events there had been in the world.
    """

    stores: Mapping[Kind, SimStore]
    machines: list[Machine]
    access: Access
    keys: DomainKeys
    now: Callable[[], int]
    lost_at: dict[tuple[Kind, str], int] = field(default_factory=dict)
    cache_whole: set[str] = field(default_factory=set)  # roots whose session said that the cache got everything
    committed: set[str] = field(default_factory=set)  # roots that were ever whole in the vault
    harmed: bool = False
    index_harmed: set[Kind] = field(default_factory=set)
    reported: set[str] = field(default_factory=set)  # roots that a session with exit code 0 or 4 told of
    restored: int = 0

    def points(self, machine: Machine) -> list[str]:
        """Return the names of the machine's committed roots, whole in the vault, oldest first."""
        vault = self.stores["vault"].objects
        return sorted(name for name, made in machine.roots.items() if vault.get(name) == made.data)

    def cache_has(self, root: str) -> bool:
        """Tell whether the cache should give a point by itself, but for what it lost since."""
        return root in self.cache_whole and root not in self.stores["cache"].damaged()

    def look(self) -> None:
        """Take note of points that came to be, and of what stores lost."""
        self.committed.update(*(self.points(machine) for machine in self.machines))
        for kind, store in self.stores.items():
            for name in store.damaged():
                self.harmed = True
                if name.startswith("index/"):
                    self.index_harmed.add(kind)
                # What rots keeps its size: only reading tells, until it vanishes.
                if len(store.objects.get(name, b"")) != len(store.written[name]):
                    self.lost_at.setdefault((kind, name), self.now())

    def check_session(self, machine: Machine, plan: Plan, report: SessionReport, before: list[str]) -> None:
        """Compare what a session tells with what it was up against and with what lies in the vault."""
        told = f"{machine.name}: {report}"
        if not report.session:
            require(not plan.calm, "a session could not begin though nothing was in its way", told)
            return
        routes = [change.route for change in report.route_history]
        require(routes[-1] == report.route, "the last route is not the route", told)
        for first, then in pairwise(routes):
            require((first, then) != ("FALLBACK", "VAULT"), "a session returned from FALLBACK", told)
        require(report.seconds < SESSION_S_MAX, "a session took for ever", told)
        if report.exit_code == FAILED:
            require(report.error is not None, "a session failed without a word", told)
        if plan.calm:
            require(report.exit_code == DONE, "a session failed though nothing was in its way", told)
        if report.exit_code in (DONE, SOMETHING_MISSING):
            require(report.point is not None and report.error is None, "exit code 0 without a point", told)
        if plan.calm and machine.touched.isdisjoint(plan.volumes) and self._unharmed(machine):
            new = [name for name in plan.volumes if not any(name in machine.roots[root].contents for root in before)]
            problems = [one for one in report.problems if not any(f"volume {name!r}: there was" in one for name in new)]
            require(not problems, "a session complains though nothing was ever damaged", told)
        if report.point is None:
            return
        machine.touched -= set(plan.volumes)
        root = f"root/{machine.system}/{report.point}"
        points = self.points(machine)
        require(root in points, "the session tells of a point that is not in the vault", told)
        require(not before or root > max(before), "a new point is not the newest", told)
        if report.exit_code in (DONE, SOMETHING_MISSING):
            self.reported.add(root)
        # Older pages are copied from the vault: while that is not well the cache may wait for them.
        if report.exit_code == DONE and report.cache == "ok" and plan.vault.calm:
            self.cache_whole.add(root)

    def _unharmed(self, machine: Machine) -> bool:
        """Tell whether nothing but failures and deaths ever happened to what a machine relies on."""
        late = any(name.startswith(f"root/{machine.system}") for name in self.stores["vault"].late)
        return not (late or self.harmed or any(store.garbage() for store in self.stores.values()))

    async def restore(self, machine: Machine, root: str, kinds: Iterable[Kind]) -> None:
        """Restore every volume of a point from these stores and compare; what is missing must have a reason."""
        kinds = list(kinds)
        ports: dict[Kind, ObjectStore] = {kind: calm_port(self.stores[kind]) for kind in kinds}
        recoverer = Recoverer(ports.get("vault"), ports.get("cache"), machine.name, access=self.access)
        point = PointId.parse_root(root)
        assert point is not None
        for volume, content in sorted(machine.roots[root].contents.items()):
            told = f"{machine.name}: {volume} of {point[1]} from {' and '.join(kinds)}"
            try:
                done = await recoverer.restore(str(point[1]), volume)
            except ForebayError as error:
                raise Broken(f"a restore of a committed point failed: {told}: {error!r}") from error
            self.restored += 1
            missing = self.compare(content, done.content, done.report, told)
            if missing:
                checked = self._checked(machine, root, volume)
                self._explain(root, machine.roots[root], missing, checked, content, kinds, f"{told}: {done.report}")

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

    def _explain(
        self,
        root: str,
        made: RootMade,
        missing: list[int],
        checked: set[int],
        content: bytes,
        kinds: list[Kind],
        told: str,
    ) -> None:
        """Check that each missing block lay in something the world destroyed, and lies nowhere else."""
        listed = {kind: self._listed(kind) for kind in kinds}
        # Packs of others and of older sessions are looked at once more after the root; a session that died may not
        # have come to that.
        last = made.put + 1 if root in self.reported else made.began
        for block in missing:
            since = last if block in checked else 0
            lost = self._lost(kinds, since, made)
            if any(name.startswith("page/") for _, name in lost) or (not made.full and self._pages_lost(kinds)):
                continue  # pages or indexes: what they named may be missing altogether
            require(bool(lost), f"block {block} is missing for no reason", told)
            ident = ref_of(self.keys.blocks, content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])[:16]
            deltas = False
            for kind in kinds:
                for name, data in self.stores[kind].written.items():
                    if name.startswith("data/") and (whole := ids_in(name, data).get(ident)) is not None:
                        deltas = deltas or not whole
                        there = name in listed[kind] and self.stores[kind].objects.get(name) == data
                        require(not (whole and there), f"block {block} lies whole in the {kind}", told)
            # A delta is lost with any of its sources, whose ids only it knows.
            held = any(ident in ids_in(name, self.stores[kind].written[name]) for kind, name in lost)
            require(deltas or held, f"nothing that held block {block} was lost", told)

    def _listed(self, kind: Kind) -> set[str]:
        """Return the packs that whole index fragments in a store name: what lies elsewhere is not looked for."""
        store, found = self.stores[kind], set[str]()
        for name, data in store.objects.items():
            fragment = FragmentName.parse(name)
            if fragment is not None and store.written.get(name) == data:
                found |= {str(pack) for pack in pack_names(open_fragment(fragment, data, self.keys, None).rows)}
        return found

    def _pages_lost(self, kinds: list[Kind]) -> bool:
        # The cache gets copies of what the vault has.
        pages = any(name.startswith("page/") for _, name in self._lost(["vault", *kinds], 0))
        return pages or not self.index_harmed.isdisjoint(kinds)

    def _lost(self, kinds: list[Kind], since: int, made: RootMade | None = None) -> list[tuple[Kind, str]]:
        """Return what was lost that a point may rely on: what vanished `since`, what rotted, what its session put."""
        found: list[tuple[Kind, str]] = []
        for kind in kinds:
            store = self.stores[kind]
            for name in sorted(store.damaged()):
                if not name.startswith(("data/", "page/")):
                    continue
                there = store.objects.get(name)
                rotten = there is not None and len(there) == len(store.written[name])
                own = made is not None and name in made.own
                if rotten or own or kind == "cache" or self.lost_at.get((kind, name), 0) >= since:
                    found.append((kind, name))
        return found


def require(holds: bool, what: str, told: str) -> None:
    """Raise `Broken` unless a promise holds."""
    if not holds:
        raise Broken(f"{what}: {told}")
