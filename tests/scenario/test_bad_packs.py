"""What turned out to be bad stays bad: for later sessions, for other volumes, and whatever neighbours offer."""

from __future__ import annotations

from pathlib import Path

import anyio
import numpy as np
import pytest

from tests.scenario.cheap import enrol, enrolled, restored
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, Machine, overwrite, random_volume
from tests.scenario.mallory import Mallory, identity_of
from tests.scenario.recover import Recoverer


def data_packs(vault: Path) -> list[Path]:
    return [path for path in (vault / "data").rglob("*") if path.is_file()]


def part_changed(block: bytes, generator: np.random.Generator) -> bytes:
    return block[:4096] + generator.bytes(4096) + block[8192:]


def test_a_pack_found_damaged_is_not_relied_on_by_a_later_session_either(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path, blocks=2)
    generator = np.random.default_rng(9)
    first, second, third = (generator.bytes(BLOCK) for _ in range(3))
    volume.write_bytes(first + second)
    assert backup(machine).exit_code == 0
    (pack,) = data_packs(machine.vault)
    overwrite(volume, 1, third)
    assert backup(machine).exit_code == 0
    rotten = bytearray(pack.read_bytes())
    for at in (20_000, 20_000 + BLOCK):
        rotten[at] ^= 1
    pack.write_bytes(rotten)
    overwrite(volume, 0, part_changed(first, generator))
    report = backup(machine)
    assert any("is sent again" in problem for problem in report.problems)
    assert (restored(machine).content, report.exit_code) == (volume.read_bytes(), 0)
    overwrite(volume, 1, second)  # its record lies in the pack that is bad, in no map any more
    report = backup(machine)
    assert (report.exit_code, report.volumes["data"].vault_blocks) == (0, 1)
    assert restored(machine).content == volume.read_bytes()


def test_what_one_volume_found_to_be_gone_another_sends_again_when_its_turn_comes(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path, blocks=2)
    generator = np.random.default_rng(3)
    block, other = generator.bytes(BLOCK), generator.bytes(BLOCK)
    logs = tmp_path / "logs.img"
    volume.write_bytes(block)
    logs.write_bytes(other + bytes(BLOCK))
    both = {"data": volume, "logs": logs}
    machine.volumes = both
    assert backup(machine).exit_code == 0
    for pack in data_packs(machine.vault):
        pack.unlink()
    machine.volumes = {"data": volume}
    overwrite(volume, 0, part_changed(block, generator))
    assert any("is gone from the vault" in problem for problem in backup(machine).problems)
    machine.volumes = both
    report = backup(machine)
    assert (report.exit_code, report.problems) == (0, [])
    assert report.volumes["logs"].vault_blocks == 1
    found = anyio.run(lambda: Recoverer.of(machine).restore(volume="logs"))
    assert (found.content, found.report.holes) == (logs.read_bytes(), [])
    assert backup(machine).volumes["logs"].vault_blocks == 0, "healed once is healed"


@pytest.mark.parametrize("writers", [1, 9])
def test_packs_that_neighbours_claim_and_do_not_have_end_no_session(tmp_path: Path, writers: int) -> None:
    machine, volume = enrolled(tmp_path)
    assert backup(machine).exit_code == 0
    block = bytes(range(256)) * 256
    liars = []
    for number in range(writers):
        image = random_volume(tmp_path / f"{number}.img", 2, seed=number)
        liar = Machine(tmp_path / f"liar{number}", machine.vault, name=f"db-{number:02}", volumes={"data": image})
        enrol(liar)
        liars.append(Mallory(identity_of(liar), machine.vault))
    for sequence in range(9):
        liar_now = liars[sequence % writers]
        liar_now.publish([liar_now.claim(liar_now.pack_name([block]), [block])], sequence=1 + sequence)
    overwrite(volume, 3, block)
    assert backup(machine).exit_code == 0
    assert restored(machine).content == volume.read_bytes()
