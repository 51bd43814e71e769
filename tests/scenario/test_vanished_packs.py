"""Packs that vanish from the vault, or go bad there: the next session puts back what it comes to know of."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from adapters.stores.folder import FolderStore
from engine.block import Bytes
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


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_full_session_leans_on_no_page_that_was_there_before(tmp_path: Path, how: str) -> None:
    machine, volume = enrolled(tmp_path)
    assert backup(machine).exit_code == 0
    for pack in packs(machine.vault, "page"):
        if how == "gone":
            pack.unlink()
        else:
            content = pack.read_bytes()
            pack.write_bytes(content[:100] + bytes(len(content) - 400) + content[-300:])
    assert backup(machine, full=True).exit_code == 0
    found = restored(machine)
    assert (found.content, found.report.problems) == (volume.read_bytes(), [])


def test_pages_of_packs_that_are_gone_are_written_again_where_local_state_was_lost(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path)
    assert backup(machine).exit_code == 0
    for pack in packs(machine.vault, "page"):
        pack.unlink()
    shutil.rmtree(machine.state / "volumes")
    report = backup(machine)
    assert report.exit_code == 0
    assert any("its pages are written again" in problem for problem in report.problems)
    found = restored(machine)
    assert (found.content, found.report.problems) == (volume.read_bytes(), [])


def test_pages_that_vanish_with_the_root_cost_a_second_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine, volume = enrolled(tmp_path)
    assert backup(machine).exit_code == 0
    shutil.rmtree(machine.state / "volumes")
    (pack,) = packs(machine.vault, "page")
    real = FolderStore.put

    async def put(store: FolderStore, name: str, data: Bytes) -> None:
        await real(store, name, data)
        if name.startswith("root/"):
            pack.unlink(missing_ok=True)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", put)
        report = backup(machine)
    assert report.exit_code == 0
    assert len(packs(machine.vault, "root")) == 3
    found = restored(machine)
    assert (found.point, found.content, found.report.problems) == (report.point, volume.read_bytes(), [])


def test_runs_that_cannot_be_read_any_more_end_no_session(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path)
    for number in range(4):
        overwrite(volume, number, bytes([number + 1]) * BLOCK)
        assert backup(machine).exit_code == 0
    for pack in packs(machine.vault, "page"):
        pack.unlink()
    problems: list[str] = []
    for number in range(4, 20):
        overwrite(volume, number, bytes([number + 1]) * BLOCK)
        report = backup(machine)
        assert (report.exit_code, report.error) == (0, None)
        problems += report.problems
    assert len(problems) == 1
    assert "restore points before this one need it" in problems[0]
    found = restored(machine)
    assert (found.content, found.report.problems) == (volume.read_bytes(), [])
