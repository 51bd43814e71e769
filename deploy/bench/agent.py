"""Forebay as the bench runs it: a configuration in a scratch folder, and the commands a user would type."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PASSPHRASE = "lantern orbit velvet harbor canyon thimble walnut"
VOLUME = "vol"

# One range of a volume: its first byte, how many bytes.
Extent = tuple[int, int]


@dataclass(frozen=True)
class Setup:
    """How Forebay is set up: everything else is its default."""

    compression: str = "lz4"
    cache: bool = False
    hints: bool = False
    delta: bool = True
    spool: bool = False
    vault_url: str = ""  # instead of the folder
    vault_lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """A machine to be backed up: its volume, its vault, and a folder for its state, its cache and its hints."""

    folder: Path
    volume: Path
    vault: Path

    @property
    def config(self) -> Path:
        """Return the configuration file."""
        return self.folder / "forebay.toml"

    @property
    def hints(self) -> Path:
        """Return the file a change tracker writes."""
        return self.folder / "hints"

    @property
    def spool(self) -> Path:
        """Return the folder of the spool."""
        return self.folder / "spool"

    def configure(self, setup: Setup) -> None:
        """Write the configuration; what is there already goes on with it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f'[system]\nname = "bench"\nstate_dir = {quoted(self.folder / "state")}',
            f'\n[[volume]]\nname = "{VOLUME}"\npath = {quoted(self.volume)}',
            *([f"hints = {quoted(self.hints)}"] if setup.hints else []),
            f"\n[vault]\nurl = {json.dumps(setup.vault_url or self.vault.as_uri())}",
            f'compression = "{setup.compression}"',
            *setup.vault_lines,
            *([] if setup.delta else ["delta = false"]),
            *([f"\n[spool]\npath = {quoted(self.spool)}"] if setup.spool else []),
            *([f"\n[cache]\npath = {quoted(self.folder / 'near')}"] if setup.cache else []),
        ]
        self.config.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def environment(self) -> dict[str, str]:
        """Return what the commands need in the environment."""
        return {"FOREBAY_CONFIG": str(self.config), "FOREBAY_PASSPHRASE": PASSPHRASE}

    def command(self, *arguments: str) -> list[str]:
        """Return a command line of Forebay."""
        return [*program(), *arguments]

    def restore(self, point: str, target: Path) -> list[str]:
        """Return the command that restores the volume of a point to a file."""
        return self.command("restore", point, "--volume", VOLUME, "--to", str(target))


def program() -> list[str]:
    """Return how Forebay is called: the variable FOREBAY (another checkout, say), else as it is installed here."""
    named = os.environ.get("FOREBAY")
    return shlex.split(named) if named else [str(Path(sys.executable).with_name("forebay"))]


def quoted(path: Path) -> str:
    """Return a path as a TOML string; JSON's escapes are TOML's."""
    return json.dumps(str(path), ensure_ascii=False)


def write_hints(path: Path, generation: str, since: str | None, extents: Sequence[Extent]) -> None:
    """Write a hints file as docs/HINTS.md wants it, whole or not at all."""
    lines: list[dict[str, Any]] = [{"generation": generation, "since": since, "extents": len(extents)}]
    lines += [{"offset": offset, "length": length} for offset, length in extents]
    new = path.with_suffix(".new")
    new.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    new.replace(path)


def gen_hints(path: Path) -> list[Extent]:
    """Return the changed ranges of a `day-X.hints.json` of gen.py, which lists them as objects."""
    listed: Iterable[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return [(int(each["offset"]), int(each["length"])) for each in listed]
