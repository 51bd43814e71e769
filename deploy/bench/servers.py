"""Real servers for the bench, by the scripts beside the checkout, and a plain client's way to and from them."""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bench.agent import Setup
from deploy.bench.meter import Stop

SCRIPTS = {"s3": "s3_seaweed.py", "smb": "smb_samba.sh"}
PORTS = range(20_000, 30_000, 10)  # below those the system gives away
STARTS_MAX = 8
PLAIN = Path(__file__).with_name("plain.py")
BUCKET = "bench"


@dataclass(frozen=True)
class Server:
    """A running server of a kind ("s3", "smb"): its port, its login, and a file with what of that is secret."""

    kind: str
    port: int
    user: str
    secret: str
    file: Path

    def setup(self, folder: str, port: int | None = None) -> Setup:
        """Return the setup of an agent whose vault is `folder` there, reached by `port` if not by the server's."""
        port = port or self.port
        if self.kind == "s3":
            lines = (f'endpoint_url = "http://127.0.0.1:{port}"', f"credentials_file = {json.dumps(str(self.file))}")
            return Setup(vault_url=f"s3://{BUCKET}/{folder}", vault_lines=lines)
        lines = (f'user = "{self.user}"', f"password_file = {json.dumps(str(self.file))}")
        return Setup(vault_url=f"smb://127.0.0.1:{port}/share/{folder}", vault_lines=lines)

    def plain(self, do: str, folder: str, file: Path) -> tuple[list[str], dict[str, str]]:
        """Return the command of a plain client that puts `file` there in packs, or gets it, and its environment."""
        words = [sys.executable, str(PLAIN), self.kind, do, str(self.port), folder, str(file)]
        return words, {"PLAIN_USER": self.user, "PLAIN_SECRET": self.secret}


def missing(scripts: Path, kinds: tuple[str, ...]) -> str | None:
    """Return, in a sentence, why there are no such servers; None: there are."""
    names = [SCRIPTS[kind] for kind in kinds if not (scripts / SCRIPTS[kind]).is_file()]
    return f"{', '.join(names)} not in {scripts}: name their folder with SERVICES=…" if names else None


@contextmanager
def running(kind: str, scripts: Path, folder: Path) -> Iterator[Server]:
    """Run a server that keeps everything in `folder`, which goes with it. Raises: Stop."""
    runner = [sys.executable if kind == "s3" else "bash", str(scripts / SCRIPTS[kind])]
    data = ["--data", str(folder)] if kind == "s3" else [str(folder)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        told, port = _start(kind, runner, data)
        if kind == "s3":
            user, secret = told["access_key"], told["secret_key"]
            text = f"[default]\naws_access_key_id={user}\naws_secret_access_key={secret}\n"
        else:
            user, secret = told["user"], told["password"]
            text = secret
        file = folder / "login"
        file.touch(mode=0o600)
        file.write_text(text, encoding="utf-8")
        yield Server(kind, port, user, secret, file)
    finally:
        subprocess.run([*runner, "wipe", *data], stdout=subprocess.DEVNULL, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _start(kind: str, runner: list[str], data: list[str]) -> tuple[dict[str, Any], int]:
    said = ""
    subprocess.run([*runner, "install", *(["--venv", sys.prefix] if kind == "s3" else [])], check=False,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    for _ in range(STARTS_MAX):
        port = secrets.choice(PORTS)
        where = ["--port", str(port)] if kind == "s3" else [str(port)]
        done = subprocess.run([*runner, "start", *data, *where], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1]), port
        said = done.stderr
    raise Stop(f"no {kind} server could be started: {said}")
