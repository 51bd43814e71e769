from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.block import PLACE, Ids, Places
from engine.errors import StoreCorrupt
from engine.packtable import PACK_ROW, PackRows, PackTable, fault_in, order_of, rows_of, sorted_rows, with_rows
from engine.page import (
    BLOCKS_MAX,
    CHILD,
    LEAF_ENTRIES,
    LEAF_EXTENTS,
    PAGE_BYTES_MAX,
    TABLE_ROWS,
    Blocks,
    IdLeaf,
    Inner,
    KeyLeaf,
    Page,
    PageAddress,
    TableLeaf,
    decode,
    encode,
)
from tests.engine.fakes_pages import data_pack

WHERE = "page/of-a-test"


def numbers(*values: int) -> Blocks:
    return np.array(values, np.uint64)


def random_places(random: np.random.Generator, count: int) -> Places:
    return np.frombuffer(random.bytes(count * PLACE.itemsize), PLACE)


def leaf_of(pieces: list[tuple[int, int]], seed: int) -> IdLeaf:
    """Pieces are (gap before, length): length 0 is a block, more a zero extent."""
    blocks: list[int] = []
    zeros: list[tuple[int, int]] = []
    position = 0
    for gap, length in pieces:
        position += gap
        if length:
            zeros.append((position, length))
        else:
            blocks.append(position)
        position += length or 1
    random = np.random.default_rng(seed)
    ids: Ids = random.integers(0, 1 << 63, (len(blocks), 2)).astype(np.uint64)
    extents = np.array(zeros, np.uint64).reshape(-1, 2)
    return IdLeaf(numbers(*blocks), ids, random_places(random, len(blocks)), extents[:, 0], extents[:, 1])


def inner_of(firsts: list[int], level: int) -> Inner:
    random = np.random.default_rng(len(firsts))
    children = np.frombuffer(random.bytes(len(firsts) * CHILD.itemsize), CHILD).copy()
    children["first"] = sorted(firsts)
    children["entries"] = random.integers(0, 1 << 40, len(firsts))
    return Inner(level, children)


def table_rows(count: int) -> PackRows:
    return rows_of(data_pack(number) for number in range(count))


gaps = st.one_of(st.integers(0, 3), st.integers(0, 1 << 34))
lengths = st.one_of(st.just(0), st.integers(0, 1 << 34))
id_leaves = st.builds(leaf_of, st.lists(st.tuples(gaps, lengths), min_size=1, max_size=60), st.integers(0, 1 << 32))
key_leaves = st.builds(
    lambda first, count: KeyLeaf(first, np.random.default_rng(count).integers(0, 256, (count, 32), np.uint8)),
    st.integers(0, BLOCKS_MAX - 1),
    st.integers(0, 40),
)
inners = st.builds(
    inner_of, st.lists(st.integers(0, BLOCKS_MAX - 1), min_size=1, max_size=40, unique=True), st.integers(1, 5)
)
tables = st.builds(lambda first, count: TableLeaf(first, table_rows(count)), st.integers(0, 99), st.integers(1, 20))
pages: st.SearchStrategy[Page] = st.one_of(id_leaves, key_leaves, inners, tables)


@given(pages)
def test_a_page_comes_back_as_it_was_encoded(page: Page) -> None:
    again = decode(encode(page), WHERE)
    assert type(again) is type(page)
    assert again.first_block == page.first_block
    assert again.entries == page.entries
    assert again.stop_block == page.stop_block
    match again, page:
        case IdLeaf(), IdLeaf():
            for column in ("blocks", "ids", "places", "zero_starts", "zero_counts"):
                assert np.array_equal(getattr(again, column), getattr(page, column)), column
        case KeyLeaf(), KeyLeaf():
            assert np.array_equal(again.keys, page.keys)
        case Inner(), Inner():
            assert again.level == page.level
            assert np.array_equal(again.children, page.children)
        case TableLeaf(), TableLeaf():
            assert np.array_equal(again.rows, page.rows)


def test_the_fullest_pages_stay_within_64_kib() -> None:
    pieces = [(0, 0), (0, 3)] * LEAF_ENTRIES
    fullest = leaf_of(pieces, 0)
    assert len(fullest.blocks) == LEAF_ENTRIES
    assert len(fullest.zero_starts) == LEAF_EXTENTS
    assert len(encode(fullest)) <= PAGE_BYTES_MAX
    assert len(encode(inner_of(list(range(512)), 1))) <= PAGE_BYTES_MAX
    assert len(encode(TableLeaf(0, table_rows(TABLE_ROWS)))) <= PAGE_BYTES_MAX
    with pytest.raises(AssertionError):
        encode(leaf_of([*pieces, (0, 0)], 0))


