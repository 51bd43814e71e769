"""A process that commits three times and says "here" in the middle of the third apply: to be killed there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from adapters.state.directory import StateDirectory
from adapters.state.files import Disk, StateFile
from engine.block import Bytes
from engine.state import Intent
from tests.adapters.state.fakes_disk import WHOLE, entries_of, head_of

ORDERS = (1, 2, 3)
KILLED_PAGES = 40


def changes_of(order: int) -> Iterator[tuple[int, int, int]]:
    """Yield (page, mask, seed of the entries) of what session `order` stages."""
    for page in range(order, KILLED_PAGES, order):
        yield page, WHOLE if page % 2 else 0xFF00FF, page * order


class StoppingDisk(Disk):
    """Says "here" before change number `left`, and waits for its end."""

    left = -1

    def change(self) -> None:
        self.left -= 1
        if not self.left:
            print("here", flush=True)
            sys.stdin.read()

    def open(self, path: Path, *, writable: bool) -> StateFile:
        return StoppingFile(self, path, writable=writable)

    def replace(self, source: Path, target: Path) -> None:
        self.change()
        super().replace(source, target)

    def remove(self, path: Path) -> None:
        self.change()
        super().remove(path)

    def sync_folder(self, path: Path) -> None:
        self.change()


class StoppingFile(StateFile):
    """A file of a `StoppingDisk`."""

    def __init__(self, disk: StoppingDisk, path: Path, *, writable: bool) -> None:
        self._disk = disk
        super().__init__(path, writable=writable)

    def write_at(self, offset: int, data: Bytes) -> None:
        self._disk.change()
        super().write_at(offset, data)

    def truncate(self, size: int) -> None:
        self._disk.change()
        super().truncate(size)

    def sync(self) -> None:
        self._disk.change()


def main(folder: Path, at: int) -> None:
    """Commit `ORDERS`; stop before change number `at` of the last apply."""
    disk = StoppingDisk()
    state = StateDirectory.open(folder, disk=disk)
    volume = state.volume("data")
    for order in ORDERS:
        for page, mask, seed in changes_of(order):
            volume.stage(page, mask, entries_of(seed))
        volume.sync_staged()
        head = head_of(order, KILLED_PAGES * 64)
        state.write_intent(Intent(root=str(order), root_hash=b"h" * 32, vault=b"v" * 16, heads={"data": head}))
        if order == ORDERS[-1]:
            disk.left = at
        volume.apply(head)
        state.clear_intent()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
