"""Look-ups and claims, against a plain dict."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.acks import PackAck
from engine.block import DELTA_FLAG, Ids, ids_from_bytes
from engine.fragment import encode_fragment, open_fragment
from engine.idfilter import IdFilter
from engine.index import PackIndex
from engine.names import FragmentName, PackName
from engine.view import PLACES_MAX, View
from tests.engine.fakes_packs import ALICE, BOB, Team, ack, random_ids

TEAM = Team()
CAROL = b"c" * 16

# Few values: ids that share a half, or are listed many times over, are the rule here.
half = st.sampled_from([0, 1, 7, (1 << 63), (1 << 64) - 1])
ident = st.tuples(half, half)


def as_ids(values: Sequence[tuple[int, int]]) -> Ids:
    return np.array(values, dtype=np.uint64).reshape(-1, 2)


def view(packs: Sequence[PackAck], sequence: int = 1) -> View:
    """Return the view of a fragment of the packs' writer."""
    writer = packs[0].name.writer
    name = FragmentName(writer, b"i" * 8, sequence)
    fragment = open_fragment(name, encode_fragment(name, packs, TEAM.keys, TEAM.signer(writer)), TEAM.keys, None)
    return View(fragment.columns, fragment.rows, own=writer == ALICE)


Placed = tuple[int, int, int]
Model = dict[tuple[int, int], list[Placed]]


def model_of(packs: Sequence[PackAck]) -> Model:
    """Return what each id's places are: (pack key, offset, length)."""
    model: Model = defaultdict(list)
    for pack in packs:
        for (lo, hi), offset, length in zip(
            pack.ids.tolist(), pack.offsets.tolist(), pack.lengths.tolist(), strict=True
        ):
            model[lo, hi].append((pack.name.key, offset, length))
    return model


drawn_pack = st.tuples(
    st.sampled_from([ALICE, BOB, CAROL]),
    st.lists(ident, min_size=1, max_size=12),
    st.booleans(),
)


