"""The parts of a bench, one after the other: volumes, limits, the work peers do too, the work only Forebay does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench import history, machine, remote, servers
from deploy.bench.lines import PEERS, WORKS, size_text
from deploy.bench.meter import Meter, Stop
from deploy.bench.results import Results, Row

PLUGIN = Path(__file__).with_name("peer.py")
INDEX = Path(__file__).with_name("indexbench.py")
INDEX_ENTRIES = 160_000_000
VERIFY = Path(__file__).with_name("verifybench.py")
VERIFY_BLOCKS = 4 << 24  # 4 TiB
STEPS = ("full", "nochange", "a", "b", "c", "restore")
# Days are cumulative, and the newest point is that after the last.
BEFORE = {"restore": ("a", "b", "c")}
# By row, the servers it takes: without their scripts it is left out, and named.
SERVED = {"s3": ("s3",), "smb": ("smb",), "line": ("s3", "smb")}
ON_THE_VOLUME = {"days10", "latency", "contiguous", "away"}
OWN = ("days10", "days30", "latency", "contiguous", "sparse", "away", "verify", *SERVED)
NAMES = (*(work.name for work in WORKS), *OWN, "index")
# While tuning: the peers that have been the fastest at a step, and nobody else.
FASTEST = {
    "full": ("borg-fixed4m", "borg-fixed64k"),
    "nochange": ("borg-fixed4m",),
    "a": ("borg-fixed64k",),
    "b": ("borg-fixed4m",),
    "c": ("borg-fixed4m",),
    "restore": ("restic",),
}
# A volume, a repository after all days of the peer that adds most, and a restored volume.
SPACE_PER_BYTE = 3.7
# A volume, its packs and the plain client's on the server, and a restored volume and a copied one.
SERVED_SPACE = 5 * remote.VOLUME_BYTES


@dataclass(frozen=True)
class Plan:
    """What is to be done: `peers` do `steps` on the volume `size` ("8G"), Forebay its `own`; `tuning`: only a part."""

    size: str
    peers: tuple[str, ...]
    steps: tuple[str, ...]
    own: tuple[str, ...]
    tuning: bool

    @property
    def volumes(self) -> tuple[str, ...]:
        """Return the sizes of the volumes needed, if any; the long history is one of 2 GiB."""
        sizes = [self.size] if self.peers or ON_THE_VOLUME & set(self.own) else []
        return tuple(dict.fromkeys((*sizes, *(("2G",) if "days30" in self.own else ()))))


def plan_of(rows: str, peers: str, size: str, *, index: bool = False) -> Plan:
    """Return the plan for `rows` ("" for all, with `index` that too) and `peers` ("" for all, or for rows the fastest).

    Raises: Stop for names there are none of.
    """
    names = tuple(filter(None, rows.split(",")))
    for name in names:
        if name not in NAMES:
            raise Stop(f"there is no row {name!r}; rows: {', '.join(NAMES)}")
    works = [work for work in WORKS if not names or work.name in names]
    needed = {"full", *(work.step for work in works)}
    needed |= {step for later in tuple(needed) for step in BEFORE.get(later, ())}
    own = {name for work in works for name in (work.ours, *work.against) if name.startswith("forebay")}
    others: set[str] = set(filter(None, peers.split(",")))
    if not others:
        others = {"cp", *PEERS}
        if names:
            others = {peer for work in works if work.against == PEERS for peer in FASTEST[work.step]}
            others |= {peer for work in works if len(work.against) == 1 for peer in work.against}
    order = (*sorted(own), *(peer for peer in ("cp", *PEERS) if peer in others), *sorted(others - {"cp", *PEERS} - own))
    return Plan(
        size=size,
        peers=order if works else (),
        steps=tuple(step for step in STEPS if step in needed) if works else (),
        own=tuple(name for name in (*OWN, "index") if (name in names if names else index or name != "index")),
        tuning=bool(names),
    )


@dataclass(frozen=True)
class Tools:
    """The scripts of `shared` and of `services`, the bench's folder, and the meter."""

    shared: Path
    services: Path
    folder: Path
    meter: Meter

    def data(self, size: str) -> Path:
        """Return the folder of a volume."""
        return self.folder / size.lower()

    def volume(self, size: str) -> dict[str, Any]:
        """Return the manifest of a volume, which is made if it is not there yet.

        Raises: Stop without root, or if it cannot be made.
        """
        folder = self.data(size)
        manifest = read_manifest(folder)
        if manifest is None:
            if os.geteuid() != 0:
                raise Stop(
                    f"the volume in {folder} has to be made first, and its loop mount takes root: run it once as root"
                )
            print(f"Making the volume of {size} in {folder} (once; it is kept) ...", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
            self._script("gen.py", "all", "--size", size, "--dir", str(folder), output=subprocess.DEVNULL)
            manifest = read_manifest(folder)
        if manifest is None:
            raise Stop(f"gen.py left no volume in {folder}")
        return manifest

    def require_space(self, size: int, *, served: bool) -> None:
        """Refuse to begin what the disk has no room for: a volume of `size` bytes (0: none), and servers.

        Raises: Stop.
        """
        free, needed = shutil.disk_usage(self.folder).free, max(int(size * SPACE_PER_BYTE), SERVED_SPACE * served)
        if free < needed:
            less = f", or take SIZE=2G instead of a volume of {size_text(size)}" if size else ""
            raise Stop(
                f"{self.folder} has {free >> 30} GiB free, this takes {needed >> 30} GiB: name a roomier folder with "
                f"BENCH_DIR=…{less}"
            )

    def limits(self, size: str, *, again: bool) -> dict[str, Any]:
        """Return what limits.py finds on a volume; what it found before if that is enough."""
        kept = self.folder / f"limits-{size.lower()}.json"
        if again or not kept.exists():
            print("Measuring the limits of this machine ...", flush=True)
            tmp = self.folder / "limits"
            with kept.with_suffix(".new").open("wb") as file:
                try:
                    where = ("--data", str(self.data(size)), "--tmp", str(tmp))
                    # Of a large volume every part takes long enough to be measured once.
                    reps = "3" if size == "2G" else "1"
                    self._script("limits.py", *where, "--reps", reps, output=file.fileno())
                finally:
                    shutil.rmtree(tmp, ignore_errors=True)
            kept.with_suffix(".new").replace(kept)
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found

    def peers(self, plan: Plan, runs: int) -> Iterator[Row]:
        """Have peers.py run its scenarios with the peers that are there; yield its rows, without their paths."""
        work = self.folder / "work"
        peers = [peer for peer in plan.peers if is_there(peer)]
        arguments = ["--data", str(self.data(plan.size)), "--work", str(work), "--plugin", str(PLUGIN)]
        arguments += ["--peer", ",".join(peers), "--steps", ",".join(plan.steps), "--runs", str(runs)]
        arguments += ["--quiet-wait", str(self.meter.quiet_s)]
        command = [sys.executable, str(self.shared / "peers.py"), *arguments]
        try:
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    row = json.loads(line)
                    row.pop("cmd", None)
                    yield row
        finally:
            for log in sorted(work.glob("log-*.txt")):
                log.replace(self.folder / log.name)
            shutil.rmtree(work, ignore_errors=True)
        if process.returncode != 0:
            raise Stop(f"peers.py ended with exit code {process.returncode}")

    def index(self) -> Iterator[Row]:
        """Measure look-ups in an index of 160 million entries.

        Raises: Stop if that fails.
        """
        yield {"work": "index", "found": self._found(INDEX, "--entries", str(INDEX_ENTRIES))}

    def verify(self) -> Iterator[Row]:
        """Measure the verification of a cache of 4 TiB.

        Raises: Stop if that fails.
        """
        yield {"work": "verify", "found": self._found(VERIFY, "--blocks", str(VERIFY_BLOCKS))}

    def _found(self, script: Path, *arguments: str) -> Any:
        """Return what a script prints that works in a folder of its own."""
        folder = self.folder / script.stem
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, str(script), *arguments, "--dir", str(folder)]
        done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(), check=False)
        if done.returncode != 0:
            raise Stop(f"{script.name} ended with exit code {done.returncode}")
        return json.loads(done.stdout)

    def _script(self, name: str, *arguments: str, output: int) -> None:
        done = subprocess.run(
            [sys.executable, str(self.shared / name), *arguments], stdout=output, env=environment(), check=False
        )
        if done.returncode != 0:
            raise Stop(f"{name} {' '.join(arguments)} ended with exit code {done.returncode}")


