"""A hostile neighbour: an enrolled system with valid keys of its own that puts what it likes into the vault."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio
import msgspec
import numpy as np
from blake3 import blake3

from adapters.compose import build_session, chosen_volumes
from adapters.config import load_config
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from engine.acks import PackAck
from engine.block import BLOCK_BYTES, Bytes, ids_from_bytes, ref_of
from engine.fragment import encode_fragment
from engine.names import FragmentName, PackName
from engine.pack import PACK_HEADER_BYTES, FinishedPack, PackBuilder, check_pack
from engine.pipeline.report import SessionReport
from engine.pipeline.session import Session
from engine.ports import ObjectStore
from engine.seal import Codec, Sealer
from engine.stage import Stage
from engine.vault.identity import Identity
from tests.scenario.machine import Machine

RECORD_BYTES = 1000  # what is claimed of records nobody has


def identity_of(machine: Machine) -> Identity:
    return files.load(load_config(machine.config).system.identity_file)


def blocks_of(path: Path) -> list[bytes]:
    """Return the distinct blocks of a volume that are not zero, in order."""
    data = path.read_bytes()
    pieces = dict.fromkeys(data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES))
    return [piece for piece in pieces if any(piece)]


@dataclass
class Mallory:
    """An enrolled system; what it makes is signed with its own key."""

    identity: Identity
    vault: Path

    def put(self, name: str, data: bytes) -> None:
        target = self.vault / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def id_of(self, block: bytes) -> bytes:
        return ref_of(self.identity.keys.blocks, block)[:16]

    def pack(self, blocks: Sequence[bytes], named: Sequence[bytes] | None = None) -> FinishedPack:
        """Return a pack of records of `blocks`; `named`: under the ids of these blocks instead of their own."""
        keys, sealer = self.identity.keys, Sealer(Codec.ZSTD, self.identity.keys.blocks)
        builder = PackBuilder(
            "data", keys, self.identity.system, secrets.token_bytes(16), self.identity.signer, 64 << 20
        )
        for block, claimed in zip(blocks, named or blocks, strict=True):
            record = sealer.seal(ref_of(keys.blocks, block), block)
            builder.add(self.id_of(claimed) + record[16:])
        return builder.finish()

    def claim(self, name: PackName, blocks: Sequence[bytes]) -> PackAck:
        """Return the lie that the pack `name` holds records of `blocks`."""
        count = len(blocks)
        offsets = PACK_HEADER_BYTES + RECORD_BYTES * np.arange(count, dtype=np.uint32)
        ids = ids_from_bytes(b"".join(map(self.id_of, blocks)))
        return PackAck(name, ids, offsets.astype("<u4"), np.full(count, RECORD_BYTES, "<u4"))

    def pack_name(self, blocks: Sequence[bytes], digest: bytes | None = None) -> PackName:
        """Return the name of a pack that nobody has, large enough for a claim of `blocks`."""
        size = PACK_HEADER_BYTES + RECORD_BYTES * len(blocks) + 4096
        return PackName("data", self.identity.system, digest or secrets.token_bytes(32), size)

    def publish(self, packs: Sequence[PackAck], writer: bytes | None = None, sequence: int = 1) -> str:
        """Put an index fragment of `packs`, in the name of `writer` (None: its own); return its name."""
        name = FragmentName(writer or self.identity.system, secrets.token_bytes(8), sequence)
        self.put(str(name), encode_fragment(name, packs, self.identity.keys, self.identity.signer))
        return str(name)


Hook = Callable[[str], Awaitable[None]]


class HookedStore(Stage):
    """A stage that calls `before` and `after` with the name of every object that is put."""

    def __init__(self, inner: ObjectStore, before: Hook | None = None, after: Hook | None = None) -> None:
        super().__init__(inner)
        self._before, self._after = before, after

    async def put(self, name: str, data: Bytes) -> None:
        if self._before is not None:
            await self._before(name)
        await self._inner.put(name, data)
        if self._after is not None:
            await self._after(name)


def hooked_backup(machine: Machine, *, before: Hook | None = None, after: Hook | None = None) -> SessionReport:
    """Run one session whose vault calls the hooks."""
    machine.write_config()
    config = load_config(machine.config)
    identity = files.load(config.system.identity_file)

    async def main() -> SessionReport:
        with StateDirectory.open(config.system.state_dir) as state:
            built = await build_session(config, identity, state, chosen_volumes(config, ()), full=False)
            setup = msgspec.structs.replace(built.setup, vault=HookedStore(built.setup.vault, before, after))
            return await Session(setup).run()

    return anyio.run(main)


def packs_in(store: Path, kind: str = "data", writer: bytes | None = None) -> list[Path]:
    """Return the packs of a folder store, of one writer or of all."""
    folder = store / kind / writer.hex() if writer is not None else store / kind
    return sorted(path for path in folder.rglob("*") if path.is_file())


def copies(store: Path, block_ids: set[bytes]) -> dict[bytes, int]:
    """Return how many records of each of these ids the store's whole packs hold."""
    count = dict.fromkeys(block_ids, 0)
    for path in packs_in(store):
        name = PackName.parse(path.relative_to(store).as_posix())
        assert name is not None
        data = path.read_bytes()
        assert blake3(data).digest() == name.hash
        for row in check_pack(name, data, None, None).ids:
            ident = row.tobytes()
            if ident in count:
                count[ident] += 1
    return count
