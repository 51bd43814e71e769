"""Real disks for tests that run as root: tmpfs of a stated size, loop devices, file systems, disks with read errors."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOOL_TIMEOUT_S = 60
PAGE = 4096
LIBC = ctypes.CDLL(None, use_errno=True)


def tool(*command: str | Path) -> str:
    """Run a tool and return what it prints."""
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=TOOL_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command} failed with {done.returncode}: {done.stderr}")
    return done.stdout


@contextmanager
def mounted(source: str | Path, where: Path, *options: str) -> Iterator[Path]:
    """Mount until the end, which is no error if it is not mounted any more by then."""
    where.mkdir(exist_ok=True)
    tool("mount", *options, source, where)
    try:
        yield where
    finally:
        if os.path.ismount(where):
            tool("umount", where)


@contextmanager
def tmpfs(where: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a file system in memory that holds `size_bytes`."""
    with mounted("tmpfs", where, "-t", "tmpfs", "-o", f"size={size_bytes}"):
        yield where


@contextmanager
def loop_device(image: Path, *options: str) -> Iterator[Path]:
    """Make a file a block device."""
    device = Path(tool("losetup", "--find", "--show", *options, image).strip())
    try:
        yield device
    finally:
        tool("losetup", "--detach", device)


def new_image(path: Path, size_bytes: int) -> Path:
    """Make a sparse file."""
    with path.open("wb") as file:
        file.truncate(size_bytes)
    return path


def ext4_image(path: Path, size_bytes: int = 32 << 20) -> Path:
    """Make a file with an empty ext4 file system in it."""
    tool("mkfs.ext4", "-q", "-F", new_image(path, size_bytes))
    return path


@contextmanager
def failing_disk(folder: Path, size_bytes: int, *nbdkit_words: str) -> Iterator[tuple[Path, Path]]:
    """Yield (file of a disk in memory, trigger): while the trigger file exists, reads and writes fail with EIO.

    `nbdkit_words`: what nbdkit gets before (filters) and after its plugin is added to its error filter.
    """
    served, trigger = folder / "nbd", folder / "trigger"
    served.touch()
    command = [
        "nbdfuse",
        str(served),
        "--command",
        "nbdkit",
        "-s",
        "--exit-with-parent",
        "--filter=error",
        *nbdkit_words,
        "memory",
        str(size_bytes),
        "error=EIO",
        "error-rate=100%",
        f"error-file={trigger}",
    ]
    serving = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ready = threading.Event()
        for _ in range(200):
            if os.path.ismount(served):
                break
            ready.wait(0.05)
        yield served, trigger
    finally:
        trigger.unlink(missing_ok=True)
        tool("umount", served)
        serving.wait(TOOL_TIMEOUT_S)


def cached_bytes(path: Path) -> int:
    """Return how much of a file the page cache holds, without filling it."""
    size = path.stat().st_size
    pages = -(-size // PAGE)
    resident = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        start = ctypes.c_ubyte.from_buffer(mapped)
        failed = LIBC.mincore(ctypes.byref(start), ctypes.c_size_t(size), resident)
        del start
    assert not failed, os.strerror(ctypes.get_errno())
    return PAGE * sum(page & 1 for page in resident)
