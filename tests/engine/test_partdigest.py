"""Digests of parts: xxh3_64 under a seed, as others compute it; nothing where a block has no part."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash

from engine.block import BATCH_BLOCKS, BLOCK_BYTES, PART_BYTES, PARTS
from engine.partdigest import part_digests

SEED = (1 << 64) - 59


def _contents(*lengths: int) -> list[memoryview]:
    generator = np.random.default_rng(7)
    return [memoryview(generator.bytes(length)) for length in lengths]


def test_every_part_has_the_digest_the_library_gives_it() -> None:
    contents = _contents(BLOCK_BYTES, BLOCK_BYTES, BLOCK_BYTES)
    found = part_digests(contents, SEED)
    assert found.shape == (3, PARTS)
    assert found.dtype == np.uint64
    for row, content in zip(found, contents, strict=True):
        parts = [content[start : start + PART_BYTES] for start in range(0, BLOCK_BYTES, PART_BYTES)]
        assert row.tolist() == [xxhash.xxh3_64_intdigest(part, SEED) for part in parts]


@pytest.mark.parametrize("length", [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, BLOCK_BYTES - 1])
def test_a_short_block_has_no_digests_beyond_its_end(length: int) -> None:
    whole, short = _contents(BLOCK_BYTES, length)
    found = part_digests([whole, short, whole], SEED)
    parts = [short[start : start + PART_BYTES] for start in range(0, length, PART_BYTES)]
    expected = [xxhash.xxh3_64_intdigest(part, SEED) for part in parts]
    assert found[1].tolist() == expected + [0] * (PARTS - len(expected))
    assert found[0].all()
    assert found[2].tolist() == found[0].tolist()


def test_another_seed_gives_other_digests() -> None:
    contents = _contents(BLOCK_BYTES)
    assert not (part_digests(contents, 0) == part_digests(contents, 1)).any()


def test_one_changed_byte_changes_the_digest_of_its_part_only() -> None:
    (content,) = _contents(BLOCK_BYTES)
    changed = bytearray(content)
    changed[5 * PART_BYTES] ^= 1
    different = part_digests([content], SEED) != part_digests([memoryview(changed)], SEED)
    assert np.flatnonzero(different).tolist() == [5]


def test_no_blocks_have_no_digests_and_a_batch_has_its_own() -> None:
    assert part_digests([], SEED).shape == (0, PARTS)
    assert part_digests(_contents(*[BLOCK_BYTES] * BATCH_BLOCKS), SEED).shape == (BATCH_BLOCKS, PARTS)
