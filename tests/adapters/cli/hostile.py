"""A system that is enrolled, and the program run as a process of its own: what a user meets, streams and all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import main
from engine.block import BLOCK_BYTES
from tests.engine.vault.fakes_vault import PASSPHRASE

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Place:
    """A folder with a configuration, a volume of three blocks, a vault and a cache."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "forebay.toml"

    @property
    def volume(self) -> Path:
        return self.folder / "data.img"

    @property
    def passphrase(self) -> Path:
        return self.folder / "passphrase"

    def configure(self, old: str = "", new: str = "") -> None:
        text = (
            "[system]\nname = 'web-01'\nstate_dir = 'state'\n[[volume]]\nname = 'data'\npath = 'data.img'\n"
            f"[vault]\nurl = '{(self.folder / 'vault').as_uri()}'\n[cache]\npath = 'cache'\ntrim.min_free = '1%'\n"
        )
        assert old in text
        self.config.write_text(text.replace(old, new) if old else text)

    def arguments(self, *more: str | Path) -> list[str]:
        return [sys.executable, "-m", "adapters.main", "--config", str(self.config), *map(str, more)]

    def process(self, *more: str | Path, **streams: Any) -> subprocess.CompletedProcess[str]:
        """Run the program to its end; stdout and stderr are kept unless `streams` says otherwise."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | streams
        return subprocess.run(
            self.arguments(*more), text=True, encoding="utf-8", cwd=ROOT, env=environment(), check=False, timeout=60,
            **streams,
        )  # fmt: skip

    def tree(self) -> dict[str, bytes]:
        """Return every file below the folder with its content, and every folder."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes() if path.is_file() else b"<folder>"
            for path in self.folder.rglob("*")
        }


def environment() -> dict[str, str]:
    """Return the environment without what would answer for the user."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FOREBAY_")}


def new(folder: Path) -> Place:
    """Make the folder's files; nothing is enrolled yet."""
    place = Place(folder)
    place.volume.write_bytes(os.urandom(3 * BLOCK_BYTES))
    place.passphrase.write_text(PASSPHRASE + "\n")
    place.passphrase.chmod(0o600)
    place.configure()
    return place


def enrol(folder: Path) -> Place:
    """Make the folder's files and run init."""
    place = new(folder)
    arguments = ["--config", str(place.config), "init", "--passphrase-file", str(place.passphrase), "--json"]
    assert main.run(arguments) == 0
    return place


def copy(place: Place, folder: Path) -> Place:
    """Return everything below another folder."""
    shutil.copytree(place.folder, folder, dirs_exist_ok=True)
    copied = Place(folder)
    copied.configure()
    return copied
