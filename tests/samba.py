"""Real Samba servers for tests, by the scripts beside the checkout: one for all workers, or one of a test's own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from adapters.stores.smb import SmbStore
from adapters.stores.smbconnection import Login
from tests.conftest import services

START_TIMEOUT_S = 60
START_TRIES_MAX = 3
MARKER = b"F" * 56


def free_port() -> int:
    """Return a port of the loopback that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@dataclass
class Samba:
    """A running server: its folder, port and login."""

    folder: Path
    port: int
    pid: int
    user: str = "backup"
    password: str = "Backup-Pass-1"

    def url(self, folder: str, share: str = "share", *, port: int | None = None) -> str:
        return f"smb://127.0.0.1:{port or self.port}/{share}/{folder}"

    def store(
        self,
        folder: str,
        share: str = "share",
        *,
        owner: str = "me",
        user: str | None = None,
        password: str | None = None,
        server: str = "127.0.0.1",
        port: int | None = None,
        encrypt: bool = True,
        connect_timeout_s: float = 15.0,
        stall_timeout_s: float = 30.0,
        busy_s: float = 30.0,
    ) -> SmbStore:
        return SmbStore(
            Login(server, port or self.port, share, user or self.user, encrypt),
            folder,
            owner,
            lambda: self.password if password is None else password or None,
            f"share {self.url(folder, share)}",
            connect_timeout_s=connect_timeout_s,
            stall_timeout_s=stall_timeout_s,
            busy_s=busy_s,
        )

    def path(self, folder: str, share: str = "share") -> Path:
        """Return where the server keeps a folder of a share."""
        return self.folder / ("small" if share == "small" else "share") / folder

    def processes(self) -> list[int]:
        """Return the server's processes, the youngest first."""
        found, parents = [self.pid], [self.pid]
        for parent in parents:
            for task in Path(f"/proc/{parent}/task").glob("*/children"):
                children = [int(word) for word in task.read_text().split()]
                found += children
                parents += children
        return found[::-1]

    def freeze(self) -> None:
        for process in self.processes():
            os.kill(process, signal.SIGSTOP)

    def thaw(self) -> None:
        for process in self.processes():
            os.kill(process, signal.SIGCONT)

    def kill(self) -> None:
        script("stop", self.folder, "9")

    def start_again(self) -> None:
        self.pid = start(self.folder, self.port).pid

    def wipe(self) -> None:
        script("wipe", self.folder)


def script(*words: str | Path | int, env: Mapping[str, str] | None = None) -> str:
    """Run smb_samba.sh and return what it prints."""
    done = subprocess.run(
        ["bash", services() / "smb_samba.sh", *map(str, words)],
        capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"smb_samba.sh {words} failed with {done.returncode}: {done.stderr}")
    return done.stdout


def new_folder() -> Path:
    """Return a new folder for a server: no folder of pytest's, which could not be removed if a run is killed."""
    return Path(tempfile.mkdtemp(prefix="forebay-samba-"))


def start(folder: Path, port: int | None = None, *, encrypt: str = "desired") -> Samba:
    """Start a server that keeps everything in `folder`; `encrypt`: off, desired or required."""
    port = port or free_port()
    told = None
    for tries_left in reversed(range(START_TRIES_MAX)):
        try:
            told = json.loads(script("start", folder, port, env={"ENCRYPT": encrypt}))
            break
        except RuntimeError:
            # On a busy machine the script may look for the server before it is there; started again, it finds it.
            if not tries_left:
                script("wipe", folder)
                raise
    assert told is not None
    return Samba(Path(told["data"]), told["port"], told["pid"], told["user"], told["password"])


def borrow(common: Path, worker: str) -> Samba:
    """Return the server all workers share, which the first one of them starts; `common`: a folder they all know."""
    with FileLock(common / "samba.lock"):
        users = common / "samba-users"
        users.mkdir(exist_ok=True)
        (users / worker).touch()
        known = common / "samba.json"
        if not known.exists():
            known.write_text(json.dumps([str(new_folder()), free_port()]))
        folder, port = json.loads(known.read_text())
        return start(Path(folder), port)


def give_back(common: Path, worker: str) -> None:
    """End the shared server if this worker is the last that uses it."""
    with FileLock(common / "samba.lock"):
        (common / "samba-users" / worker).unlink()
        if not any((common / "samba-users").iterdir()):
            script("wipe", json.loads((common / "samba.json").read_text())[0])
            (common / "samba.json").unlink()
