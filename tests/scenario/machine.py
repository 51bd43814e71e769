"""A protected machine for scenario tests: a configuration, volumes and the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 65536
PASSPHRASE = "correct horse battery staple wagon"
TIMEOUT_S = 240


@dataclass
class Done:
    """A command that ended: exit code, the JSON document (None without --json or without a document), stderr."""

    code: int
    document: Any
    stderr: str
    stdout: str


@dataclass
class Machine:
    """One system below `root`, with its own state directory; vault and cache may be shared with others.

    `volumes`: name → path. `extra`: further lines per table ("vault": 'share = "own"'). `urls`: what the configuration
    names instead of the folders `vault` and `cache`.
    """

    root: Path
    vault: Path
    cache: Path | None = None
    name: str = "web-01"
    volumes: dict[str, Path] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    volume_extra: dict[str, str] = field(default_factory=dict)
    spool: Path | None = None
    urls: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        self.passphrase_file.write_text(PASSPHRASE, encoding="utf-8")
        self.passphrase_file.chmod(0o600)

    @property
    def passphrase_file(self) -> Path:
        return self.root / "passphrase"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def config(self) -> Path:
        return self.root / "forebay.toml"

    def write_config(self) -> None:
        def table(header: str, lines: Sequence[str], extra: str) -> str:
            return "\n".join([header, *lines, extra]) + "\n"

        url = self.urls.get("vault", f"file://{self.vault}")
        parts = [
            table("[system]", [f'name = "{self.name}"', f'state_dir = "{self.state}"'], self.extra.get("system", "")),
            *(
                table("[[volume]]", [f'name = "{name}"', f'path = "{path}"'], self.volume_extra.get(name, ""))
                for name, path in self.volumes.items()
            ),
            table("[vault]", [f'url = "{url}"', 'pack_size = "4 MiB"'], self.extra.get("vault", "")),
        ]
        if self.cache is not None:
            path = self.urls.get("cache", self.cache)
            extra = self.extra.get("cache", "")
            # How full the disk is that the tests run on is no concern of theirs.
            room = [] if "trim" in extra else ['trim.min_free = "1%"']
            parts.append(table("[cache]", [f'path = "{path}"', *room], extra))
        if self.spool is not None:
            parts.append(table("[spool]", [f'path = "{self.spool}"'], self.extra.get("spool", "")))
        if "queue" in self.extra:
            parts.append(table("[queue]", [], self.extra["queue"]))
        self.config.write_text("\n".join(parts), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        # --vault and --cache name places of their own, --config would name others.
        config = [] if "--vault" in arguments and arguments[0] != "verify" else ["--config", str(self.config)]
        return [sys.executable, "-m", "adapters.main", *config, *arguments]

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(extra or {})}

    def run(self, *arguments: str, env: Mapping[str, str] | None = None, expect: int | None = 0) -> Done:
        """Run a command with --json as a process of its own; `expect` None: any exit code will do."""
        self.write_config()
        return finish(
            subprocess.run(
                self.command(*arguments, "--json"),
                env=self.environment(env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            ),
            expect,
        )

    def init(self, *arguments: str, expect: int | None = 0) -> Done:
        return self.run("init", "--passphrase-file", str(self.passphrase_file), *arguments, expect=expect)

    def backup(self, *arguments: str, expect: int | None = 0) -> Any:
        """Run a session and return its report."""
        return self.run("backup", *arguments, expect=expect).document

    def restore(self, point: str, volume: str, to: Path, *arguments: str, expect: int | None = 0) -> Done:
        return self.run(
            "restore", point, "--volume", volume, "--to", str(to), "--passphrase-file", str(self.passphrase_file),
            *arguments, expect=expect,
        )  # fmt: skip

    def points(self, *arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.run("points", *arguments).document["points"]
        return found


def finish(done: subprocess.CompletedProcess[str], expect: int | None) -> Done:
    """Check an exit code, and that no failure shows a traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    if expect is not None:
        assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    document = json.loads(done.stdout) if done.stdout.lstrip().startswith(("{", "[")) else None
    return Done(done.returncode, document, done.stderr, done.stdout)


def random_volume(path: Path, blocks: int, seed: int = 1, tail: int = 0) -> Path:
    """Write a volume of random blocks, a third of them zero and some repeated; `tail` bytes of a short last block."""
    generator = np.random.default_rng(seed)
    with path.open("wb") as out:
        repeated = generator.bytes(BLOCK)
        for _ in range(blocks):
            kind = generator.integers(0, 9)
            out.write(bytes(BLOCK) if kind < 3 else repeated if kind == 3 else generator.bytes(BLOCK))
        out.write(generator.bytes(tail))
    return path


def overwrite(path: Path, block: int, content: bytes) -> None:
    """Write `content` at a block number."""
    with path.open("r+b") as out:
        out.seek(block * BLOCK)
        out.write(content)
