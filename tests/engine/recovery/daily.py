"""A vault of many days: blocks that lie as deltas over records of the days before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import anyio
import numpy as np

from engine.block import BLOCK_BYTES, DELTA_FLAG, PART_BYTES, PARTS, SOURCES_MAX, Bytes, Places, Refs, ref_of
from engine.delta import TRAVELS
from engine.names import PackName
from engine.pack import FinishedPack
from engine.ports import ObjectStore
from engine.recovery.blocksource import BlockSource
from engine.recovery.places import CACHE, VAULT, Place, Problems
from engine.recovery.places import Places as Stores
from engine.recovery.supply import Supply
from engine.seal import DELTA, Codec, Sealer
from tests.engine.fakes_delta import NOWHERE, SourceBlock, encode_delta, pieces
from tests.engine.fakes_packs import ALICE, Machine, Team
from tests.fakes import MemoryStore

TEAM = Team()
SUBKEY = TEAM.keys.blocks


@dataclass
class Block:
    """A block as the map has it: its content, its record, and where each part lies literally (a source a part)."""

    content: bytes
    ref: bytes
    place: np.void
    holders: list[SourceBlock] = field(default_factory=list)


@dataclass
class Daily:
    """`count` blocks in the vault, whole at first; `change` writes a day of deltas into packs of its own."""

    count: int
    codec: Codec = Codec.LZ4
    vault: MemoryStore = field(default_factory=MemoryStore)
    cache: MemoryStore = field(default_factory=MemoryStore)
    per_pack: int = 16
    packs: dict[int, PackName] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def __post_init__(self) -> None:
        self.writer = Machine(self.vault, TEAM)
        self.cache_writer = Machine(self.cache, TEAM)
        self.sealer = Sealer(self.codec, SUBKEY)

    async def fill(self) -> Daily:
        """Write the first day: random blocks, every fourth of them compressible, whole."""
        for number in range(self.count):
            content = self.random.bytes(BLOCK_BYTES if number % 4 else BLOCK_BYTES // 16) * (1 if number % 4 else 16)
            self.blocks.append(Block(content, ref_of(SUBKEY, content), NOWHERE))
        records = [self.sealer.seal(block.ref, block.content) for block in self.blocks]
        for block, place in zip(self.blocks, await self.put(records), strict=True):
            block.place = place
            block.holders = [SourceBlock(block.ref, place)] * PARTS
        return self

    async def put(
        self,
        records: Sequence[bytes],
        *,
        cache: bool = False,
        publish: bool = False,
        sources: Sequence[PackName] = (),
    ) -> list[np.void]:
        """Put records into packs of their own and return their places; `sources`: the packs their sources lie in."""
        machine = self.cache_writer if cache else self.writer
        places: list[np.void] = []
        for first in range(0, len(records), self.per_pack):
            pack = pack_of(records[first : first + self.per_pack], sources=sources)
            await machine.store.put_pack(pack)
            self.packs[pack.name.key] = pack.name
            places += list(pack.places())
        if publish:
            await machine.store.publish_index()
        return places

    async def change(self, numbers: Sequence[int], parts: int = 1) -> None:
        """Rewrite some parts of some blocks and send them as deltas."""
        records, whose = [], []
        for number in numbers:
            block = self.blocks[number]
            fresh = set(self.random.choice(PARTS, parts, replace=False).tolist())
            old = pieces(block.content)
            content = b"".join(self.random.bytes(PART_BYTES) if at in fresh else old[at] for at in range(PARTS))
            part_map, sources = plan(block.holders, fresh)
            records.append(encode_delta(SUBKEY, content, sources, part_map))
            whose.append((block, content, part_map))
        for (block, content, part_map), place in zip(whose, await self.put(records), strict=True):
            ref = ref_of(SUBKEY, content)
            own = SourceBlock(ref, place)
            block.holders = [own if part_map[at] == TRAVELS else block.holders[at] for at in range(PARTS)]
            block.content, block.ref, block.place = content, ref, place

    async def days(self, count: int, share: float = 0.16) -> Daily:
        """Write days that each change a part of a `share` of all blocks."""
        for _ in range(count):
            chosen = self.random.choice(self.count, max(1, int(self.count * share)), replace=False)
            await self.change(sorted(chosen.tolist()))
        return self

    @property
    def deltas(self) -> int:
        """How many blocks lie as deltas."""
        return sum(bool(int(block.place["length"]) & DELTA_FLAG) for block in self.blocks)

    async def give(self, vault: ObjectStore | None = None, *, cache: bool = False) -> Given:
        """Give all blocks, as a restore does with a window."""
        return await give(self.blocks, self.packs, vault or self.vault, self.cache if cache else None)


@dataclass
class Given:
    """What a source gave: contents by position, positions it could not give, batches as they came."""

    contents: dict[int, bytes]
    failed: list[int]
    problems: list[str]
    source: BlockSource
    batches: list[int]
    indexed: bool

    def check(self, blocks: Sequence[Block]) -> None:
        """Hold that every block was given exactly, or not at all and said so."""
        assert sorted([*self.contents, *self.failed]) == list(range(len(blocks)))
        assert all(content == blocks[at].content for at, content in self.contents.items())


async def give(
    blocks: Sequence[Block], packs: Mapping[int, PackName], vault: ObjectStore, cache: ObjectStore | None
) -> Given:
    """Give `blocks` from the vault, and from a cache if there is one, with fresh indexes."""
    problems = Problems()
    objects = {CACHE: cache, VAULT: vault} if cache is not None else {VAULT: vault}
    places = Stores([Place(name, f"memory:{name}", store) for name, store in objects.items()], problems)
    machines = {name: Machine(store, TEAM) for name, store in objects.items()}
    stores = {name: machine.store for name, machine in machines.items()}
    source = BlockSource(Supply(places, stores, TEAM.keys, anyio.CapacityLimiter(2)))
    contents: dict[int, bytes] = {}
    batches: list[int] = []

    def take(positions: Sequence[int], given: Sequence[Bytes]) -> None:
        assert not contents.keys() & set(positions)
        batches.append(sum(map(len, given)))
        contents.update(zip(positions, map(bytes, given), strict=True))

    refs: Refs = np.frombuffer(b"".join(block.ref for block in blocks), np.uint8).reshape(-1, 48)
    hints: Places = np.array([block.place for block in blocks], blocks[0].place.dtype)
    failed = await source.give(refs, hints, packs.get, take)
    indexed = bool(machines[VAULT].mirror.files)
    assert source.total_bytes == sum(map(len, contents.values()))
    return Given(contents, failed.tolist(), problems.listed(), source, batches, indexed)


def plan(holders: Sequence[SourceBlock], fresh: set[int]) -> tuple[list[int], list[SourceBlock]]:
    """Return the map and the sources of a delta: at most four, what the least useful ones hold travels as well."""
    taken: dict[bytes, list[int]] = {}
    for at in range(PARTS):
        if at not in fresh:
            taken.setdefault(holders[at].ref, []).append(at)
    chosen = sorted(taken, key=lambda ref: -len(taken[ref]))[:SOURCES_MAX]
    part_map = [TRAVELS] * PARTS
    for origin, ref in enumerate(chosen):
        for at in taken[ref]:
            part_map[at] = origin
    return part_map, [holders[taken[ref][0]] for ref in chosen]


def pack_of(records: Sequence[bytes], kind: str = "data", sources: Sequence[PackName] = ()) -> FinishedPack:
    """Return a pack of records; `sources`: the packs that the sources of its deltas lie in."""
    builder = TEAM.builder(ALICE, kind)
    for record in records:
        builder.add(record, sources if record[16] == DELTA else ())
    return builder.finish()
