"""What tests of packs and indexes stand on: a domain with several systems, sealed blocks, a mirror in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from engine.acks import PackAck
from engine.block import Ids, ids_from_bytes, ref_of
from engine.columns import U32
from engine.errors import StateCorrupt
from engine.index import PackIndex
from engine.names import PackName
from engine.opener import Opener, Resolve
from engine.pack import FinishedPack, PackBuilder
from engine.packstore import PackStore
from engine.ports import ObjectStore
from engine.seal import Codec, Sealer
from engine.subkeys import DomainKeys

ALICE = b"a" * 16
BOB = b"b" * 16
SESSION = b"s" * 16


def fake_signature(writer: bytes, message: bytes) -> bytes:
    return blake3(writer + message).digest(64)


@dataclass
class Team:
    """A domain and its members; `verify` knows members' signatures, strangers' never."""

    keys: DomainKeys = field(default_factory=lambda: DomainKeys.of(b"d" * 16, b"secret" * 6))
    members: list[bytes] = field(default_factory=lambda: [ALICE, BOB])
    verified: int = 0

    def systems(self) -> list[bytes]:
        return self.members

    def verify(self, writer: bytes, message: bytes, signature: bytes) -> bool:
        self.verified += 1
        return writer in self.members and signature == fake_signature(writer, message)

    def signer(self, writer: bytes) -> Callable[[bytes], bytes]:
        return lambda message: fake_signature(writer, message)

    def builder(self, writer: bytes = ALICE, kind: str = "data") -> PackBuilder:
        return PackBuilder(kind, self.keys, writer, SESSION, self.signer(writer), 4 << 20)

    def pack(self, contents: Sequence[bytes], writer: bytes = ALICE, kind: str = "data") -> FinishedPack:
        subkey = self.keys.blocks if kind == "data" else self.keys.pages
        sealer = Sealer(Codec.ZSTD, subkey)
        builder = self.builder(writer, kind)
        for content in contents:
            builder.add(sealer.seal(ref_of(subkey, content), content))
        return builder.finish()

    def ref(self, content: bytes) -> bytes:
        return ref_of(self.keys.blocks, content)


def ids(contents: Sequence[bytes], team: Team) -> Ids:
    return ids_from_bytes(b"".join(team.ref(content)[:16] for content in contents))


def ack(
    writer: bytes, seed: int, ids: Ids, *, delta: Sequence[int] = (), size: int = 1 << 20, record_bytes: int = 100
) -> PackAck:
    """Return a pack that lists `ids`, without the trouble of making it."""
    name = PackName("data", writer, blake3(seed.to_bytes(8, "little")).digest(), size)
    lengths = np.full(len(ids), record_bytes, U32)
    lengths[list(delta)] |= 1 << 31
    return PackAck(name, ids, (64 + record_bytes * np.arange(len(ids))).astype(U32), lengths)


def random_ids(generator: np.random.Generator, count: int) -> Ids:
    return generator.integers(0, 1 << 64, (count, 2), dtype=np.uint64)


class MemoryMirror:
    """MirrorFiles in memory."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def names(self) -> list[str]:
        return sorted(self.files)

    def open(self, name: str) -> memoryview:
        if name not in self.files:
            raise StateCorrupt(f"no file {name}")
        return memoryview(self.files[name])

    def create(self, name: str, size: int) -> memoryview:
        assert name not in self.files
        return memoryview(bytearray(size))

    def publish(self, name: str, data: memoryview | bytes) -> None:
        self.files[name] = bytes(data)

    def remove(self, name: str) -> None:
        self.files.pop(name, None)


class MemoryAcks:
    """AckLog in memory."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []

    def append(self, entry: bytes) -> None:
        self.entries.append(entry)

    def read(self) -> list[bytes]:
        return list(self.entries)

    def clear(self) -> None:
        self.entries.clear()


@dataclass
class Machine:
    """One system's pack store over `objects`; `restart` is what the next session sees."""

    objects: ObjectStore
    team: Team
    writer: bytes = ALICE
    incarnation: bytes = b"i" * 8
    own_only: bool = False
    index_max: int = 1 << 30
    durable_puts: bool = False
    trimmed: bool = False
    mirror: MemoryMirror = field(default_factory=MemoryMirror)
    acks: MemoryAcks = field(default_factory=MemoryAcks)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> PackStore:
        self.index = PackIndex(own_only=self.own_only)
        self.store = PackStore(
            self.objects, self.index, self.mirror, self.acks, self.team.keys, self.team, self.writer,
            self.incarnation, self.team.signer(self.writer), "vault", b"v" * 16, index_max=self.index_max,
            durable_puts=self.durable_puts, trimmed=self.trimmed,
        )  # fmt: skip
        return self.store

    async def open_block(self, ref: bytes, place: np.void | None = None, resolve: Resolve | None = None) -> bytes:
        return await Opener(self.index, self.store.read_records, self.team.keys).open(ref, place, resolve)
