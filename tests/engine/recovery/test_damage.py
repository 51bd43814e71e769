"""The damage campaign: whatever is flipped, cut, swapped or deleted, a restore of the latest point gives its exact
bytes, or an error or hole that names the object: never wrong bytes, never an older point."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from engine.block import BLOCK_BYTES
from engine.errors import ForebayError
from engine.names import PointId
from engine.recovery.access import Access
from engine.recovery.catalogue import Catalogue
from engine.recovery.places import CACHE, SPOOL, VAULT, Place
from engine.state import Newest
from engine.vault.formatobject import StoreKind, read_format
from tests.engine.recovery.build import System, World, open_access, restore_point
from tests.fakes import MemoryStore

pytestmark = pytest.mark.anyio

KINDS = ("format", "key", "cert", "root", "index", "data", "page")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Scene:
    """A world with two systems and the content the latest point of `web-01` must give back."""

    world: World
    system: System
    point: PointId
    content: bytes
    access: Access

    async def attempt(self, *, fresh_keys: bool) -> tuple[bytes | None, str]:
        """Restore the latest point; return its bytes (holes as zeros; None: refused) and all that was said."""
        places, problems = self.world.places()
        try:
            await places.open(_checked)
            access = await open_access(places) if fresh_keys else self.access
            previous = self.system.previous
            assert previous is not None
            newest = Newest(
                order=previous.order,
                incarnation=previous.incarnation,
                root_hash=previous.hash,
                vault=bytes(16),
                system=self.system.id,
            )
            catalogue = Catalogue(places, (self.system.id, newest))
            found = await catalogue.find(await catalogue.names(access.named("web-01")), "latest", "data")
            assert found.id == self.point, "an older point was passed off as the latest"
            done = await restore_point(places, found)
        except ForebayError as error:
            return None, "\n".join([str(error), *problems.listed()])
        lost = {block for first, count in done.report.holes for block in range(first, first + count)}
        assert (done.report.exit_code == 0) == (not lost)
        for block in range(len(self.content) // BLOCK_BYTES):
            at = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
            expected = bytes(BLOCK_BYTES) if block in lost else self.content[at]
            assert done.content[at] == expected, f"block {block} is wrong"
        return done.content, "\n".join(done.report.problems)


async def _checked(place: Place) -> None:
    kinds: dict[str, StoreKind] = {VAULT: "vault", SPOOL: "spool", CACHE: "cache"}
    await read_format(place.objects, kinds[place.name])


async def scene(*, cache: bool, spool: bool = False) -> Scene:
    world = World(cache=cache, pack_bytes=150_000, delta=True, spool=spool)
    system, other = world.system(), world.system("db-02")
    random = np.random.default_rng(7)
    content = bytearray(random.bytes(6 * BLOCK_BYTES))
    shared = bytes(content[: 2 * BLOCK_BYTES])
    await world.backup(other, {"data": shared})
    point = await world.backup(system, {"data": bytes(content)})
    for block in (4, 1):
        world.fallback = spool
        content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = random.bytes(BLOCK_BYTES)
        if block == 1:
            content[5 * BLOCK_BYTES + 100] ^= 1  # a change in one part: the vault gets a delta
        point = await world.backup(system, {"data": bytes(content)})
    assert list(world.sources()) == [system.maps["data"][5][:16]]
    places, _ = world.places()
    return Scene(world, system, point, bytes(content), await open_access(places))


def offsets(size: int, steps: int) -> Iterator[int]:
    yield from sorted({*range(min(12, size)), *range(max(0, size - 6), size), *range(0, size, max(1, size // steps))})


async def hurt(scene: Scene, store: MemoryStore, name: str, damaged: bytes | None) -> tuple[bytes | None, str]:
    """Attempt a restore with one object damaged (None: deleted), then put it right again."""
    good = store.objects[name]
    if damaged is None:
        del store.objects[name]
    else:
        store.objects[name] = damaged
    try:
        return await scene.attempt(fresh_keys=name.startswith(("key/", "cert/")))
    finally:
        store.objects[name] = good


def names_it(name: str, said: str) -> bool:
    return name in said or (name.startswith("format") and "format" in said)


def flips(data: bytes) -> Iterator[bytes]:
    for offset in offsets(len(data), 12):
        yield data[:offset] + bytes([data[offset] ^ (1 << offset % 8)]) + data[offset + 1 :]


def cuts(data: bytes) -> Iterator[bytes]:
    for length in sorted({0, 1, 8, len(data) // 3, len(data) // 2, len(data) - 13, len(data) - 1}):
        yield data[: max(0, length)]
    yield data + b"\0"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [flips, cuts])
async def test_damage_in_a_vault_gives_exact_bytes_or_names_the_object(
    kind: str, damage: Callable[[bytes], Iterator[bytes]]
) -> None:
    it = await scene(cache=False)
    store = it.world.vault.objects
    for name in [name for name in sorted(store.objects) if name.startswith(kind)]:
        for damaged in damage(store.objects[name]):
            content, said = await hurt(it, store, name, damaged)
            assert content == it.content or names_it(name, said), (name, said)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [flips, cuts])
async def test_damage_in_a_spool_that_leans_on_the_vault_gives_exact_bytes_or_names_the_object(
    kind: str, damage: Callable[[bytes], Iterator[bytes]]
) -> None:
    it = await scene(cache=False, spool=True)
    for store in [side.objects for side in it.world.all_sides.values()]:
        for name in [name for name in sorted(store.objects) if name.startswith(kind)]:
            for damaged in [*list(damage(store.objects[name]))[::3], None]:
                content, said = await hurt(it, store, name, damaged)
                named = names_it(name, said) or (damaged is None and str(it.point) in said)
                assert content == it.content or named, (name, said)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [flips, cuts])
async def test_damage_in_one_place_is_made_good_from_the_other(
    kind: str, damage: Callable[[bytes], Iterator[bytes]]
) -> None:
    it = await scene(cache=True)
    assert it.world.cache is not None
    for store in (it.world.vault.objects, it.world.cache.objects):
        for name in [name for name in sorted(store.objects) if name.startswith(kind)]:
            for damaged in list(damage(store.objects[name]))[:: 1 if kind in ("root", "key") else 4]:
                content, said = await hurt(it, store, name, damaged)
                assert content == it.content, (name, said)


@pytest.mark.parametrize("kind", KINDS)
async def test_deleting_gives_exact_bytes_or_says_what_is_missing(kind: str) -> None:
    it = await scene(cache=False)
    store = it.world.vault.objects
    for name in [name for name in sorted(store.objects) if name.startswith(kind)]:
        content, said = await hurt(it, store, name, None)
        missing = {
            "key": "no key slots",
            "cert": "there is no system 'web-01'",
            "root": str(it.point),
        }.get(kind, name)
        assert content == it.content or missing in said, (name, said)


@pytest.mark.parametrize("kind", KINDS)
async def test_swapping_two_objects_of_a_kind_is_noticed_or_harmless(kind: str) -> None:
    it = await scene(cache=False)
    store = it.world.vault.objects
    names = [name for name in sorted(store.objects) if name.startswith(kind)]
    for left, right in combinations(names, 2):
        store.objects[left], store.objects[right] = store.objects[right], store.objects[left]
        content, said = await it.attempt(fresh_keys=kind in ("key", "cert"))
        assert content == it.content or left in said or right in said, (left, right, said)
        store.objects[left], store.objects[right] = store.objects[right], store.objects[left]
