"""Sealing and opening whole records."""

from __future__ import annotations

import random
import struct
import threading

import lz4.block  # type: ignore[import-untyped]
import pytest
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import BLOCK_BYTES, ref_of
from engine.errors import SessionAborted, StoreCorrupt
from engine.seal import Codec, Sealer, build_header, open_whole, parse_header
from engine.subkeys import parts_key

SUBKEY = b"k" * 32
NOISE = random.Random(1).randbytes(BLOCK_BYTES)
TEXT = (b"a line of text that repeats\n" * 3000)[:BLOCK_BYTES]

contents = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.integers(1, BLOCK_BYTES).map(lambda length: NOISE[:length]),
    st.integers(1, BLOCK_BYTES).map(lambda length: TEXT[:length]),
)


def seal(content: bytes, codec: Codec = Codec.ZSTD) -> tuple[bytes, bytes]:
    ref = ref_of(SUBKEY, content)
    return ref, Sealer(codec, SUBKEY).seal(ref, content)


def seal_packed(codec: Codec, packed: bytes, plain_length: int, content: bytes = b"x") -> tuple[bytes, bytes]:
    """Return a record, sealed as it should be, whose compressed content is `packed`."""
    ref = ref_of(SUBKEY, content)
    header = build_header(ref[:16], 0, codec, plain_length, len(packed) + 16, b"n" * 12)
    return ref, header + AESGCM(parts_key(ref[16:])).encrypt(b"n" * 12, packed, header)


@given(contents, st.sampled_from(Codec))
@settings(max_examples=60, deadline=None)
def test_what_is_sealed_opens_to_the_same_bytes(content: bytes, codec: Codec) -> None:
    ref, record = seal(content, codec)
    assert open_whole(ref, record, SUBKEY, "pack") == content
    assert len(record) <= len(content) + 56


def test_a_record_is_laid_out_as_the_format_says() -> None:
    ref, record = seal(NOISE[:5000], Codec.LZ4)
    ident, kind, codec, flags, plain, body, nonce = struct.unpack_from("<16sBBHII12s", record)
    assert (ident, kind, codec, flags, plain, body) == (ref[:16], 0, 0, 0, 5000, 5016)
    assert AESGCM(parts_key(ref[16:])).decrypt(nonce, record[40:], record[:40]) == NOISE[:5000]
    _, record = seal(TEXT, Codec.LZ4)
    assert record[17] == 2
    assert struct.unpack_from("<I", record, 24)[0] == len(record) - 40


def test_two_seals_of_one_block_share_no_nonce() -> None:
    assert seal(TEXT)[1][28:40] != seal(TEXT)[1][28:40]


@pytest.mark.parametrize("position", [*range(44), -20, -1])
def test_any_flipped_bit_is_noticed(position: int) -> None:
    ref, record = seal(TEXT[:1000])
    for bit in range(8):
        damaged = bytearray(record)
        damaged[position] ^= 1 << bit
        with pytest.raises(StoreCorrupt, match="pack"):
            open_whole(ref, bytes(damaged), SUBKEY, "pack")


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_cut_or_grown_record_is_noticed(data: st.DataObject) -> None:
    ref, record = seal(TEXT[:1000])
    cut = data.draw(st.integers(0, len(record) - 1))
    for damaged in (record[:cut], record + record[: cut + 1]):
        with pytest.raises(StoreCorrupt):
            open_whole(ref, damaged, SUBKEY, "pack")


@given(st.binary(max_size=120))
@settings(max_examples=300, deadline=None)
def test_random_bytes_are_a_header_within_bounds_or_refused(data: bytes) -> None:
    try:
        header = parse_header(data, "pack")
    except StoreCorrupt:
        return
    assert 0 < header.plain_length <= BLOCK_BYTES + 2
    assert 16 < header.body_length < 67000


def test_another_key_id_or_content_does_not_open() -> None:
    ref, record = seal(TEXT)
    with pytest.raises(StoreCorrupt, match="seal does not open"):
        open_whole(ref[:16] + bytes(32), record, SUBKEY, "pack")
    with pytest.raises(StoreCorrupt, match="another record"):
        open_whole(bytes(16) + ref[16:], record, SUBKEY, "pack")


def test_garbage_sealed_under_a_valid_ref_is_noticed() -> None:
    ref = ref_of(SUBKEY, TEXT)
    forged = Sealer(Codec.ZSTD, SUBKEY).seal(ref, NOISE)
    with pytest.raises(StoreCorrupt, match="does not hold what its name says"):
        open_whole(ref, forged, SUBKEY, "pack")


