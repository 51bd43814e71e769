"""Forebay as a peer of peers.py: `peers.py --plugin deploy/bench/peer.py --peer forebay-lz4,restic`.

peers.py asks its peers for shell commands and measures those; what a peer does in its methods themselves is not
measured. It reads from a peer: img, repo, out, cache (paths, also filled into the commands), n, day, only.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import ClassVar

from deploy.bench import agent


class Forebay:
    """Forebay with lz4; the repository that is measured is its vault."""

    setup: ClassVar = agent.Setup()
    only: ClassVar[frozenset[str] | None] = None

    def __init__(self, work: str, data: str) -> None:
        self.work, self.data = work, data
        self.img, self.repo, self.out, self.cache = f"{work}/vol.img", f"{work}/repo", f"{work}/out", f"{work}/cache"
        self.n = 0
        self.day: str | None = None
        self.site = agent.Site(Path(self.cache), Path(self.img), Path(self.repo) / "vault")

    def environ(self) -> dict[str, str]:
        """Return the variables of the commands."""
        return self.site.environment()

    def prepare(self) -> None:
        """Write the configuration."""
        self.site.configure(self.setup)

    def init(self) -> list[str]:
        """Return what founds the vault."""
        return [line(self.site.command("init"))]

    def backup(self) -> list[str]:
        """Return what makes backup number `n`, of the volume after `day`."""
        if self.setup.hints:
            self._hint()
        return [line(self.site.command("backup"))]

    def _hint(self) -> None:
        """Leave the hints a change tracker would: from backup to backup, none before the first."""
        changes = agent.gen_hints(Path(self.data) / f"day-{self.day}.hints.json") if self.day else []
        since = f"backup {self.n - 1}" if self.n > 1 else None
        agent.write_hints(self.site.hints, f"backup {self.n}", since, changes)

    def restore(self) -> list[str]:
        """Return what restores the newest point."""
        return [line(self.site.restore("latest", Path(self.restored())))]

    def restored(self) -> str:
        """Return where the restored volume is."""
        return f"{self.out}/vol.img"

    def check(self) -> None:
        """Say that nothing is to be measured: there is no such command yet."""


class ForebayZstd(Forebay):
    """Forebay as it is by default."""

    setup: ClassVar = agent.Setup(compression="zstd")


class ForebayHints(Forebay):
    """Forebay that is told where changes are."""

    setup: ClassVar = agent.Setup(hints=True)


class ForebayCache(Forebay):
    """Forebay that fills a cache as well."""

    setup: ClassVar = agent.Setup(cache=True)


class ForebayWhole(Forebay):
    """Forebay that sends whole blocks only."""

    setup: ClassVar = agent.Setup(delta=False)


PEERS = {
    "forebay-lz4": Forebay,
    "forebay-zstd": ForebayZstd,
    "forebay-lz4-hints": ForebayHints,
    "forebay-lz4-cache": ForebayCache,
    "forebay-lz4-whole": ForebayWhole,
}


def line(command: list[str]) -> str:
    """Return a command as the line of shell that peers.py fills its values into: braces stay braces."""
    return shlex.join(command).replace("{", "{{").replace("}", "}}")
