"""What filling in takes: memory that does not grow with what is lost, and few requests for a damaged pack."""

from __future__ import annotations

import secrets
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adapters.state.directory import StateDirectory
from engine.block import PLACE, Bytes, Ids, Places
from engine.names import PackName
from engine.packtable import rows_of
from engine.pagestore import CACHE_BYTES, PageWriter
from engine.pipeline.filling import Filled
from engine.recovery.places import SPOOL, VAULT
from engine.root import Root, VolumePoint, open_root
from engine.runbuild import RunChunk
from engine.runs import write_run
from engine.seal import Codec, Sealer
from engine.stage import Stage
from engine.state import ENTRY, Head
from tests.engine.pipeline.test_filling_in import Scene
from tests.engine.recovery.build import volume

pytestmark = pytest.mark.anyio
CHUNK = 1 << 12
RECORDS = 40


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def point_with(scene: Scene, lost: PackName, count: int) -> Root:
    """Write a point to the vault whose first `count` blocks all lie in the pack `lost`."""
    world, system, session = scene.world, scene.system, secrets.token_bytes(16)
    world.pack_bytes = 4 << 20
    rng = np.random.default_rng(count)

    def nowhere(ids: Ids) -> Places:
        return np.zeros(len(ids), PLACE)

    def chunks() -> Iterator[RunChunk]:
        nothing = np.empty(0, np.uint64)
        for first in range(0, count, CHUNK):
            places = np.zeros(CHUNK, PLACE)
            places["pack"], places["offset"], places["length"] = lost.key, 64, 5000
            refs = rng.integers(0, 256, (CHUNK, 48), np.uint8)
            yield RunChunk.of(np.arange(first, first + CHUNK, dtype=np.uint64), refs, places, nothing, nothing)

    pages = PageWriter(
        lambda: world._builder(system, session, "page"),
        world.vault.put,
        world.keys.pages,
        Sealer(Codec.LZ4, world.keys.pages),
        nowhere,
        lambda key: None,
    )
    run = await write_run(
        pages, chunks(), base=True, packs=lambda: rows_of([lost]), seal_envelope=lambda run, address: bytes(1200)
    )
    await world._publish(system, False)
    volumes = [VolumePoint(name="data", bytes=count << 16, blocks=count, runs=[run], unreadable=[])]
    name = (await world._root(system, session, volumes, False)).root(system.id)
    return open_root(name, scene.store(VAULT).objects[name], system.listing_key, lambda *_: True)


async def test_memory_does_not_grow_with_what_is_lost(tmp_path: Path) -> None:
    scene, count = Scene(tmp_path), 1 << 18
    scene.bounds = (1 << 14, 1 << 12)
    lost = PackName("data", scene.system.id, secrets.token_bytes(32), 16 << 20)
    root = await point_with(scene, lost, count)
    with StateDirectory.open(tmp_path / "state") as state:
        filling = await scene.filling(state, cache=False)
        tracemalloc.start()
        filled = await filling.fill(root, [lost])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert filled.holes == {"data": [(0, count)]}
    # Pages that are kept, and the index's filter.
    assert most < CACHE_BYTES + (2 << 20) + (6 << 20)


class Watched(Stage):
    """Counts what is asked of each object."""

    def __init__(self, scene: Scene, name: str) -> None:
        super().__init__(scene.store(name))
        self.asked = Counter[str]()

    async def get(self, name: str, offset: int = 0, length: int | None = None) -> Bytes:
        self.asked[name] += 1
        return await self._inner.get(name, offset, length)


