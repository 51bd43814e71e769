"""Sessions, uploads and restores over shares whose connections are cut in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos import ProxyProcess
from tests.samba import Samba
from tests.scenario.cheap import enrol
from tests.scenario.machine import Machine, random_volume
from tests.scenario.smbmachine import share_machine

pytestmark = [pytest.mark.root, pytest.mark.services]
BLOCKS = 300


@pytest.fixture
def chaos(samba: Samba) -> Iterator[ProxyProcess]:
    proxy = ProxyProcess(samba.port)
    yield proxy
    proxy.close()


@pytest.fixture
def machine(tmp_path: Path, samba: Samba) -> Machine:
    """Return an enrolled machine with vault, cache and spool; without compression, so that its packs are large."""
    volume = random_volume(tmp_path / "data.img", BLOCKS)
    machine = share_machine(tmp_path / "m", samba, tmp_path.name, volume, spool=True)
    machine.extra["vault"] += '\ncompression = "none"'
    enrol(machine)
    return machine


def through(machine: Machine, table: str, samba: Samba, chaos: ProxyProcess) -> None:
    """Let a machine reach its vault or cache through the proxy."""
    machine.urls[table] = machine.urls[table].replace(f":{samba.port}/", f":{chaos.port}/")


def restores(machine: Machine, content: bytes, *arguments: str) -> None:
    target = machine.root / "restored.img"
    target.unlink(missing_ok=True)
    machine.restore("latest", "data", target, *arguments)
    assert target.read_bytes() == content


def test_a_connection_cut_once_is_made_again_and_costs_nothing(
    machine: Machine, samba: Samba, chaos: ProxyProcess
) -> None:
    through(machine, "vault", samba, chaos)
    machine.extra["vault"] = machine.extra["vault"].replace("retries_max = 0", "retries_max = 5")
    chaos.tell(cut_after=1 << 20, cut_dir="up", cut_times=2)
    report = machine.backup()
    assert (report["route"], report["problems"]) == ("VAULT", [])
    assert chaos.tell()["cuts"] >= 2
    restores(machine, machine.volumes["data"].read_bytes())


def test_a_vault_lost_in_mid_session_costs_no_point_and_its_upload_goes_on_through_cuts(
    machine: Machine, samba: Samba, chaos: ProxyProcess
) -> None:
    content = machine.volumes["data"].read_bytes()
    through(machine, "vault", samba, chaos)
    chaos.tell(cut_after=2 << 20, cut_dir="up")
    report = machine.backup(expect=3)
    assert [each["route"] for each in report["route_history"]][-1] == "FALLBACK"
    assert "the server ended the connection" in report["fallback"]
    restores(machine, content)
    # Every connection is cut after some packs: each upload gets on, and in the end all is there.
    chaos.tell(cut_after=9 << 20, cut_dir="up")
    for _ in range(20):
        if machine.run("upload", expect=None).document["left"] == 0:
            break
    assert machine.run("upload").document["left"] == 0
    chaos.tell(cut_after=None)
    assert [row["where"] for row in machine.points()] == [["cache", "vault"]]
    machine.cache = None
    restores(machine, content)


def test_a_cache_that_is_cut_off_costs_the_backup_nothing_and_gets_what_it_missed(
    machine: Machine, samba: Samba, chaos: ProxyProcess
) -> None:
    through(machine, "cache", samba, chaos)
    chaos.tell(cut_after=2 << 20, cut_dir="up")
    report = machine.backup()
    assert report["route"] == "VAULT"
    assert any("cache" in problem for problem in report["problems"])
    chaos.tell(cut_after=None)
    healed = machine.backup()
    assert healed["volumes"]["data"]["cache_blocks"] > 0
    assert healed["problems"] == []
    restores(machine, machine.volumes["data"].read_bytes(), "--only-cache")


def test_a_restore_whose_vault_is_cut_off_is_finished_or_says_what_is_missing(
    machine: Machine, samba: Samba, chaos: ProxyProcess
) -> None:
    machine.backup()
    machine.cache = None
    through(machine, "vault", samba, chaos)
    chaos.tell(cut_after=1 << 20, cut_dir="down", cut_times=3)
    restores(machine, machine.volumes["data"].read_bytes())
    assert chaos.tell()["cuts"] >= 3
