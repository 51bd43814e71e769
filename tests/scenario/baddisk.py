"""A disk of which chosen ranges cannot be read, served by nbdkit and FUSE; its content is a file's."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.adapters.disks import TOOL_TIMEOUT_S, tool


@contextmanager
def bad_disk(folder: Path, content: Path, bad: Sequence[tuple[int, int]]) -> Iterator[Path]:
    """Yield a path, the same at every call, that reads as `content` but for the ranges (offset, length) of `bad`.

    Ranges are multiples of 512 bytes, ascending and apart.
    """
    served, chart = folder / "disk", folder / "disk.map"
    served.touch()
    lines = ["# Mapfile", "0x0 ? 1"]
    position = 0
    for offset, length in bad:
        lines += [f"{position:#x} {offset - position:#x} +", f"{offset:#x} {length:#x} -"]
        position = offset + length
    rest = content.stat().st_size - position
    chart.write_text("\n".join([*lines, f"{position:#x} {rest:#x} +"]) + "\n", encoding="ascii")
    serving = subprocess.Popen(
        [
            "nbdfuse", str(served), "--command", "nbdkit", "-s", "--exit-with-parent",
            "--filter=ddrescue", "file", str(content), f"ddrescue-mapfile={chart}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ready = threading.Event()
        for _ in range(200):
            if os.path.ismount(served):
                break
            ready.wait(0.05)
        yield served
    finally:
        tool("umount", served)
        serving.wait(TOOL_TIMEOUT_S)
