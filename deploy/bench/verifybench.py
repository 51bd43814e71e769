"""A verification of the cache of a given size: `python deploy/bench/verifybench.py --blocks 67108864 --dir DIR`.

The index is that of indexbench.py, the block map one of as many blocks in no order of the index, a few of them missing.
What is measured is what a verification does once the packs are listed: reading the map with its checksums, looking all
ids up, settling the bitmap, gathering what was seen of each pack; then, beside the time per TiB, stamping it in a
folder, and again with those stamps to be said anew. Map and index are out of the page cache at first. Prints one JSON
document; DIR is made and removed again.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, cast

import anyio
import numpy as np

from adapters.state.files import Disk
from adapters.state.fragments import MirrorFolder
from adapters.state.missing import MissingBitmap
from adapters.state.pagefile import PAGE_BYTES, PageFile, WordFile, check_pages, page_sums
from adapters.stores.folder import FolderStore
from deploy.bench import indexbench
from engine.cache.comparison import Comparison
from engine.cache.seen import SeenPacks
from engine.cache.stamping import Stamping
from engine.columns import ENTRY_BYTES, Column64
from engine.index import PackIndex
from engine.mirror import Mirror
from engine.scratch import ScratchFile
from engine.state import ENTRY, PAGE_ENTRIES, Entries, Masks, Pages
from engine.vault.identity import Identity

BLOCKS_A_TIB: Final = 1 << 24
MISSING_ONE_IN: Final = 1000
STRIDE: Final = 0x9E3779B1  # odd: rows of the index in an order that has nothing to do with the map's
NOW_MS: Final = 1_800_000_000_000
GROUP: Final = 4096  # pages written at a time


class BenchMap:
    """The part of a volume's state that a comparison uses, over the same files; written without a session."""

    def __init__(self, folder: Path, blocks: int, *, writable: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        disk = Disk()
        self.blocks = blocks
        self._map = PageFile(disk.open(folder / "map", writable=writable))
        self._sums = WordFile(disk.open(folder / "map.sums", writable=writable))
        self._missing = MissingBitmap(disk.open(folder / "missing", writable=True))

    def write(self, pages: Pages, entries: Entries) -> None:
        """Write whole pages with their checksums."""
        images = entries.view(np.uint8).reshape(len(pages), PAGE_BYTES)
        self._map.write(pages, images)
        self._sums.write(pages, page_sums(pages, images))

    def sync(self) -> None:
        """Make all of it durable, so that it can leave the page cache."""
        self._map.file.sync()
        self._sums.file.sync()

    def read(self, pages: Pages) -> Entries:
        """Return entries, their checksums checked."""
        images = self._map.read(pages)
        check_pages(self._map.file.path, pages, images, self._sums.read(pages))
        return images.view(ENTRY)

    def used_pages(self, first: int, stop: int) -> Pages:
        """Return the pages that are not all zero."""
        return self._sums.used_pages(first, stop)

    def missing(self, pages: Pages) -> Masks:
        """Return the missing bits."""
        return self._missing.read(pages, self.blocks)

    def missing_pages(self, first: int, stop: int) -> Pages:
        """Return the pages with a missing bit."""
        return self._missing.pages(first, stop, self.blocks)

    def set_missing(self, pages: Pages, masks: Masks) -> None:
        """Replace missing bits."""
        self._missing.write(pages, masks, self.blocks)


def main() -> None:
    """Make map and index, measure, remove them, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--blocks", type=int, default=4 * BLOCKS_A_TIB)
    parser.add_argument("--dir", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--stage", choices=["all", "map", "compare"], default="all", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage == "all":
        print(json.dumps(run(given.dir, given.blocks), indent=1))
    else:
        work = make_map if given.stage == "map" else compare
        print(json.dumps(work(given.dir, given.blocks)))


def run(folder: Path, blocks: int) -> dict[str, Any]:
    """Return all figures; `folder` is there only meanwhile."""
    needed = blocks * (2 * (ENTRY_BYTES + 1) + ENTRY.itemsize) + (1 << 28)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise SystemExit(f"{folder.parent} has {free >> 20} MiB free, {blocks} blocks take {needed >> 20}")
    folder.mkdir()
    try:
        indexbench.make(folder, blocks)
        made = child(folder, "map", blocks)
        indexbench.forget([*indexbench.files(folder), *(folder / "volume").iterdir()])
        return {**made, **child(folder, "compare", blocks)}
    finally:
        shutil.rmtree(folder)


def child(folder: Path, stage: str, blocks: int) -> dict[str, Any]:
    """Run one stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--dir", str(folder), "--blocks", str(blocks)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return found


def make_map(folder: Path, blocks: int) -> dict[str, Any]:
    """Write a map of the index's ids; one in a thousand is of a block nobody has."""
    views = indexbench.open_mirror(folder).views()[0]
    state = BenchMap(folder / "volume", blocks, writable=True)
    generator = np.random.default_rng(1)
    total = sum(map(len, views))
    ends = np.cumsum([len(view) for view in views])
    for first in range(0, -(-blocks // PAGE_ENTRIES), GROUP):
        pages = np.arange(first, min(first + GROUP, -(-blocks // PAGE_ENTRIES)), dtype=np.int64)
        numbers = (np.arange(first * PAGE_ENTRIES, (first + len(pages)) * PAGE_ENTRIES) * STRIDE) % total
        entries = np.zeros(len(numbers), ENTRY)
        words = entries.view("<u8").reshape(len(numbers), -1)
        words[:, :6] = generator.integers(1, 1 << 63, (len(numbers), 6), dtype=np.uint64)
        known = generator.integers(0, MISSING_ONE_IN, len(numbers)) != 0
        of = ends.searchsorted(numbers, "right")
        for at, view in enumerate(views):
            here = known & (of == at)
            rows = numbers[here] - (int(ends[at]) - len(view))
            words[here, 0], words[here, 1] = view.columns.lo[rows], view.columns.hi[rows]
        state.write(pages, entries.reshape(-1, PAGE_ENTRIES))
    state.sync()
    return {"blocks": blocks, "index_files": [len(view) for view in views]}


def compare(folder: Path, blocks: int) -> dict[str, Any]:
    """Compare the map with the index, and gather what was seen."""
    base = indexbench.anonymous_bytes()
    index = PackIndex()
    files = MirrorFolder(folder / "mirror", Disk(), writable=True)
    mirror = Mirror(files, indexbench.KEYS, indexbench.WRITER)
    mirror.load()
    index.install(*mirror.views())
    state = BenchMap(folder / "volume", blocks)
    disk = Disk()

    def scratch() -> ScratchFile:
        return disk.scratch(folder)

    comparison = Comparison(index, relax=files.relax, scratch=scratch)
    missing = 0

    def look() -> None:
        nonlocal missing
        # Only what a comparison asks of a volume's state is there.
        stretches = comparison.volume(state, 0, -(-blocks // PAGE_ENTRIES))  # type: ignore[arg-type]
        missing = sum(stretch.missing for stretch in stretches)

    found = SeenPacks(scratch)
    packs = np.sort(np.concatenate([view.keys for view in index.views()]))

    (folder / "cache").mkdir()
    (folder / "cache" / "format").write_bytes(b"of a bench")

    def stamp() -> None:
        with redirect_stdout(sys.stderr):  # of what is logged
            anyio.run(stamped, folder / "cache", found, packs, scratch)

    with indexbench.Sampler() as sampler:
        looked = indexbench.measured(look)
        gathered = indexbench.measured(lambda: comparison.gather(found))
        wrote = [indexbench.measured(stamp), indexbench.measured(stamp)]
    tib = blocks / BLOCKS_A_TIB
    return {
        "missing": missing,
        "packs": len(packs),
        "records": found.records(),
        "compare": looked,
        "gather": gathered,
        "stamp": wrote[0],
        "stamp_again": wrote[1],
        "cpu_s_per_tib": round((looked["cpu_s"] + gathered["cpu_s"]) / tib, 2),
        "wall_s_per_tib": round((looked["wall_s"] + gathered["wall_s"]) / tib, 2),
        "memory": {
            "anonymous_before_mib": indexbench.mib(base),
            "anonymous_mib": indexbench.mib(sampler.anonymous),
            "file_backed_mib": indexbench.mib(sampler.file_backed),
            "peak_rss_mib": indexbench.mib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10),
        },
    }


class Alone:
    """The only system of a cache."""

    def systems(self) -> Collection[bytes]:
        """Return its id."""
        return [indexbench.WRITER]

    def verify(self, writer: bytes, message: bytes, signature: bytes) -> bool:
        """Believe anything: one signature in 16 MiB takes no time."""
        return True


async def stamped(root: Path, found: SeenPacks, packs: Column64, scratch: Callable[[], ScratchFile]) -> None:
    """Stamp what was seen in the folder `root`, and say again what stamps there say."""
    identity = SimpleNamespace(keys=indexbench.KEYS, system=indexbench.WRITER, signer=lambda message: bytes(64))
    store = FolderStore(root, "bench")
    stamping = Stamping(store, cast(Identity, identity), Alone(), b"i" * 8, NOW_MS)
    if problems := await stamping.renew(found.pieces(), packs, scratch=scratch):
        raise SystemExit("; ".join(problems))


if __name__ == "__main__":
    main()
