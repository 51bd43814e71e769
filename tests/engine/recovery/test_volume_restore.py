"""Restores give the exact bytes, from the nearest place, or say which blocks they could not give."""

from __future__ import annotations

import numpy as np
import pytest

from engine.block import BLOCK_BYTES
from tests.engine.recovery.build import World, restore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def blocks(*seeds: int | None, tail: int = 0) -> bytes:
    """Return a volume of one block per seed (None: zeros) and a short last block of `tail` bytes."""
    content = b"".join(
        bytes(BLOCK_BYTES) if seed is None else np.random.default_rng(seed).bytes(BLOCK_BYTES) for seed in seeds
    )
    return content + np.random.default_rng(len(seeds)).bytes(tail)


async def test_a_volume_comes_back_bit_for_bit_from_the_cache_with_zeros_repeats_and_a_short_end() -> None:
    world = World()
    system = world.system()
    content = blocks(1, None, 2, 1, None, 3, tail=777)
    await world.backup(system, {"data": content})
    done = await restore(world)
    assert done.content == content
    assert done.report.exit_code == 0
    assert done.report.problems == []
    assert done.report.holes == []
    assert (done.report.from_cache, done.report.from_vault) == (3 * BLOCK_BYTES + 777, 0)


async def test_a_vault_without_a_cache_is_read_by_places_alone() -> None:
    world = World(cache=False)
    system = world.system()
    content = blocks(*range(12), tail=1)
    await world.backup(system, {"data": content})
    done = await restore(world)
    assert done.content == content
    assert done.report.from_vault == len(content)
    assert done.mirrors["vault"].files == {}
