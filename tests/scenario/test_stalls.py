"""Lines that stall, are thin and late, in the middle of sessions, uploads and restores: over S3 and over SMB."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from adapters.config import load_config
from adapters.lifetime import lifetime
from adapters.openstore import open_remote
from deploy.bench.line import Line
from engine.block import Bytes
from engine.names import PackName
from engine.pipeline.kept import KeptStore
from engine.pipeline.report import SessionReport, UploadReport
from engine.pipeline.retry import RetryingStore
from engine.policy import RetryPolicy
from engine.ports import Clock, ObjectStore
from tests.chaos import ProxyProcess
from tests.fakes import FakeClock
from tests.s3stores import write_keys
from tests.samba import Samba
from tests.scenario import inprocess
from tests.scenario.cheap import enrol
from tests.scenario.machine import Machine, random_volume
from tests.scenario.recover import Recoverer
from tests.servers import BUCKET, S3Server

pytestmark = [pytest.mark.root, pytest.mark.services]

BLOCKS = 110  # one pack of almost 4 MiB
STALL_S = 1.0  # how long a call may move nothing, here
STALLS = {"cut_after": 2 << 20, "cut_how": "stall"}
THIN_BYTES_PER_S, LATE_S = 2_000_000, 0.005
PATIENCE_S = 1.6  # over such a line a pack takes longer
# What the proxy's system has taken arrives within SLOW_S, a pack does not.
SLOW = {"rate": 1_200_000, "delay": 0.005}
SLOW_S = 3.0
WHOLE = {"mode": "ok", "cut_after": None, "cut_times": None, "kill": True}


class Weather(FakeClock):
    """A clock whose sleeps pass at once; the first one ends the stall, and the line is down until `back_s` after it."""

    def __init__(self, proxy: ProxyProcess, back_s: float | None) -> None:
        super().__init__()
        self._proxy, self._lasts_s = proxy, back_s
        self._back_at: float | None = None

    async def sleep(self, seconds: float) -> None:
        if not self.slept:
            self._proxy.tell(mode="refuse", kill=True)
            self._back_at = None if self._lasts_s is None else self.monotonic() + self._lasts_s
        await super().sleep(seconds)
        if self._back_at is not None and self.monotonic() >= self._back_at:
            self._back_at = None
            self._proxy.tell(**WHOLE)


class Impatient(FakeClock):
    """A clock whose sleeps pass at once; before a call is made again, the line's dead connections end."""

    def __init__(self, proxy: ProxyProcess) -> None:
        super().__init__()
        self._proxy = proxy

    async def sleep(self, seconds: float) -> None:
        self._proxy.tell(kill=True)
        await super().sleep(seconds)


class Slowed:
    """Puts before a vault what makes its line worse with the first pack, on connections that were good till then."""

    def __init__(self, proxy: ProxyProcess) -> None:
        self._proxy = proxy
        self.longest_s = 0.0  # that a pack took

    def around(self, vault: ObjectStore) -> ObjectStore:
        self._vault = vault
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vault, name)

    async def put(self, name: str, data: Bytes) -> None:
        if PackName.parse(name) is not None:
            self._proxy.tell(**SLOW)
        began_s = anyio.current_time()
        await self._vault.put(name, data)
        self.longest_s = max(self.longest_s, anyio.current_time() - began_s)


class Far(msgspec.Struct):
    """A machine whose vault lies behind a proxy, and what is done with it, with little patience."""

    machine: Machine
    proxy: ProxyProcess

    @property
    def content(self) -> bytes:
        return self.machine.volumes["data"].read_bytes()

    def goes_by(self, port: int) -> None:
        """Reach the vault by another port than the proxy's."""
        old, new = f"127.0.0.1:{self.proxy.port}", f"127.0.0.1:{port}"
        for settings in (self.machine.urls, self.machine.extra):
            settings["vault"] = settings["vault"].replace(old, new)

    def vault(self, clock: Clock, retries_max: int, stall_s: float) -> ObjectStore:
        place = load_config(self.machine.config).vault.place
        assert not isinstance(place, Path)
        store = open_remote(place, "0" * 32, connect_timeout_s=5.0, stall_timeout_s=stall_s)
        policy = RetryPolicy(retries_max=retries_max, stall_s=2 * stall_s)
        return RetryingStore(KeptStore(store), policy, clock, random.Random(1))

    def backup(self, clock: Clock, retries_max: int = 0, stall_s: float = STALL_S) -> SessionReport:
        return inprocess.backup(self.machine, clock=clock, around=lambda _: self.vault(clock, retries_max, stall_s))

    def upload(self, clock: Clock, retries_max: int, stall_s: float = STALL_S) -> UploadReport:
        return inprocess.upload(self.machine, clock=clock, around=lambda _: self.vault(clock, retries_max, stall_s))

    def restored(self, retries_max: int = 0, stall_s: float = STALL_S) -> bytes:
        async def main() -> bytes:
            async with lifetime():
                recoverer = Recoverer(self.vault(FakeClock(), retries_max, stall_s))
                return (await recoverer.restore()).content

        return anyio.run(main)


