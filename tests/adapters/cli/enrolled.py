"""A machine whose `init` is run in this process, and what that said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from adapters import main
from adapters.state import identity as files
from engine.vault.identity import Identity
from tests.engine.vault.fakes_vault import PASSPHRASE

Tree: TypeAlias = dict[str, bytes]


class Machine:
    """A folder with a configuration; vault and cache are shared by the machines of one test."""

    def __init__(self, shared: Path, name: str = "web-01", folder: str | None = None, cache: bool = True) -> None:
        self.shared, self.name = shared, name
        self.folder = shared / (folder or name)
        self.folder.mkdir()
        self.state, self.identity_file = self.folder / "state", self.folder / "state" / "identity"
        self.vault, self.cache = shared / "vault", shared / "cache"
        self.passphrase = self.folder / "passphrase"
        self.give(PASSPHRASE)
        (self.folder / "volume.img").write_bytes(bytes(4096))
        self.config = self.folder / "forebay.toml"
        self.configure(cache=cache)

    def configure(self, *, name: str = "", vault: Path | None = None, cache: bool | Path = True) -> None:
        text = (
            f"[system]\nname = '{name or self.name}'\nstate_dir = 'state'\n"
            "[[volume]]\nname = 'data'\npath = 'volume.img'\n"
            f"[vault]\nurl = '{(vault or self.vault).as_uri()}'\n"
        )
        if cache:
            text += f"[cache]\npath = '{self.cache if cache is True else cache}'\ntrim.min_free = '1%'\n"
        self.config.write_text(text)

    def give(self, passphrase: str) -> None:
        self.passphrase.write_text(passphrase + "\n")
        self.passphrase.chmod(0o600)

    def arguments(self, *more: str, passphrase: bool = True) -> list[str]:
        given = ["--passphrase-file", str(self.passphrase)] if passphrase else []
        return ["--config", str(self.config), "init", *given, *more]

    def init(self, *more: str, passphrase: bool = True) -> int:
        return main.run(self.arguments(*more, passphrase=passphrase))

    def identity(self) -> Identity:
        return files.load(self.identity_file)

    def restart(self) -> None:
        """Lose everything local but the configuration and the passphrase."""
        shutil.rmtree(self.state)


def tree(folder: Path) -> Tree:
    """Return every file below a folder with its content, and every folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"<folder>"
        for path in folder.rglob("*")
        if "tmp" not in path.relative_to(folder).parts
    }


def taken_up(original: Path, folder: Path) -> Machine:
    """Return the machine of `original` in a folder of its own, without a spool in its configuration."""
    for one in ("vault", "cache"):
        if (original / one).exists():
            shutil.copytree(original / one, folder / one)
    made = Machine(folder)
    shutil.copytree(original / "web-01" / "state", made.state)
    return made


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip()


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found