@pytest.mark.parametrize("claimed", [1 << 30, 65537, 99, 0])
def test_a_frame_that_claims_another_length_is_refused_before_memory_is_taken(claimed: int) -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(100))
    content = zstandard.ZstdCompressor().compressobj(size=claimed)
    head = content.compress(b"") + content.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) if claimed else b"\x28\xb5\x2f\xfd"
    ref, record = seal_packed(Codec.ZSTD, head + frame[5:], 100)
    with pytest.raises(StoreCorrupt):
        open_whole(ref, record, SUBKEY, "pack")


@pytest.mark.parametrize(
    ("codec", "packed"),
    [
        (Codec.ZSTD, zstandard.ZstdCompressor().compress(bytes(40000))),
        (Codec.ZSTD, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))),
        (Codec.ZSTD, zstandard.ZstdCompressor().compress(bytes(100)) + b"more"),
        (Codec.ZSTD, b"no frame at all"),
        (Codec.LZ4, lz4.block.compress(bytes(40000), store_size=False)),
        (Codec.LZ4, lz4.block.compress(bytes(99), store_size=False)),
        (Codec.LZ4, b"\xff\xff\xff\xff"),
    ],
)
def test_content_that_does_not_decompress_to_its_length_is_refused(codec: Codec, packed: bytes) -> None:
    ref, record = seal_packed(codec, packed, 100)
    if len(packed) > 100:
        ref, record = seal_packed(codec, packed, len(packed))
    with pytest.raises(StoreCorrupt):
        open_whole(ref, record, SUBKEY, "pack")


@given(st.binary(min_size=1, max_size=200), st.sampled_from([Codec.ZSTD, Codec.LZ4]))
@settings(max_examples=200, deadline=None)
def test_any_compressed_bytes_under_a_good_seal_are_refused_or_right(packed: bytes, codec: Codec) -> None:
    ref, record = seal_packed(codec, packed, max(200, len(packed)))
    with pytest.raises(StoreCorrupt):
        open_whole(ref, record, SUBKEY, "pack")


def test_compression_is_given_up_in_a_batch_that_does_not_shrink_and_taken_up_again() -> None:
    batch = [NOISE, NOISE[1:], NOISE[2:], TEXT, TEXT[1:], NOISE[3:]]
    refs = [ref_of(SUBKEY, content) for content in batch]
    records = Sealer(Codec.ZSTD, SUBKEY).seal_batch(refs, batch)
    assert [record[17] for record in records] == [0, 0, 0, 1, 1, 0]
    assert [open_whole(*pair, SUBKEY, "pack") for pair in zip(refs, records, strict=True)] == batch


def test_a_block_noisy_in_its_middle_is_stored_once_the_batch_is_known_to_be_noise() -> None:
    mixed = TEXT[:20000] + NOISE[:20000] + TEXT[:20000]
    assert len(seal(mixed)[1]) < len(mixed)
    batch = [NOISE, NOISE[1:], mixed]
    records = Sealer(Codec.ZSTD, SUBKEY).seal_batch([ref_of(SUBKEY, content) for content in batch], batch)
    assert records[2][17] == 0


def test_savings_below_three_percent_are_not_taken() -> None:
    barely = NOISE[: BLOCK_BYTES * 98 // 100] + bytes(BLOCK_BYTES * 2 // 100)
    assert seal(barely)[1][17] == 0
    well = NOISE[: BLOCK_BYTES * 95 // 100] + bytes(BLOCK_BYTES * 5 // 100)
    assert seal(well)[1][17] == 1


def test_views_of_a_buffer_seal_like_bytes() -> None:
    buffer = memoryview(bytearray(TEXT))[100:5000]
    ref = ref_of(SUBKEY, buffer)
    assert open_whole(ref, Sealer(Codec.LZ4, SUBKEY).seal(ref, buffer), SUBKEY, "pack") == TEXT[100:5000]


def test_the_check_after_sealing_names_broken_memory() -> None:
    ref, record = seal(TEXT)
    sealer = Sealer(Codec.ZSTD, SUBKEY)
    sealer.check(ref, record, TEXT)
    for damaged, content in ((record[:-1] + bytes([record[-1] ^ 1]), TEXT), (record, NOISE), (record[:30], TEXT)):
        with pytest.raises(SessionAborted, match="memory"):
            sealer.check(ref, damaged, content)


def test_threads_share_a_sealer() -> None:
    sealer = Sealer(Codec.ZSTD, SUBKEY)
    failures: list[int] = []

    def work(seed: int) -> None:
        noise = random.Random(seed)
        batch = [TEXT[: noise.randint(1, BLOCK_BYTES)] + noise.randbytes(5) for _ in range(40)]
        batch = [content[:BLOCK_BYTES] for content in batch]
        refs = [ref_of(SUBKEY, content) for content in batch]
        records = sealer.seal_batch(refs, batch)
        if [open_whole(*pair, SUBKEY, "pack") for pair in zip(refs, records, strict=True)] != batch:
            failures.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