@pytest.fixture(params=["s3", "smb"])
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Far]:
    server: S3Server | Samba = request.getfixturevalue("s3_server" if request.param == "s3" else "samba")
    proxy = ProxyProcess(server.port)
    folder = secrets.token_hex(6)
    if isinstance(server, S3Server):
        url = f"s3://{BUCKET}/{folder}"
        keys = write_keys(tmp_path / "keys", server.access_key, server.secret_key)
        login = f'endpoint_url = "http://127.0.0.1:{proxy.port}"\ncredentials_file = "{keys}"'
    else:
        url = server.url(folder, port=proxy.port)
        secret = tmp_path / "password"
        secret.touch(mode=0o600)
        secret.write_text(server.password)
        login = f'user = "{server.user}"\npassword_file = "{secret}"'
    machine = Machine(
        tmp_path / "m", tmp_path, volumes={"data": random_volume(tmp_path / "data.img", BLOCKS)},
        spool=tmp_path / "spool", urls={"vault": url},
        extra={"vault": f'{login}\ncompression = "none"\nreconnect_window = "30 min"'},
    )  # fmt: skip
    enrol(machine)
    yield Far(machine, proxy)
    proxy.close()


def test_a_session_goes_on_after_a_line_that_stalled_and_was_down_for_twenty_minutes(far: Far) -> None:
    far.proxy.tell(**STALLS, cut_dir="up")
    report = far.backup(Weather(far.proxy, 1200))
    assert (report.exit_code, report.error, report.problems) == (0, None, [])
    assert [change.route for change in report.route_history] == ["VAULT", "RECONNECTING", "VAULT"]
    assert report.seconds >= 1200
    assert far.restored() == far.content


def test_a_line_down_for_longer_than_the_window_leads_to_the_spool_whose_upload_outlives_stalls(far: Far) -> None:
    far.proxy.tell(**STALLS, cut_dir="up")
    report = far.backup(Weather(far.proxy, None))
    assert report.exit_code == 3
    (problem,) = report.problems
    assert "the vault was lost and did not come back within 1800 s" in problem
    assert [change.route for change in report.route_history] == ["VAULT", "RECONNECTING", "FALLBACK"]
    assert report.seconds >= 1800
    cuts = far.proxy.tell(**WHOLE)["cuts"]
    far.proxy.tell(**STALLS, cut_dir="up", cut_times=cuts + 2)
    assert far.upload(Impatient(far.proxy), retries_max=20).left == 0
    assert far.proxy.tell(**WHOLE)["cuts"] == cuts + 2
    assert far.restored() == far.content


def test_a_restore_outlives_stalls(far: Far) -> None:
    far.backup(FakeClock())
    cuts = far.proxy.tell(**STALLS, cut_dir="down", cut_times=2, kill=True)["cuts"]
    assert far.restored(retries_max=5) == far.content
    assert far.proxy.tell(**WHOLE)["cuts"] == cuts + 2


def test_a_thin_and_late_line_is_no_stalled_one(far: Far) -> None:
    with Line(far.proxy.port, THIN_BYTES_PER_S, LATE_S) as line:
        far.goes_by(line.port)
        report = far.backup(FakeClock(), retries_max=5, stall_s=PATIENCE_S)
        assert (report.exit_code, report.problems) == (0, [])
        assert [change.route for change in report.route_history] == ["VAULT"]
        assert far.restored(retries_max=5, stall_s=PATIENCE_S) == far.content
        assert line.fullness()[1] > PATIENCE_S


