"""A disk that fails, dies or loses its power by plan, and what a volume's state is compared with."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adapters.state.files import Disk, StateFile, write_failed
from adapters.state.maps import VolumeMap
from engine.block import BLOCK_BYTES, Bytes
from engine.state import ENTRY, Entries, Head, Pages

SECTOR_BYTES = 512
WHOLE = (1 << 64) - 1


class MachineDied(BaseException):
    """The process or the machine is gone: nothing of the code under test runs any more."""


class PlannedDisk(Disk):
    """Counts every change; before number `at` it does what `plan` says. Syncs are recorded, not carried out.

    `power_cut` then turns the folder into one of the states a machine may wake up in: of what was not synced,
    any sectors are there or not, and of the names changed in a folder any first part.
    """

    def __init__(self, root: Path, at: int = -1, plan: Callable[[], None] | None = None) -> None:
        self.root, self.at, self.plan = root, at, plan
        self.count = 0
        self.durable: dict[Path, dict[str, int]] = {}
        self.content: dict[int, bytes] = {}
        self.pending: dict[Path, list[tuple[str, str, int]]] = {}

    def change(self) -> None:
        """Count a change about to be made; carry out the plan if it is the one."""
        self.count += 1
        if self.count == self.at and self.plan is not None:
            self.plan()

    def open(self, path: Path, *, writable: bool) -> StateFile:
        fresh = writable and not path.exists()
        file = PlannedFile(self, path, writable=writable)
        if fresh:
            self._note(path.parent, "put", path.name, path.stat().st_ino)
            self.content[path.stat().st_ino] = b""
        return file

    def replace(self, source: Path, target: Path) -> None:
        self.change()
        number = source.stat().st_ino
        if target.exists():
            self._bury(target)
        super().replace(source, target)
        self._note(target.parent, "drop", source.name, number)
        self._note(target.parent, "put", target.name, number, joined=True)

    def remove(self, path: Path) -> None:
        if path.exists():
            self.change()
            self._note(path.parent, "drop", path.name, path.stat().st_ino)
            self._bury(path)

    def sync_folder(self, path: Path) -> None:
        self.change()
        self.durable[path] = {each.name: each.stat().st_ino for each in path.iterdir() if each.is_file()}
        self.pending[path] = []

    def _bury(self, path: Path) -> None:
        """Move a file aside: its content may come back, and its inode's number must not be used again."""
        graveyard = self.root.with_name(self.root.name + ".removed")
        graveyard.mkdir(exist_ok=True)
        path.rename(graveyard / f"{path.stat().st_ino}")

    def _note(self, folder: Path, what: str, name: str, number: int, joined: bool = False) -> None:
        self.pending.setdefault(folder, []).append((what + ("+" if joined else ""), name, number))

    def power_cut(self, chance: random.Random) -> None:
        """Leave the folders as they may be found after the power came back."""
        current = {path.stat().st_ino: path.read_bytes() for path in self.root.rglob("*") if path.is_file()}
        for path in self.root.with_name(self.root.name + ".removed").glob("*"):
            current[int(path.name)] = path.read_bytes()
        for folder in {*self.durable, *self.pending}:
            names = dict(self.durable.get(folder, {}))
            pending = self.pending.get(folder, [])
            cut = chance.randint(0, len(pending))
            while cut < len(pending) and pending[cut][0].endswith("+"):
                cut += 1
            for what, name, number in pending[:cut]:
                if what.startswith("put"):
                    names[name] = number
                elif names.get(name) == number:
                    del names[name]
            if not folder.exists():
                continue
            for path in folder.iterdir():
                if path.is_file():
                    path.unlink()
            for name, number in names.items():
                (folder / name).write_bytes(self._mixed(number, current.get(number, b""), chance))

    def _mixed(self, number: int, new: bytes, chance: random.Random) -> bytes:
        old = self.content.get(number, b"")
        if old == new:
            return new
        size = chance.choice((len(old), len(new)))
        style = chance.choice(("old", "new", "mixed", "mixed"))
        out = bytearray(size)
        for at in range(0, size, SECTOR_BYTES):
            use_new = style == "new" or (style == "mixed" and chance.random() < 0.5)
            piece = (new if use_new else old)[at : min(at + SECTOR_BYTES, size)]
            out[at : at + len(piece)] = piece
        return bytes(out)


