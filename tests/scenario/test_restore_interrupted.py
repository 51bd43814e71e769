"""Restores that are killed, at any change of what they write, and run again; and those that lose their vault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.volumes.targets import PARTIAL_SUFFIX
from engine.recovery import restore as restore_module
from tests.scenario.machine import BLOCK, TIMEOUT_S, Machine, overwrite, random_volume
from tests.scenario.recover import Recoverer

BLOCKS = 300
WINDOW_BLOCKS = 48
KILLS = 8


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    folder = tmp_path_factory.mktemp("restored")
    volume = random_volume(folder / "data.img", BLOCKS, tail=777)
    machine = Machine(folder / "m", folder / "vault", volumes={"data": volume})
    machine.init()
    machine.backup()
    for block in range(0, BLOCKS, 7):
        overwrite(volume, block, bytes([block % 251 + 1]) * 5000)
    machine.backup()
    return machine


@pytest.fixture(scope="module")
def recoverer(machine: Machine) -> Recoverer:
    return Recoverer.of(machine)


def dying(machine: Machine, to: Path, last: int) -> subprocess.CompletedProcess[str]:
    arguments = [str(machine.vault), machine.name, str(to), str(WINDOW_BLOCKS), str(last)]
    return subprocess.run(
        [sys.executable, "-m", "tests.scenario.dying_restore", *arguments],
        cwd=Path(__file__).parents[2],
        env=machine.environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_killed_restore_goes_on_where_it_was_and_gives_the_same_bytes(
    machine: Machine, recoverer: Recoverer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_module, "WINDOW_BLOCKS", WINDOW_BLOCKS)
    content = machine.volumes["data"].read_bytes()
    whole = dying(machine, tmp_path / "whole.img", 0)
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "whole.img").read_bytes() == content
    changes = int(whole.stdout)
    assert changes > 3 * KILLS
    resumed: list[int] = []
    for number in range(KILLS):
        to = tmp_path / f"killed-{number}.img"
        last = 1 + number * (changes - 2) // (KILLS - 1)  # the last one of all finds the journal cut off
        killed = dying(machine, to, last)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not to.exists()
        assert Path(f"{to}{PARTIAL_SUFFIX}").exists()
        report = recoverer.restore_to("latest", "data", to)
        assert (report.exit_code, report.problems) == (0, [])
        assert to.read_bytes() == content
        assert sorted(path.name for path in tmp_path.glob(f"{to.name}*")) == [to.name]
        assert report.resumed % (WINDOW_BLOCKS * BLOCK) == 0
        resumed.append(report.resumed)
    # Two threads write: which change is the n-th differs from run to run, but at both ends.
    assert resumed[0] == 0
    assert resumed[-1] == BLOCKS // WINDOW_BLOCKS * WINDOW_BLOCKS * BLOCK


def test_a_restore_that_loses_its_vault_leaves_what_it_did_for_the_next_one(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore_module, "WINDOW_BLOCKS", WINDOW_BLOCKS)
    content = machine.volumes["data"].read_bytes()
    aside = machine.vault.with_name("aside")
    to = tmp_path / "restored.img"
    kept = restore_module.Restore._keep

    def keep(restore: restore_module.Restore, done_blocks: int) -> None:
        kept(restore, done_blocks)
        if done_blocks == 2 * WINDOW_BLOCKS:
            machine.vault.rename(aside)

    with monkeypatch.context() as patch:
        patch.setattr(restore_module.Restore, "_keep", keep)
        with pytest.raises(Exception, match="mount its disk"):
            Recoverer.of(machine).restore_to("latest", "data", to)
    aside.rename(machine.vault)
    assert os.listdir(tmp_path) == [f"restored.img{PARTIAL_SUFFIX}"]
    report = Recoverer.of(machine).restore_to("latest", "data", to)
    assert report.resumed >= 2 * WINDOW_BLOCKS * BLOCK
    assert to.read_bytes() == content


def test_the_command_tells_how_much_was_done_before(machine: Machine, tmp_path: Path) -> None:
    to = tmp_path / "restored.img"
    assert dying(machine, to, 60).returncode == -signal.SIGKILL
    done = machine.restore("latest", "data", to)
    assert done.document["resumed"] > 0
    assert to.read_bytes() == machine.volumes["data"].read_bytes()
