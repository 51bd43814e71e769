"""The disk of a simulated machine: a real folder, of which a power cut keeps what was made durable, and more or less.

The functions of `os` that change files and names are wrapped. While `CURRENT` is a machine's disk, each change below
its folder is counted and told to `event`, which may raise: there the machine dies. fsync of a file takes a copy of its
content, fsync of a folder one of its names; a power cut rebuilds the folder from these copies and from what stood
there, name by name and 4 KiB by 4 KiB. Writes through memory maps are seen at their fsync. SQLite's files are taken as
they are: what it does with a disk is its own business, and tested there.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.simulation.clockwork import put_in

PAGE: Final = 4096
CURRENT: Final[ContextVar[Disk | None]] = ContextVar("disk", default=None)
_REAL: Final[dict[str, Callable[..., Any]]] = {}
_WRITES: Final = ("write", "pwrite", "pwritev", "ftruncate", "posix_fallocate")
_NAMES: Final = ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir")


class Died(BaseException):
    """The machine is dead: nothing it does happens any more. `first`: it died right here."""

    def __init__(self, first: bool) -> None:
        super().__init__("the machine died")
        self.first = first


@dataclass(frozen=True)
class _Change:
    """A change of one folder's names that may not be durable yet: these to those, all or none."""

    names: tuple[tuple[str, int | None], ...]


@dataclass
class Disk:
    """The folder `root`; `event` hears of every change before it is made. `full`: nothing can grow any more.

    `fails`: whether a change of the file or folder with this path fails now, as on a disk that is dying.
    """

    root: Path
    event: Callable[[str], None]
    full: bool = False
    fails: Callable[[str], bool] = lambda path: False
    _synced: dict[int, bytes] = field(default_factory=dict)  # content by file number
    _buried: dict[int, bytes] = field(default_factory=dict)  # of files without a name, as they were last
    _durable: dict[str, dict[str, int]] = field(default_factory=dict)  # folder → name → file number; -1: a folder
    _pending: dict[str, list[_Change]] = field(default_factory=dict)
    _numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    _count: int = 0

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.settle()

    def settle(self) -> None:
        """Take everything as durable as it stands: the machine was shut down in order."""
        self._synced, self._buried, self._durable, self._pending, self._numbers = {}, {}, {}, {}, {}
        for folder, folders, files in os.walk(self.root):
            self._durable[folder] = dict.fromkeys(folders, -1)
            for name in files:
                path = os.path.join(folder, name)
                number = self._number(path)
                self._durable[folder][name] = number
                self._synced[number] = Path(path).read_bytes()

    def below(self, path: str) -> bool:
        """Tell whether a path is of this disk, and one whose changes count."""
        return path.startswith(f"{self.root}/") and not os.path.basename(path).startswith(("lock", "history.sqlite"))

    def _number(self, path: str | int) -> int:
        found = os.stat(path, follow_symlinks=isinstance(path, int))
        key = found.st_dev, found.st_ino
        if key not in self._numbers:
            self._count += 1
            self._numbers[key] = self._count
        return self._numbers[key]

    def synced(self, fd: int, path: str) -> None:
        """Note that a file or folder is durable now."""
        if os.path.isdir(path):
            self._durable[path] = {
                entry.name: -1 if entry.is_dir() else self._number(entry.path) for entry in os.scandir(path)
            }
            self._pending.pop(path, None)
        else:
            self._synced[self._number(fd)] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def named(self, path: str, joined: tuple[str, ...] = ()) -> None:
        """Note that a name leads to something else now; with the names `joined`, all gone, in one step."""
        number = None if not os.path.lexists(path) else -1 if os.path.isdir(path) else self._number(path)
        folder, name = os.path.split(path)
        gone = tuple((os.path.basename(other), None) for other in joined if os.path.dirname(other) == folder)
        self._pending.setdefault(folder, []).append(_Change(((name, number), *gone)))
        for other in joined:
            if os.path.dirname(other) != folder:
                left = _Change(((os.path.basename(other), None),))
                self._pending.setdefault(os.path.dirname(other), []).append(left)

    def bury(self, path: str) -> None:
        """Keep the content of a file that loses its last name: that name may come back."""
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        if os.path.isdir(path):
            return
        number = self._number(path)
        if found.st_nlink == 1:
            self._buried[number] = Path(path).read_bytes()
            del self._numbers[found.st_dev, found.st_ino]

    def power_cut(self, chance: random.Random) -> None:
        """Leave the folder as it may be found when the power comes back."""
        current = dict(self._buried)
        keep: dict[str, bytes] = {}
        for folder, _, files in os.walk(self.root):
            for name in files:
                path = os.path.join(folder, name)
                if self.below(path):
                    current[self._number(path)] = Path(path).read_bytes()
                elif name.startswith("history.sqlite"):
                    keep[path] = Path(path).read_bytes()
        content: dict[int, bytes] = {}
        shutil.rmtree(self.root)
        self._rebuild(str(self.root), current, content, chance)
        for path, data in keep.items():
            if os.path.isdir(os.path.dirname(path)):
                Path(path).write_bytes(data)
        self.settle()

    def _rebuild(
        self, folder: str, current: dict[int, bytes], content: dict[int, bytes], chance: random.Random
    ) -> None:
        os.mkdir(folder)
        names = dict(self._durable.get(folder, {}))
        pending = self._pending.get(folder, [])
        if chance.random() < 0.5:
            happened = pending[: chance.randint(0, len(pending))]
        else:
            happened = [change for change in pending if chance.random() < 0.5]
        for change in happened:
            for name, number in change.names:
                if number is None:
                    names.pop(name, None)
                else:
                    names[name] = number
        for name, number in sorted(names.items()):
            path = os.path.join(folder, name)
            if number == -1:
                self._rebuild(path, current, content, chance)
            elif self.below(path):
                if number not in content:
                    content[number] = _mixed(self._synced.get(number, b""), current.get(number, b""), chance)
                Path(path).write_bytes(content[number])


