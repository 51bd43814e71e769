"""Real file systems for scenario tests: made, filled with real files, changed, checked and compared."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from tests.adapters.disks import loop_device, mounted, tool

MIB = 1 << 20
Tree: TypeAlias = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Kind:
    """One kind of file system; `check` gets the image's path, `frozen` tells that it can be frozen while mounted.

    `replay`: what mounts an image that was frozen so that its log is played back, as its checker wants it.
    """

    name: str
    size_bytes: int
    make: tuple[str, ...]
    mount: tuple[str, ...]
    mount_copy: tuple[str, ...]
    check: tuple[str, ...]
    frozen: bool
    special: bool = True
    replay: tuple[str, ...] | None = None

    def __str__(self) -> str:
        return self.name


KINDS = (
    Kind("ext4", 96 * MIB, ("mkfs.ext4", "-q", "-b", "1024"), (), ("-o", "ro"), ("e2fsck", "-f", "-n"), True),
    # The smallest that mkfs.xfs makes.
    Kind(
        "xfs", 320 * MIB, ("mkfs.xfs", "-q"), (), ("-o", "ro,norecovery,nouuid"), ("xfs_repair", "-n"), True,
        replay=("-o", "nouuid"),
    ),
    Kind("btrfs", 128 * MIB, ("mkfs.btrfs", "-q"), (), ("-o", "ro"), ("btrfs", "check", "--readonly"), False),
    # A driver in user space; what it makes of devices and links is not compared.
    Kind(
        "ntfs", 64 * MIB, ("mkfs.ntfs", "-q", "-F"), ("-t", "ntfs-3g"), ("-t", "ntfs-3g", "-o", "ro"),
        ("ntfsfix", "-n"), False, special=False,
    ),
)  # fmt: skip


@contextmanager
def quiet(kind: Kind, where: Path) -> Iterator[None]:
    """Freeze a mounted file system, as a backup of a running machine does."""
    assert kind.frozen
    tool("fsfreeze", "--freeze", where)
    try:
        yield
    finally:
        tool("fsfreeze", "--unfreeze", where)


def real_files() -> Iterator[Path]:
    """Yield regular files of the machine in an order that is the same for all file systems."""
    for top in ("/usr/bin", "/usr/share", "/usr/lib"):
        for folder, folders, names in os.walk(top):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink() and path.stat().st_size < 3 * MIB:
                    yield path


def fill(kind: Kind, where: Path, total_bytes: int) -> None:
    """Copy files of the machine, some of the large ones and many small ones, with their folders."""
    held = 0
    for number, path in enumerate(islice(real_files(), 0, None, 3)):
        held += path.stat().st_size
        if held > total_bytes or number > 1500:
            break
        target = where / f"part-{number % 7}" / path.relative_to("/usr")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    if kind.special:
        (where / "link").symlink_to("part-0")
        os.mkfifo(where / "fifo", 0o640)
        os.link(next(path for path in sorted(where.rglob("*")) if path.is_file()), where / "hard link")


def change(where: Path, day: int) -> None:
    """Rewrite, cut, extend, move and remove some of what is there, in place and by new files."""
    chooser = random.Random(day)
    files = sorted(path for path in where.rglob("*") if path.is_file() and not path.is_symlink())
    for path in chooser.sample(files, len(files) // 4):
        how = chooser.randrange(5)
        if how == 0:
            path.unlink()
            continue
        with path.open("r+b") as file:
            size = path.stat().st_size
            if how == 1:
                file.truncate(size // 2)
            else:
                file.seek(size if how == 2 else chooser.randrange(size + 1))
                file.write(chooser.randbytes(chooser.choice([100, 5000, 20_000])))
    (where / f"day {day}" / "deep" / "er").mkdir(parents=True)
    (where / f"part-{day}").rename(where / f"day {day}" / "moved")
    with (where / f"day {day}" / "with a hole").open("wb") as file:
        file.write(b"head")
        file.seek(2 * MIB)
        file.write(chooser.randbytes(70_000))
    (where / f"day {day}" / "ünïcode 名前").write_bytes(chooser.randbytes(3 * MIB))


def tree(where: Path) -> Tree:
    """Return what a mounted file system holds: per path its kind, rights, size and content."""
    found: Tree = {}
    for folder, folders, names in os.walk(where):
        for name in (*folders, *names):
            path = Path(folder, name)
            about = path.lstat()
            row = [stat.filemode(about.st_mode), f"{about.st_uid}:{about.st_gid}", str(about.st_mtime_ns)]
            if path.is_symlink():
                row.append(str(path.readlink()))
            elif path.is_file():
                row += [str(about.st_size), str(about.st_nlink), hashlib.sha256(path.read_bytes()).hexdigest()]
            found[str(path.relative_to(where))] = tuple(row)
    return found


def check(kind: Kind, image: Path, where: Path) -> None:
    """Let the file system's own checker look at an image, which may be changed by it; raises what it finds."""
    if kind.replay is not None:
        with loop_device(image) as device, mounted(device, where, *kind.replay):
            pass
    tool(*kind.check, image)


def tree_of(kind: Kind, image: Path, where: Path) -> Tree:
    """Mount an image for reading and return what it holds; the image stays as it is."""
    with loop_device(image, "--read-only") as device, mounted(device, where, *kind.mount_copy):
        return tree(where)
