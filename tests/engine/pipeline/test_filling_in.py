"""Filling in what the vault lost under a spooled point: the cache's packs, its records, holes, and waiting."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from adapters.state.directory import StateDirectory
from engine.block import PLACE
from engine.columns import Column64
from engine.errors import StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.page import IdLeaf
from engine.pipeline.filling import LOST_MAX, Filling
from engine.pipeline.lost import STRETCH_BLOCKS, Lost
from engine.pipeline.refill import CacheAway
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side, open_side
from engine.ports import ObjectStore
from engine.recovery.places import CACHE, SPOOL, VAULT
from engine.root import Root, open_root
from engine.vault.certificate import Certificates
from engine.vault.formatobject import read_format
from tests.engine.recovery.build import World, restore, volume
from tests.fakes import FakeClock, FaultPlan, FaultyStore, MemoryStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Scene:
    """One point in the vault and one in the spool that leans on it; the cache has both."""

    def __init__(self, folder: Path) -> None:
        self.world = World(cache=True, spool=True)
        self.system = self.world.system()
        self.folder = folder
        self.plan = FaultPlan()
        self.bounds = (LOST_MAX, STRETCH_BLOCKS)

    async def fill(self) -> Scene:
        await self.world.backup(self.system, {"data": volume(1, 2, 3, 4)})
        self.world.fallback = True
        self.point = await self.world.backup(self.system, {"data": volume(1, 2, 9, 4)})
        return self

    def store(self, name: str) -> MemoryStore:
        return self.world.all_sides[name].objects

    def packs(self, name: str, kind: str = "data") -> list[PackName]:
        found = [PackName.parse(each) for each in self.store(name).objects if each.startswith(f"{kind}/")]
        return [pack for pack in found if pack is not None]

    def root(self) -> Root:
        name = self.point.root(self.system.id)
        identity = self.system.identity(self.world)
        return open_root(name, self.store(SPOOL).objects[name], identity.listing_key, self.certificates().verify_number)

    def certificates(self) -> Certificates:
        identity = self.system.identity(self.world)
        return Certificates(identity.domain, identity.vault_public, [identity.certified()], [])

    async def filling(
        self, state: StateDirectory, *, cache: bool = True, away: StoreUnavailable | None = None
    ) -> Filling:
        identity = self.system.identity(self.world)
        certificates = self.certificates()
        sides: dict[str, Side] = {}
        for name in (VAULT, SPOOL, CACHE):
            objects: ObjectStore = self.store(name)
            found = await read_format(objects, "vault" if name == VAULT else "spool" if name == SPOOL else "cache")
            sides[name], problems = await open_side(found, objects, identity, state, certificates, own_only=False)
            assert problems == []
        if not cache:
            del sides[CACHE]
        else:
            faulty = FaultyStore(self.store(CACHE), self.plan)
            sides[CACHE] = msgspec.structs.replace(sides[CACHE], objects=faulty)
        setup = SessionSetup(
            identity=identity,
            state=state,
            history=state.history,
            clock=FakeClock(),
            vault=self.store(VAULT),
            cache=None,
            volumes=[],
            version="test",
        )
        lost_max, stretch_blocks = self.bounds
        return Filling(
            setup, sides[VAULT], sides[SPOOL], sides.get(CACHE), certificates, away,
            lost_max=lost_max, stretch_blocks=stretch_blocks,
        )  # fmt: skip

    async def upload(self) -> None:
        """Put what the spool has into the vault, as an upload does before it fills in."""
        for name, data in self.store(SPOOL).objects.items():
            if name.startswith(("data/", "page/", "root/")):
                await self.store(VAULT).put(name, data)


@pytest.fixture(
    params=[(LOST_MAX, STRETCH_BLOCKS), (2, 1), (1, 2)], ids=["at once", "two by two", "stretch by stretch"]
)
async def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    scene = await Scene(tmp_path).fill()
    scene.bounds = request.param
    return scene


def lose(scene: Scene) -> list[PackName]:
    """Remove what the vault has of data; return the names."""
    lost = scene.packs(VAULT)
    for name in lost:
        del scene.store(VAULT).objects[str(name)]
    return lost


async def test_the_very_pack_goes_back_to_the_vault(scene: Scene) -> None:
    for name in scene.packs(VAULT):
        scene.store(CACHE).objects[str(name)] = scene.store(VAULT).objects[str(name)]
    lost = lose(scene)
    with StateDirectory.open(scene.folder / "state") as state:
        filled = await (await scene.filling(state)).fill(scene.root(), lost)
    assert (filled.holes, filled.left, filled.unread) == ({}, frozenset(), frozenset())
    for name in lost:
        assert scene.store(VAULT).objects[str(name)] == scene.store(CACHE).objects[str(name)]
        assert any(str(name) in problem for problem in filled.problems)


async def test_without_the_cache_what_counts_becomes_holes(scene: Scene) -> None:
    lost = lose(scene)
    with StateDirectory.open(scene.folder / "state") as state:
        filled = await (await scene.filling(state, cache=False)).fill(scene.root(), lost)
    # Block 2 was written anew by the point itself: what the lost pack held of it counts no more.
    assert filled.holes == {"data": [(0, 2), (3, 1)]}
    assert filled.left == frozenset(lost)


async def test_while_the_cache_is_away_holes_are_not_settled(scene: Scene) -> None:
    lost = lose(scene)
    with StateDirectory.open(scene.folder / "state") as state:
        waiting = await scene.filling(state, cache=False, away=StoreUnavailable("its disk is not mounted"))
        with pytest.raises(CacheAway, match="not mounted"):
            await waiting.fill(scene.root(), lost)
        # A point that lacks nothing needs no cache.
        assert (await waiting.fill(scene.root(), ())).holes == {}


async def test_a_cache_that_goes_away_meanwhile_is_waited_for_and_one_that_refuses_has_nothing(scene: Scene) -> None:
    lost = lose(scene)
    with StateDirectory.open(scene.folder / "state") as state:
        scene.plan.fail("get", 1, 1)
        with pytest.raises(CacheAway):
            await (await scene.filling(state)).fill(scene.root(), lost)
        scene.plan = FaultPlan().fail("get", 1, 1000, error=lambda: StoreRejected("no right"))
        filled = await (await scene.filling(state)).fill(scene.root(), lost)
    assert filled.holes == {"data": [(0, 2), (3, 1)]}


async def test_a_damaged_pack_of_the_cache_fills_nothing_in(scene: Scene) -> None:
    lost = lose(scene)
    for name in scene.packs(CACHE):
        data = bytearray(scene.store(CACHE).objects[str(name)])
        data[len(data) // 2] ^= 1
        scene.store(CACHE).objects[str(name)] = bytes(data)
    with StateDirectory.open(scene.folder / "state") as state:
        filled = await (await scene.filling(state)).fill(scene.root(), lost)
    assert filled.holes == {"data": [(0, 2), (3, 1)]}
    assert scene.packs(VAULT) == []


async def test_pages_nobody_has_make_the_whole_volume_a_hole_and_local_state_useless(scene: Scene) -> None:
    lost = scene.packs(VAULT, "page")
    for name in lost:
        for place in (VAULT, CACHE):
            scene.store(place).objects.pop(str(name), None)
    with StateDirectory.open(scene.folder / "state") as state:
        filled = await (await scene.filling(state)).fill(scene.root(), lost)
    assert filled.holes == {"data": [(0, 4)]}
    assert filled.unread == {"data"}


async def test_records_of_other_packs_go_into_a_new_one_and_are_found_by_their_ids(scene: Scene) -> None:
    lost = lose(scene)
    with StateDirectory.open(scene.folder / "state") as state:
        filled = await (await scene.filling(state)).fill(scene.root(), lost)
        assert (filled.holes, filled.left) == ({}, frozenset(lost))
        fresh = scene.packs(VAULT)
        assert len(fresh) == 1 or scene.bounds[0] < 3, "as much as is held at once goes into one pack"
        assert not {*fresh} & {*lost, *scene.packs(CACHE)}
        # What lies there by now is not put there a second time.
        again = await (await scene.filling(state)).fill(scene.root(), lost)
        assert (again.holes, scene.packs(VAULT)) == ({}, fresh)
    await scene.upload()
    scene.world.cache = None
    outcome = await restore(scene.world, str(scene.point))
    assert (outcome.report.exit_code, outcome.content) == (0, volume(1, 2, 9, 4))


Leaves = AsyncIterator[tuple[IdLeaf, Column64]]


async def run_of(chance: random.Random, lost: dict[int, int], stamp: int, cut: bool) -> Leaves:
    """Yield a random run, leaf by leaf, and tell `lost`, a plain dict of ids, what becomes of it."""
    at = 0
    for number in range(chance.randint(1, 6)):
        if cut and number == 3:
            raise StoreCorrupt("data/x", "it is cut")
        blocks: list[int] = []
        bad: list[int] = []
        zeros: list[tuple[int, int]] = []
        for _ in range(chance.randint(1, 8)):
            at += chance.choice((0, 0, 1, 5))
            if chance.random() < 0.3:
                zeros.append((at, count := chance.randint(1, 6)))
                for block in range(at, at + count):
                    lost.pop(block, None)
                at += count
                continue
            lost.pop(at, None)
            if chance.random() < 0.5:
                bad.append(len(blocks))
                lost[at] = stamp
            blocks.append(at)
            at += 1
        starts, counts = (np.array([pair[side] for pair in zeros], np.uint64) for side in (0, 1))
        ids = np.stack((np.array(blocks, np.uint64), np.full(len(blocks), stamp, np.uint64)), axis=1)
        leaf = IdLeaf(np.array(blocks, np.uint64), ids, np.zeros(len(blocks), PLACE), starts, counts)
        yield leaf, np.array(bad, np.uint64)


@pytest.mark.parametrize("seed", range(200))
async def test_what_newer_runs_name_counts_no_more(seed: int) -> None:
    chance = random.Random(seed)
    lost, model = Lost(np.empty(0, np.uint64), np.empty((0, 2), np.uint64)), dict[int, int]()
    for stamp in range(6):
        with suppress(StoreCorrupt):
            await lost.lay_over(run_of(chance, model, stamp, cut=chance.random() < 0.2))
        assert lost.blocks.tolist() == sorted(model)
        assert lost.ids.tolist() == [[block, model[block]] for block in sorted(model)]