@given(
    st.lists(drawn_pack, max_size=8),
    st.integers(0, 8),
    st.lists(ident, max_size=30),
    st.sets(st.integers(0, 7), max_size=3),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_look_ups_agree_with_a_dict(
    drawn: list[tuple[bytes, list[tuple[int, int]], bool]],
    fresh: int,
    asked: list[tuple[int, int]],
    barred: set[int],
    own_only: bool,
    filtered: bool,
) -> None:
    packs = [
        ack(writer, number, as_ids(values), delta=range(len(values)) if deltas else ())
        for number, (writer, values, deltas) in enumerate(drawn)
    ]
    index = PackIndex(own_only=own_only)
    mirrored = packs[fresh:]
    index.install(
        [view([pack]) for pack in mirrored if pack.name.writer == ALICE],
        [view([pack]) for pack in mirrored if pack.name.writer != ALICE],
    )
    if filtered:
        # Asked often enough for the filter to be built.
        for _ in range(3):
            index.lookup(random_ids(np.random.default_rng(1), 64))
    listed = mirrored + [pack for pack in packs[:fresh] if pack.name.writer == ALICE]
    for pack in packs[:fresh]:
        if pack.name.writer == ALICE:
            index.add_pack(pack)
    index.bar([packs[number].name.key for number in barred if number < len(packs)])
    shut = {packs[number].name.key for number in barred if number < len(packs)}

    own = model_of([pack for pack in listed if pack.name.writer == ALICE and pack.name.key not in shut])
    foreign = model_of([pack for pack in listed if pack.name.writer != ALICE and pack.name.key not in shut])
    everything = model_of(listed)
    for value, place in zip(asked, index.lookup(as_ids(asked)).tolist(), strict=True):
        # Of the own deltas here no sources are known; test_index_deltas.py has those.
        whole = [each for each in own[value] if not each[2] & DELTA_FLAG]
        usable = [each for each in foreign[value] if not each[2] & DELTA_FLAG] if not own_only else []
        expected = whole or usable
        assert place in expected if expected else place == (0, 0, 0)
        assert set(index.all_places(as_ids([value]).tobytes()).tolist()) == set(everything[value])


def test_own_packs_come_first_and_barred_places_last() -> None:
    ids = random_ids(np.random.default_rng(1), 4)
    mine, bobs, carols = ack(ALICE, 1, ids), ack(BOB, 2, ids), ack(CAROL, 3, ids)
    index = PackIndex()
    index.install([], [view([bobs]), view([carols])])
    assert set(index.lookup(ids)["pack"].tolist()) == {bobs.name.key}
    index.bar(writers=[BOB])
    assert set(index.lookup(ids)["pack"].tolist()) == {carols.name.key}
    index.add_pack(mine)
    assert set(index.lookup(ids)["pack"].tolist()) == {mine.name.key}
    assert index.all_places(ids[0].tobytes())["pack"].tolist() == [mine.name.key, carols.name.key, bobs.name.key]
    index.bar([mine.name.key, carols.name.key])
    assert index.lookup(ids)["length"].tolist() == [0] * 4


def test_what_was_barred_stays_barred_in_views_installed_later() -> None:
    ids = random_ids(np.random.default_rng(1), 4)
    index = PackIndex()
    index.bar([ack(ALICE, 1, ids).name.key], [BOB])
    index.install([], [view([ack(BOB, 2, ids)])])
    index.add_pack(ack(ALICE, 1, ids))
    assert not index.lookup(ids)["length"].any()


def test_another_systems_delta_is_no_reason_not_to_send_a_block() -> None:
    ids = random_ids(np.random.default_rng(1), 3)
    index = PackIndex()
    index.install([], [view([ack(BOB, 1, ids, delta=[0, 1, 2])])])
    assert not index.lookup(ids)["length"].any()
    assert index.claim(ids)[1].all()
    assert len(index.all_places(ids[0].tobytes())) == 1


def test_an_id_listed_a_million_times_costs_bounded_work() -> None:
    value = random_ids(np.random.default_rng(1), 1)
    many = [ack(BOB, number, np.repeat(value, 9000, axis=0)) for number in range(4)]
    index = PackIndex()
    index.install([], [view(many)])
    assert len(index.all_places(value.tobytes())) == PLACES_MAX
    assert index.lookup(value)["length"].tolist() == [100]


def test_look_ups_of_nothing_and_in_nothing() -> None:
    index = PackIndex()
    assert len(index.lookup(as_ids([]))) == 0
    assert index.lookup(as_ids([(1, 2)]))["length"].tolist() == [0]
    assert len(index.all_places(bytes(16))) == 0
    assert index.pack_name(5) is None
    assert index.pack_names(np.array([5, 5], np.uint64)) == [None, None]


def test_packs_are_named_by_their_keys() -> None:
    ids = random_ids(np.random.default_rng(1), 2)
    mine, bobs = ack(ALICE, 1, ids), ack(BOB, 2, ids)
    index = PackIndex()
    namesake = replace(ack(CAROL, 3, ids), name=PackName("data", CAROL, mine.name.hash[:8] + bytes(24), 9999))
    index.install([], [view([bobs]), view([namesake])])
    index.add_pack(mine)
    keys = np.array([bobs.name.key, 3, mine.name.key, bobs.name.key], np.uint64)
    assert index.pack_names(keys) == [bobs.name, None, mine.name, bobs.name]
    assert index.pack_name(mine.name.key) == mine.name
    assert index.packs_of_key(mine.name.key) == [mine.name, namesake.name]
    assert index.count_packs({ALICE, BOB}) == 2


def test_each_id_is_claimed_once_until_it_is_listed_or_released() -> None:
    ids = random_ids(np.random.default_rng(1), 5)
    index = PackIndex()
    twice = np.concatenate([ids, ids])
    places, claimed = index.claim(twice)
    assert claimed.tolist() == [True] * 5 + [False] * 5
    assert not places["length"].any()
    assert not index.claim(ids)[1].any()
    index.release(ids[:1])
    assert index.claim(ids)[1].tolist() == [True, False, False, False, False]
    index.add_pack(ack(ALICE, 1, ids[:3]))
    places, claimed = index.claim(ids)
    assert places["length"].tolist() == [100, 100, 100, 0, 0]
    assert not claimed.any()
    index.release(ids)
    assert index.claim(ids)[1].tolist() == [False, False, False, True, True]


def test_a_barred_pack_makes_its_ids_claimable_again() -> None:
    ids = random_ids(np.random.default_rng(1), 5)
    index = PackIndex()
    pack = ack(ALICE, 1, ids)
    index.claim(ids)
    index.add_pack(pack)
    index.bar([pack.name.key])
    assert index.claim(ids)[1].all()


@pytest.mark.parametrize("filtered", [False, True])
def test_threads_never_claim_the_same_id_twice_nor_leave_one_out(filtered: bool) -> None:
    index = PackIndex()
    known = random_ids(np.random.default_rng(2), 600)
    index.install([view([ack(ALICE, 1000, known[:300])])], [view([ack(BOB, 1001, known[300:])])])
    if filtered:
        index.lookup(random_ids(np.random.default_rng(3), 64))
    universe = np.concatenate([random_ids(np.random.default_rng(4), 3000), known])
    sent: list[bytes] = []
    numbers = iter(range(1000))
    start = threading.Barrier(4)

    def work(seed: int) -> None:
        generator = np.random.default_rng(seed)
        order = generator.permutation(len(universe))
        start.wait()
        for at in range(0, len(order), 64):
            batch = universe[order[at : at + 64]]
            places, claimed = index.claim(batch)
            assert not (claimed & (places["length"] > 0)).any()
            mine = batch[claimed]
            sent.extend(row.tobytes() for row in mine)
            if len(mine):
                # What was claimed is put at once: claims end while other threads are between look-up and claim.
                index.add_pack(ack(ALICE, next(numbers), mine))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sent) == sorted(row.tobytes() for row in universe[:3000])
    assert not index._claimed