def test_an_upload_over_a_thin_and_late_line_is_no_stalled_one(far: Far) -> None:
    far.proxy.tell(mode="refuse", kill=True)
    assert far.backup(FakeClock()).exit_code == 3
    far.proxy.tell(**WHOLE)
    with Line(far.proxy.port, THIN_BYTES_PER_S, LATE_S) as line:
        far.goes_by(line.port)
        report = far.upload(FakeClock(), retries_max=0, stall_s=PATIENCE_S)
        assert (report.left, report.problems) == (0, [])
        assert line.fullness()[1] > PATIENCE_S


@pytest.fixture
def near(samba: Samba, tmp_path: Path) -> Iterator[tuple[Machine, ProxyProcess]]:
    """Return a machine whose cache lies in a share behind a proxy, and the proxy."""
    proxy = ProxyProcess(samba.port)
    folder = secrets.token_hex(6)
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text(samba.password)
    machine = Machine(
        tmp_path / "m", tmp_path / "vault", samba.path(folder),
        volumes={"data": random_volume(tmp_path / "data.img", BLOCKS)},
        urls={"cache": samba.url(folder, port=proxy.port)},
        extra={"cache": f'user = "{samba.user}"\npassword_file = "{secret}"'},
    )  # fmt: skip
    enrol(machine)
    yield machine, proxy
    proxy.close()


def cached(machine: Machine, stall_s: float) -> SessionReport:
    """Run a session whose cache is given up at the first call that moved nothing for `stall_s`."""

    def hasty(_: ObjectStore) -> ObjectStore:
        settings = load_config(machine.config).cache
        assert settings is not None
        assert not isinstance(settings.place, Path)
        store = open_remote(settings.place, "0" * 32, connect_timeout_s=5.0, stall_timeout_s=stall_s)
        return RetryingStore(store, RetryPolicy(retries_max=0, stall_s=2 * stall_s), FakeClock(), random.Random(1))

    return inprocess.backup(machine, near=hasty)


def test_a_cache_over_a_thin_and_late_line_gets_everything(near: tuple[Machine, ProxyProcess]) -> None:
    machine, proxy = near
    with Line(proxy.port, THIN_BYTES_PER_S, LATE_S) as line:
        machine.urls["cache"] = machine.urls["cache"].replace(f":{proxy.port}/", f":{line.port}/")
        report = cached(machine, PATIENCE_S)
        assert (report.exit_code, report.cache, report.problems) == (0, "ok", [])
        assert report.volumes["data"].cache_blocks == report.volumes["data"].vault_blocks > 0
        assert line.fullness()[1] > PATIENCE_S


def test_a_cache_whose_line_stalls_costs_the_session_nothing_and_gets_what_it_missed(
    near: tuple[Machine, ProxyProcess],
) -> None:
    machine, proxy = near
    proxy.tell(**STALLS, cut_dir="up")
    report = cached(machine, STALL_S)
    assert (report.exit_code, report.route, report.cache) == (0, "VAULT", "given up")
    assert any("did not answer for 1 s" in problem for problem in report.problems)
    proxy.tell(**WHOLE)
    healed = cached(machine, STALL_S)
    assert (healed.cache, healed.problems) == ("ok", [])
    assert healed.volumes["data"].cache_blocks > 0


over_s3 = pytest.mark.parametrize("far", ["s3"], indirect=True)


@over_s3
def test_a_line_that_gets_worse_in_the_middle_of_a_session_is_no_lost_one(far: Far) -> None:
    slowed = Slowed(far.proxy)
    clock = FakeClock()
    report = inprocess.backup(far.machine, clock=clock, around=lambda _: slowed.around(far.vault(clock, 5, SLOW_S)))
    assert (report.exit_code, report.problems) == (0, [])
    # A machine that is busy elsewhere may lose it for a moment; it is never given up.
    assert "FALLBACK" not in [change.route for change in report.route_history]
    assert report.route == "VAULT"
    assert slowed.longest_s > SLOW_S
    far.proxy.tell(rate=0, delay=0)
    assert far.restored() == far.content


@over_s3
def test_a_line_that_gets_worse_in_the_middle_of_an_upload_does_not_end_it(far: Far) -> None:
    far.proxy.tell(mode="refuse")
    assert far.backup(FakeClock()).exit_code == 3
    far.proxy.tell(**WHOLE)
    slowed = Slowed(far.proxy)
    clock = FakeClock()
    report = inprocess.upload(far.machine, clock=clock, around=lambda _: slowed.around(far.vault(clock, 5, SLOW_S)))
    assert (report.left, report.problems) == (0, [])
    assert slowed.longest_s > SLOW_S
    far.proxy.tell(rate=0, delay=0)
    assert far.restored() == far.content
