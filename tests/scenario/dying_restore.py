"""A restore in a process of its own that is killed right before its n-th change of the growing file.

    python -m tests.scenario.dying_restore VAULT SYSTEM TO WINDOW_BLOCKS N

Prints how many changes there were if it lives to its end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adapters.stores.folder import FolderStore
from adapters.volumes.targets import PARTIAL_SUFFIX
from engine.recovery import restore as restore_module
from tests.scenario.recover import Recoverer

CHANGING = ("pwrite", "pwritev", "fsync", "ftruncate", "write")


class Killer:
    """Counts the changes of partial files and kills this process before the `last` one."""

    def __init__(self, last: int) -> None:
        self.count, self._last, self._lock = 0, last, threading.Lock()

    def watching(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(fd: int, *arguments: Any) -> Any:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(PARTIAL_SUFFIX):
                with self._lock:
                    self.count += 1
                    if self.count == self._last:
                        os.kill(os.getpid(), signal.SIGKILL)
            return real(fd, *arguments)

        return call


def main(vault: str, system: str, to: str, window_blocks: str, last: str) -> None:
    restore_module.WINDOW_BLOCKS = int(window_blocks)  # type: ignore[misc]
    killer = Killer(int(last))
    for name in CHANGING:
        setattr(os, name, killer.watching(getattr(os, name)))
    Recoverer(FolderStore(Path(vault), "test"), system=system).restore_to("latest", "data", Path(to))
    print(killer.count)


if __name__ == "__main__":
    main(*sys.argv[1:])
