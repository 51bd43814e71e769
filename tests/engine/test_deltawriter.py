"""Writing deltas: long histories of blocks, opened by the reading half; what is planned; what is refused."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.block import BLOCK_BYTES, DELTA_FLAG, ID_BYTES, LENGTH_MASK, PART_BYTES, PARTS, ref_of
from engine.delta import (
    TRAVELS,
    Source,
    assemble,
    has_all,
    open_links,
    open_parts,
    open_source,
    parse_delta,
)
from engine.deltawriter import DeltaRecord, DeltaWriter, check_delta
from engine.errors import SessionAborted
from engine.names import PackName
from engine.partdigest import part_digests
from engine.parts import ORIGINS, PART_ENTRY, bind, delta_expectation
from engine.seal import DELTA, WHOLE, Codec, Sealer, open_whole, parse_header, verify_ref
from engine.subkeys import record_keys

SUBKEY = bytes(range(32))
SEED = 77


def pack(number: int) -> PackName:
    return PackName("data", bytes(16), number.to_bytes(8, "little") + bytes(24), 1 << 20)


@dataclass
class Block:
    """One block through a history: its map entry, what is known of its parts, and every record ever stored."""

    content: bytes
    codec: Codec = Codec.LZ4
    records: dict[tuple[int, int], bytes] = field(default_factory=dict)
    ref: bytes = b""
    known: np.ndarray = field(default_factory=lambda: np.zeros(1, PART_ENTRY))
    origins: np.ndarray = field(default_factory=lambda: np.zeros(1, ORIGINS))
    packs: dict[int, PackName] = field(default_factory=dict)
    sent: int = 0

    def __post_init__(self) -> None:
        self.back_up(self.content)

    def attempt(self, content: bytes) -> DeltaRecord | None:
        ref = ref_of(SUBKEY, content)
        old = np.frombuffer(self.ref or bytes(48), np.uint8).reshape(1, 48)
        digests = part_digests([memoryview(content)], SEED)
        return DeltaWriter(self.codec).make(
            [ref], [content], digests, old, self.known, self.origins, self.packs
        )[0]  # fmt: skip

    def back_up(self, content: bytes) -> DeltaRecord | None:
        """Send the block as it is now, and remember its parts as a session does."""
        ref = ref_of(SUBKEY, content)
        if ref == self.ref:
            return None
        delta = self.attempt(content)
        record = delta.record if delta else Sealer(self.codec, SUBKEY).seal(ref, content)
        if delta is not None:
            check_delta(ref, delta, content)
        key, offset = len(self.records) + 1, 64
        self.packs[key] = pack(key)
        self.records[key, offset] = record
        self.sent += len(record)
        entry = np.zeros(1, PART_ENTRY)
        entry["digests"] = part_digests([memoryview(content)], SEED)
        entry["whole_bytes"] = self.known["whole_bytes"] if delta else len(record)
        entry["place"]["length"] = delta_expectation(record) if delta else 0
        place = np.zeros(1, PART_ENTRY["place"])
        place["pack"], place["offset"] = key, offset
        place["length"] = len(record) | (DELTA_FLAG if delta else 0)
        assert bind(place, entry).all()
        self.known = entry
        self.origins = np.zeros(1, ORIGINS)
        if delta is not None:
            self.origins[0] = np.frombuffer(delta.origins, ORIGINS)[0]
        self.ref, self.content = ref, content
        return delta

    def open(self) -> tuple[bytes, int]:
        """Open the newest record by its pinned places alone; return the content and how many records that took."""
        place = self.known["place"][0]
        record = self.records[int(place["pack"]), int(place["offset"])]
        assert len(record) == int(place["length"]) & LENGTH_MASK
        if parse_header(record, "t").kind == WHOLE:
            return open_whole(self.ref, record, SUBKEY, "t"), 1
        delta = parse_delta(record, "t")
        parts_key, links_key = record_keys(self.ref[ID_BYTES:])
        sources, part_map = open_links(delta, links_key, "t")
        taken = {}
        for origin, source in enumerate(sources):
            taken[origin] = open_source(source, self._at(source), "t")
            assert has_all(taken[origin], part_map, origin, delta.block_length), "a source holds its parts literally"
        content = assemble(delta, part_map, open_parts(delta, parts_key, "t"), taken, "t")
        verify_ref(self.ref, content, SUBKEY, "t")
        return content, 1 + len(sources)

    def _at(self, source: Source) -> bytes:
        record = self.records[int(source.place["pack"]), int(source.place["offset"])]
        is_delta = bool(int(source.place["length"]) & DELTA_FLAG)
        assert parse_header(record, "t").kind == (DELTA if is_delta else WHOLE), "pinned by kind"
        return record


def noise(seed: int, length: int = BLOCK_BYTES) -> bytes:
    return np.random.default_rng(seed).bytes(length)


def rewrite(content: bytes, parts: set[int], seed: int) -> bytes:
    changed = bytearray(content)
    for part in parts:
        stop = min((part + 1) * PART_BYTES, len(content))
        if part * PART_BYTES < stop:
            changed[part * PART_BYTES : stop] = noise(seed * 16 + part, stop - part * PART_BYTES)
    return bytes(changed)


@given(
    length=st.sampled_from([BLOCK_BYTES, BLOCK_BYTES, 1, PART_BYTES, PART_BYTES + 1, 5 * PART_BYTES - 7]),
    steps=st.lists(st.sets(st.integers(0, PARTS - 1), min_size=1, max_size=9), min_size=1, max_size=24),
    codec=st.sampled_from(list(Codec)),
)
@example(length=BLOCK_BYTES, steps=[{n} for n in range(12)], codec=Codec.NONE)
@settings(max_examples=60, deadline=None)
def test_a_block_opens_after_every_step_of_any_history_from_five_records_at_most(
    length: int, steps: list[set[int]], codec: Codec
) -> None:
    block = Block(noise(1, length), codec)
    for number, parts in enumerate(steps):
        block.back_up(rewrite(block.content, parts, number + 2))
        content, records = block.open()
        assert content == block.content
        assert records <= 5


def test_one_changed_part_is_all_that_travels() -> None:
    block = Block(noise(1))
    delta = block.back_up(rewrite(block.content, {7}, 2))
    assert delta is not None
    assert len(delta.record) < PART_BYTES + 300
    assert delta.packs == (pack(1),)
    assert list(delta.part_map) == [0] * 7 + [TRAVELS] + [0] * 8


def test_the_fifth_change_merges_the_smallest_of_the_older_deltas() -> None:
    block = Block(noise(1))
    for step, parts in enumerate([{0, 1}, {2, 3}, {4}, {6, 7}]):
        block.back_up(rewrite(block.content, parts, step + 2))
    delta = block.back_up(rewrite(block.content, {8, 9}, 9))
    assert delta is not None
    travels = [part for part in range(PARTS) if delta.part_map[part] == TRAVELS]
    assert travels == [4, 8, 9], "the parts of the smallest delta travel again"
    assert len({int(source.place["pack"]) for source in delta.sources()}) == 4
    assert block.open() == (block.content, 5)


@pytest.mark.parametrize(("parts", "is_delta"), [(7, True), (8, True), (9, False), (16, False)])
def test_a_delta_has_to_save_half_of_the_block(parts: int, is_delta: bool) -> None:
    block = Block(noise(1), Codec.NONE)
    made = block.attempt(rewrite(block.content, set(range(parts)), 2))
    # Eight parts are half of the block, and header and links more than half of its record.
    assert (made is not None) == (is_delta and parts < 8)


def test_a_block_that_shrinks_to_little_goes_whole_where_its_delta_is_not_half_of_that() -> None:
    text = b"the same sentence again and again. " * 2000
    block = Block(text[:BLOCK_BYTES])
    assert int(block.known["whole_bytes"][0]) < 1000
    assert block.attempt(rewrite(block.content, {3}, 2)) is None


def test_nothing_is_taken_from_a_pack_that_may_not_be_relied_on() -> None:
    block = Block(noise(1))
    block.back_up(rewrite(block.content, {0}, 2))
    del block.packs[1]
    assert block.attempt(rewrite(block.content, {5}, 3)) is None, "fifteen parts lie in the pack that is out"
    only_first = Block(noise(1))
    for step in range(4):
        only_first.back_up(rewrite(only_first.content, {step}, step + 2))
    del only_first.packs[3]
    delta = only_first.back_up(rewrite(only_first.content, {9}, 8))
    assert delta is not None
    assert pack(3) not in delta.packs
    assert [part for part in range(PARTS) if delta.part_map[part] == TRAVELS] == [1, 9], "what it held travels again"
    assert only_first.open()[0] == only_first.content


def batch(changes: list[bytes], codec: Codec) -> list[DeltaRecord | None]:
    """Make the deltas of blocks of noise in each of which one part is replaced, all at once."""
    blocks = [Block(noise(number), codec) for number in range(len(changes))]
    contents = [change + block.content[PART_BYTES:] for change, block in zip(changes, blocks, strict=True)]
    made = DeltaWriter(codec).make(
        [ref_of(SUBKEY, content) for content in contents],
        contents,
        part_digests([memoryview(content) for content in contents], SEED),
        np.frombuffer(b"".join(block.ref for block in blocks), np.uint8).reshape(-1, 48),
        np.concatenate([block.known for block in blocks]),
        np.concatenate([block.origins for block in blocks]),
        {1: pack(1)},
    )
    for content, delta in zip(contents, made, strict=True):
        assert delta is not None
        check_delta(ref_of(SUBKEY, content), delta, content)
    return made


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
def test_what_travels_is_compressed_where_that_saves_something_of_the_batch(codec: Codec) -> None:
    random, text = [noise(100 + number, PART_BYTES) for number in range(8)], b"text " * 819 + b"!"
    assert [parse_delta(each.record, "t").codec for each in batch(random, codec) if each] == [Codec.NONE] * 8
    used = [parse_delta(each.record, "t").codec for each in batch([*random[:7], text], codec) if each]
    assert used == [Codec.NONE] * 7 + [codec]
    plain = [parse_delta(each.record, "t").codec for each in batch([text] * 3, Codec.NONE) if each]
    assert plain == [Codec.NONE] * 3


def test_a_block_whose_parts_are_not_known_goes_whole() -> None:
    block = Block(noise(1))
    block.known = np.zeros(1, PART_ENTRY)
    assert block.attempt(rewrite(block.content, {1}, 2)) is None


def test_pack_keys_are_compared_to_the_last_bit() -> None:
    block = Block(noise(1))
    (key, name), *_ = block.packs.items()
    near = (1 << 63) + 1
    block.known["place"]["pack"] = near
    block.packs = {near + 1: name, key: name}
    assert block.attempt(rewrite(block.content, {1}, 2)) is None


def test_a_delta_that_does_not_open_again_ends_the_session() -> None:
    block = Block(noise(1))
    content = rewrite(block.content, {1}, 2)
    delta = block.attempt(content)
    assert delta is not None
    ref = ref_of(SUBKEY, content)
    check_delta(ref, delta, content)
    broken = bytearray(delta.record)
    broken[-1] ^= 1
    for wrong, of in ((DeltaRecord(bytes(broken), delta.packs, delta.origins), content), (delta, block.content)):
        with pytest.raises(SessionAborted, match="test its memory"):
            check_delta(ref, wrong, of)
