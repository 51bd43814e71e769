"""Runs the real command line in forked children of one warm interpreter, killed or disturbed at an exact instant.

Started by `crash_machine.Forge`. It reads a request a line (JSON, see `Request`) and answers each with a line. A
child is a process of its own that runs `adapters.main.run`, nothing of it replaced; the functions of `os` that
change something on a disk are only counted on their way, so that "kill -9 at the k-th change" is the same instant
everywhere.
"""

from __future__ import annotations

import importlib
import os
import select
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

CHANGING: Final = ("write", "pwrite", "fsync", "link", "rename", "replace", "unlink", "mkdir", "rmdir", "ftruncate")
CREATING: Final = os.O_CREAT | os.O_TRUNC
CRASHED: Final = 70
KILL: Final = 9
WARM: Final = (
    "anyio._backends._asyncio",
    "adapters.cli.backup",
    "adapters.cli.check_config",
    "adapters.cli.deleting",
    "adapters.cli.init",
    "adapters.cli.points",
    "adapters.cli.progress",
    "adapters.cli.recovering",
    "adapters.cli.restore",
    "adapters.cli.session",
    "adapters.cli.status",
    "adapters.cli.trim",
    "adapters.cli.trimtext",
    "adapters.cli.upload",
    "adapters.cli.vaultcheck",
    "adapters.cli.verify",
    "adapters.cli.verifyvault",
    "adapters.compose",
    "adapters.logfile",
    "adapters.logs",
    "adapters.main",
    "adapters.priority",
    "adapters.state.fragments",
    "adapters.state.healnotes",
    "adapters.state.identity",
    "adapters.state.maps",
    "adapters.state.missing",
    "adapters.state.pagefile",
    "adapters.state.parts",
    "adapters.state.staging",
    "adapters.state.trimnotes",
    "adapters.state.upkeep",
    "adapters.stores.folder",
    "adapters.volumes.targets",
    "aiofiles",
    "engine.cache.trimjob",
    "engine.cache.verification",
    "engine.recovery.catalogue",
    "engine.recovery.restore",
    "engine.recovery.sources",
    "engine.spooldelete",
    "engine.vault.founding",
    "engine.vault.marking",
    "engine.vault.mending",
    "engine.vault.reading",
    "engine.vault.verification",
    "numpy.ma",
)
TIMEOUT_S: Final = 120


class Fault(msgspec.Struct, frozen=True):
    """At the `count`-th `operation` of a name that begins with `below`, run the command `then`; none: be killed.

    It happens before the operation, or right `after` it.
    """

    operation: str
    below: str
    then: list[str] = []
    count: int = 1
    after: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the command line; what it prints goes to the files `out` and `err`.

    `kill_at`: kill it at its k-th change, counted from 1, `torn` half-way into it where it is a write; `kill_after_s`:
    kill it after so long.
    """

    arguments: list[str]
    out: str
    err: str
    kill_at: int | None = None
    torn: bool = False
    kill_after_s: float | None = None
    faults: list[Fault] = []
    cheap: bool = True


class Answer(msgspec.Struct, frozen=True):
    """The exit code (-9: killed) and how many changes were counted (0: killed)."""

    code: int
    changes: int


class Counter:
    """Counts what changes a disk, and does what the request says at its instant."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._lock = threading.RLock()
        self._real: dict[str, Callable[..., Any]] = {}
        self.changes = 0
        self._left = [fault.count for fault in request.faults]

    def install(self) -> None:
        """Put the counting functions into `os`."""
        for name in (*CHANGING, "open"):
            self._real[name] = getattr(os, name)
            setattr(os, name, self._counted(name))

    def _counted(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(*arguments: Any, **named: Any) -> Any:
            if name == "open" and not arguments[1] & CREATING:
                return real(*arguments, **named)
            # One thread at a time: while one is at its instant, no other makes its next change.
            with self._lock:
                due = self._count(name, arguments, named)
                if due is not None and not due.after:
                    _happen(due)
                result = real(*arguments, **named)
                if due is not None and due.after:
                    _happen(due)
                return result

        return call

    def _count(self, name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Fault | None:
        """Count a change; be killed at the one that was asked for; return the fault if this is its instant."""
        self.changes += 1
        if self.changes == self._request.kill_at:
            if self._request.torn and name in ("write", "pwrite"):
                data = memoryview(arguments[1]).cast("B")
                self._real[name](arguments[0], data[: len(data) // 2], *arguments[2:])
            _kill()
        for number, fault in enumerate(self._request.faults):
            if not self._left[number] or name != fault.operation:
                continue
            if _place(arguments, named).startswith(fault.below):
                self._left[number] -= 1
                if not self._left[number]:
                    return fault
        return None


def _happen(fault: Fault) -> None:
    if fault.then:
        subprocess.run(fault.then, check=True, capture_output=True)
    else:
        _kill()


def _kill() -> None:
    os.kill(os.getpid(), KILL)


def _place(arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
    """Return the whole path that a call is about: of a link or rename the target."""
    target = arguments[1] if len(arguments) > 1 and isinstance(arguments[1], str | Path) else arguments[0]
    if isinstance(target, int):
        return os.readlink(f"/proc/self/fd/{target}")
    folder = named.get("dst_dir_fd", named.get("dir_fd"))
    return os.path.join(os.readlink(f"/proc/self/fd/{folder}") if folder is not None else "", os.fspath(target))


def _child(request: Request) -> None:
    """Be the command: never returns."""
    code = CRASHED
    try:
        for number, path in ((1, request.out), (2, request.err)):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, number)
            os.close(fd)
        from adapters.main import run

        if request.cheap:
            from engine.vault import slots

            # Guessing the passphrase of a test is allowed to be cheap; readers take the cost from the slot.
            real = slots.KdfCost
            vars(slots)["KdfCost"] = lambda *cost: real(*cost) if cost else real.cheapest()
        counter = Counter(request)
        counter.install()
        code = run(request.arguments)
        sys.stdout.flush()
        sys.stderr.flush()
        changes = Path(f"{request.out}.changes")
        fresh = changes.with_suffix(".new")
        fresh.write_text(str(counter.changes), encoding="ascii")
        fresh.rename(changes)  # it may be killed here as well
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise
    finally:
        os._exit(code)


def _serve(request: Request) -> Answer:
    changes = Path(f"{request.out}.changes")
    changes.unlink(missing_ok=True)
    code = CRASHED
    if sys.platform != "win32":  # which cannot fork
        child = os.fork()
        if child == 0:
            _child(request)
        watched = os.pidfd_open(child)
        try:
            wait_s = TIMEOUT_S if request.kill_after_s is None else request.kill_after_s
            if not select.select([watched], [], [], wait_s)[0]:
                os.kill(child, KILL)
        finally:
            os.close(watched)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Answer(code, int(changes.read_text(encoding="ascii")) if changes.exists() else 0)


def _warm() -> None:
    """Import what commands import when they run, so that a forked child begins at once."""
    for name in WARM:
        importlib.import_module(name)


def main() -> None:
    """Serve requests until stdin ends."""
    _warm()
    for line in sys.stdin.buffer:
        answer = _serve(msgspec.json.decode(line, type=Request))
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
