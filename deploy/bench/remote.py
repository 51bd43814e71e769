"""The work with vaults on servers: a first backup and a restore beside a plain client's copies, and a thin line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deploy.bench.history import SEED, Machine, same_files
from deploy.bench.line import Line
from deploy.bench.meter import Meter
from deploy.bench.results import Row
from deploy.bench.servers import Server, running

MIB = 1 << 20
VOLUME_BYTES = 1024 * MIB
LINE_BYTES_PER_S = 2_500_000  # 20 Mbit/s
LINE_DELAY_S = 0.08  # each way
LINE_CHANGED_BYTES = 128 * MIB


def fill(machine: Machine, size: int, seed: int) -> None:
    """Write noise over the first `size` bytes of the volume."""
    rng = np.random.default_rng((SEED, 3000, seed))
    machine.write((offset, rng.bytes(MIB)) for offset in range(0, size, MIB))


def pipeline(meter: Meter, kind: str, scripts: Path, folder: Path, runs: int) -> Iterator[Row]:
    """Back up and restore over a server, by turns with a plain client that copies the same bytes in packs."""
    with Machine(meter, folder / "machine", sparse_bytes=VOLUME_BYTES) as machine:
        fill(machine, VOLUME_BYTES, 0)
        volume, copy = machine.site.volume, machine.folder / "copied.img"
        for run in range(runs):
            # A new server each time: what an earlier one was given makes nothing slower, and leaves room.
            with running(kind, scripts, folder / "server") as server:
                keys: Row = {"work": kind, "run": run, "size": VOLUME_BYTES}
                _plain(machine, server, "found", volume)
                shutil.rmtree(machine.site.folder, ignore_errors=True)
                machine.found(server.setup("vault"))
                command, environment = machine.site.command("backup"), machine.site.environment()
                yield keys | {"step": "put"} | meter.run(command, environment, folder, volume)
                yield keys | {"step": "plain-put"} | _plain(machine, server, "put", volume)
                row = machine.restore("latest", step="get")
                yield keys | row | {"same": same_files(machine.out, volume)}
                machine.out.unlink()
                with copy.open("wb") as file:
                    file.truncate(VOLUME_BYTES)
                row = _plain(machine, server, "get", copy)
                yield keys | {"step": "plain-get"} | row | {"same": same_files(copy, volume)}
                copy.unlink()


def _plain(machine: Machine, server: Server, do: str, file: Path) -> Row:
    """Have the plain client found its place, put or get a file; return the figures.

    What is written to is not read before: its pages would lie in memory when the clock starts, and those of a restored
    file do not.
    """
    command, environment = server.plain(do, "plain", file)
    row = machine.meter.run(command, environment, machine.folder, file if do == "put" else None)
    return {key: value for key, value in row.items() if key != "rss_mib"}  # it is not ours


def thin(meter: Meter, kind: str, scripts: Path, folder: Path) -> Iterator[Row]:
    """Back up what changed over a line of 20 Mbit/s that is 80 ms late each way, and tell how full that was."""
    with (
        running(kind, scripts, folder / "server") as server,
        Machine(meter, folder / "machine", sparse_bytes=LINE_CHANGED_BYTES) as machine,
        Line(server.port, LINE_BYTES_PER_S, LINE_DELAY_S) as line,
    ):
        _plain(machine, server, "found", machine.site.volume)
        machine.found(server.setup("vault", line.port))
        command, environment = machine.site.command("backup"), machine.site.environment()
        meter.run(command, environment, folder)
        fill(machine, LINE_CHANGED_BYTES, 1)
        line.forget()
        row = meter.run(command, environment, folder, machine.site.volume)
        full, took_s = line.fullness()
        yield {"work": "line", "step": kind, "size": machine.size, "full": full, "took": took_s} | row