class PlannedFile(StateFile):
    """A file of a `PlannedDisk`."""

    def __init__(self, disk: PlannedDisk, path: Path, *, writable: bool) -> None:
        self._disk = disk
        super().__init__(path, writable=writable)

    def write_at(self, offset: int, data: Bytes) -> None:
        try:
            self._disk.change()
        except MachineDied:
            super().write_at(offset, bytes(data)[: len(data) // 2])
            raise
        super().write_at(offset, data)

    def truncate(self, size: int) -> None:
        self._disk.change()
        super().truncate(size)

    def allocate(self, offset: int, length: int) -> None:
        self._disk.change()
        super().allocate(offset, length)

    def sync(self) -> None:
        self._disk.change()
        self._disk.content[os.fstat(self._fd).st_ino] = self.path.read_bytes() if self.path.exists() else b""


class SeekingDisk(Disk):
    """A disk whose files use the calls that Windows has, too."""

    def open(self, path: Path, *, writable: bool) -> StateFile:
        return StateFile(path, writable=writable, seeking=True)


def die() -> None:
    """Plan: the machine dies here."""
    raise MachineDied


def fill_up() -> None:
    """Plan: the disk is full here."""
    raise write_failed(Path("planned"), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def entries_of(seed: int) -> Entries:
    """Return one page's entries (shape (64,)): `seed` 0 gives zeros, others random ones."""
    if not seed:
        return np.zeros(64, dtype=ENTRY)
    return np.random.default_rng(seed).integers(0, 256, 4096, dtype=np.uint8).view(ENTRY)


def head_of(order: int, blocks: int) -> Head:
    """Return a head of a volume of `blocks` blocks, the last one short."""
    return Head(
        order=order,
        incarnation=b"incarnat",
        root_hash=bytes([order % 256]) * 32,
        vault=b"v" * 16,
        cache=None,
        domain=b"d" * 16,
        volume_bytes=max(0, blocks * BLOCK_BYTES - 1),
        generation=f"generation {order}",
        point=b"point",
        missing_known=False,
        unreadable=[order],
    )


def numbers(*pages: int) -> Pages:
    """Return page numbers as an array."""
    return np.array(pages, dtype=np.int64)


class Model:
    """What a volume's map and staged pages must hold: dictionaries of pages of 64 entries."""

    def __init__(self) -> None:
        self.map: dict[int, Entries] = {}
        self.staged: dict[int, tuple[int, Entries]] = {}
        self.head: Head | None = None

    def page(self, page: int) -> Entries:
        return self.map[page].copy() if page in self.map else entries_of(0)

    def stage(self, page: int, mask: int, entries: Entries) -> None:
        if not mask:
            return
        before, image = self.staged.get(page, (0, entries_of(0)))
        self.staged[page] = (before | mask, laid_over(image, mask, entries))

    def current(self, page: int) -> Entries:
        return laid_over(self.page(page), *self.staged[page]) if page in self.staged else self.page(page)

    def applied(self, head: Head, blocks: int) -> Model:
        """Return the model after a commit."""
        after = Model()
        after.head = head
        for page in {*self.map, *self.staged}:
            entries = self.current(page)
            entries[max(0, min(64, blocks - page * 64)) :] = entries_of(0)[0]
            if entries.view(np.uint8).any():
                after.map[page] = entries
        return after

    def check_map(self, volume: VolumeMap, pages: int) -> None:
        """Compare a volume's map, over its first `pages` pages, with this model."""
        assert volume.problem is None
        assert volume.head == self.head
        assert volume.used_pages(0, pages).tolist() == sorted(self.map)
        found = volume.read(np.arange(pages, dtype=np.int64))
        for page in range(pages):
            assert (found[page] == self.page(page)).all(), page

    def check(self, volume: VolumeMap, pages: int) -> None:
        """Compare a volume's map and what is staged, over its first `pages` pages, with this model."""
        self.check_map(volume, pages)
        current = volume.current(np.arange(pages, dtype=np.int64))
        for page in range(pages):
            assert (current[page] == self.current(page)).all(), page
        assert volume.staged_pages().tolist() == sorted(self.staged)
        masks, staged = volume.read_staged(volume.staged_pages())
        for mask, entries, page in zip(masks.tolist(), staged, sorted(self.staged), strict=True):
            assert mask == self.staged[page][0]
            assert (laid_over(entries_of(0), mask, entries) == laid_over(entries_of(0), *self.staged[page])).all()


def laid_over(entries: Entries, mask: int, staged: Entries) -> Entries:
    """Return `entries` with those of `staged` that `mask` names."""
    out = entries.copy()
    for bit in range(64):
        if mask >> bit & 1:
            out[bit] = staged[bit]
    return out