def carry_out(plan: Plan, tools: Tools, results: Results) -> Iterator[Row]:
    """Do what is planned; set the limits of `results`, yield the rows."""
    tools.require_space(results.size, served=not SERVED.keys().isdisjoint(plan.own))
    if plan.size in plan.volumes:
        results.limits = tools.limits(plan.size, again=not plan.tuning)
    if plan.peers:
        yield from tools.peers(plan, results.runs)
    yield from own_work(plan, tools, results.runs)


def own_work(plan: Plan, tools: Tools, runs: int) -> Iterator[Row]:
    """Do the work only Forebay is measured at; what fails is a row that says so, and the rest goes on."""
    folder = tools.folder / "machine"
    base, long = tools.data(plan.size), tools.data("2G")
    if {"days10", "latency", "contiguous"} & set(plan.own):
        with history.Machine(tools.meter, folder, base=base / "base.img") as one:
            yield from attempt("days10", history.lived(one, base, 10 if "days10" in plan.own else 0, runs))
            if "latency" in plan.own:
                yield from attempt("latency", history.latency(one))
            if "contiguous" in plan.own:
                yield from attempt("contiguous", history.contiguous(one, runs))
    if "days30" in plan.own:
        with history.Machine(tools.meter, folder, base=long / "base.img") as one:
            yield from attempt("days30", history.lived(one, long, 30, 1))
    if "away" in plan.own:
        with history.Machine(tools.meter, folder, base=base / "base.img") as one:
            yield from attempt("away", history.away(one, runs))
    if "sparse" in plan.own:
        with history.Machine(tools.meter, folder, sparse_bytes=history.SPARSE_BYTES) as one:
            yield from attempt("sparse", history.sparse(one))
    if "verify" in plan.own:
        print("Verifying a cache of 4 TiB ...", flush=True)
        yield from attempt("verify", tools.verify())
    for name in (name for name in SERVED if name in plan.own):
        yield from attempt(name, served(name, tools, runs))
    if "index" in plan.own:
        print("Looking ids up in an index of 160 million entries ...", flush=True)
        yield from attempt("index", tools.index())