def _mixed(old: bytes, new: bytes, chance: random.Random) -> bytes:
    """Return what a power cut may leave of a file that was `old` when it was synced last and became `new`."""
    if old == new:
        return new
    style = chance.choice(("old", "new", "mixed", "mixed"))
    if style != "mixed":
        return old if style == "old" else new
    out = bytearray(chance.choice((len(old), len(new))))
    for at in range(0, len(out), PAGE):
        piece = chance.choice((old, new))[at : min(at + PAGE, len(out))]
        out[at : at + len(piece)] = piece
    return bytes(out)


_paths: Final[dict[int, str]] = {}  # of what was opened on a simulated disk, by descriptor


def _whole(path: Any, folder: int | None) -> str:
    text: str = os.fspath(path)
    if folder is not None:
        text = os.path.join(_paths.get(folder, ""), text)
    return os.path.normpath(text)


def _open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    real = _REAL["open"]
    disk = CURRENT.get()
    if disk is None:
        return real(path, flags, mode, dir_fd=dir_fd)  # type: ignore[no-any-return]
    whole = _whole(path, dir_fd)
    new = flags & os.O_CREAT and disk.below(whole) and not os.path.lexists(whole)
    if new:
        disk.event(f"create {os.path.basename(whole)}")
        _refuse(disk)
        _fail(disk, whole)
    fd: int = real(path, flags, mode, dir_fd=dir_fd)
    _paths[fd] = whole
    if new:
        disk.named(whole)
    return fd


def _refuse(disk: Disk) -> None:
    if disk.full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fail(disk: Disk, path: str) -> None:
    if disk.fails(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def _writing(name: str) -> Callable[..., Any]:
    def call(fd: int, *arguments: Any) -> Any:
        disk = CURRENT.get()
        if disk is None or not disk.below(_paths.get(fd, "")):
            return _REAL[name](fd, *arguments)
        try:
            disk.event(f"{name} {os.path.basename(_paths[fd])}")
        except Died as death:
            if name in ("write", "pwrite") and death.first:
                half = memoryview(arguments[0]).cast("B")
                _REAL[name](fd, half[: len(half) // 2], *arguments[1:])
            raise
        if name in ("write", "pwrite", "pwritev") or (
            name == "posix_fallocate" and arguments[0] + arguments[1] > os.fstat(fd).st_size
        ):
            _refuse(disk)
            _fail(disk, _paths[fd])
        return _REAL[name](fd, *arguments)

    return call


def _syncing(name: str) -> Callable[..., Any]:
    def call(fd: int) -> None:
        disk = CURRENT.get()
        path = _paths.get(fd, "")
        if disk is None or not (disk.below(path) or path == str(disk.root)):
            _REAL[name](fd)
            return
        disk.event(f"{name} {os.path.basename(path)}")
        _fail(disk, path)
        disk.synced(fd, path)

    return call


def _naming(name: str) -> Callable[..., Any]:
    def call(path: Any, *arguments: Any, **named: Any) -> Any:
        disk = CURRENT.get()
        two = name in ("replace", "rename", "link")
        source = _whole(path, named.get("src_dir_fd", named.get("dir_fd")))
        target = _whole(arguments[0], named.get("dst_dir_fd")) if two else source
        if disk is None or not disk.below(target):
            return _REAL[name](path, *arguments, **named)
        if os.path.lexists(target) == (name in ("mkdir", "link")) and name not in ("replace", "rename"):
            return _REAL[name](path, *arguments, **named)  # fails, or changes nothing
        disk.event(f"{name} {os.path.basename(target)}")
        _fail(disk, target)
        if name in ("mkdir", "link"):
            _refuse(disk)
        else:
            disk.bury(target)
        result = _REAL[name](path, *arguments, **named)
        disk.named(target, (source,) if name in ("replace", "rename") else ())
        return result

    return call


def install() -> None:
    """Put the wrappers into `os`, for good."""
    _REAL["open"] = os.open
    for names, make in ((_WRITES, _writing), (("fsync", "fdatasync"), _syncing), (_NAMES, _naming)):
        for name in names:
            _REAL[name] = getattr(os, name)
            put_in(os, **{name: make(name)})
    put_in(os, open=_open)


@contextmanager
def powered(disk: Disk) -> Iterator[None]:
    """Let what runs in the body, and the tasks it starts, run on the machine with this disk."""
    token = CURRENT.set(disk)
    try:
        yield
    finally:
        CURRENT.reset(token)
