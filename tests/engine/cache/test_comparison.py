"""Maps against an index, held to a model of sets: bits are exactly what is absent, marks exactly what was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import engine.cache.packbits
import engine.cache.seen
from engine.acks import PackAck
from engine.bits import rows_of
from engine.cache.comparison import Comparison, Stopped
from engine.cache.packbits import PackBits
from engine.cache.seen import SeenPacks, SeenRows
from engine.fragment import encode_fragment, open_fragment
from engine.index import PackIndex
from engine.names import FragmentName
from engine.state import ENTRY
from engine.view import View
from tests.engine.fakes_packs import ALICE, BOB, Team, ack
from tests.fakes_state import MemoryVolumeState

TEAM = Team()
half = st.sampled_from([1, 2, 3, 1 << 63, (1 << 64) - 1])
ident = st.tuples(half, half)
drawn_packs = st.lists(
    st.tuples(st.sampled_from([ALICE, BOB]), st.lists(ident, min_size=1, max_size=20, unique=True)), max_size=6
)
drawn_maps = st.dictionaries(st.integers(0, 300), ident, max_size=60)


def as_pack(writer: bytes, number: int, idents: Sequence[tuple[int, int]]) -> PackAck:
    return ack(writer, number, np.array(idents, dtype=np.uint64).reshape(-1, 2))


def view(pack: PackAck, sequence: int) -> View:
    name = FragmentName(pack.name.writer, b"i" * 8, sequence)
    data = encode_fragment(name, [pack], TEAM.keys, TEAM.signer(pack.name.writer))
    return open_fragment(name, data, TEAM.keys, None).view(ALICE)


def index_of(packs: Sequence[PackAck]) -> PackIndex:
    index = PackIndex()
    views = [view(pack, number) for number, pack in enumerate(packs, 1)]
    index.install([each for each in views if each.own], [each for each in views if not each.own])
    return index


def state_of(blocks: dict[int, tuple[int, int]]) -> MemoryVolumeState:
    state = MemoryVolumeState()
    for number, value in blocks.items():
        entries = state.map.setdefault(number // 64, np.zeros(64, dtype=ENTRY))
        ref = np.array(value, dtype="<u8").tobytes() + b"key" * 10 + b"ke"
        entries["ref"][number % 64] = np.frombuffer(ref, np.uint8)
    return state


def bits_of(state: MemoryVolumeState) -> set[int]:
    pages = state.missing_pages(0, 1 << 40)
    return set((pages[:, None] * 64 + np.arange(64))[rows_of(state.missing(pages))].tolist())


def gathered(seen: SeenRows) -> PackBits:
    found = SeenPacks()
    seen.gather(found)
    return PackBits.together([*found.pieces()])


def marked(found: PackBits, packs: Sequence[PackAck]) -> set[tuple[int, int, int]]:
    """Return (pack key, halves of the id) of all records whose bit is set."""
    known = {pack.name.key: pack for pack in packs}
    records: set[tuple[int, int, int]] = set()
    starts = found.starts()
    for row, key in enumerate(found.keys.tolist()):
        bits = np.unpackbits(found.bits[starts[row] : starts[row + 1]], bitorder="little")
        order = known[key].offsets.argsort()
        assert found.counts[row] == len(order)
        assert not bits[len(order) :].any()
        for at in np.flatnonzero(bits):
            lo, hi = known[key].ids[order[at]].tolist()
            records.add((key, lo, hi))
    return records


@settings(max_examples=80, deadline=None)
@given(drawn_packs, drawn_maps, st.sets(st.integers(0, 400)), st.sets(st.integers(0, 5)))
def test_bits_are_what_is_absent_and_marks_what_was_found(
    drawn: list[tuple[bytes, list[tuple[int, int]]]],
    blocks: dict[int, tuple[int, int]],
    before: set[int],
    gone: set[int],
) -> None:
    packs = [as_pack(writer, number, idents) for number, (writer, idents) in enumerate(drawn)]
    index, state = index_of(packs), state_of(blocks)
    for number in before:
        state.lacking[number // 64] = state.lacking.get(number // 64, 0) | 1 << number % 64
    there = [pack for number, pack in enumerate(packs) if number not in gone]
    barred = index.absent(np.array(sorted(pack.name.key for pack in there), np.uint64))
    index.bar(barred.tolist())
    assert set(barred.tolist()) == {pack.name.key for pack in packs} - {pack.name.key for pack in there}
    comparison = Comparison(index)
    stretches = list(comparison.volume(state, 0, 10))
    held = {tuple(row) for pack in there for row in pack.ids.tolist()}
    absent = {number for number, value in blocks.items() if value not in held}
    assert bits_of(state) == absent
    assert sum(stretch.blocks for stretch in stretches) == len(blocks)
    assert sum(stretch.missing for stretch in stretches) == len(absent)
    records = marked(gathered(comparison.seen), packs)
    places = {(pack.name.key, lo, hi) for pack in there for lo, hi in pack.ids.tolist()}
    assert records <= places
    assert {(lo, hi) for _, lo, hi in records} == {value for value in blocks.values() if value in held}


def test_what_was_asked_to_stop_has_settled_nothing_more() -> None:
    pack = as_pack(ALICE, 1, [(1, 1)])
    state = state_of({0: (1, 1), 64: (2, 2)})
    state.lacking[0] = 1
    with pytest.raises(Stopped):
        list(Comparison(index_of([pack]), lambda: True).volume(state, 0, 2))
    assert bits_of(state) == {0}
    comparison = Comparison(index_of([pack]))
    list(comparison.volume(state, 1, 2))
    assert bits_of(state) == {0, 64}


drawn_bits = st.dictionaries(st.integers(0, (1 << 64) - 1), st.lists(st.booleans(), min_size=1, max_size=40))


def packed(drawn: dict[int, list[bool]]) -> PackBits:
    found = PackBits.none()
    for key, bits in drawn.items():
        one = PackBits(
            np.array([key], np.uint64), np.array([len(bits)], np.uint32), np.packbits(bits, bitorder="little")
        )
        found = PackBits.together([found, one])
    return found


@settings(max_examples=100, deadline=None)
@given(drawn_bits, drawn_bits, st.sampled_from([1, 3, 1 << 20]))
def test_the_union_of_bits_is_that_of_sets(
    first: dict[int, list[bool]], second: dict[int, list[bool]], at_once: int
) -> None:
    joined = {**first, **second}
    for key in first.keys() & second.keys():
        if len(first[key]) == len(second[key]):
            joined[key] = [a or b for a, b in zip(first[key], second[key], strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.cache.packbits, "_BYTES_AT_ONCE", at_once)
        found = PackBits.together([packed(first), packed(second)])
        kept = found.take(np.arange(0, len(found), 2))
    assert found.encode() == packed(joined).encode()
    assert kept.encode() == packed({key: joined[key] for key in sorted(joined)[::2]}).encode()
    assert PackBits.decode(found.encode()).encode() == found.encode()


@settings(max_examples=100, deadline=None)
@given(st.lists(drawn_bits, max_size=4), st.sampled_from([1, 40, 300, 1 << 20]))
def test_pieces_are_the_union_in_order_however_many_there_are(
    drawn: list[dict[int, list[bool]]], piece_bytes: int
) -> None:
    parts, found = [packed(each) for each in drawn], SeenPacks()
    for part in parts:
        found.add(part)
    whole = PackBits.together(parts) if parts else PackBits.none()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.cache.seen, "PIECE_BYTES", piece_bytes)
        pieces = [*found.pieces()]
        assert found.records() == whole.records
    assert [key for piece in pieces for key in piece.keys.tolist()] == whole.keys.tolist()
    assert b"".join(piece.bits.tobytes() for piece in pieces) == whole.bits.tobytes()
    assert [count for piece in pieces for count in piece.counts.tolist()] == whole.counts.tolist()
    assert bool(found) == bool(len(whole))
    found.close()
    assert [*found.pieces()] == []


def test_pieces_are_small_however_much_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.cache.seen, "PIECE_BYTES", 1 << 12)
    generator, found = np.random.default_rng(3), SeenPacks()
    for _ in range(20):
        keys = np.sort(generator.integers(0, 1 << 64, 100, dtype=np.uint64))
        found.add(PackBits(keys, np.full(100, 800, np.uint32), np.full(100 * 100, 0xFF, np.uint8)))
    sizes = [len(piece.bits) for piece in found.pieces()]
    assert sum(sizes) == 200_000
    assert max(sizes) < 3 << 12


@given(st.binary(max_size=60))
def test_bits_that_were_not_written_here_are_refused(data: bytes) -> None:
    try:
        found = PackBits.decode(data)
    except ValueError:
        return
    assert found.encode() == data


@pytest.mark.parametrize(
    ("at_once", "pending", "marked_at_once"),
    [(1, 1, 64), (700, 100, 1 << 8), (700, 450, 8), (1 << 21, 1 << 20, 1 << 21)],
)
def test_marks_of_many_entries_are_each_one_bit(
    at_once: int, pending: int, marked_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.cache.seen, "ENTRIES_AT_ONCE", at_once)
    monkeypatch.setattr(engine.cache.seen, "PENDING_MAX", pending)
    monkeypatch.setattr(engine.cache.seen, "_MARKED_AT_ONCE", marked_at_once)
    monkeypatch.setattr(engine.cache.seen, "_SLICE", 1 << 8)
    generator = np.random.default_rng(7)
    ids = generator.integers(1, 1 << 63, (3000, 2), dtype=np.uint64)
    packs = [ack(ALICE, start, ids[start : start + 300]) for start in range(0, 3000, 300)]
    index, seen = index_of(packs), SeenRows()
    chosen = np.sort(generator.choice(3000, 1000, replace=False))
    asked = ids[chosen][ids[chosen][:, 0].argsort()]
    there, places = index.locate(asked[:, 0].copy(), asked[:, 1].copy())
    assert there.all()
    for of, rows in places:
        seen.mark(of, rows[::2])
        seen.mark(of, rows[::-1])  # again, in another order, changes nothing
    count, size = seen.sizes()
    assert (count, size) == (1000, sum(int(pack.lengths[np.isin(pack.ids[:, 0], asked[:, 0])].sum()) for pack in packs))
    found = marked(gathered(seen), packs)
    assert {(lo, hi) for _, lo, hi in found} == {tuple(row) for row in asked.tolist()}
