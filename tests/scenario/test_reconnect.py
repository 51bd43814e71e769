"""A vault that vanishes in the middle of a session and comes back, or does not: a real folder that is moved away."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters.stores.calls import Call
from adapters.stores.folderfiles import FolderFiles
from engine.block import Bytes
from tests.fakes import FakeClock
from tests.scenario.inprocess import backup
from tests.scenario.machine import Machine, overwrite, random_volume

BLOCKS = 800  # some seven packs


class Weather(FakeClock):
    """A clock whose sleeps pass at once, and a vault that goes away at a put and comes back at a second."""

    def __init__(self, vault: Path) -> None:
        super().__init__()
        self._vault, self._aside = vault, vault.with_name("aside")
        self._back_at: float | None = None
        self.lasts_s: float | None = None
        self.puts_until_away: dict[str, int] = {}

    def put(self, name: str) -> None:
        """Hear of a put before it happens."""
        for prefix, left in [*self.puts_until_away.items()]:
            if name.startswith(prefix):
                self.puts_until_away[prefix] = left - 1
                if left == 0:
                    del self.puts_until_away[prefix]
                    self._vault.rename(self._aside)
                    self._back_at = None if self.lasts_s is None else self.monotonic() + self.lasts_s

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        if self._back_at is not None and self.monotonic() >= self._back_at:
            self.back()

    def back(self) -> None:
        """Bring the vault back."""
        self._back_at = None
        if self._aside.exists():
            self._aside.rename(self._vault)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    volume = random_volume(tmp_path / "data.img", BLOCKS)
    machine = Machine(tmp_path / "m", tmp_path / "vault", tmp_path / "cache", volumes={"data": volume})
    machine.extra["vault"] = 'compression = "none"\nreconnect_window = "30 min"'
    machine.init()
    return machine


@pytest.fixture
def weather(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Weather:
    weather = Weather(machine.vault)
    put: Callable[[FolderFiles, Call, str, Bytes], None] = FolderFiles.put

    def watched(files: FolderFiles, call: Call, name: str, data: Bytes) -> None:
        if Path(files.root) == machine.vault:
            weather.put(name)
        put(files, call, name, data)

    monkeypatch.setattr(FolderFiles, "put", watched)
    return weather


def restores(machine: Machine, tmp_path: Path, *arguments: str) -> None:
    target = tmp_path / "restored.img"
    target.unlink(missing_ok=True)
    machine.restore("latest", "data", target, *arguments)
    assert target.read_bytes() == machine.volumes["data"].read_bytes()


LOSSES = {
    "the first pack": {"data/": 0},
    "a later pack": {"data/": 4},
    "a page": {"page/": 0},
    "the index": {"index/": 0},
    "the root": {"root/": 0},
    "twice": {"data/": 2, "root/": 0},
}


@pytest.mark.parametrize("when", LOSSES)
def test_a_vault_that_comes_back_within_the_window_costs_nothing_but_time(
    machine: Machine, weather: Weather, tmp_path: Path, when: str
) -> None:
    weather.lasts_s = 1200
    weather.puts_until_away = dict(LOSSES[when])
    report = backup(machine, clock=weather)
    assert (report.exit_code, report.error, report.problems) == (0, None, [])
    losses = len(LOSSES[when])
    assert [change.route for change in report.route_history] == ["VAULT", *["RECONNECTING", "VAULT"] * losses]
    assert report.route == "VAULT"
    assert report.seconds >= 1200 * losses
    # One read of the volume and every block once, as if nothing had been.
    volume = report.volumes["data"]
    assert volume.read_bytes == BLOCKS * 65536
    assert volume.vault_blocks == volume.cache_blocks
    restores(machine, tmp_path)
    restores(machine, tmp_path, "--only-cache")
    calm = backup(machine)
    assert (calm.volumes["data"].vault_blocks, calm.volumes["data"].cache_blocks) == (0, 0)


@pytest.mark.parametrize("when", LOSSES)
def test_a_vault_that_does_not_come_back_ends_the_session_at_the_end_of_the_window(
    machine: Machine, weather: Weather, tmp_path: Path, when: str
) -> None:
    weather.puts_until_away = dict(LOSSES[when])
    report = backup(machine, clock=weather)
    assert report.exit_code == 1
    assert report.point is None
    assert [change.route for change in report.route_history] == ["VAULT", "RECONNECTING", "ABORTED"]
    assert report.error is not None
    assert "the vault was lost and did not come back within 1800 s" in report.error
    assert "mount its disk" in report.error
    assert not machine.vault.exists()
    weather.back()
    weather.puts_until_away = {}
    after = backup(machine)
    assert (after.exit_code, after.route) == (0, "VAULT")
    # What was transferred is not sent again.
    sent = after.volumes["data"].vault_blocks
    assert sent == 0 if "data/" not in LOSSES[when] else 0 < sent <= after.volumes["data"].changed
    restores(machine, tmp_path)


def test_an_increment_goes_on_where_it_was(machine: Machine, weather: Weather, tmp_path: Path) -> None:
    backup(machine)
    for block in range(0, BLOCKS, 3):
        overwrite(machine.volumes["data"], block, bytes([block % 251 + 1]) * 5000)
    weather.lasts_s = 600
    weather.puts_until_away = {"data/": 0, "root/": 0}
    report = backup(machine, clock=weather)
    assert (report.exit_code, report.problems) == (0, [])
    restores(machine, tmp_path)


def test_without_a_window_a_loss_ends_the_session_at_once(machine: Machine, weather: Weather, tmp_path: Path) -> None:
    machine.extra["vault"] = 'compression = "none"'
    weather.puts_until_away = {"data/": 2}
    report = backup(machine, clock=weather)
    assert (report.exit_code, report.point) == (1, None)
    assert [change.route for change in report.route_history] == ["VAULT", "ABORTED"]
    assert report.seconds < 120  # the retries
    weather.back()
    weather.puts_until_away = {}
    backup(machine)
    restores(machine, tmp_path)


def test_another_store_in_the_place_of_the_vault_is_not_the_vault(
    machine: Machine, weather: Weather, tmp_path: Path
) -> None:
    other = Machine(tmp_path / "o", tmp_path / "other", volumes=machine.volumes, name="web-02")
    other.init()
    before = sorted(path.name for path in other.vault.rglob("*"))
    weather.puts_until_away = {"data/": 2}

    async def sleep(seconds: float) -> None:
        await FakeClock.sleep(weather, seconds)
        if not machine.vault.exists():
            shutil.copytree(other.vault, machine.vault)

    weather.sleep = sleep  # type: ignore[method-assign]
    report = backup(machine, clock=weather)
    assert report.exit_code == 1
    assert report.error is not None
    assert "another store" in report.error
    assert sorted(path.name for path in machine.vault.rglob("*")) == before
