"""Packs that vanish from the vault, or go bad there: the next session puts back what it comes to know of."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.scenario.cheap import enrolled, restored
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, overwrite


def packs(vault: Path, kind: str) -> list[Path]:
    return [path for path in (vault / kind).rglob("*") if path.is_file()]


def test_what_did_not_change_is_sent_again_with_what_did_once_its_pack_is_known_to_be_gone(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path)
    assert backup(machine).exit_code == 0
    for pack in packs(machine.vault, "data"):
        pack.unlink()
    content = volume.read_bytes()
    blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    full, zero = next(one for one in blocks if any(one)), blocks.index(bytes(BLOCK))
    overwrite(volume, zero, full)
    report = backup(machine)
    assert report.exit_code == 0
    assert any("is gone from the vault" in problem for problem in report.problems)
    found = restored(machine)
    assert (found.content, found.report.holes) == (volume.read_bytes(), [])


def test_two_volumes_get_back_what_one_of_them_found_to_be_gone(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path)
    machine.volumes["logs"] = tmp_path / "logs.img"
    shutil.copyfile(volume, machine.volumes["logs"])
    assert backup(machine).exit_code == 0
    for pack in packs(machine.vault, "data"):
        pack.write_bytes(pack.read_bytes()[:-1])
    content = volume.read_bytes()
    blocks = [content[at : at + BLOCK] for at in range(0, len(content), BLOCK)]
    overwrite(machine.volumes["logs"], blocks.index(bytes(BLOCK)), next(one for one in blocks if any(one)))
    report = backup(machine)
    assert report.exit_code == 0
    # Every block once, for both.
    assert sum(found.vault_blocks for found in report.volumes.values()) == len({*blocks} - {bytes(BLOCK)})
    assert restored(machine).content == content
