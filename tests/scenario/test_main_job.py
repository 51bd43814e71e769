"""The main job, by the command line alone: one read feeds vault and cache, and every point comes back bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.scenario.machine import BLOCK, Machine, overwrite, random_volume


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    volumes = {
        "data": random_volume(tmp_path / "data.img", 200, seed=1, tail=12345),
        "logs": random_volume(tmp_path / "logs.img", 40, seed=2),
    }
    machine = Machine(tmp_path / "m", tmp_path / "vault", tmp_path / "cache", volumes=volumes)
    machine.init()
    return machine


def test_every_point_of_every_volume_is_restored_bit_for_bit(machine: Machine, tmp_path: Path) -> None:
    kept: list[tuple[str, dict[str, bytes]]] = []
    for day in range(4):
        for number in range(day * 3):
            overwrite(machine.volumes["data"], 7 * day + number, bytes([day + 1]) * (BLOCK - number))
        if day == 2:  # grows, with a hole
            with machine.volumes["data"].open("r+b") as out:
                out.truncate(260 * BLOCK + 777)
        if day == 3:  # shrinks
            with machine.volumes["logs"].open("r+b") as out:
                out.truncate(11 * BLOCK + 5)
        report = machine.backup()
        assert report["problems"] == []
        kept.append((report["point"], {name: path.read_bytes() for name, path in machine.volumes.items()}))
    for point, contents in kept:
        for name, content in contents.items():
            target = tmp_path / f"{point}-{name}"
            done = machine.restore(point, name, target)
            assert target.read_bytes() == content
            assert done.document["holes"] == []
    assert [row["id"] for row in machine.points()] in ([p for p, _ in kept], [p for p, _ in reversed(kept)])


def test_each_store_gets_exactly_what_it_lacks(machine: Machine) -> None:
    first = machine.backup()
    nothing = machine.backup()
    for name in machine.volumes:
        sent = first["volumes"][name]
        assert sent["vault_blocks"] == sent["cache_blocks"] > 0
        assert nothing["volumes"][name]["vault_blocks"] == nothing["volumes"][name]["cache_blocks"] == 0
        assert nothing["volumes"][name]["changed"] == 0
    shutil.rmtree(machine.cache or "")
    machine.init("--cache")
    refilled = machine.backup()
    for name in machine.volumes:
        assert refilled["volumes"][name]["vault_blocks"] == 0
        assert refilled["volumes"][name]["cache_blocks"] == first["volumes"][name]["cache_blocks"]


def test_without_local_state_nothing_the_vault_has_is_sent_again(machine: Machine, tmp_path: Path) -> None:
    machine.backup()
    overwrite(machine.volumes["data"], 3, b"x" * BLOCK)
    for entry in machine.state.iterdir():
        if entry.name != "identity":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    report = machine.backup()
    assert report["volumes"]["data"]["vault_blocks"] == report["volumes"]["data"]["cache_blocks"] == 1
    assert any("everything was read" in problem for problem in report["problems"])
    machine.restore("latest", "data", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == machine.volumes["data"].read_bytes()


def test_a_volume_is_restored_elsewhere_with_the_passphrase_alone(machine: Machine, tmp_path: Path) -> None:
    machine.backup()
    shutil.rmtree(machine.state)
    shutil.rmtree(machine.cache or "")
    elsewhere = Machine(tmp_path / "elsewhere", machine.vault)
    done = elsewhere.restore(
        "latest", "logs", tmp_path / "out", "--vault", f"file://{machine.vault}", "--system", machine.name
    )
    assert (tmp_path / "out").read_bytes() == machine.volumes["logs"].read_bytes()
    assert done.document["exit_code"] == 0