def test_neighbours_that_lie_one_after_the_other_cost_nothing_for_number_and_offset() -> None:
    places = np.zeros(1000, PLACE)
    places["length"] = 5000
    places["offset"] = 64 + 5000 * np.arange(1000)
    nothing = numbers()
    leaf = IdLeaf(np.arange(7, 1007, dtype=np.uint64), np.zeros((1000, 2), np.uint64), places, nothing, nothing)
    content = encode(leaf)
    assert content[24 : 24 + 8000] == bytes(8) + numbers(*[1] * 999).tobytes()
    assert content[24 + 32000 : 24 + 36000] == (64).to_bytes(4, "little") + bytes(3996)


def accepts_only_what_it_would_write(content: bytes) -> None:
    try:
        page = decode(content, WHERE)
    except StoreCorrupt:
        return
    assert encode(page) == content


@given(st.binary(max_size=400))
def test_random_bytes_are_refused_or_are_a_page(content: bytes) -> None:
    accepts_only_what_it_would_write(content)


@given(st.integers(1, 4), st.integers(0, 6), st.integers(0, 3), st.integers(0, 99), st.binary(max_size=300))
def test_random_bytes_behind_a_header_are_refused_or_are_a_page(
    kind: int, level: int, count: int, first: int, rest: bytes
) -> None:
    accepts_only_what_it_would_write(struct.pack("<BBHIQ", kind, level, 0, count, first) + rest)


@given(pages, st.data())
def test_a_page_cut_lengthened_or_flipped_is_refused_or_is_another_whole_page(page: Page, data: st.DataObject) -> None:
    content = encode(page)
    with pytest.raises(StoreCorrupt):
        decode(content[: data.draw(st.integers(0, len(content) - 1))], WHERE)
    with pytest.raises(StoreCorrupt):
        decode(content + data.draw(st.binary(min_size=1, max_size=8)), WHERE)
    flipped = bytearray(content)
    bit = data.draw(st.integers(0, len(content) * 8 - 1))
    flipped[bit // 8] ^= 1 << bit % 8
    accepts_only_what_it_would_write(bytes(flipped))


def raw_leaf(blocks: list[int], zeros: list[tuple[int, int]], first: int) -> bytes:
    steps = [(block - before) % (1 << 64) for block, before in zip(blocks, [first, *blocks], strict=False)]
    head = struct.pack("<BBHIQII", 1, 0, 0, len(blocks), first, len(zeros), 0)
    extents = b"".join(struct.pack("<QQ", *zero) for zero in zeros)
    return head + extents + b"".join(struct.pack("<Q", step) for step in steps) + bytes(32 * len(blocks))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (raw_leaf([], [], 0), "names nothing"),
        (raw_leaf([2, 2], [], 2), "ascending"),
        (raw_leaf([3, 2], [], 3), "ascending"),
        (raw_leaf([BLOCKS_MAX - 1, BLOCKS_MAX], [], BLOCKS_MAX - 1), "ascending"),
        (raw_leaf([3], [], 2), "begin"),
        (raw_leaf([3], [(1, 1)], 3), "begin"),
        (raw_leaf([5], [(3, 3)], 3), "lies in a zero extent"),
        (raw_leaf([3], [(3, 3)], 3), "lies in a zero extent"),
        (raw_leaf([], [(3, 3), (5, 1)], 3), "overlap"),
        (raw_leaf([], [(5, 1), (3, 1)], 3), "overlap"),
        (raw_leaf([], [(5, 0)], 5), "impossible"),
        (raw_leaf([], [(5, BLOCKS_MAX + 1)], 5), "impossible"),
        (raw_leaf([], [(5, BLOCKS_MAX - 4)], 5), "overlap"),
        (raw_leaf([], [(0, (1 << 64) - 1)], 0), "impossible"),
        (struct.pack("<BBHIQ", 3, 1, 0, 2, 7) + struct.pack("<QQ64s", 7, 1, b"") * 2, "ascending"),
        (struct.pack("<BBHIQ", 3, 0, 0, 1, 7) + struct.pack("<QQ64s", 7, 1, b""), "level"),
        (struct.pack("<BBHIQ", 3, 6, 0, 1, 7) + struct.pack("<QQ64s", 7, 1, b""), "level"),
        (struct.pack("<BBHIQ", 3, 1, 0, 1, 7) + struct.pack("<QQ64s", 7, 1 << 60, b""), "entries"),
        (struct.pack("<BBHIQ", 3, 1, 0, 0, 7), "count"),
        (struct.pack("<BBHIQ", 4, 0, 0, 0, 7), "count"),
        (struct.pack("<BBHIQ", 2, 0, 0, 1 << 31, 7) + bytes(32), "count"),
        (struct.pack("<BBHIQ", 5, 0, 0, 1, 7) + bytes(32), "type 5"),
        (struct.pack("<BBHIQ", 2, 1, 0, 1, 7) + bytes(32), "header"),
        (struct.pack("<BBHIQ", 2, 0, 1, 1, 7) + bytes(32), "header"),
        (bytes(PAGE_BYTES_MAX + 1), "length"),
    ],
)
def test_a_page_that_does_not_hold_together_is_refused_with_the_reason(content: bytes, reason: str) -> None:
    with pytest.raises(StoreCorrupt, match=reason) as caught:
        decode(content, WHERE)
    assert caught.value.name == WHERE


