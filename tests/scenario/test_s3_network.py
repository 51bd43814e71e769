"""Sessions, uploads and restores over a line to a bucket that is cut again and again, or for good."""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3stores import write_keys
from tests.scenario.machine import Machine, random_volume
from tests.servers import BUCKET, ProxyProcess, S3Server

pytestmark = pytest.mark.services

BLOCKS = 400
CUT = {"cut_after": 1_500_000, "cut_dir": "up", "cut_how": "reset", "kill": True}
WHOLE = {"cut_after": None, "cut_times": None, "kill": True}


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[ProxyProcess]:
    proxy = ProxyProcess("127.0.0.1", s3_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def machine(s3_server: S3Server, proxy: ProxyProcess, tmp_path: Path) -> Machine:
    keys = write_keys(tmp_path / "keys", s3_server.access_key, s3_server.secret_key)
    volume = random_volume(tmp_path / "data.img", BLOCKS)
    machine = Machine(
        tmp_path / "m", tmp_path, volumes={"data": volume}, spool=tmp_path / "spool",
        urls={"vault": f"s3://{BUCKET}/{secrets.token_hex(4)}"},
    )  # fmt: skip
    machine.extra["vault"] = (
        f'endpoint_url = "http://127.0.0.1:{proxy.port}"\ncredentials_file = "{keys}"\ncompression = "none"\n'
        'retries_max = 20\nreconnect_window = "0 s"'
    )
    machine.init()
    return machine


def restored(machine: Machine, to: Path) -> bytes:
    to.unlink(missing_ok=True)
    machine.restore("latest", "data", to)
    return to.read_bytes()


def test_a_line_that_is_cut_costs_retries_and_nothing_else(
    machine: Machine, proxy: ProxyProcess, tmp_path: Path
) -> None:
    before = proxy.set()["cuts"]
    proxy.set(**CUT, cut_times=before + 3)
    report = machine.backup()
    assert (report["route"], report["problems"]) == ("VAULT", [])
    between = proxy.set()["cuts"]
    assert between >= before + 3
    proxy.set(**CUT | {"cut_dir": "down"}, cut_times=between + 3)
    assert restored(machine, tmp_path / "restored") == machine.volumes["data"].read_bytes()
    assert proxy.set()["cuts"] > between


def test_a_line_that_is_lost_in_mid_session_leads_to_the_spool_and_later_to_the_vault(
    machine: Machine, proxy: ProxyProcess, tmp_path: Path
) -> None:
    machine.extra["vault"] = machine.extra["vault"].replace("retries_max = 20", "retries_max = 1")
    proxy.set(**CUT)
    report = machine.backup(expect=3)
    assert [change["route"] for change in report["route_history"]] == ["VAULT", "FALLBACK"]
    proxy.set(**CUT)
    assert machine.run("upload", expect=1).document["left"] == 1
    proxy.set(**WHOLE)
    assert machine.run("upload").document["left"] == 0
    assert [row["where"] for row in machine.points()] == [["vault"]]
    assert restored(machine, tmp_path / "restored") == machine.volumes["data"].read_bytes()


def test_a_line_that_comes_back_within_the_window_costs_the_session_nothing_but_time(
    machine: Machine, proxy: ProxyProcess, tmp_path: Path
) -> None:
    machine.extra["vault"] = machine.extra["vault"].replace("retries_max = 20", "retries_max = 0")
    machine.extra["vault"] = machine.extra["vault"].replace('reconnect_window = "0 s"', "")  # 30 minutes
    machine.write_config()
    proxy.set(**CUT)
    session = subprocess.Popen(
        machine.command("backup", "--json", "--progress", "lines"), env=machine.environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert session.stderr is not None
    assert any("vault_lost" in line for line in session.stderr)
    proxy.set(**WHOLE)
    told, _ = session.communicate(timeout=240)
    report = json.loads(told)
    assert (session.returncode, report["problems"]) == (0, [])
    assert [change["route"] for change in report["route_history"]] == ["VAULT", "RECONNECTING", "VAULT"]
    assert restored(machine, tmp_path / "restored") == machine.volumes["data"].read_bytes()
