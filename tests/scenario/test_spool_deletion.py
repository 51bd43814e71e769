"""A point of a real session that waits in the spool: restored from there, deleted, and gone on from without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from adapters.config.contradictions import STATE_NAMES
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, Machine, overwrite, random_volume

OBJECTS = ("data", "page", "index", "root")


class Spooling:
    """A machine with two points in the vault, and two later ones moved from there into the spool, objects and all."""

    def __init__(self, root: Path) -> None:
        self.spool = root / "machine/state/spool"
        volumes = {name: random_volume(root / f"{name}.img", 48, seed) for seed, name in enumerate(("data", "home"))}
        extra = {"vault": f'[spool]\npath = "{self.spool}"'}
        self.machine = Machine(root / "machine", root / "vault", volumes=volumes, extra=extra)
        self.machine.init()
        self.points: list[str] = []
        self.contents: list[bytes] = []
        before: set[Path] = set()
        for step in range(4):
            if step == 2:
                before = self.listed()
            self.change(step)
            self.backup(*(["data"] if step == 2 else ["data", "home"]))
        self.move(self.listed() - before)

    def change(self, step: int) -> None:
        for volume in self.machine.volumes.values():
            overwrite(volume, 3 * step, np.random.default_rng(100 + step).bytes(2 * BLOCK))

    def backup(self, *names: str) -> None:
        volumes = self.machine.volumes
        self.machine.volumes = {name: volumes[name] for name in names}
        report = backup(self.machine)
        self.machine.volumes = volumes
        assert (report.exit_code, report.problems) == (0, [])
        assert report.point is not None
        self.points.append(report.point)
        self.contents.append(volumes["data"].read_bytes())

    def listed(self) -> set[Path]:
        vault = self.machine.vault
        return {path.relative_to(vault) for kind in OBJECTS for path in (vault / kind).rglob("*") if path.is_file()}

    def move(self, names: set[Path]) -> None:
        for name in names:
            (self.spool / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(self.machine.vault / name, self.spool / name)

    def upload(self) -> None:
        """Move all of it back."""
        for path in sorted(self.spool.rglob("*")):
            name = path.relative_to(self.spool)
            if path.is_file() and name.parts[0] in (*OBJECTS, "note"):
                (self.machine.vault / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(path, self.machine.vault / name)

    def delete(self, point: str) -> bool:
        done = self.machine.run("points", "--delete", point, "--yes")
        return bool(done.document["state_lost"])

    def restored(self, point: str, to: Path) -> bytes:
        to.unlink(missing_ok=True)
        self.machine.restore(point, "data", to)
        return to.read_bytes()

    def states(self) -> dict[str, str]:
        return {one["id"]: one["state"] for one in self.machine.points()}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Spooling:
    return Spooling(tmp_path_factory.mktemp("spooling"))


def test_what_lies_in_a_state_directory_is_what_no_spool_may_be_called(original: Spooling) -> None:
    found = {path.name for path in original.machine.state.iterdir()} - {"identity", "spool"}
    assert found <= STATE_NAMES
    assert {"volumes", "index", "newest", "history.sqlite"} <= found


def test_spooled_points_are_listed_restored_deleted_and_gone_on_from(original: Spooling, tmp_path: Path) -> None:
    it, to = original, tmp_path / "restored.img"
    first, second, third, fourth = it.points
    assert it.states() == {first: "ok", second: "ok", third: "spooled", fourth: "spooled"}
    for point, content in zip(it.points, it.contents, strict=True):
        assert it.restored(point, to) == content
    status = it.machine.run("status").document
    assert status["spool"]["points"] == 2
    # The older one goes: the newer one is made of its runs, and keeps them.
    assert not it.delete(third)
    assert it.restored(fourth, to) == it.contents[3]
    # The newest goes: what local state says of the volumes is not true of anything that is left.
    with StateDirectory.open(it.machine.state, lock=False) as state:
        incarnation = state.incarnation
    assert it.delete(fourth)
    assert it.states() == {first: "ok", second: "ok"}
    assert it.machine.run("points").document["lost"] == []
    with StateDirectory.open(it.machine.state, lock=False) as state:
        assert state.incarnation != incarnation
        assert [state.volume(name).head for name in it.machine.volumes] == [None, None]
    left = {path.relative_to(it.spool).parts[0] for path in it.spool.rglob("*") if path.is_file()}
    assert left == {"format", "key", "cert", "note"}
    # The next session reads everything and makes a point that leans on nothing that went.
    report = backup(it.machine)
    assert report.exit_code == 0
    assert all(volume.read_bytes == volume.bytes for volume in report.volumes.values())
    assert report.point is not None
    assert it.restored(report.point, to) == it.contents[3]
    it.upload()
    identity = files.load(it.machine.state / "identity")
    assert len(list((it.machine.vault / "note" / identity.system.hex()).iterdir())) == 2
    assert it.states() == {first: "ok", second: "ok", report.point: "ok"}
    assert it.machine.run("points").document["lost"] == []
    for point, content in zip([first, second], it.contents, strict=False):
        assert it.restored(point, to) == content
