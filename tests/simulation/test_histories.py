"""Seeded histories of one machine: every kind of session after every other, against a copy kept of each volume.

A step changes, grows or shrinks the volumes, takes the cache away or brings it back, loses a part of local state, and
runs a session over all or some volumes, whole or cut off at a random put, which may have happened or not. After each
session that was not cut off its point, and an older one, come back bit for bit; with the cache there, from it alone.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest

import adapters.compose
from adapters.config import load_config
from adapters.state import identity as files
from adapters.state.directory import StateDirectory
from adapters.stores.folder import FolderStore
from engine.block import PART_BYTES, PARTS, Bytes
from engine.pipeline.report import SessionReport
from tests.scenario.audit import audited
from tests.scenario.cheap import enrolled
from tests.scenario.machine import BLOCK, Machine, overwrite, random_volume
from tests.scenario.recover import Recoverer

BLOCKS_MAX = 140
STEPS = 45


class CutOff(BaseException):
    """The session ends here, as if the power had gone."""


class CutStore(FolderStore):
    """A folder store whose n-th put, counted over all of them, is the last thing that happens."""

    left = 0
    chance = random.Random()

    async def put(self, name: str, data: Bytes) -> None:
        CutStore.left -= 1
        if CutStore.left == 0:
            if CutStore.chance.random() < 0.5:
                await super().put(name, data)
            raise CutOff
        await super().put(name, data)


@dataclass
class History:
    """One machine, what was done to it (for the message of a failure), and the volumes of every point."""

    machine: Machine
    chance: random.Random
    points: dict[str, dict[str, bytes]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def cache(self) -> Path:
        assert self.machine.cache is not None
        return self.machine.cache

    async def step(self, number: int) -> None:
        self.change_volumes()
        away = self.move_cache()
        self.lose_state()
        self.change_setting()
        names = [] if self.chance.random() < 0.7 else [self.chance.choice(sorted(self.machine.volumes))]
        contents = {name: self.machine.volumes[name].read_bytes() for name in names or self.machine.volumes}
        CutStore.left = self.chance.randrange(1, 10) if self.chance.random() < 0.25 else 0
        full = self.chance.random() < 0.06
        self.told.append(f"{number}: {names or 'all'}{' full' if full else ''}, cut at {CutStore.left}, away {away}")
        report = await self.session(names, full=full)
        if report is None:
            return
        assert (report.exit_code, report.error) == (0, None), self.told
        assert report.point is not None
        self.points[report.point] = contents
        for point in (report.point, self.chance.choice(sorted(self.points))):
            await self.compare(point, problems_too=not away)
        for name in contents:
            assert (await audited(Recoverer.of(self.machine), report.point, name)).records_max <= 5, self.told
        if not away:
            assert report.cache == "ok", self.told
            await self.compare(report.point, only_cache=True)

    def change_volumes(self) -> None:
        for path in self.machine.volumes.values():
            if self.chance.random() < 0.2:
                with path.open("r+b") as volume:
                    volume.truncate(self.chance.randrange(0, BLOCKS_MAX * BLOCK))
            blocks = path.stat().st_size // BLOCK
            for _ in range(self.chance.randrange(0, 8) if blocks and self.chance.random() < 0.8 else 0):
                content = self.chance.choice(
                    [bytes(BLOCK), bytes([self.chance.randrange(1, 6)]) * BLOCK, self.chance.randbytes(BLOCK)]
                )
                overwrite(path, self.chance.randrange(blocks), content)
            for _ in range(self.chance.randrange(0, 12) if blocks else 0):
                self.change_part(path, self.chance.randrange(blocks))

    def change_part(self, path: Path, block: int) -> None:
        """Rewrite some bytes within a block, or give one of its parts the bytes it has elsewhere."""
        with path.open("r+b") as volume:
            at = block * BLOCK + self.chance.randrange(PARTS) * PART_BYTES
            content = self.chance.randbytes(self.chance.choice([1, 100, PART_BYTES]))
            if self.chance.random() < 0.3:
                volume.seek(self.chance.randrange(BLOCK) // PART_BYTES * PART_BYTES)
                content = volume.read(PART_BYTES)
            volume.seek(at)
            volume.write(content)

    def change_setting(self) -> None:
        if self.chance.random() < 0.08:
            on = self.chance.random() < 0.5
            self.told.append(f"delta {on}")
            self.machine.extra["vault"] = f"delta = {str(on).lower()}"
            self.machine.write_config()

    def move_cache(self) -> bool:
        aside = self.cache.with_name("aside")
        away = self.chance.random() < 0.25
        if away and self.cache.exists():
            self.cache.rename(aside)
        if not away and aside.exists():
            aside.rename(self.cache)
        return away

    def lose_state(self) -> None:
        part = self.chance.choices(["volumes", "index", "newest", "parts", None], [5, 4, 3, 3, 85])[0]
        if part is None:
            return
        self.told.append(f"lost {part}")
        if part == "parts":
            for path in self.machine.state.rglob(self.chance.choice(["parts*", "origins*"])):
                path.unlink()
            return
        lost = self.machine.state / part
        shutil.rmtree(lost) if lost.is_dir() else lost.unlink(missing_ok=True)

    async def session(self, names: Sequence[str], *, full: bool) -> SessionReport | None:
        """Run a session; None: it was cut off."""
        config = load_config(self.machine.config)
        identity = files.load(config.system.identity_file)
        volumes = adapters.compose.chosen_volumes(config, names)
        with StateDirectory.open(config.system.state_dir) as state:
            session = await adapters.compose.build_session(config, identity, state, volumes, full=full)
            try:
                return await session.run()
            except* CutOff:
                self.told.append("cut off")
        return None

    async def compare(self, point: str, *, only_cache: bool = False, problems_too: bool = True) -> None:
        recoverer = Recoverer.of(self.machine, only_cache=only_cache)
        for name, content in self.points[point].items():
            found = await recoverer.restore(point, name)
            assert found.report.exit_code == 0, (self.told, found.report)
            assert found.content == content, (self.told, point, name)
            assert not problems_too or not found.report.problems, (self.told, found.report)


@pytest.mark.parametrize("seed", [1, 2])
def test_every_point_of_a_long_history_comes_back(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, _ = enrolled(tmp_path, cache=True, blocks=70)
    machine.volumes["logs"] = random_volume(tmp_path / "logs.img", 20, seed=3, tail=100)
    machine.extra["cache"] = "retries_max = 0"
    machine.write_config()
    monkeypatch.setattr("adapters.stores.folder.FolderStore", CutStore)
    CutStore.chance = random.Random(seed)
    history = History(machine, random.Random(seed))

    async def main() -> None:
        for number in range(STEPS):
            await history.step(number)

    anyio.run(main)
    assert len(history.points) > STEPS // 2
