"""Local state, identity and configuration that do not belong together are told apart; stores that are away, at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.scenario.inprocess import backup
from tests.scenario.machine import Machine, random_volume


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    volume = random_volume(tmp_path / "vol.img", 20)
    machine = Machine(tmp_path / "m", tmp_path / "vault", tmp_path / "cache", volumes={"data": volume})
    machine.init()
    return machine


def test_state_of_another_system_is_not_used_and_not_blamed_on_the_vault(machine: Machine, tmp_path: Path) -> None:
    assert backup(machine).exit_code == 0
    (machine.state / "identity").unlink()
    machine.name = "web-02"
    machine.init()
    report = backup(machine)
    assert report.exit_code == 0
    assert any("another system" in problem for problem in report.problems)
    assert not any("vault has lost" in problem for problem in report.problems)
    assert report.volumes["data"].vault_blocks == 0
    machine.restore("latest", "data", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == machine.volumes["data"].read_bytes()


def test_a_changed_name_is_refused_before_anything_is_done(machine: Machine) -> None:
    machine.name = "renamed"
    done = machine.run("backup", expect=2)
    assert "enrolled as 'web-01'" in done.stderr
    assert not (machine.vault / "root").exists()


def test_stores_that_are_away_at_the_start_are_asked_once(machine: Machine, tmp_path: Path) -> None:
    machine.extra["vault"] = "retries_max = 100"
    machine.extra["cache"] = "retries_max = 1000"
    machine.vault.rename(tmp_path / "gone")
    with capture_logs() as events:
        failed = backup(machine)
    assert failed.exit_code == 1
    assert failed.error is not None
    assert str(machine.vault) in failed.error
    (tmp_path / "gone").rename(machine.vault)
    assert machine.cache is not None
    machine.cache.rename(tmp_path / "gone")
    with capture_logs() as more:
        done = backup(machine)
    assert (done.exit_code, done.cache) == (0, "away")
    assert "store_call_failed" not in {event["event"] for event in [*events, *more]}
