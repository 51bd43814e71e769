"""Real file systems: backed up between changes, every point comes back bit for bit, mounts, and passes its fsck."""

from __future__ import annotations

import filecmp
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.adapters.disks import loop_device, mounted, new_image, tool
from tests.scenario.cheap import enrol
from tests.scenario.filesystems import KINDS, Kind, Tree, change, check, fill, quiet, tree, tree_of
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, Machine
from tests.scenario.recover import Recoverer

pytestmark = pytest.mark.root
DAYS = 3
FILL_BYTES = 24 << 20


@dataclass
class Diary:
    """What was there when each point was made: a copy of the volume and the tree of files, by point."""

    folder: Path
    images: dict[str, Path] = field(default_factory=dict)
    trees: dict[str, Tree] = field(default_factory=dict)

    def note(self, point: str, image: Path, files: Tree) -> None:
        kept = self.folder / f"kept-{point}"
        subprocess.run(["cp", "--sparse=always", image, kept], check=True)
        self.images[point], self.trees[point] = kept, files


def session(machine: Machine, *, changed_max: int | None = None) -> str:
    report = backup(machine)
    assert (report.exit_code, report.problems) == (0, [])
    assert report.point is not None
    if changed_max is not None:
        assert 0 < report.volumes["data"].changed < changed_max
    return report.point


def live_days(kind: Kind, image: Path, machine: Machine, diary: Diary, where: Path) -> None:
    """Back up the device of a file system that stays mounted and is frozen for each session."""
    with loop_device(image) as device:
        machine.volumes["data"] = device
        tool(*kind.make, device)
        with mounted(device, where, *kind.mount):
            for day in range(DAYS):
                fill(kind, where, FILL_BYTES) if day == 0 else change(where, day)
                with quiet(kind, where):
                    files = tree(where)
                    point = session(machine, changed_max=kind.size_bytes // BLOCK)
                    diary.note(point, image, files)


def quiet_days(kind: Kind, image: Path, machine: Machine, diary: Diary, where: Path) -> None:
    """Back up the image of a file system that is unmounted for each session."""

    @contextmanager
    def there() -> Iterator[Path]:
        with loop_device(image) as device, mounted(device, where, *kind.mount):
            yield where

    machine.volumes["data"] = image
    with loop_device(image) as device:
        tool(*kind.make, device)
    for day in range(DAYS):
        with there():
            fill(kind, where, FILL_BYTES) if day == 0 else change(where, day)
        with there():
            files = tree(where)
        diary.note(session(machine, changed_max=kind.size_bytes // BLOCK), image, files)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_point_of_a_real_file_system_is_whole_sound_and_mountable(kind: Kind, tmp_path: Path) -> None:
    image = new_image(tmp_path / "volume.img", kind.size_bytes)
    machine = Machine(tmp_path / "m", tmp_path / "vault", tmp_path / "cache", volumes={"data": image})
    enrol(machine)
    diary = Diary(tmp_path)
    (live_days if kind.frozen else quiet_days)(kind, image, machine, diary, tmp_path / "there")
    assert {row["id"] for row in machine.points()} == diary.images.keys()
    recoveries = [Recoverer.of(machine, only_cache=True), Recoverer.of(machine)]
    recoveries[1].cache = None
    for number, (point, kept) in enumerate(diary.images.items()):
        restored = tmp_path / f"restored-{point}"
        report = recoveries[number % 2].restore_to(point, "data", restored)
        assert (report.exit_code, report.holes, report.problems) == (0, [], [])
        assert filecmp.cmp(restored, kept, shallow=False)
        assert tree_of(kind, restored, tmp_path / "look") == diary.trees[point]
        check(kind, restored, tmp_path / "look")
    # A disk that held something else gets the last one, by the command line.
    disk = new_image(tmp_path / "disk.img", kind.size_bytes)
    with disk.open("r+b") as out:
        for offset in range(0, kind.size_bytes, 1 << 20):
            out.seek(offset)
            out.write(b"what was there before" * 3000)
    point = list(diary.images)[-1]
    with loop_device(disk) as device:
        machine.restore(point, "data", device, "--overwrite")
    assert filecmp.cmp(disk, diary.images[point], shallow=False)
    check(kind, disk, tmp_path / "look")