def test_a_table_out_of_order_of_unknown_kind_or_impossible_size_is_refused() -> None:
    rows = table_rows(3)
    for damage in ("order", "twice", "kind", "size", "empty"):
        wrong = rows.copy()
        if damage == "order":
            wrong = wrong[::-1]
        elif damage == "twice":
            wrong[1] = wrong[0]
        elif damage == "kind":
            wrong["kind"][1] = 2
        else:
            wrong["size"][1] = 0 if damage == "empty" else 0xFFFFFFFF
        with pytest.raises(StoreCorrupt):
            decode(encode(TableLeaf(0, wrong)), WHERE)


@given(st.binary(min_size=48, max_size=48), st.integers(0, (1 << 64) - 1), st.integers(0, 99), st.integers(0, 99))
def test_an_address_is_64_bytes_and_comes_back(ref: bytes, pack: int, offset: int, length: int) -> None:
    address = PageAddress(ref, pack, offset, length)
    assert len(bytes(address)) == 64
    assert PageAddress.parse(bytes(address)) == address
    children = np.frombuffer(bytes(16) + bytes(address), CHILD)
    assert PageAddress.of_child(children[0]) == address


@given(st.lists(st.integers(0, 50), max_size=40))
def test_a_pack_table_is_sorted_by_hash_without_repeats_and_finds_each_pack(chosen: list[int]) -> None:
    names = [data_pack(number) for number in chosen]
    rows = sorted_rows(np.concatenate([rows_of([name]) for name in names] or [rows_of(())]))
    assert np.array_equal(rows, rows_of(names))
    assert fault_in(rows) is None
    table = PackTable(rows)
    assert table.names() == sorted(set(names), key=lambda name: name.hash)
    for name in names:
        assert table.find(name.key) == name
    assert table.find(12345) is None


@given(st.sets(st.integers(0, 50), max_size=40), st.sets(st.integers(0, 60), max_size=6))
def test_a_table_takes_in_what_it_lacks_of_a_few_others(chosen: set[int], more: set[int]) -> None:
    rows = rows_of(map(data_pack, chosen))
    both = with_rows(rows, rows_of(map(data_pack, more)))
    assert np.array_equal(both, rows_of(map(data_pack, chosen | more)))
    assert (both is rows) == (more <= chosen)
    firsts = order_of(both)
    assert bool((firsts[1:] >= firsts[:-1]).all())


@given(st.lists(st.binary(min_size=32, max_size=32), unique=True, max_size=30))
def test_packs_are_ordered_by_the_bytes_of_their_hash_zero_bytes_included(hashes: list[bytes]) -> None:
    rows = np.zeros(len(hashes), PACK_ROW)
    rows["size"] = 1
    for row, digest in zip(rows, hashes, strict=True):
        row["hash"] = np.frombuffer(digest, np.uint8)
    ordered = sorted_rows(rows)
    assert [bytes(row["hash"]) for row in ordered] == sorted(hashes)
    assert (fault_in(rows) is None) == (hashes == sorted(hashes))
