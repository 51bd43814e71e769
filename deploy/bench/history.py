"""Work that only Forebay is measured at: a machine's history of many days, hints, start-up, a huge sparse volume."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deploy.bench.agent import Extent, Setup, Site, write_hints
from deploy.bench.meter import Meter, Stop
from deploy.bench.results import Row

PAGE = 4096
MIB = 1 << 20
SPARSE_BYTES = 10 << 40
SPARSE_PIECES = 384
LATENCY_RUNS = 10
SEED = 20260501


class Machine:
    """A machine with one volume in a folder of its own, which is removed at the end."""

    def __init__(self, meter: Meter, folder: Path, base: Path | None = None, sparse_bytes: int = 0) -> None:
        self.meter = meter
        self.folder = folder
        self.site = Site(folder / "agent", folder / "vol.img", folder / "vault")
        self.out = folder / "restored.img"
        self._base = base
        self._sparse_bytes = sparse_bytes

    def __enter__(self) -> Machine:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        if self._base is not None:
            subprocess.run(["cp", "--sparse=never", str(self._base), str(self.site.volume)], check=True)
        else:
            with self.site.volume.open("wb") as file:
                file.truncate(self._sparse_bytes)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def size(self) -> int:
        """Return the bytes of the volume."""
        return self.site.volume.stat().st_size

    def found(self, setup: Setup | None = None) -> None:
        """Configure the agent and found its vault."""
        self.site.configure(setup or Setup())
        self.meter.run(self.site.command("init"), self.site.environment(), self.folder)

    def write(self, ranges: Iterable[tuple[int, bytes]]) -> None:
        """Write bytes at offsets of the volume, and sync it.

        One range at a time: Linux counts what this process ever held as memory of the commands it starts.
        """
        fd = os.open(self.site.volume, os.O_RDWR)
        try:
            for offset, content in ranges:
                os.pwrite(fd, content, offset)
            os.fsync(fd)
        finally:
            os.close(fd)

    def backup(self, *, warm: bool = True, **keys: Any) -> Row:
        """Make a restore point; return its figures, `added` bytes of the vault among them."""
        before = self.meter.stored(self.site.vault)
        volume = self.site.volume if warm else None
        row = self.meter.run(self.site.command("backup"), self.site.environment(), self.folder, volume)
        return keys | {"size": self.size} | row | {"added": self.meter.stored(self.site.vault) - before}

    def restore(self, point: str, **keys: Any) -> Row:
        """Restore a point to `out`; return the figures."""
        self.out.unlink(missing_ok=True)
        command = self.site.restore(point, self.out)
        return keys | {"size": self.size} | self.meter.run(command, self.site.environment(), self.folder)

    def points(self) -> list[str]:
        """Return the restore points, newest first."""
        command = self.site.command("points", "--json")
        done = subprocess.run(
            command, env=os.environ | self.site.environment(), stdout=subprocess.PIPE, check=True, text=True
        )
        return [each["id"] for each in json.loads(done.stdout)["points"]]


def lived(machine: Machine, data: Path, count: int, runs: int) -> Iterator[Row]:
    """Back up, then rewrite 1 % of random pages a day and back up each day; restore the first and the last point.

    The pages are among those that hold file data, as in gen.py's day a; what is written does not compress. With no
    day at all it is only the first backup.
    """
    candidates = np.load(data / "datapages.npy")
    pages_a_day = machine.size // PAGE // 100
    machine.found()
    yield machine.backup(work="days", days=count, step="full")
    for day in range(1, count + 1):
        rng = np.random.default_rng((SEED, day))
        pages = np.sort(rng.choice(candidates, pages_a_day, replace=False))
        machine.write((int(page) * PAGE, rng.bytes(PAGE)) for page in pages)
        keys: Row = {"work": "days", "days": count, "step": "backup", "day": day, "changed": pages_a_day * PAGE}
        yield machine.backup(**keys)
    points = machine.points()
    for run in range(runs if count else 0):
        # In turn, so that a machine whose speed drifts does to one what it does to the other.
        for step, point, expected in (
            ("restore-first", points[-1], data / "base.img"),
            ("restore-latest", "latest", machine.site.volume),
        ):
            row = machine.restore(point, work="days", days=count, step=step, run=run)
            yield row | {"same": same_files(machine.out, expected)}
    machine.out.unlink(missing_ok=True)


def latency(machine: Machine, runs: int = LATENCY_RUNS) -> Iterator[Row]:
    """Measure how soon `status` has answered and a backup reads, on a machine that has restore points."""
    for run in range(runs):
        row = machine.meter.run(machine.site.command("status"), machine.site.environment(), machine.folder)
        yield {"work": "latency", "step": "status", "run": run, "size": machine.size} | row
    for run in range(runs):
        wall = machine.meter.until_read(machine.site.command("backup"), machine.site.environment(), machine.site.volume)
        yield {"work": "latency", "step": "reading", "run": run, "wall": round(wall, 3)}


def contiguous(machine: Machine, runs: int) -> Iterator[Row]:
    """Rewrite 1 % in one piece and back up, without hints and with them, on a machine that has restore points."""
    machine.site.configure(Setup(hints=True))
    length = machine.size // PAGE // 100 * PAGE
    # Where gen.py's day c begins, aligned to no block.
    begin = int(machine.size * 0.37) // 65536 * 65536 + 5 * PAGE
    rng = np.random.default_rng((SEED, 1000))
    generation: str | None = None
    hint(machine, "0", None, [])
    machine.backup()
    for run in range(runs):
        for step in ("compare", "hints"):
            machine.write((offset, rng.bytes(PAGE)) for offset in range(begin, begin + length, PAGE))
            since, generation = generation or "0", f"{run} {step}"
            hint(machine, generation, since if step == "hints" else None, [(begin, length)])
            yield machine.backup(work="contiguous", step=step, run=run, changed=length)


def away(machine: Machine, runs: int) -> Iterator[Row]:
    """Make a first backup into the vault, then one into the spool with the vault away, and upload that.

    Beside the upload stands a plain copy of the same objects to the same filesystem.
    """
    site, aside, copied = machine.site, machine.folder / "aside", machine.folder / "copied"
    for run in range(runs):
        keys: Row = {"work": "away", "run": run}
        for step, spool in (("vault", False), ("spool", True)):
            for folder in (site.folder, site.vault):
                shutil.rmtree(folder, ignore_errors=True)
            machine.found(Setup(spool=True))
            if not spool:
                yield machine.backup(**keys, step=step)
                continue
            site.vault.rename(aside)
            command = site.command("backup")
            row = machine.meter.run(command, site.environment(), machine.folder, site.volume, expect=3)
            yield keys | {"step": step, "size": machine.size} | row
            aside.rename(site.vault)
        row = machine.meter.run(["cp", "-r", str(site.spool), str(copied)], {}, machine.folder, site.spool / "format")
        yield keys | {"step": "copy"} | row
        shutil.rmtree(copied)
        row = machine.meter.run(site.command("upload"), site.environment(), machine.folder)
        yield keys | {"step": "upload", "size": machine.size} | row
    row = machine.restore("latest", work="away", step="restore")
    yield row | {"same": same_files(machine.out, site.volume)}
    machine.out.unlink(missing_ok=True)


def hint(machine: Machine, generation: str, since: str | None, extents: Sequence[Extent]) -> None:
    """Leave a hints file for the next backup; `since` None: compare everything."""
    write_hints(machine.site.hints, generation, since, extents)


def sparse(machine: Machine) -> Iterator[Row]:
    """Back up a huge volume with little in it twice, a quarter rewritten in between, and restore it."""
    rng = np.random.default_rng((SEED, 2000))
    places = np.sort(rng.choice(machine.size // MIB, SPARSE_PIECES, replace=False))
    pieces = [int(place) * MIB for place in places]
    machine.write((offset, rng.bytes(MIB)) for offset in pieces)
    machine.found()
    yield machine.backup(warm=False, work="sparse", step="full")
    machine.write((offset, rng.bytes(MIB)) for offset in pieces[::4])
    yield machine.backup(warm=False, work="sparse", step="again")
    row = machine.restore("latest", work="sparse", step="restore")
    with machine.site.volume.open("rb") as left, machine.out.open("rb") as right:
        same = all(left.seek(at) == right.seek(at) and left.read(MIB) == right.read(MIB) for at in pieces)
    # Beside the pieces there must be nothing but holes.
    blocks = [path.stat().st_blocks for path in (machine.out, machine.site.volume)]
    yield row | {"same": same and machine.out.stat().st_size == machine.size and blocks[0] <= blocks[1] * 1.1}


def same_files(left: Path, right: Path) -> bool:
    """Tell whether two files hold the same bytes."""
    done = subprocess.run(["cmp", "-s", str(left), str(right)], check=False)
    if done.returncode > 1:
        raise Stop(f"{left} and {right} cannot be compared")
    return done.returncode == 0