class Damaged:
    """A point of many blocks in one pack of the spool, and a map that has their keys."""

    def __init__(self, folder: Path) -> None:
        self.scene = Scene(folder)
        self.scene.world.pack_bytes = 4 << 20

    async def fill(self) -> Damaged:
        scene = self.scene
        scene.world.fallback = True
        scene.point = await scene.world.backup(scene.system, {"data": volume(*range(1, RECORDS + 1))}, copy=False)
        (self.pack,) = scene.packs(SPOOL)
        return self

    def flip(self, *records: int) -> None:
        data = bytearray(self.scene.store(SPOOL).objects[str(self.pack)])
        for record in records:
            data[self.place(record)[0] + 500] ^= 1
        self.scene.store(SPOOL).objects[str(self.pack)] = bytes(data)

    def cut(self, at: int) -> None:
        objects = self.scene.store(SPOOL).objects
        objects[str(self.pack)] = objects[str(self.pack)][:at]

    def place(self, block: int) -> tuple[int, int]:
        ref = self.scene.system.maps["data"][block]
        _, offset, length = self.scene.world.far.places[ref[:16]]
        return offset, length

    def keep_map(self, state: StateDirectory) -> None:
        entries = np.zeros(64, ENTRY)
        for block, ref in self.scene.system.maps["data"].items():
            entries[block]["ref"] = np.frombuffer(ref, np.uint8)
            entries[block]["place"] = self.pack.key, *self.place(block)
        kept = state.volume("data")
        kept.stage(0, (1 << RECORDS) - 1, entries)
        kept.sync_staged()
        kept.apply(
            Head(
                order=1, incarnation=bytes(8), root_hash=bytes(32), vault=bytes(16), cache=None, domain=bytes(16),
                volume_bytes=RECORDS << 16, generation=None, point=b"", missing_known=False,
            )
        )  # fmt: skip

    def root(self) -> Root:
        return self.scene.root()

    async def fill_in(self, *, with_keys: bool = True) -> tuple[Filled, Counter[str]]:
        scene = self.scene
        with StateDirectory.open(scene.folder / "state") as state:
            if with_keys:
                self.keep_map(state)
            filling = await scene.filling(state, cache=False)
            watched = Watched(scene, SPOOL)
            (spooled,) = filling._refill.beside
            filling._refill.beside = [msgspec.structs.replace(spooled, objects=watched)]
            return await filling.fill(self.root(), [self.pack], [self.pack]), watched.asked


@pytest.fixture
async def damaged(tmp_path: Path) -> Damaged:
    return await Damaged(tmp_path).fill()


def put_in_vault(damaged: Damaged) -> set[bytes]:
    """Return the ids whose whole records new packs in the vault hold."""
    objects = damaged.scene.store(VAULT).objects
    refs = damaged.scene.system.maps["data"].values()
    packs = [objects[str(name)] for name in damaged.scene.packs(VAULT)]
    return {ref[:16] for ref in refs if any(ref[:16] in data for data in packs)}


async def test_the_records_of_a_damaged_pack_are_read_together(damaged: Damaged) -> None:
    damaged.flip(7, 30)
    filled, asked = await damaged.fill_in()
    assert filled.holes == {"data": [(7, 1), (30, 1)]}
    assert asked[str(damaged.pack)] <= 2
    assert len(put_in_vault(damaged)) == RECORDS - 2


async def test_of_a_cut_pack_what_lies_before_the_cut_is_read_together(damaged: Damaged) -> None:
    offset, length = damaged.place(20)
    damaged.cut(offset + length - 1)
    filled, asked = await damaged.fill_in()
    assert filled.holes == {"data": [(20, RECORDS - 20)]}
    assert asked[str(damaged.pack)] <= 3
    assert len(put_in_vault(damaged)) == 20


async def test_for_a_pack_that_is_gone_nobody_asks_block_by_block(damaged: Damaged) -> None:
    del damaged.scene.store(SPOOL).objects[str(damaged.pack)]
    filled, asked = await damaged.fill_in()
    assert filled.holes == {"data": [(0, RECORDS)]}
    assert asked[str(damaged.pack)] <= 2


async def test_without_keys_nothing_of_a_damaged_pack_is_passed_on(damaged: Damaged) -> None:
    damaged.flip(7)
    filled, asked = await damaged.fill_in(with_keys=False)
    assert filled.holes == {"data": [(0, RECORDS)]}
    assert not asked[str(damaged.pack)]
    assert not put_in_vault(damaged)