def served(name: str, tools: Tools, runs: int) -> Iterator[Row]:
    """Do the work of a row that takes servers, unless they are not there."""
    if (why := servers.missing(tools.services, SERVED[name])) is not None:
        print(f"bench: the row {name} is left out: {why}", file=sys.stderr)
        return
    for kind in SERVED[name]:
        folder = tools.folder / "served"
        if name == "line":
            yield from remote.thin(tools.meter, kind, tools.services, folder)
        else:
            yield from remote.pipeline(tools.meter, kind, tools.services, folder, runs)


def attempt(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows of a work; if it cannot go on, say why and yield a row that it failed."""
    try:
        yield from rows
    except Stop as stop:
        print(f"bench: {stop}", file=sys.stderr)
        yield {"work": name, "rc": 1}


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what gen.py says of a volume; None if it is not there whole."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        whole = (folder / "base.img").stat().st_size == manifest["size"] and "stats64k" in manifest
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return manifest if whole else None


def environment() -> dict[str, str]:
    """Return the environment of the scripts: they find borg, and the plugin finds its modules."""
    borg = machine.find_borg()
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])} | ({"BORG": borg} if borg else {})


def is_there(peer: str) -> bool:
    """Tell whether a peer can run; what setup.sh could not install is left out."""
    if peer.startswith("restic"):
        return shutil.which("restic") is not None
    if peer.startswith("borg"):
        return machine.find_borg() is not None
    return True


def is_ours(row: Row) -> bool:
    """Tell whether a row is Forebay's."""
    return str(row.get("peer", "forebay")).startswith("forebay")


def told(row: Row) -> str:
    """Return a row for the terminal, while it runs."""
    who = str(row.get("peer") or f"forebay, {row['work']}")
    step = str(row.get("step", "")) + (f" {row['day']}" if "day" in row else "")
    if "rc" in row:
        return f"  {who:<22}{step:<16}FAILED, exit code {row['rc']}"
    parts = [f"{row['wall']:9.2f} s"] if "wall" in row else []
    parts += [f"{row['rss_mib']:7.0f} MiB"] if "rss_mib" in row else []
    parts += [f"{row['added'] / 1e6:9.1f} MB added"] if row.get("added") else []
    parts += ["NOT the same bytes"] if row.get("same") is False else []
    return f"  {who:<22}{step:<16}{' '.join(parts)}"
