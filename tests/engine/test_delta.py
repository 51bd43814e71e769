"""Reading deltas: taken apart, opened, put together, refused."""

from __future__ import annotations

import random

import lz4.block  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import BLOCK_BYTES, PART_BYTES, PARTS, ref_of
from engine.delta import (
    NO_PART,
    TRAVELS,
    Parts,
    Source,
    assemble,
    has_all,
    open_links,
    open_parts,
    open_source,
    parse_delta,
    put_together,
)
from engine.errors import StoreCorrupt
from engine.seal import Codec, Sealer, build_header, open_whole, parse_header, verify_ref
from engine.subkeys import record_keys
from tests.engine.fakes_delta import NOWHERE, SourceBlock, encode_delta, map_of, pieces, seal_whole

SUBKEY = b"k" * 32
OLD = random.Random(1).randbytes(BLOCK_BYTES)
NEW = random.Random(2).randbytes(BLOCK_BYTES)


def mixed(origins: dict[int, int], length: int = BLOCK_BYTES) -> bytes:
    """Return a block that has the parts in `origins` in common with OLD."""
    return b"".join(
        (OLD if number in origins else NEW)[number * PART_BYTES : (number + 1) * PART_BYTES] for number in range(PARTS)
    )[:length]


def open_delta(ref: bytes, record: bytes, sources: dict[bytes, bytes]) -> bytes:
    """Open a delta whose sources' records are at hand, by id."""
    delta = parse_delta(record, "pack")
    parts_key, links_key = record_keys(ref[16:])
    named, part_map = open_links(delta, links_key, "pack")
    own = open_parts(delta, parts_key, "pack")
    taken = {}
    for position, source in enumerate(named):
        taken[position] = open_source(source, sources[source.id], "pack")
        if not has_all(taken[position], part_map, position, delta.block_length):
            raise StoreCorrupt("pack", "a source lacks a part")
    content = assemble(delta, part_map, own, taken, "pack")
    verify_ref(ref, content, SUBKEY, "pack")
    return content


def whole(content: bytes) -> tuple[bytes, bytes]:
    ref = ref_of(SUBKEY, content)
    return ref, seal_whole(SUBKEY, content)


@given(st.integers(1, BLOCK_BYTES), st.sets(st.integers(0, 15), min_size=1))
@settings(max_examples=60, deadline=None)
def test_a_delta_opens_to_its_block(length: int, numbers: set[int]) -> None:
    source_ref, source = whole(OLD[:length])
    origins = {number: 0 for number in numbers if number * PART_BYTES < length}
    content = mixed(origins, length)
    ref = ref_of(SUBKEY, content)
    record = encode_delta(SUBKEY, content, [SourceBlock(source_ref)], map_of(content, origins))
    assert open_delta(ref, record, {source_ref[:16]: source}) == content


def test_four_sources_whole_or_delta_give_a_block() -> None:
    rng = random.Random(3)
    generations = [OLD]
    refs, records = [ref_of(SUBKEY, OLD)], [seal_whole(SUBKEY, OLD)]
    for position in range(3):
        # Each delta takes all but one part from the first block, and holds that one itself.
        parts = pieces(OLD)
        parts[position] = rng.randbytes(PART_BYTES)
        content = b"".join(parts)
        origins = {number: 0 for number in range(PARTS) if number != position}
        records.append(encode_delta(SUBKEY, content, [SourceBlock(refs[0])], map_of(content, origins)))
        refs.append(ref_of(SUBKEY, content))
        generations.append(content)
    parts = [pieces(generations[1])[0], pieces(generations[2])[1], pieces(generations[3])[2], *pieces(OLD)[3:15]]
    parts.append(rng.randbytes(PART_BYTES))
    content = b"".join(parts)
    origins = {0: 1, 1: 2, 2: 3} | dict.fromkeys(range(3, 15), 0)
    record = encode_delta(SUBKEY, content, [SourceBlock(ref) for ref in refs], map_of(content, origins))
    by_id = {ref[:16]: each for ref, each in zip(refs, records, strict=True)}
    assert open_delta(ref_of(SUBKEY, content), record, by_id) == content


