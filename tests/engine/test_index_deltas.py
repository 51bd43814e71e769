"""What the index knows of deltas, against plain dicts: from a pack just put to a merge, with anything barred."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import mirror as mirror_module
from engine.acks import PackAck
from engine.block import DELTA_FLAG, PLACE, Ids
from engine.fragment import encode_fragment, open_fragment
from engine.index import PackIndex
from engine.merge import merge_listings
from engine.mirror import Mirror
from engine.names import FragmentName, PackName
from tests.engine.fakes_packs import ALICE, BOB, MemoryMirror, Team, ack

TEAM = Team()
Ident = tuple[int, int]

# Few ids, of which some share a half: one stands in several packs, as a delta here and whole there.
IDENTS: list[Ident] = [(lo, hi) for lo in (0, 5, (1 << 64) - 1) for hi in (3, 4)]


def pack_of(
    writer: bytes, number: int, idents: Sequence[Ident], sources: Sequence[Sequence[PackName] | None]
) -> PackAck:
    """Return a pack; `sources`: per entry None for a whole record, else what is known of its delta's sources."""
    deltas = [at for at, each in enumerate(sources) if each is not None]
    made = ack(writer, number, np.array(idents, np.uint64).reshape(-1, 2), delta=deltas)
    known = tuple((at, name) for at, each in enumerate(sources) for name in each or ())
    return PackAck(made.name, made.ids, made.offsets, made.lengths, known)


@dataclass(frozen=True)
class Entry:
    ident: Ident
    place: tuple[int, int, int]
    writer: bytes
    sources: tuple[PackName, ...]

    @property
    def delta(self) -> bool:
        return bool(self.place[2] & DELTA_FLAG)


@dataclass
class World:
    """An index over a mirror, and what is to be expected of it."""

    own_only: bool
    mirror: Mirror = field(default_factory=lambda: Mirror(MemoryMirror(), TEAM.keys, ALICE, views_max=2))
    packs: list[PackAck] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    fresh: list[PackAck] = field(default_factory=list)
    barred: set[int] = field(default_factory=set)
    barred_writers: set[bytes] = field(default_factory=set)
    fragments: int = 0

    def __post_init__(self) -> None:
        self.index = PackIndex(own_only=self.own_only)
        self.mirror.load()

    def put(self, pack: PackAck) -> None:
        """Have a pack acknowledged, or, if it is another system's, list it."""
        self.packs.append(pack)
        known: dict[int, list[PackName]] = {}
        for at, name in pack.sources:
            known.setdefault(at, []).append(name)
        for at, (lo, hi) in enumerate(pack.ids.tolist()):
            place = (pack.name.key, int(pack.offsets[at]), int(pack.lengths[at]))
            self.entries.append(Entry((lo, hi), place, pack.name.writer, tuple(known.get(at, ()))))
        if pack.name.writer == ALICE:
            self.index.add_pack(pack)
            self.fresh.append(pack)
        else:
            self.list([pack])

    def list(self, packs: Sequence[PackAck]) -> None:
        """List packs of one writer in a fragment, and mirror that."""
        if packs:
            self.fragments += 1
            name = FragmentName(packs[0].name.writer, b"i" * 8, self.fragments)
            data = encode_fragment(name, packs, TEAM.keys, TEAM.signer(name.writer))
            self.mirror.add(data, open_fragment(name, data, TEAM.keys, TEAM))
        self.mirror.compact()
        self.index.install(*self.mirror.views())

    def bar(self, packs: Sequence[int], writers: Sequence[bytes]) -> None:
        self.index.bar(packs, writers)
        self.barred.update(packs)
        self.barred_writers.update(writers)

    def shut(self, name: PackName) -> bool:
        return name.key in self.barred or name.writer in self.barred_writers

    def usable(self, entry: Entry) -> bool:
        if entry.place[0] in self.barred or entry.writer in self.barred_writers:
            return False
        if not entry.delta:
            return True
        return entry.writer == ALICE and bool(entry.sources) and not any(map(self.shut, entry.sources))

    def passed_over(self, entry: Entry) -> bool:
        """Tell whether an entry comes last: foreign deltas do not, they may be opened all the same."""
        if entry.writer == ALICE:
            return not self.usable(entry)
        return entry.place[0] in self.barred or entry.writer in self.barred_writers

    def check(self) -> None:
        ids: Ids = np.array(IDENTS, np.uint64)
        for ident, place in zip(IDENTS, self.index.lookup(ids).tolist(), strict=True):
            good = [each for each in self.entries if each.ident == ident and self.usable(each)]
            own = {each.place for each in good if each.writer == ALICE}
            expected = own or (set() if self.own_only else {each.place for each in good})
            assert place in expected if expected else place == (0, 0, 0)
            every = self.index.all_places(np.array(ident, np.uint64).tobytes()).tolist()
            here = [each for each in self.entries if each.ident == ident]
            assert set(every) == {each.place for each in here}
            assert len(every) == len(set(every))
            bad = {each.place for each in here if self.passed_over(each)}
            assert [place in bad for place in every] == sorted(place in bad for place in every)
        self.check_sources()
        self.check_names()

    def check_sources(self) -> None:
        ids = np.array([each.ident for each in self.entries], np.uint64).reshape(-1, 2)
        places = np.array([each.place for each in self.entries], PLACE)
        positions, keys, answered = self.index.delta_sources(ids, places)
        pairs = list(zip(positions.tolist(), keys.tolist(), strict=True))
        for at, entry in enumerate(self.entries):
            known = entry.writer == ALICE and bool(entry.sources)
            assert answered[at] == (known or not entry.delta)
            found = [key for position, key in pairs if position == at]
            assert sorted(found) == (sorted({name.key for name in entry.sources}) if entry.delta and known else [])
        # One byte further nothing lies.
        places["offset"] += 1
        positions, _, answered = self.index.delta_sources(ids, places)
        assert not len(positions)
        assert answered.tolist() == [not each.delta for each in self.entries]

    def check_names(self) -> None:
        keys = [pack.name.key for pack in self.packs]
        asked = np.array([*keys, *keys, 12345], np.uint64)
        mine = [pack.name if pack.name.writer == ALICE and not self.shut(pack.name) else None for pack in self.packs]
        assert self.index.own_packs(asked, ALICE) == [*mine, *mine, None]
        assert self.index.count_packs({ALICE, BOB}) == len(self.packs)


