"""A vault of page packs in memory, and block maps to fill it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engine.block import PLACE, Ids, Places, Refs
from engine.errors import ObjectMissing
from engine.names import PackName
from engine.pack import FinishedPack, PackBuilder
from engine.packtable import PackRows, rows_of
from engine.page import Blocks
from engine.pagestore import PageReader, PageWriter
from engine.root import RunDescriptor
from engine.runs import RunChunk, RunReader, write_run
from engine.seal import Codec, Sealer
from engine.subkeys import DomainKeys

WRITER = b"w" * 16


@dataclass
class PageVault:
    """Packs by name, and an index of them; `fetched` lists (pack, ranges) of every read, `put` what was put."""

    pack_bytes: int = 1 << 20
    packs: dict[PackName, bytes] = field(default_factory=dict)
    index: dict[bytes, tuple[PackName, int, int]] = field(default_factory=dict)
    fetched: list[tuple[PackName, list[tuple[int, int]]]] = field(default_factory=list)
    keys: DomainKeys = field(default_factory=lambda: DomainKeys.of(b"d" * 16, b"s" * 32))

    def name(self, key: int) -> PackName | None:
        return next((name for name in self.packs if name.key == key), None)

    async def put(self, pack: FinishedPack) -> None:
        self.packs[pack.name] = bytes(pack.data)
        for ident, offset, length in zip(pack.ids, pack.offsets, pack.lengths, strict=True):
            self.index[ident.tobytes()] = pack.name, int(offset), int(length)

    def lookup(self, ids: Ids) -> Places:
        places = np.zeros(len(ids), PLACE)
        for position, ident in enumerate(ids):
            if found := self.index.get(ident.tobytes()):
                places[position] = found[0].key, found[1], found[2]
        return places

    async def fetch(self, name: PackName, ranges: list[tuple[int, int]]) -> list[bytes]:
        self.fetched.append((name, ranges))
        if name not in self.packs:
            raise ObjectMissing(str(name))
        return [self.packs[name][offset : offset + length] for offset, length in ranges]

    async def by_id(self, ident: bytes) -> bytes | None:
        if ident not in self.index or self.index[ident][0] not in self.packs:
            return None
        name, offset, length = self.index[ident]
        return self.packs[name][offset : offset + length]

    def builder(self) -> PackBuilder:
        return PackBuilder("page", self.keys, WRITER, b"n" * 16, lambda message: bytes(64), self.pack_bytes)

    def writer(self, share: bool = True) -> PageWriter:
        nothing: Callable[[Ids], Places] = lambda ids: np.zeros(len(ids), PLACE)  # noqa: E731
        sealer = Sealer(Codec.ZSTD, self.keys.pages)
        return PageWriter(self.builder, self.put, self.keys.pages, sealer, self.lookup if share else nothing, self.name)

    def reader(self, indexed: bool = True, cache_bytes: int = 8 << 20) -> PageReader:
        """A reader that knows the index, or one that knows nothing but what the pages say."""
        if indexed:
            return PageReader(self.fetch, self.name, self.by_id, self.keys.pages, cache_bytes)
        return PageReader(self.fetch, lambda key: None, None, self.keys.pages, cache_bytes)

    async def write(self, *chunks: RunChunk, base: bool = False, share: bool = True) -> Run:
        addresses: list[bytes] = []

        def seal(run: bytes, address: bytes) -> bytes:
            addresses.append(address)
            return run[:1] * 1200

        descriptor = await write_run(
            self.writer(share), chunks, base=base, packs=lambda: data_packs(*chunks), seal_envelope=seal
        )
        return Run(descriptor, addresses[0])


@dataclass(frozen=True)
class Run:
    descriptor: RunDescriptor
    key_address: bytes

    def read(self, vault: PageVault, indexed: bool = False) -> RunReader:
        return RunReader(vault.reader(indexed), self.descriptor, self.key_address)


def data_pack(number: int) -> PackName:
    digest = np.random.default_rng(number).bytes(32)
    return PackName("data", WRITER, digest, 16 << 20)


def data_packs(*chunks: RunChunk) -> PackRows:
    known = {data_pack(number).key: data_pack(number) for number in range(8)}
    return rows_of(known[int(key)] for chunk in chunks for key in np.unique(chunk.places["pack"]))


def entries(blocks: Blocks, seed: int) -> tuple[Refs, Places]:
    """Random refs for `blocks`, in records of random lengths that lie one after the other in two packs."""
    random = np.random.default_rng((seed, len(blocks)))
    refs = random.integers(0, 256, (len(blocks), 48), np.uint8)
    places = np.empty(len(blocks), PLACE)
    places["length"] = random.integers(57, 60000, len(blocks))
    half = len(blocks) // 2
    for pack, part in enumerate((places[:half], places[half:])):
        part["pack"] = data_pack((seed + pack) % 8).key
        part["offset"] = 64 + np.cumsum(part["length"]) - part["length"]
    return refs, places


def chunk(blocks: list[int] | Blocks, seed: int = 0, zeros: list[tuple[int, int]] | None = None) -> RunChunk:
    numbers = np.array(blocks, np.uint64)
    extents = np.array(zeros or [], np.uint64).reshape(-1, 2)
    return RunChunk(numbers, *entries(numbers, seed), extents[:, 0], extents[:, 1])