def test_a_delta_source_gives_only_what_travelled_in_it() -> None:
    ref_old, _ = whole(OLD)
    content = mixed(dict.fromkeys(range(1, 16), 0))
    record = encode_delta(SUBKEY, content, [SourceBlock(ref_old)], map_of(content, dict.fromkeys(range(1, 16), 0)))
    ref = ref_of(SUBKEY, content)
    parts = open_source(Source(ref[:16], record_keys(ref[16:])[0], NOWHERE), record, "pack")
    assert list(parts.by_number) == [0]
    assert has_all(parts, bytes([0]) + bytes([255] * 15), 0, BLOCK_BYTES)
    assert not has_all(parts, bytes([0, 0]) + bytes([255] * 14), 0, BLOCK_BYTES)


def example() -> tuple[bytes, bytes, bytes, dict[bytes, bytes]]:
    source_ref, source = whole(OLD)
    origins = dict.fromkeys(range(1, 16), 0)
    content = mixed(origins)
    record = encode_delta(SUBKEY, content, [SourceBlock(source_ref)], map_of(content, origins))
    return ref_of(SUBKEY, content), record, content, {source_ref[:16]: source}


@pytest.mark.parametrize("position", [*range(170), -1, -4000])
def test_any_flipped_bit_of_a_delta_is_noticed(position: int) -> None:
    ref, record, _, sources = example()
    for bit in range(8):
        damaged = bytearray(record)
        damaged[position] ^= 1 << bit
        with pytest.raises((StoreCorrupt, KeyError)):
            open_delta(ref, bytes(damaged), sources)


@given(st.integers(0, 4400))
@settings(max_examples=100, deadline=None)
def test_a_cut_or_grown_delta_is_noticed(cut: int) -> None:
    ref, record, _, sources = example()
    for damaged in (record[: cut % len(record)], record + record[: cut + 1]):
        with pytest.raises(StoreCorrupt):
            open_delta(ref, damaged, sources)


