"""Damage to stores that real sessions wrote: the exact bytes, or what is wrong with which object; nothing else.

tests/engine/recovery/test_damage.py does the same to a vault built by hand; here everything is as `init` and
`backup` leave it: two systems, points that grew and shrank, copies in a cache.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import anyio
import pytest

from adapters.state.directory import StateDirectory
from engine.block import BLOCK_BYTES
from engine.errors import ForebayError
from engine.names import PackName
from tests.fakes import MemoryStore
from tests.scenario.cheap import enrol
from tests.scenario.inprocess import backup
from tests.scenario.machine import Machine, overwrite, random_volume
from tests.scenario.recover import Recoverer

pytestmark = pytest.mark.anyio
KINDS = ("format", "key", "cert", "root", "index", "data", "page")
PLACES = ("vault", "cache")


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Scene:
    """Both stores as they are undamaged, what the latest point must give, and the keys, opened once."""

    stores: dict[str, dict[str, bytes]]
    recoverer: Recoverer
    latest: str
    content: bytes

    def with_places(self, names: tuple[str, ...]) -> dict[str, MemoryStore]:
        """Put whole stores under the recoverer; return them by name."""
        stores = {name: MemoryStore() for name in names}
        for name, store in stores.items():
            store.objects.update(self.stores[name])
        self.recoverer.vault, self.recoverer.cache = stores.get("vault"), stores.get("cache")
        return stores

    async def attempt(self, *, fresh_keys: bool) -> tuple[bytes | None, str]:
        """List the points and restore the latest; return its bytes (None: refused) and all that was said."""
        said: list[str] = []
        try:
            for point in await self.recoverer.points():
                said += [f"{point.id} {point.state}", *point.problems]
        except ForebayError as error:
            said.append(str(error))
        try:
            done = await self.recoverer.restore(fresh_keys=fresh_keys)
        except ForebayError as error:
            return None, "\n".join([*said, str(error)])
        assert done.point == self.latest, "an older point was passed off as the latest"
        lost = {block for first, count in done.report.holes for block in range(first, first + count)}
        assert (done.report.exit_code == 0) == (not lost)
        for block in range(-(-len(self.content) // BLOCK_BYTES)):
            at = slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
            expected = bytes(len(self.content[at])) if block in lost else self.content[at]
            assert done.content[at] == expected, f"block {block} is wrong"
        assert len(done.content) == len(self.content)
        return done.content, "\n".join([*said, *done.report.problems])


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    root = tmp_path_factory.mktemp("damage")
    machines = []
    for name in ("web-01", "db-02"):
        volumes = {"data": random_volume(root / f"{name}.img", 12, seed=3, tail=500)}
        machines.append(Machine(root / name, root / "vault", root / "cache", name, volumes))
        enrol(machines[-1])
    ours, other = machines
    for block in range(0, 12, 5):
        overwrite(other.volumes["data"], block, random.Random(block).randbytes(BLOCK_BYTES))
    points = []
    for day, (machine, blocks) in enumerate([(other, 12), (ours, 12), (ours, 9), (other, 12), (ours, 15)]):
        with machine.volumes["data"].open("r+b") as out:
            out.truncate(blocks * BLOCK_BYTES + 77 * day)
        overwrite(machine.volumes["data"], day, random.Random(day).randbytes(BLOCK_BYTES))
        report = backup(machine)
        assert (report.exit_code, report.problems) == (0, [])
        points.append(str(report.point))
    with StateDirectory.open(ours.state, lock=False) as state:
        newest = state.newest()
    made = Scene(
        {name: _objects(root / name) for name in PLACES},
        Recoverer(None, None, "web-01", newest),
        points[-1],
        ours.volumes["data"].read_bytes(),
    )
    # The keys are kept from their first use: that must not be in a test that damages what they are opened with.
    made.with_places(PLACES)
    anyio.run(made.recoverer.points)
    return made


def _objects(store: Path) -> dict[str, bytes]:
    shutil.rmtree(store / "tmp", ignore_errors=True)
    return {
        path.relative_to(store).as_posix(): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()
    }


def damages(data: bytes) -> Iterator[bytes | None]:
    """Yield what may become of an object: bits flipped where structure is, cut, grown, zeroed, gone (None)."""
    size = len(data)
    offsets = {0, 9, 17, 40, 63, 64, 100, size - 150, size - 13, size - 1, *range(0, size, max(1, size // 12))}
    for offset in sorted(offset for offset in offsets if 0 <= offset < size):
        yield data[:offset] + bytes([data[offset] ^ (1 << offset % 8)]) + data[offset + 1 :]
    for length in (0, 1, 70, size // 2, size - 1):
        yield data[:length]
    yield data + b"\0"
    yield bytes(size)
    yield None


def names_it(name: str, said: str, latest: str) -> bool:
    if name in said or (name == "format" and "format" in said):
        return True
    # Of what is gone nobody can know the name but those who name it in other words.
    gone = {"key": "no key slots", "cert": "there is no system 'web-01'"}.get(name.split("/")[0])
    return (gone is not None and gone in said) or (name.startswith("root/") and latest in name and latest in said)


@pytest.mark.parametrize("kind", KINDS)
async def test_damage_to_a_vault_alone_gives_exact_bytes_or_names_the_object(scene: Scene, kind: str) -> None:
    (store,) = scene.with_places(("vault",)).values()
    names = [name for name in sorted(store.objects) if name.startswith(kind)]
    assert names
    harmless = 0
    for name in names:
        good = store.objects[name]
        for damaged in damages(good):
            if damaged is None:
                del store.objects[name]
            else:
                store.objects[name] = damaged
            content, said = await scene.attempt(fresh_keys=name.startswith(("key/", "cert/")))
            assert content == scene.content or names_it(name, said, scene.latest), (name, said)
            harmless += content == scene.content
            store.objects[name] = good
    assert (await scene.attempt(fresh_keys=False))[0] == scene.content
    # What only the other system's points or older ones need may be damaged without harm to the latest.
    assert harmless or kind in ("format", "key")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damaged_place", PLACES)
async def test_what_is_damaged_in_one_place_is_taken_from_the_other(
    scene: Scene, kind: str, damaged_place: str
) -> None:
    store = scene.with_places(PLACES)[damaged_place]
    chooser = random.Random(kind)
    for name in [name for name in sorted(store.objects) if name.startswith(kind)]:
        good = store.objects[name]
        every = list(damages(good))
        for damaged in every if kind == "root" else [every[-1], *chooser.sample(every, min(4, len(every)))]:
            if damaged is None:
                del store.objects[name]
            else:
                store.objects[name] = damaged
            content, said = await scene.attempt(fresh_keys=kind in ("key", "cert"))
            assert content == scene.content, (name, said)
            store.objects[name] = good


async def test_a_cache_alone_gives_the_latest_point_or_names_what_is_damaged(scene: Scene) -> None:
    (store,) = scene.with_places(("cache",)).values()
    assert (await scene.attempt(fresh_keys=False))[0] == scene.content
    chooser = random.Random(1)
    for name in sorted(store.objects):
        good = store.objects[name]
        for damaged in chooser.sample(list(damages(good)), 4):
            if damaged is None:
                del store.objects[name]
            else:
                store.objects[name] = damaged
            content, said = await scene.attempt(fresh_keys=name.startswith(("key/", "cert/")))
            assert content == scene.content or names_it(name, said, scene.latest), (name, said)
            store.objects[name] = good


@pytest.mark.parametrize("kind", KINDS)
async def test_swapping_two_objects_of_a_kind_is_noticed_or_harmless(scene: Scene, kind: str) -> None:
    (store,) = scene.with_places(("vault",)).values()
    names = [name for name in sorted(store.objects) if name.startswith(kind)]
    for left, right in combinations(names, 2):
        store.objects[left], store.objects[right] = store.objects[right], store.objects[left]
        content, said = await scene.attempt(fresh_keys=kind in ("key", "cert"))
        assert content == scene.content or left in said or right in said, (left, right, said)
        store.objects[left], store.objects[right] = store.objects[right], store.objects[left]


async def test_a_pack_of_another_point_in_the_place_of_one_is_noticed(scene: Scene) -> None:
    """Packs of one size are told apart by their records alone: the name's hash is not read for a restore."""
    (store,) = scene.with_places(("vault",)).values()
    for name in [name for name in sorted(store.objects) if name.startswith(("data/", "page/"))]:
        good = store.objects[name]
        for other in [other for other in sorted(store.objects) if other != name and PackName.parse(other)]:
            store.objects[name] = (scene.stores["vault"][other] + bytes(len(good)))[: len(good)]
            content, said = await scene.attempt(fresh_keys=False)
            assert content == scene.content or name in said, (name, other, said)
        store.objects[name] = good
