"""Look-ups in an index of a given size: `python deploy/bench/indexbench.py --entries 160000000 --dir DIR`.

Fragments as large as the format allows go through the real mirror, which merges them by its own rule. A real mirror
of as many blocks consists of the same few files: its own fragments have 262,144 entries and are merged by the same
rule until few are left; from larger ones it only takes fewer turns. Each case is measured in a process of its own,
cold ones after the files have left the page cache. Prints one JSON document; DIR is made and removed again.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from adapters.state.files import Disk
from adapters.state.fragments import MirrorFolder
from engine.acks import PackAck
from engine.block import Ids
from engine.columns import ENTRY_BYTES
from engine.fragment import FRAGMENT_READ_MAX, encode_fragment, open_fragment
from engine.index import PackIndex
from engine.mirror import Mirror
from engine.names import FragmentName, PackName
from engine.packtable import PACK_ROW_BYTES
from engine.subkeys import DomainKeys

WRITER: Final = b"w" * 16
KEYS: Final = DomainKeys.of(b"d" * 16, b"secret" * 6)
PACK_BLOCKS: Final = 370  # in a pack of 16 MiB, of blocks that shrink to two thirds
RECORD_BYTES: Final = 45_000
FRAGMENT_ENTRIES: Final = int((FRAGMENT_READ_MAX - 4096) / (ENTRY_BYTES + PACK_ROW_BYTES / PACK_BLOCKS))
KNOWN: Final = 1 << 18  # ids that are set aside to be looked up
ASKED_WARM: Final = 1 << 17
ASKED_COLD: Final = 1 << 14
KINDS: Final = ("known", "new", "mixed")
BATCHES: Final = (64, 4096)
SAMPLE_EVERY_S: Final = 0.002


def main() -> None:
    """Make the mirror, measure, remove it, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--entries", type=int, default=160_000_000)
    parser.add_argument("--dir", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--stage", choices=["all", "fragment", "merge", "look"], default="all", help=argparse.SUPPRESS)
    parser.add_argument("--cases", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    cases = [case.split(":") for case in given.cases.split(",") if case]
    if given.stage == "all":
        print(json.dumps(run(given.dir, given.entries), indent=1))
    elif given.stage == "fragment":
        print(json.dumps(add_fragment(given.dir, given.entries, *(int(each) for each in cases[0]))))
    else:
        print(json.dumps(merge(given.dir) if given.stage == "merge" else look(given.dir, cases)))


def run(folder: Path, entries: int) -> dict[str, Any]:
    """Return all figures; `folder` is there only meanwhile."""
    # A merge is written before what it stands for goes.
    needed = entries * (ENTRY_BYTES + 1) * 2 + (1 << 28)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise SystemExit(f"{folder.parent} has {free >> 20} MiB free, {entries} entries take {needed >> 20}")
    folder.mkdir()
    try:
        made = make(folder, entries)
        return {
            "entries": entries,
            **made,
            "open": {"cold": look_cold(folder, "")["open"], "warm": look_warm(folder, "")["open"]},
            "memory": look_warm(folder, every_case())["memory"],
            "lookups": [
                *look_warm(folder, every_case())["cases"],
                *(case for each in every_case().split(",") for case in look_cold(folder, each)["cases"]),
            ],
        }
    finally:
        shutil.rmtree(folder)


def every_case() -> str:
    """Return all cases as `--cases` takes them."""
    return ",".join(f"{kind}:{batch}" for batch in BATCHES for kind in KINDS)


def look_warm(folder: Path, cases: str) -> dict[str, Any]:
    """Measure cases with everything in the page cache, as far as memory allows."""
    for path in files(folder):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    return labelled(child(folder, "look", cases=cases), "warm")


def look_cold(folder: Path, cases: str) -> dict[str, Any]:
    """Measure cases with nothing of the index in the page cache."""
    forget(files(folder))
    return labelled(child(folder, "look", cases=cases), "cold")


def forget(paths: Iterable[Path]) -> None:
    """Have nothing of these files in the page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def labelled(found: dict[str, Any], cache: str) -> dict[str, Any]:
    """Say of every case in which state the page cache was."""
    for case in found["cases"]:
        case["page_cache"] = cache
    return found


def files(folder: Path) -> list[Path]:
    """Return the files of the mirror."""
    return sorted((folder / "mirror").iterdir())


def child(folder: Path, stage: str, *, entries: int = 0, cases: str = "") -> dict[str, Any]:
    """Run one stage in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--dir", str(folder), "--entries", str(entries)]
    done = subprocess.run([*command, "--cases", cases], stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def make(folder: Path, entries: int) -> dict[str, Any]:
    """Write fragments of `entries` entries in all, and let the mirror merge them; each step in a process of its own."""
    (folder / "known").mkdir()
    count = -(-entries // FRAGMENT_ENTRIES)
    merges = []
    for number in range(count):
        share = entries * (number + 1) // count - entries * number // count
        child(folder, "fragment", entries=share, cases=f"{number + 1}:{KNOWN // count + 1}")
        merges.append(child(folder, "merge"))
    return {
        "files": merges[-1]["files"],
        "bytes": sum(path.stat().st_size for path in files(folder)),
        "merging": {
            "cpu_s": round(sum(merge["cpu_s"] for merge in merges), 1),
            "wall_s": round(sum(merge["wall_s"] for merge in merges), 1),
            "anonymous_mib": max(merge["anonymous_mib"] for merge in merges),
        },
    }


def add_fragment(folder: Path, entries: int, number: int, known: int) -> dict[str, Any]:
    """Put one more fragment into the mirror; set some of its ids aside."""
    generator = np.random.default_rng(number)
    name, data, ids = fragment(generator, number, entries)
    open_mirror(folder).add(data, open_fragment(name, data, KEYS, None))
    np.save(folder / "known" / f"{number}.npy", ids[generator.integers(0, len(ids), known)])
    return {}


def merge(folder: Path) -> dict[str, Any]:
    """Have the mirror merge what it wants to."""
    base = anonymous_bytes()
    mirror = open_mirror(folder)
    with Sampler() as sampler:
        spent = measured(mirror.compact)
    return {
        "files": [len(view) for view in mirror.views()[0]],
        "anonymous_mib": mib(sampler.anonymous - base),
        **spent,
    }


def fragment(generator: np.random.Generator, number: int, entries: int) -> tuple[FragmentName, bytes, Ids]:
    """Return a fragment of random ids in packs of `PACK_BLOCKS`, as a session would write it."""
    ids = generator.integers(0, 1 << 64, (entries, 2), dtype=np.uint64)
    offsets = (64 + RECORD_BYTES * np.arange(PACK_BLOCKS)).astype("<u4")
    lengths = np.full(PACK_BLOCKS, RECORD_BYTES, "<u4")
    packs = []
    for start in range(0, entries, PACK_BLOCKS):
        part = ids[start : start + PACK_BLOCKS]
        name = PackName("data", WRITER, generator.bytes(32), 64 + RECORD_BYTES * PACK_BLOCKS + 20_000)
        packs.append(PackAck(name, part, offsets[: len(part)], lengths[: len(part)]))
    listed = FragmentName(WRITER, b"i" * 8, number)
    return listed, encode_fragment(listed, packs, KEYS, lambda message: bytes(64)), ids


def open_mirror(folder: Path) -> Mirror:
    """Open the mirror as a session does."""
    mirror = Mirror(MirrorFolder(folder / "mirror", Disk(), writable=True), KEYS, WRITER)
    mirror.load()
    return mirror


def look(folder: Path, cases: list[list[str]]) -> dict[str, Any]:
    """Open the index and measure the cases; memory is watched while they run once more."""
    known: Ids = np.concatenate([np.load(path) for path in sorted((folder / "known").iterdir())])
    generator = np.random.default_rng()
    asked = ASKED_WARM if len(cases) > 1 else ASKED_COLD
    work = [(kind, int(batch), ids_of_kind(kind, known, generator, asked)) for kind, batch in cases]
    base = anonymous_bytes()
    index = PackIndex()
    opened = measured(lambda: index.install(*open_mirror(folder).views()))
    found = []
    for kind, batch, ids in work:
        spent = measured(lambda ids=ids, batch=batch: ask(index, ids, batch))  # type: ignore[misc]
        per_key = {f"{name}_us_per_key": round(spent[f"{name}_s"] / len(ids) * 1e6, 3) for name in ("cpu", "wall")}
        faults = round(spent["major_faults"] / len(ids), 2)
        found.append({"ids": kind, "batch": batch, **per_key, "major_faults_per_key": faults})
    with Sampler() as sampler:
        for _, batch, ids in work:
            ask(index, ids, batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    memory = {
        "anonymous_before_mib": mib(base),
        "anonymous_of_the_index_mib": mib(sampler.anonymous - base),
        "file_backed_mib": mib(sampler.file_backed),
        "peak_rss_mib": mib(peak),
        "filter_mib": mib(index.filter_bytes()),
    }
    return {"open": opened, "memory": memory, "cases": found}


def ids_of_kind(kind: str, known: Ids, generator: np.random.Generator, count: int) -> Ids:
    """Return `count` ids to look up."""
    new = generator.integers(0, 1 << 64, (count, 2), dtype=np.uint64)
    old = known[generator.integers(0, len(known), count)]
    if kind == "mixed":
        return np.where(generator.random((count, 1)) < 0.5, new, old)
    return old if kind == "known" else new


def ask(index: PackIndex, ids: Ids, batch: int) -> None:
    """Look all ids up, a batch at a time."""
    for start in range(0, len(ids), batch):
        index.lookup(ids[start : start + batch])


def measured(work: Callable[[], None]) -> dict[str, float]:
    """Do `work`; return what it took."""
    usage, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    work()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    spent = after.ru_utime + after.ru_stime - usage.ru_utime - usage.ru_stime
    return {"cpu_s": round(spent, 4), "wall_s": round(wall, 4), "major_faults": after.ru_majflt - usage.ru_majflt}


def anonymous_bytes() -> int:
    """Return the anonymous part of what this process has in memory now."""
    return resident()[0]


def resident() -> tuple[int, int]:
    """Return (anonymous, file-backed) bytes of this process in memory now."""
    rows = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    sizes = {key: value for key, _, value in (row.partition(":") for row in rows)}
    anonymous, file_backed = (int(sizes[key].split()[0]) << 10 for key in ("RssAnon", "RssFile"))
    return anonymous, file_backed


class Sampler:
    """The most memory seen while it is entered, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.anonymous = self.file_backed = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.wait(SAMPLE_EVERY_S)
            anonymous, file_backed = resident()
            self.anonymous, self.file_backed = max(self.anonymous, anonymous), max(self.file_backed, file_backed)


def mib(count: int) -> float:
    """Return bytes as MiB."""
    return round(count / (1 << 20), 1)


if __name__ == "__main__":
    main()