@given(st.binary(max_size=300), st.integers(0, 255), st.integers(0, 70000), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_taken_apart_within_bounds_or_refused(
    data: bytes, codec: int, plain: int, sources: int
) -> None:
    body = data[:4] + bytes([sources, 0, 0, 0]) + data[4:]
    head = bytes(16) + bytes([1, codec % 4, 0, 0]) + plain.to_bytes(4, "little") + len(body).to_bytes(4, "little")
    for record in (data, head + bytes(12) + body):
        try:
            delta = parse_delta(record, "pack")
        except StoreCorrupt:
            continue
        with pytest.raises(StoreCorrupt):
            open_links(delta, bytes(32), "pack")
        with pytest.raises(StoreCorrupt):
            open_parts(delta, bytes(32), "pack")


@pytest.mark.parametrize(
    "part_map",
    [
        [1] + [255] * 15,
        [254] + [255] * 15,
        [253] + [255] * 15,
        [4] + [255] * 15,
    ],
)
def test_a_map_that_names_what_is_not_there_is_refused(part_map: list[int]) -> None:
    source_ref, source = whole(OLD)
    record = encode_delta(SUBKEY, NEW, [SourceBlock(source_ref)], part_map, bitmap=0xFFFF ^ 1)
    with pytest.raises(StoreCorrupt):
        open_delta(ref_of(SUBKEY, NEW), record, {source_ref[:16]: source})


def test_well_sealed_lies_are_refused() -> None:
    source_ref, source = whole(OLD)
    sources, at_hand = [SourceBlock(source_ref)], {source_ref[:16]: source}
    content = mixed({1: 0})
    ref = ref_of(SUBKEY, content)
    good = map_of(content, {1: 0})
    short = map_of(content[:5000], {1: 0})
    lies = [
        encode_delta(SUBKEY, content, sources, good, bitmap=0xFFFF),
        encode_delta(SUBKEY, content, sources, good, bitmap=0x7FFD),
        encode_delta(SUBKEY, content, sources, good, block_length=BLOCK_BYTES - 1),
        encode_delta(SUBKEY, content, sources, good, block_length=0),
        encode_delta(SUBKEY, content, sources, good, block_length=BLOCK_BYTES + 1),
        encode_delta(SUBKEY, content, [], [255] * 16),
        encode_delta(SUBKEY, content, sources * 5, good),
        encode_delta(SUBKEY, content[:5000], sources, short, ref=ref, block_length=5001),
        encode_delta(SUBKEY, content[:5000], sources, short, ref=ref),
        encode_delta(SUBKEY, OLD, sources, map_of(OLD, {1: 0}), ref=ref),
        encode_delta(SUBKEY, content, [SourceBlock(source_ref[:16] + bytes(32))], good),
    ]
    for record in lies:
        with pytest.raises(StoreCorrupt):
            open_delta(ref, record, at_hand)


def test_the_wrong_source_or_kind_is_refused() -> None:
    ref, record, content, _ = example()
    other = whole(NEW)[1]
    with pytest.raises(StoreCorrupt, match="another record"):
        open_source(Source(ref[:16], record_keys(ref[16:])[0], NOWHERE), other, "pack")
    with pytest.raises(StoreCorrupt, match="not one delta"):
        parse_delta(other, "pack")
    with pytest.raises(StoreCorrupt, match="not one whole"):
        open_whole(ref, record, SUBKEY, "pack")
    short_ref, short = whole(OLD[:100])
    delta = encode_delta(SUBKEY, content, [SourceBlock(short_ref)], map_of(content, {1: 0}))
    with pytest.raises(StoreCorrupt):
        open_delta(ref, delta, {short_ref[:16]: short})


@pytest.mark.parametrize("codec", list(Codec))
def test_a_whole_source_of_any_codec_becomes_the_block_only_if_nothing_else_needs_it(codec: Codec) -> None:
    old = (OLD[:2000] + bytes(6192)) * 8
    ref_old = ref_of(SUBKEY, old)
    source = Sealer(codec, SUBKEY).seal(ref_old, old)
    assert (parse_header(source, "").codec is codec) == (codec is not Codec.NONE or len(source) > BLOCK_BYTES)
    content = NEW[:PART_BYTES] + old[PART_BYTES:]
    record = encode_delta(
        SUBKEY, content, [SourceBlock(ref_old)], map_of(content, dict.fromkeys(range(1, 16), 0))
    )  # fmt: skip
    delta, ref = parse_delta(record, "pack"), ref_of(SUBKEY, content)
    key, links_key = record_keys(ref[16:])
    (named,), part_map = open_links(delta, links_key, "pack")
    own = open_parts(delta, key, "pack")
    taken = {0: open_source(named, source, "pack")}
    assert put_together(delta, part_map, own, taken, "pack") == content
    assert taken[0].content == old
    assert put_together(delta, part_map, own, taken, "pack", spent=[0]) is taken[0].content
    assert taken[0].content == content


@pytest.mark.parametrize("codec", list(Codec))
def test_a_damaged_whole_source_of_any_codec_is_refused(codec: Codec) -> None:
    old = (OLD[:2000] + bytes(6192)) * 8
    source = bytearray(Sealer(codec, SUBKEY).seal(ref_of(SUBKEY, old), old))
    ref = ref_of(SUBKEY, old)
    for at in (18, 20, 24, 30, 41, -1):
        damaged = bytearray(source)
        damaged[at] ^= 1
        with pytest.raises(StoreCorrupt):
            open_source(Source(ref[:16], record_keys(ref[16:])[0], NOWHERE), bytes(damaged), "pack")


@pytest.mark.parametrize("codec", [Codec.LZ4, Codec.ZSTD])
def test_a_well_sealed_source_whose_content_does_not_decompress_is_refused(codec: Codec) -> None:
    ref = ref_of(SUBKEY, OLD)
    key = record_keys(ref[16:])[0]
    for packed in (OLD[:100], lz4.block.compress(bytes(5000), store_size=False)):
        header = build_header(ref[:16], 0, codec, 6000, len(packed) + 16, bytes(12))
        record = header + AESGCM(key).encrypt(bytes(12), packed, header)
        with pytest.raises(StoreCorrupt, match=r"decompress|holds|claims"):
            open_source(Source(ref[:16], key, NOWHERE), record, "pack")


def test_assembling_needs_every_part() -> None:
    _, record, content, _ = example()
    delta = parse_delta(record, "pack")
    part_map = bytes(map_of(content, dict.fromkeys(range(1, 16), 0)))
    own = open_parts(delta, record_keys(ref_of(SUBKEY, content)[16:])[0], "pack")
    with pytest.raises(StoreCorrupt, match="does not hold"):
        assemble(delta, part_map, own, {0: Parts({})}, "pack")
    assert (TRAVELS, NO_PART) == (255, 254)
