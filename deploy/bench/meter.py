"""Measuring commands the way peers.py does, by its own functions; and telling when a program first reads a file."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from deploy.bench.results import Row

IN_ACCESS = 0x1


class Stop(Exception):
    """The bench cannot go on; the message says why."""


def load_peers(shared: Path) -> ModuleType:
    """Return peers.py as a module.

    Raises: Stop if it is not there.
    """
    path = shared / "peers.py"
    spec = importlib.util.spec_from_file_location("peers", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise Stop(f"{path} is not there: name the folder of gen.py, peers.py and limits.py with SHARED=…")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Meter:
    """Runs commands one at a time on a machine that is as quiet as it gets, and returns their figures.

    `peers`: the module; `log`: the file the commands' output goes to; `quiet_s`: how long to wait for quiet at most.
    """

    peers: Any
    log: Path
    quiet_s: float

    def run(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        synced: Path,
        warm: Path | None = None,
        expect: int = 0,
    ) -> Row:
        """Run a command and return wall, user, sys, cpu, rss_mib …, and sync_s of the filesystem of `synced`.

        `warm`: a file read into the page cache before; `expect`: the exit code it is to have. Raises: Stop for another.
        """
        subprocess.run(["sync"], check=True)
        if warm is not None:
            self.peers.warm(shlex.quote(str(warm)))
        self.peers.wait_quiet(self.quiet_s)
        with self.log.open("ab") as log:
            line = shlex.join(command) + (f"; test $? -eq {expect}" if expect else "")
            row: Row = self.peers.measure([line], os.environ | env, log)
        if "rc" in row:
            raise Stop(f"{line} ended with exit code {row['rc']}: see {self.log}")
        return row | {"sync_s": self.peers.sync(str(synced))}

    def until_read(self, command: Sequence[str], env: Mapping[str, str], file: Path) -> float:
        """Run a command and return the seconds until it first reads from `file`.

        Raises: Stop if it fails or never reads.
        """
        subprocess.run(["sync"], check=True)
        self.peers.wait_quiet(self.quiet_s)
        with self.log.open("ab") as log, AccessWatch(file) as watch:
            began = time.perf_counter()
            process = subprocess.Popen(command, env=os.environ | env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            was_read = watch.wait(process.pid)
            found = time.perf_counter() - began
            if process.wait() != 0 or not was_read:
                raise Stop(f"{shlex.join(command)} failed or read nothing of {file}: see {self.log}")
        return found

    def stored(self, folder: Path) -> int:
        """Return the bytes of all files below a folder."""
        return int(self.peers.du(str(folder))[0])


class AccessWatch:
    """Linux's inotify on one file: told of the first read by anyone, whichever call it uses."""

    def __init__(self, file: Path) -> None:
        if sys.platform != "linux":
            raise Stop("the bench runs on Linux only")
        self._file = file
        self._fd = -1

    def __enter__(self) -> AccessWatch:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0 or libc.inotify_add_watch(self._fd, os.fsencode(self._file), IN_ACCESS) < 0:
            raise Stop(f"{self._file} cannot be watched: {os.strerror(ctypes.get_errno())}")
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def wait(self, pid: int) -> bool:
        """Wait until the file is read or the process `pid` has ended; return whether it was read."""
        ended = os.pidfd_open(pid)
        try:
            waiting = select.poll()  # select() knows no descriptor above 1,023
            waiting.register(self._fd, select.POLLIN)
            waiting.register(ended, select.POLLIN)
            return any(number == self._fd for number, _ in waiting.poll())
        finally:
            os.close(ended)
