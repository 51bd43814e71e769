"""A command that stands still at an exact instant, as a process of its own, while other commands run."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.adapters.disks import tool
from tests.scenario.crash_driver import Fault
from tests.scenario.crash_machine import CrashMachine, Forge
from tests.scenario.machine import Done


@dataclass
class Running:
    """A command that runs beside the test; it never stands still for longer than the test says."""

    name: str
    holder: CrashMachine
    _thread: threading.Thread | None = None
    _ended: list[Done] = field(default_factory=list)

    @property
    def began(self) -> Path:
        return self.holder.root / "began"

    @property
    def go_on(self) -> Path:
        return self.holder.root / "go-on"

    def start(self, command: Sequence[str], instant: Fault) -> None:
        """Run the command in a thread; at the instant it tells `reached`, and waits for `release`."""
        tool("mkfifo", self.began, self.go_on)
        fault = Fault(
            instant.operation,
            instant.below,
            ["sh", "-c", f"echo > '{self.began}'; cat '{self.go_on}'"],
            instant.count,
            instant.after,
        )
        self._thread = threading.Thread(target=lambda: self._ended.append(self.holder.attempt(*command, fault=fault)))
        self._thread.start()

    def reached(self) -> None:
        """Return once the command stands still."""
        self.began.read_bytes()

    def release(self) -> None:
        """Let the command go on."""
        self.go_on.write_bytes(b"")

    def end(self) -> Done:
        """Return how it ended, once it has."""
        assert self._thread is not None
        self._thread.join()
        return self._ended[-1]


@contextmanager
def beside(machine: CrashMachine, name: str, *, forge: Forge | None = None) -> Iterator[Running]:
    """Give a second way to run commands on a machine, with a forge, a config and outputs of its own.

    `forge`: one that is there already, and runs nothing else meanwhile.
    """
    with nullcontext(forge) if forge is not None else Forge() as its:
        holder = CrashMachine(
            machine.root / name,
            machine.vault,
            machine.cache,
            volumes=machine.volumes,
            extra={**machine.extra, "system": f'identity_file = "{machine.state}/identity"'},
            spool=machine.spool,
            forge=its,
        )
        holder.state.symlink_to(machine.state)
        yield Running(name, holder)


@contextmanager
def halted(machine: CrashMachine) -> Iterator[list[Done]]:
    """Run a session that stands still before its root until the block is left; yields where its end will be."""
    ended: list[Done] = []
    with beside(machine, "holder") as session:
        session.start(["backup"], Fault("link", f"{machine.vault}/root/"))
        session.reached()
        try:
            yield ended
        finally:
            session.release()
            ended.append(session.end())
