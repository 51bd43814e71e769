"""What volumes of simulated machines hold, and how it changes."""

from __future__ import annotations

import random
from functools import cache
from typing import Final

from engine.block import BLOCK_BYTES, PART_BYTES, PARTS

BLOCKS_MAX: Final = 24


@cache
def pool(count: int = 10) -> list[bytes]:
    """Return blocks that any volume of any system may hold."""
    chance = random.Random(11)
    return [bytes(BLOCK_BYTES), *(chance.randbytes(BLOCK_BYTES) for _ in range(count))]


def some_block(chance: random.Random) -> bytes:
    """Return a block: zeros, one that others may have, one that compresses, or one nobody has."""
    kind = chance.random()
    if kind < 0.35:
        return chance.choice(pool())
    if kind < 0.5:
        return chance.randbytes(64) * (BLOCK_BYTES // 64)
    return chance.randbytes(BLOCK_BYTES)


def some_volume(chance: random.Random) -> bytes:
    """Return a volume of up to `BLOCKS_MAX` blocks, often with a short one at its end."""
    blocks = b"".join(some_block(chance) for _ in range(chance.randrange(1, BLOCKS_MAX)))
    return blocks + chance.choice((b"", chance.randbytes(777), bytes(PART_BYTES)))


def changed(content: bytes, before: bytes, chance: random.Random) -> bytes:
    """Return a volume with blocks and parts of blocks rewritten, some as they were `before`, or of another size."""
    out = bytearray(content)
    if chance.random() < 0.08:
        size = chance.randrange(BLOCKS_MAX * BLOCK_BYTES)
        out = out[:size] if size < len(out) else out + bytes(size - len(out))
    blocks = len(out) // BLOCK_BYTES
    for _ in range(chance.choice((0, 1, 2, 6)) if blocks else 0):
        at = chance.randrange(blocks) * BLOCK_BYTES
        old = before[at : at + BLOCK_BYTES]
        block = old if len(old) == BLOCK_BYTES and chance.random() < 0.3 else some_block(chance)
        out[at : at + BLOCK_BYTES] = block
    for _ in range(chance.choice((0, 2, 4, 8)) if blocks else 0):
        at = chance.randrange(blocks) * BLOCK_BYTES + chance.randrange(PARTS) * PART_BYTES
        data = chance.randbytes(chance.choice((1, 100, PART_BYTES)))
        out[at : at + len(data)] = data
    return bytes(out)
