"""A vault and a cache in folders with points of two systems, and a configuration of the first, for command tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

from adapters import main
from adapters.state import identity as identity_file
from adapters.state.directory import StateDirectory
from engine.block import BLOCK_BYTES
from engine.names import PointId
from engine.state import Newest
from engine.vault.formatobject import FormatObject
from tests.engine.recovery.build import PASSPHRASE, System, World


@dataclass
class Site:
    """Folders below `folder`; `contents[i]` is volume "data" of `points[i]` of `web-01`, oldest first."""

    folder: Path
    world: World
    system: System
    other: System
    points: list[PointId] = field(default_factory=list)
    contents: list[bytes] = field(default_factory=list)

    @property
    def vault(self) -> Path:
        return self.folder / "vault"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def spool(self) -> Path:
        return self.folder / "spool"

    @property
    def config(self) -> Path:
        return self.folder / "forebay.toml"

    @property
    def passphrase(self) -> Path:
        return self.folder / "passphrase"

    @property
    def detached(self) -> list[str]:
        return ["--vault", self.vault.as_uri(), *self.secret]

    @property
    def secret(self) -> list[str]:
        return ["--passphrase-file", str(self.passphrase)]

    def at(self, folder: Path) -> Site:
        """Return a copy of everything below another folder."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        site = Site(folder, self.world, self.system, self.other, self.points, self.contents)
        site.write_config()
        return site

    def write_config(self) -> None:
        self.config.write_text(
            "[system]\nname = 'web-01'\nstate_dir = 'state'\n[[volume]]\nname = 'data'\npath = 'data.img'\n"
            f"[vault]\nurl = '{self.vault.as_uri()}'\n[cache]\npath = 'cache'\ntrim.min_free = '1%'\n"
            + ("[spool]\npath = 'spool'\n" if self.spool.exists() else "")
        )

    def pack(self, place: Path, kind: str = "data") -> list[Path]:
        """Return the packs `web-01` wrote to a place."""
        return sorted((place / kind / self.system.id.hex()).iterdir())

    def root(self, place: Path, point: PointId) -> Path:
        return place / point.root(self.system.id)

    def damage(self, path: Path, offset: int = 90) -> None:
        data = path.read_bytes()
        path.chmod(0o600)
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :])


def build(folder: Path, *, spooled: int = 0) -> Site:
    """Write a site: three points of `web-01` (volume data, and home in the first), one of `db-02`.

    The last `spooled` of the three lie in a spool; without any there is none.
    """
    world = World(pack_bytes=150_000, spool=bool(spooled))
    site = Site(folder, world, world.system("web-01"), world.system("db-02"))

    async def fill() -> None:
        random = np.random.default_rng(3)
        content = bytearray(random.bytes(5 * BLOCK_BYTES + 100))
        for step in range(3):
            world.fallback = step >= 3 - spooled
            content[step * BLOCK_BYTES : (step + 1) * BLOCK_BYTES] = random.bytes(BLOCK_BYTES)
            volumes = {"data": bytes(content), **({"home": b"home"} if step == 0 else {})}
            site.points.append(await world.backup(site.system, volumes))
            site.contents.append(bytes(content))
        world.fallback = False
        await world.backup(site.other, {"disk": random.bytes(1000)})

    anyio.run(fill)
    site.passphrase.write_text(PASSPHRASE)
    site.passphrase.chmod(0o600)
    for place, side in world.all_sides.items():
        for name, data in side.objects.objects.items():
            path = folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    identity_file.save(folder / "state" / "identity", site.system.identity(world))
    previous = site.system.previous
    assert previous is not None
    with StateDirectory.open(folder / "state") as state:
        state.set_newest(
            Newest(
                order=previous.order,
                incarnation=previous.incarnation,
                root_hash=previous.hash,
                vault=world.formats["spool" if spooled else "vault"],
                system=site.system.id if spooled else bytes(16),
            )
        )
    site.write_config()
    return site


@dataclass
class Ran:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Ran:
    """Run the command line in this process, without progress."""
    capsys.readouterr()
    code = main.run(["--progress", "none", *map(str, arguments)])
    out, err = capsys.readouterr()
    return Ran(code, out, err)


def newer(kind: str, world: World) -> bytes:
    """Return a format object that asks its reader for a feature of the future."""
    assert kind in ("vault", "cache")
    return FormatObject("vault" if kind == "vault" else "cache", world.formats[kind], flags_read=1 << 7).encode()


def lines(text: str) -> Sequence[str]:
    return [line.rstrip() for line in text.splitlines()]
