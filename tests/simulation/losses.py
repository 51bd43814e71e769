"""What the world destroyed, and whether that explains what is missing of a point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from engine.block import BLOCK_BYTES, DELTA_FLAG, ref_of
from engine.fragment import open_fragment
from engine.names import FragmentName, PackName, PointId
from engine.note import open_note
from engine.pack import check_pack
from engine.packtable import pack_names
from engine.spool import Spool
from engine.subkeys import DomainKeys
from engine.vault.certificate import Certificates
from tests.simulation.machines import Machine
from tests.simulation.stores import Broken, Kind, SimStore, calm_port


@lru_cache(maxsize=4096)
def ids_in(name: str, data: bytes) -> dict[bytes, bool]:
    """Return the ids of the records of a whole pack, and whether each is whole."""
    pack = PackName.parse(name)
    assert pack is not None
    entries = check_pack(pack, data, None, None)
    deltas = (entries.lengths & DELTA_FLAG) != 0
    return {ident.tobytes(): not delta for ident, delta in zip(entries.ids, deltas.tolist(), strict=True)}


def require(holds: bool, what: str, told: str) -> None:
    """Raise `Broken` unless a promise holds."""
    if not holds:
        raise Broken(f"{what}: {told}")


@dataclass(frozen=True)
class Missing:
    """Blocks a restore of one volume did not give, from these stores.

    `since`: a block → how many events there had been when it was last certain that the vault has it; `own`: what the
    point's session put may have been lost at any time. `near`: the vault was not asked, and nobody said that the cache
    has everything.
    """

    machine: Machine
    root: str
    blocks: Sequence[int]
    content: bytes
    stores: Mapping[Kind, SimStore]
    since: Callable[[int], int]
    own: bool
    near: bool
    told: str


@dataclass
class Losses:
    """What stores lost.

    `lost_at`: what is gone from a store, or short → how many events there had been in the world when that was found;
    `ever`: what ever was.
    """

    stores: Mapping[Kind, SimStore]
    keys: DomainKeys
    now: Callable[[], int]
    lost_at: dict[tuple[Kind, str], int] = field(default_factory=dict)
    ever: set[tuple[Kind, str]] = field(default_factory=set)
    harmed: bool = False
    index_harmed: dict[tuple[Kind, str], int] = field(default_factory=dict)  # fragments, and when that was found
    _listed: dict[str, frozenset[str]] = field(default_factory=dict)

    def look(self, machines: Sequence[Machine]) -> None:
        """Take note of what stores lost."""
        for kind in ("vault", "cache"):
            store = self.stores["vault" if kind == "vault" else "cache"]
            damaged = store.damaged()
            for known in [known for known in self.lost_at if known[0] == kind and known[1] not in damaged]:
                del self.lost_at[known]  # it was put again
            for name in damaged:
                self.harmed = True
                if name.startswith("index/"):
                    self.index_harmed.setdefault((store.kind, name), self.now())
                # What rots keeps its size: only reading tells, until it vanishes.
                if len(store.objects.get(name, b"")) != len(store.written[name]):
                    self.lost_at.setdefault((store.kind, name), self.now())
        rotten = [pack for name in self.stores["vault"].garbage() if (pack := PackName.parse(name)) is not None]
        self.harmed |= any(pack.size == len(self.stores["vault"].objects[str(pack)]) for pack in rotten)
        for machine in machines:
            for name in machine.spool.ruined:
                self.harmed = True
                if name.startswith("index/"):
                    self.index_harmed.setdefault(("spool", name), self.now())
                self.lost_at.setdefault(("spool", name), self.now())
        self.ever.update(self.lost_at)

    def forget(self, root: str) -> None:
        """Forget what a point lists: its name is another one's now."""
        self._listed.pop(root, None)

    async def packs_of(self, machine: Machine, root: str) -> frozenset[str]:
        """Return the packs a point lists, whatever is left of it."""
        if root not in self._listed:
            ever = {**self.stores["cache"].written, **machine.spool.tried, **self.stores["vault"].written}
            ever[root] = machine.roots[root].data
            identity, point = machine.identity, PointId.parse_root(root)
            assert point is not None
            known = Certificates(identity.domain, identity.vault_public, [identity.certified()], [])
            packs = await Spool(calm_port(SimStore("spool", ever)), identity, known).packs_of(point[1])
            require(not packs.unread, "a point has pages nobody ever put", f"{root}: {packs.unread}")
            self._listed[root] = frozenset(map(str, packs.listed))
        return self._listed[root]

    def holes_of(self, machine: Machine, root: str, volume: str) -> set[int]:
        """Return the blocks of a volume that notes in the vault say a point lacks."""
        identity = machine.identity
        # Notes to the root it stands for are about this one, too.
        points = [
            PointId.parse_root(one) for one in (root, *(o for o, names in machine.stands.items() if root in names))
        ]
        known = Certificates(identity.domain, identity.vault_public, [identity.certified()], [])
        holes: set[int] = set()
        for name, data in self.stores["vault"].written.items():
            note = PointId.parse_note(name)
            if note is not None and note[:2] in points and note[2] == "incomplete":
                opened = open_note(name, data, identity.listing_key, known.verify_number)
                for first, count in opened.body.holes.get(volume, []):
                    holes.update(range(first, first + count))
        return holes

    async def explain(self, case: Missing) -> None:
        """Check that each missing block lay in something the world destroyed, and lies nowhere else. Raises: Broken."""
        made = case.machine.roots[case.root]
        listed = {kind: self._indexed(store) for kind, store in case.stores.items()}
        pages = {name for name in await self.packs_of(case.machine, case.root) if name.startswith("page/")}
        away = case.near and not all(
            any(store.objects.get(name) == self._ever(case.machine, name) for store in case.stores.values())
            for name in pages
        )
        for block in case.blocks:
            lost = self._lost(case, case.since(block))
            # A full session writes its pages anew, and does not look into indexes that were harmed before.
            harmed = self._index_lost(case, made.put) if made.full else self._pages_lost(case)
            if away or any(name.startswith("page/") for _, name in lost) or harmed:
                continue  # pages or indexes: what they named may be missing altogether
            require(case.near or bool(lost), f"block {block} is missing for no reason", case.told)
            content = case.content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]
            ident = ref_of(self.keys.blocks, content)[:16]
            deltas = False
            for kind, store in case.stores.items():
                for name, data in store.written.items():
                    if name.startswith("data/") and (whole := ids_in(name, data).get(ident)) is not None:
                        deltas = deltas or not whole
                        there = name in listed[kind] and store.objects.get(name) == data
                        require(not (whole and there), f"block {block} lies whole in the {kind}", case.told)
            # A delta is lost with any of its sources, whose ids only it knows.
            held = any(ident in ids_in(name, self._ever(case.machine, name)) for _, name in lost)
            require(case.near or deltas or held, f"nothing that held block {block} was lost", case.told)

    def _ever(self, machine: Machine, name: str) -> bytes:
        """Return an object as it was put, into whichever store."""
        places = (self.stores["vault"].written, self.stores["cache"].written, machine.spool.tried)
        return next(place[name] for place in places if name in place)

    def _indexed(self, store: SimStore) -> set[str]:
        """Return the packs that whole index fragments in a store name: what lies elsewhere is not looked for."""
        found = set[str]()
        for name, data in store.objects.items():
            fragment = FragmentName.parse(name)
            if fragment is not None and store.written.get(name) == data:
                found |= {str(pack) for pack in pack_names(open_fragment(fragment, data, self.keys, None).rows)}
        return found

    def _pages_lost(self, case: Missing) -> bool:
        # The cache gets copies of what the vault has.
        vault = any(name.startswith("page/") for name in self.stores["vault"].damaged())
        pages = vault or any(name.startswith("page/") for _, name in self._lost(case, 0))
        return pages or self._index_lost(case, 0)

    def _index_lost(self, case: Missing, since: int) -> bool:
        return any(kind in case.stores and at >= since for (kind, _), at in self.index_harmed.items())

    def _lost(self, case: Missing, since: int) -> list[tuple[Kind, str]]:
        """Return what was lost that a point may rely on: what vanished `since`, what rotted, what its session put."""
        found: list[tuple[Kind, str]] = []
        own = case.machine.roots[case.root].own if case.own else set()
        for kind, store in case.stores.items():
            for name in sorted(store.damaged()) if kind != "spool" else ():
                if not name.startswith(("data/", "page/")):
                    continue
                there = store.objects.get(name)
                rotten = there is not None and len(there) == len(store.written[name])
                if rotten or name in own or kind == "cache" or self.lost_at.get((kind, name), 0) >= since:
                    found.append((kind, name))
        # What was lost in the spool never got to the vault.
        ruined = [name for name in sorted(case.machine.spool.ruined) if name.startswith(("data/", "page/"))]
        found += [("spool", name) for name in ruined if self.lost_at.get(("spool", name), 0) >= since]
        return found