def steps(draw: st.DataObject) -> Iterator[str]:
    names = ["put", "put", "put", "foreign", "list", "list", "reopen", "bar", "bar writer"]
    yield from draw.draw(st.lists(st.sampled_from(names), min_size=1, max_size=25))


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    """Merge a few entries at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror_module, "merge_listings", partial(merge_listings, entries_max=4))
        yield


@given(st.data(), st.booleans())
@settings(max_examples=200, deadline=None)
def test_deltas_are_known_as_in_a_dict_from_fresh_packs_to_merges(data: st.DataObject, own_only: bool) -> None:
    world = World(own_only)
    stranger = PackName("data", BOB, b"\xee" * 32, 5000)
    for number, step in enumerate(steps(data)):
        if step in ("put", "foreign"):
            sources = st.lists(
                st.sampled_from([stranger, *(pack.name for pack in world.packs)]), max_size=3, unique=True
            )
            idents = data.draw(st.lists(st.sampled_from(IDENTS), min_size=1, max_size=5))
            known = [data.draw(st.none() | sources) for _ in idents]
            world.put(pack_of(ALICE if step == "put" else BOB, number, idents, known))
        elif step == "list":
            keep = data.draw(st.integers(0, 1)) if world.fresh else 0
            listed = world.fresh[: len(world.fresh) - keep]
            world.fresh = world.fresh[len(listed) :]
            world.list(listed)
        elif step == "reopen":
            # What the next session sees; nothing is barred there.
            world.list(world.fresh)
            files = world.mirror._files
            world.mirror = Mirror(files, TEAM.keys, ALICE, views_max=2)
            world.fresh, world.barred, world.barred_writers = [], set(), set()
            world.__post_init__()
            world.list([])
        elif step == "bar writer":
            world.bar([], [data.draw(st.sampled_from([BOB, b"c" * 16, BOB, ALICE]))])
        elif world.packs:
            world.bar([data.draw(st.sampled_from([stranger, *(pack.name for pack in world.packs)])).key], [])
        world.check()


def test_the_sources_of_deltas_in_a_damaged_pack_are_those_of_what_stands_in_for_it() -> None:
    source, damaged = ack(ALICE, 7, np.array(IDENTS[:1], np.uint64)).name, ack(ALICE, 8, np.array(IDENTS[:1])).name
    standing = pack_of(ALICE, 9, IDENTS[:2], [None, [source]])
    index = PackIndex()
    index.add_pack(standing)
    places = np.zeros(2, PLACE)
    places["pack"], places["offset"], places["length"] = damaged.key, standing.offsets, standing.lengths
    ids: Ids = np.array(IDENTS[:2], np.uint64)
    assert index.delta_sources(ids, places)[2].tolist() == [True, False]
    index.rely_instead({damaged.key: standing.name.key})
    which, keys, answered = index.delta_sources(ids, places)
    assert (which.tolist(), keys.tolist(), answered.tolist()) == ([1], [source.key], [True, True])
    assert set(places["pack"].tolist()) == {damaged.key}
