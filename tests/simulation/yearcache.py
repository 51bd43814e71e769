"""A simulated cache on a disk that others fill too, and what is true of it: who put what, who saw it, where it lies.

Nothing here reads a stamp or an index: packs are known by what was put, sightings by who told of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Set
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from engine.errors import StoreRejected
from engine.fragment import open_fragment
from engine.names import FragmentName, PackName, RemovalName, StampName
from engine.pack import PACK_TAIL_BYTES, footer_start, read_footer
from engine.removal import open_removals
from tests.simulation.stores import Broken, SimStore

DAY_MS: Final = 86_400_000
PINNED_DAYS: Final = 180
UNLISTED_DAYS: Final = 60  # for systems that trim twice a month: fifteen days between two looks, clocks that lag
PROTECTED_DAYS: Final = 14  # as DESIGN.md §3.4 says, not as the code does


@dataclass(eq=False)
class PackFact:
    """A pack that was put. `listed` by a fragment, `announced` as removed; `good_since`: the event it became so.

    `kept_ms`: when something in it was last found pinned while nobody listed it.
    """

    name: str
    key: int
    writer: bytes
    ids: tuple[bytes, ...]
    lengths: tuple[int, ...]
    put_ms: int
    rewritten: bool
    there: bool = True
    whole: bool = True
    rotten: bool = False
    listed: bool = False
    announced: bool = False
    good_since: int = 0
    kept_ms: int = 0

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return int(self.name.rpartition("-")[2])

    @property
    def good(self) -> bool:
        """Whether whoever only lists, relies on it."""
        return self.there and self.whole and self.listed and not self.announced


class Sighting(NamedTuple):
    """A system saw or pinned a block: when, and in which place among all of that and all looks at stamps and pins."""

    ms: int
    order: int


@dataclass
class Facts:
    """What is true of one cache. `now_ms`: true time; `events` counts what changed where blocks lie."""

    now_ms: Callable[[], int]
    events: int = 0
    packs: dict[str, PackFact] = field(default_factory=dict)
    by_key: dict[int, PackFact] = field(default_factory=dict)
    places: dict[bytes, list[PackFact]] = field(default_factory=lambda: defaultdict(list))
    present: set[bytes] = field(default_factory=set)
    changed: dict[bytes, int] = field(default_factory=dict)
    seen: dict[bytes, dict[bytes, Sighting]] = field(default_factory=lambda: defaultdict(dict))  # by id and system
    pinned: dict[bytes, dict[bytes, Sighting]] = field(default_factory=dict)  # by system and id
    lapsed: set[bytes] = field(default_factory=set)  # pinned by systems that are gone: one day they count no more
    touched: dict[bytes, int] = field(default_factory=dict)  # id → ms at which anyone may have spoken of it last
    unstamped: set[bytes] = field(default_factory=set)  # of which maybe no stamp speaks: the next one to trim will
    listed_early: set[int] = field(default_factory=set)
    renewed: dict[bytes, int] = field(default_factory=lambda: defaultdict(int))  # stamps that went, by writer
    order: int = 0
    trimmed: int = 0
    raced: int = 0

    def see(self, system: bytes, idents: Iterable[bytes], ms: int) -> None:
        """Note that a system whose clock is right saw blocks in the cache, and has said so."""
        self.order += 1
        for ident in idents:
            if ident in self.present:
                self.seen[ident][system] = Sighting(ms, self.order)

    def look(self) -> int:
        """Return the place of a look at stamps among all that is told."""
        self.order += 1
        return self.order

    def pin(self, system: bytes, idents: Iterable[bytes]) -> None:
        """Note that a system has pinned blocks."""
        self.order += 1
        known = self.pinned.setdefault(system, {})
        for ident in idents:
            known.setdefault(ident, Sighting(self.now_ms(), self.order))

    def touch(self, idents: Iterable[bytes], ms: int) -> None:
        """Note that somebody may have said of blocks that they were seen at `ms`, by whatever clock."""
        for ident in idents:
            self.touched[ident] = max(ms, self.touched.get(ident, 0))

    def stamp_hurt(self, system: bytes, *, gone: bool) -> None:
        """Learn that a stamp of a system is not what it was: if it is gone, nobody may know what it saw until now."""
        if gone:
            for sightings in self.seen.values():
                sightings.pop(system, None)
        self.unstamped |= self.present

    def said_of_days_to_come(self, system: bytes, idents: Iterable[bytes]) -> None:
        """Learn that a system whose clock runs ahead stamped blocks: when it saw them, nobody may know."""
        for ident in idents:
            self.seen[ident].pop(system, None)
            self.unstamped.add(ident)

    def trimmed_by(self, ms: int) -> None:
        """Learn that somebody looked at all there is, and stamped as of `ms` what nobody had."""
        known = {ident for ident in self.unstamped if all(pack.listed or not pack.there for pack in self.places[ident])}
        self.touch(known, ms)
        self.unstamped -= known

    def put(self, name: str, data: bytes, *, trimming: bool) -> None:
        """Learn of an object that was put."""
        if (pack := PackName.parse(name)) is not None:
            if name not in self.packs:
                self._learn(pack, data, trimming)
            else:
                known = self.packs[name]
                known.there = known.whole = True
                known.rotten = False
                self._settle(known)
        elif (fragment := FragmentName.parse(name)) is not None:
            for row in open_fragment(fragment, data, None, None).rows:
                key = int.from_bytes(bytes(row["hash"])[:8], "little")
                self._list(key)
        elif (removal := RemovalName.parse(name)) is not None:
            raise AssertionError(f"{removal} is told with who put it")

    def announce(self, name: str, data: bytes, look: int, look_at_pins: int) -> bool:
        """Learn of packs that are to go, by whoever looked at stamps and pins last in these places.

        Return whether there are any of which nobody had said so. Raises: Broken.
        """
        removal = RemovalName.parse(name)
        assert removal is not None
        keys = [key for part in open_removals(removal, data, None, None).packs.values() for key in part.tolist()]
        packs = [self.by_key[key] for key in keys if key in self.by_key]
        fresh = [pack for pack in packs if not pack.announced]
        for pack in fresh:
            pack.announced = True
        for pack in fresh:
            self._settle(pack, (look, look_at_pins))
        return bool(fresh)

    def removed(self, name: str, look: int, look_at_pins: int) -> None:
        """Learn that an object was deleted; a pack by a system that trims. Raises: Broken."""
        if (stamp := StampName.parse(name)) is not None:
            self.renewed[stamp.writer] += 1
        if (pack := self.packs.get(name)) is not None and pack.there:
            pack.there = False
            self.trimmed += 1
            self._settle(pack, (look, look_at_pins))

    def lost(self, name: str, how: str) -> None:
        """Learn of a fault: an object "vanished", is "short", or "rotted"."""
        pack = self.packs.get(name)
        if pack is None:
            return
        if how == "vanished":
            pack.there = False
        elif how == "short":
            pack.whole = False
        else:
            pack.rotten = True
        for ident in pack.ids:
            self.seen.pop(ident, None)  # what was seen was this copy, maybe: of others nobody spoke
        self._settle(pack)

    def in_ghosts(self) -> set[bytes]:
        """Return the blocks of packs that are relied on by their lists, and are gone or cut."""
        ghosts = (pack for pack in self.packs.values() if pack.listed and not pack.announced and not pack.good)
        return {ident for pack in ghosts for ident in pack.ids}

    def absent_throughout(self, ident: bytes, since: int, distrusted: Collection[int]) -> bool:
        """Tell whether no pack but those of `distrusted` keys had this block at any time since an event."""
        if ident not in self.present:
            return self.changed.get(ident, 0) <= since
        # Of packs that became good before and still are, all are distrusted; none became good since.
        return all(pack.key in distrusted or not pack.good for pack in self.places[ident]) and not any(
            pack.good_since > since for pack in self.places[ident]
        )

    def present_throughout(self, ident: bytes, since: int, distrusted: Collection[int]) -> bool:
        """Tell whether at every time since an event a pack had this block, none of `distrusted` keys."""
        if ident not in self.present:
            return False
        packs = [pack for pack in self.places[ident] if pack.key not in distrusted and pack.good]
        if len(packs) == len(self.places[ident]) or not distrusted:
            return self.changed.get(ident, 0) <= since
        return any(pack.good_since <= since for pack in packs)

    def protected(self, ident: bytes, look: int) -> tuple[bytes, int] | None:
        """Return who saw a block less than 14 days ago, and said so before stamps were looked at, and when."""
        since = self.now_ms() - PROTECTED_DAYS * DAY_MS
        for system, (ms, order) in self.seen.get(ident, {}).items():
            if ms > since:
                if order <= look:
                    return system, ms
                self.raced += 1
        return None

    def renewed_by_others(self, system: bytes) -> int:
        """Return how many stamps of others have gone, in whose place newer ones came."""
        return sum(count for writer, count in self.renewed.items() if writer != system)

    def pinned_now(self) -> set[bytes]:
        """Return the ids that any system pins."""
        return {ident for pinned in self.pinned.values() for ident in pinned}

    def check_unlisted(self) -> None:
        """See, once a day, that no pack stays that nobody lists, and nothing in it was pinned. Raises: Broken."""
        now_ms, kept_for = self.now_ms(), self.pinned_now() | self.lapsed
        for pack in self.packs.values():
            if not pack.there or pack.listed:
                continue
            if not kept_for.isdisjoint(pack.ids):
                pack.kept_ms = now_ms
            elif (days := (now_ms - max(pack.put_ms, pack.kept_ms)) / DAY_MS) > UNLISTED_DAYS:
                raise Broken(f"{pack.name} is there for {days:.0f} days, and nobody lists it")

    def left_behind(self, system: bytes, today: int, free_bytes: int, since: int, pinned: Set[bytes]) -> list[PackFact]:
        """Return packs that `system`, trimming on day `today`, must not leave there while there is too little room.

        `since`: the event at which it began, `pinned`: ids that were then: what others put or unpinned meanwhile it
        need not know.

        By the rules of docs/ARCHITECTURE.md: those of which all is old go, and those of which an eighth is, if there
        is room for the rest. As old counts only what nobody can have said anything of for 16 days.
        """
        found, kept_for = [], pinned | self.pinned_now()
        for pack in self.packs.values():
            came = pack.good_since > since and pack.writer != system
            if not pack.good or pack.rotten or came:
                continue
            old = [ident not in kept_for and self._old(ident, today) for ident in pack.ids]
            kept = [length for length, goes in zip(pack.lengths, old, strict=True) if not goes]
            new_bytes = sum(kept) + 54 * len(kept) + 1024
            worth = sum(kept) * 8 <= sum(pack.lengths) * 7 and new_bytes < min(pack.size, free_bytes)
            if not kept or worth:
                found.append(pack)
        return found

    def _old(self, ident: bytes, today: int) -> bool:
        if ident in self.unstamped or ident in self.lapsed:
            return False
        # A day more: whose clock ran a day ahead, stamps that day until the others reach it.
        return today - self.touched[ident] // DAY_MS > PROTECTED_DAYS + 1

    def _learn(self, pack: PackName, data: bytes, trimming: bool) -> None:
        start = footer_start(pack, data[-PACK_TAIL_BYTES:])
        entries = read_footer(pack, data[start:], start)
        idents = tuple(ident.tobytes() for ident in entries.ids)
        fact = PackFact(
            str(pack), pack.key, pack.writer, idents, tuple(entries.lengths.tolist()), self.now_ms(), trimming
        )
        fact.listed = pack.key in self.listed_early
        self.packs[fact.name] = self.by_key[fact.key] = fact
        for ident in set(idents):
            self.places[ident].append(fact)
            if not trimming:
                self.unstamped.add(ident)
            self.touched.setdefault(ident, fact.put_ms)
        self._settle(fact)

    def _list(self, key: int) -> None:
        if (pack := self.by_key.get(key)) is None:
            self.listed_early.add(key)
        elif not pack.listed:
            pack.listed = True
            self._settle(pack)

    def _settle(self, pack: PackFact, looks: tuple[int, int] | None = None) -> None:
        """Find out anew where the blocks of a pack lie. Raises: Broken."""
        self.events += 1
        pack.good_since = self.events
        for ident in set(pack.ids):
            there = any(each.good for each in self.places[ident])
            if there == (ident in self.present):
                continue
            self.changed[ident] = self.events
            if there:
                self.present.add(ident)
                continue
            self.present.discard(ident)
            if looks is not None:
                self._may_go(ident, pack, *looks)

    def _may_go(self, ident: bytes, pack: PackFact, look: int, look_at_pins: int) -> None:
        where = f"block {ident.hex()} of {pack.name}"
        if (known := self.protected(ident, look)) is not None:
            days = (self.now_ms() - known[1]) / DAY_MS
            raise Broken(f"{where} is trimmed, and system {known[0].hex()} saw it {days:.2f} days ago")
        pins = [pinned[ident] for pinned in self.pinned.values() if ident in pinned]
        # Without any other sign of life they count for 180 days.
        if any(pin.order <= look_at_pins and self.now_ms() - pin.ms < PINNED_DAYS * DAY_MS for pin in pins):
            raise Broken(f"{where} is trimmed, and it is pinned")


class CacheDisk(SimStore):
    """The cache on its disk. `other_bytes`: what somebody else keeps there."""

    def __init__(self, objects: dict[str, bytes], capacity_bytes: int) -> None:
        super().__init__("cache", dict(objects), dict(objects))
        self.capacity_bytes, self.other_bytes = capacity_bytes, 0
        self.used_bytes = sum(map(len, objects.values()))

    @property
    def small_bytes(self) -> int:
        """How many bytes lie there that are no packs: fragments, lists, stamps."""
        return sum(len(data) for name, data in self.objects.items() if not name.startswith("data/"))

    @property
    def free_bytes(self) -> int:
        """How many bytes are free."""
        return max(0, self.capacity_bytes - self.other_bytes - self.used_bytes)

    def apply(self, name: str, data: bytes) -> None:
        known = len(self.objects.get(name, b""))
        if len(data) - known > self.free_bytes:
            raise StoreRejected(f"the simulated disk is full: {name} was not stored")
        super().apply(name, data)
        self.used_bytes += len(data) - known

    def remove(self, name: str) -> None:
        self.used_bytes -= len(self.objects.get(name, b""))
        super().remove(name)

    def hurt(self, name: str, content: bytes | None) -> None:
        """Let an object be gone (None), or be something else."""
        self.used_bytes += len(content or b"") - len(self.objects[name])
        if content is None:
            del self.objects[name]
        else:
            self.objects[name] = content