def test_packs_in_memory_are_joined_to_few_views_and_leave_when_a_fragment_lists_them() -> None:
    generator = np.random.default_rng(1)
    packs = [ack(ALICE, number, random_ids(generator, 1 + number % 7)) for number in range(200)]
    index = PackIndex()
    for pack in packs:
        index.add_pack(pack)
    assert len(index._views.fresh) <= 12
    everything = np.concatenate([pack.ids for pack in packs])
    expected = np.repeat(np.array([pack.name.key for pack in packs], np.uint64), [len(pack.ids) for pack in packs])
    assert np.array_equal(index.lookup(everything)["pack"], expected)
    index.install([view(packs[:150])], [])
    assert sum(len(each) for each in index._views.fresh) == sum(len(pack.ids) for pack in packs[150:])
    assert np.array_equal(index.lookup(everything)["pack"], expected)


@given(st.lists(ident, max_size=50), st.lists(ident, max_size=50))
@settings(max_examples=100, deadline=None)
def test_the_filter_lets_everything_through_that_was_added(
    added: list[tuple[int, int]], asked: list[tuple[int, int]]
) -> None:
    gate = IdFilter(len(added))
    ids = as_ids(sorted(added))
    gate.add(ids[:, 0].copy(), ids[:, 1].copy())
    both = as_ids(sorted(added) + asked)
    passed = gate.may_hold(both[:, 0].copy(), both[:, 1].copy())
    assert passed[0, : len(added)].all()


def test_the_filter_holds_most_new_ids_back() -> None:
    ids = random_ids(np.random.default_rng(1), 200_000)
    ids = ids[ids[:, 0].argsort()]
    gate = IdFilter(len(ids))
    gate.add(ids[:, 0].copy(), ids[:, 1].copy())
    new = random_ids(np.random.default_rng(2), 20_000)
    assert gate.may_hold(new[:, 0].copy(), new[:, 1].copy()).mean() < 0.01


def test_a_view_of_a_damaged_mirror_is_passed_over_and_never_read_beyond() -> None:
    ids = random_ids(np.random.default_rng(1), 50)
    good = view([ack(ALICE, 1, ids)])
    broken = good.columns._replace(pack=np.full(50, 9, np.uint32))
    index = PackIndex()
    index.install([View(broken, good.rows, own=True)], [])
    assert not index.lookup(ids)["length"].any()
    assert len(index.all_places(ids_from_bytes(ids.tobytes())[0].tobytes())) == 0
