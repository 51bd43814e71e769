"""Golden vaults: what an earlier version wrote is read by this one, and by whoever reads docs/FORMAT.md."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tarfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from blake3 import blake3

from tests.fakes import MemoryStore
from tests.golden.reader import Damaged, Vault
from tests.scenario.machine import PASSPHRASE, Machine
from tests.scenario.recover import Recoverer

FOLDER = Path(__file__).parent
GOLDEN = sorted(path.name.removesuffix(".json") for path in FOLDER.glob("*.json"))
STORES = ("vault", "cache")


class Golden:
    """A golden vault and cache, unpacked, and what is expected of them: system → point → volume → SHA-256."""

    def __init__(self, name: str) -> None:
        packed = (FOLDER / f"{name}.tar.xz").read_bytes()
        about: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
        assert blake3(packed).hexdigest() == about["archive_blake3"], "a golden vault is never changed"
        self.expected: dict[str, dict[str, dict[str, str]]] = about["systems"]
        self.stores: dict[str, dict[str, bytes]] = {store: {} for store in STORES}
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:xz") as archive:
            for row in archive:
                store, _, object_name = row.name.partition("/")
                data = archive.extractfile(row)
                assert data is not None
                self.stores[store][object_name] = data.read()

    def rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (system, point, volume, digest)
            for system, points in self.expected.items()
            for point, volumes in points.items()
            for volume, digest in volumes.items()
        ]

    def recoverer(self, system: str, *stores: str) -> Recoverer:
        places = {store: MemoryStore() for store in stores}
        for store, place in places.items():
            place.objects.update(self.stores[store])
        return Recoverer(places.get("vault"), places.get("cache"), system)


@pytest.fixture(scope="module", params=GOLDEN)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("stores", [("vault",), ("vault", "cache")], ids="+".join)
def test_every_volume_of_every_point_is_restored(golden: Golden, stores: tuple[str, ...]) -> None:
    opened = {system: golden.recoverer(system, *stores) for system in golden.expected}
    for system, point, volume, digest in golden.rows():
        assert sha256(opened[system].restored(point, volume)) == digest, (system, point, volume)


def test_the_points_listed_are_those_that_were_made(golden: Golden) -> None:
    for system, points in golden.expected.items():
        found = anyio.run(golden.recoverer(system, "vault").points)
        assert {str(point.id) for point in found} == points.keys()
        assert all(point.problems == [] for point in found)
    states = [point.state for point in anyio.run(golden.recoverer("web-01", "vault").points)]
    assert (states.count("superseded"), states.count("ok")) == (1, len(states) - 1)


def test_the_cache_alone_gives_the_latest_points(golden: Golden) -> None:
    for system, points in golden.expected.items():
        newest = max(points)
        for volume, digest in points[newest].items():
            assert sha256(golden.recoverer(system, "cache").restored("latest", volume)) == digest


def test_the_command_line_opens_it_with_the_passphrase_alone(golden: Golden, tmp_path: Path) -> None:
    for name, data in golden.stores["vault"].items():
        path = tmp_path / "vault" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    elsewhere = Machine(tmp_path / "elsewhere", tmp_path / "vault")
    target = tmp_path / "out"
    system = min(golden.expected)
    (volume, digest) = next(iter(golden.expected[system][max(golden.expected[system])].items()))
    elsewhere.restore("latest", volume, target, "--vault", f"file://{tmp_path / 'vault'}", "--system", system)
    assert sha256(target.read_bytes()) == digest


def test_a_reader_written_from_the_document_alone_reads_the_same(golden: Golden) -> None:
    vault = Vault(golden.stores["vault"], PASSPHRASE)
    for system, points in golden.expected.items():
        assert list(vault.points(system)) == sorted(points)
    for system, point, volume, digest in golden.rows():
        assert sha256(vault.volume(system, point, volume)) == digest, (system, point, volume)
    notes = [body["notes"] for body in vault.points("web-01").values()]
    assert notes.count(["superseded"]) == 1
    cache = Vault(golden.stores["cache"], PASSPHRASE)
    for system, points in golden.expected.items():
        for volume, digest in points[max(points)].items():
            assert sha256(cache.volume(system, max(points), volume)) == digest
    with pytest.raises(Damaged, match="no key slot"):
        Vault(golden.stores["vault"], PASSPHRASE + "!")


def test_what_is_golden_is_all_there(golden: Golden) -> None:
    """All codecs, deltas, merged runs, zero extents, short blocks."""
    vault = Vault(golden.stores["vault"], PASSPHRASE)
    for system, point, volume, _ in golden.rows():
        vault.volume(system, point, volume)
    records = [record for name in golden.stores["vault"] if name.startswith("data/") for record in scan(vault, name)]
    assert {codec for _, codec in records} == {0, 1, 2}
    assert {kind for kind, _ in records} == {0, 1}
    runs = [len(body["volumes"][0]["runs"]) for body in vault.points("web-01").values()]
    assert any(after < before for before, after in pairwise(runs)), "no run was merged"
    assert any(run["zeros"] for body in vault.points("web-01").values() for run in body["volumes"][0]["runs"])


def scan(vault: Vault, name: str) -> list[tuple[int, int]]:
    """Return kind and codec of the records of a pack, read from its first to its footer."""
    data, at, found = vault.objects[name], 64, []
    end = int.from_bytes(data[-12:-8], "little")
    while at < end:
        found.append((data[at + 16], data[at + 17]))
        at += 40 + int.from_bytes(data[at + 24 : at + 28], "little")
    return found


def test_the_reader_knows_nothing_of_the_product() -> None:
    tree = ast.parse((FOLDER / "reader.py").read_text(encoding="utf-8"))
    modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not [name for name in modules if name.split(".")[0] in ("engine", "adapters", "tests")]
