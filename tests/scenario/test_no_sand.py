"""Never a delta on sand: whatever makes a source doubtful, the block goes whole, and every point still comes back."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from engine.block import PART_BYTES
from engine.pipeline.report import VolumeReport
from tests.scenario.audit import audit
from tests.scenario.cheap import enrol, enrolled, restored
from tests.scenario.inprocess import backup
from tests.scenario.machine import BLOCK, Machine
from tests.scenario.recover import Recoverer


def touch(volume: Path, *, part: int = 3) -> int:
    """Change a little of every block that is not zero; return how many those are."""
    content = bytearray(volume.read_bytes())
    touched = 0
    for start in range(0, len(content), BLOCK):
        if any(content[start : start + BLOCK]):
            at = start + part * PART_BYTES
            content[at : at + 8] = (start + part).to_bytes(8, "big")
            touched += 1
    volume.write_bytes(content)
    return touched


def session(machine: Machine, *, problems: bool = False) -> VolumeReport:
    report = backup(machine)
    assert report.exit_code == 0, report
    assert bool(report.problems) == problems, report.problems
    assert restored(machine).content == machine.volumes["data"].read_bytes()
    audit(machine)
    return report.volumes["data"]


def data_packs(vault: Path) -> set[Path]:
    return {path for path in (vault / "data").rglob("*") if path.is_file()}


@pytest.mark.parametrize("lost", ["parts", "volumes", "index", "everything"])
def test_what_local_state_has_lost_goes_whole_once(tmp_path: Path, lost: str) -> None:
    machine, volume = enrolled(tmp_path)
    session(machine)
    touched = touch(volume)
    assert session(machine).vault_deltas == touched
    touch(volume, part=4)
    for path in sorted(machine.state.rglob("*")):
        is_part = path.name.startswith(("parts", "origins"))
        if lost == "everything" and path.name == "identity":
            continue
        if (is_part if lost == "parts" else lost == "everything" or path.name == lost) and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    report = session(machine, problems=lost in ("volumes", "everything"))
    # The index is fetched again, and what local state knows is still true.
    assert report.vault_deltas == (touched if lost == "index" else 0)
    touch(volume, part=5)
    assert session(machine).vault_deltas == touched, "from then on only parts travel again"


def test_the_setting_may_change_at_any_time(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path)
    session(machine)
    touched = touch(volume)
    machine.extra["vault"] = "delta = false"
    found = session(machine)
    assert (found.vault_deltas, found.vault_blocks) == (0, touched)
    left = sum(path.stat().st_size for path in machine.state.rglob("*") if path.name.startswith(("parts", "origins")))
    assert left == 0, "switched off it keeps nothing of parts"
    machine.extra["vault"] = "delta = true"
    touch(volume, part=4)
    assert session(machine).vault_deltas == 0, "what was sent while it was off is not known"
    touch(volume, part=5)
    assert session(machine).vault_deltas == touched


def test_a_block_another_system_sent_is_no_source(tmp_path: Path) -> None:
    first, volume = enrolled(tmp_path)
    session(first)
    copy = tmp_path / "copy.img"
    shutil.copyfile(volume, copy)
    second = Machine(tmp_path / "second", first.vault, name="web-02", volumes={"data": copy})
    enrol(second)
    assert session(second).vault_blocks == 0
    touched = touch(copy)
    found = session(second)
    assert (found.vault_deltas, found.vault_blocks) == (0, touched)
    touch(copy, part=4)
    assert session(second).vault_deltas == touched, "its own it may build on"


def test_another_system_does_not_deduplicate_against_a_delta(tmp_path: Path) -> None:
    first, volume = enrolled(tmp_path)
    session(first)
    (its_packs,) = (first.vault / "data").iterdir()
    touched = touch(volume)
    assert session(first).vault_deltas == touched
    copy = tmp_path / "copy.img"
    shutil.copyfile(volume, copy)
    second = Machine(tmp_path / "second", first.vault, name="web-02", volumes={"data": copy})
    enrol(second)
    assert session(second).vault_blocks == touched
    shutil.rmtree(its_packs)
    assert audit(second).deltas == 0


@pytest.mark.parametrize("how", ["gone", "cut", "damaged"])
def test_a_source_that_is_bad_in_the_vault_is_none(tmp_path: Path, how: str) -> None:
    machine, volume = enrolled(tmp_path)
    session(machine)
    (base,) = data_packs(machine.vault)
    touched = touch(volume)
    whole = base.read_bytes()
    if how == "gone":
        base.unlink()
    elif how == "cut":
        base.write_bytes(whole[:-1])
    else:
        base.write_bytes(whole[:64] + bytes(len(whole) - 400) + whole[-336:])
    found = session(machine, problems=True)
    assert found.vault_deltas == touched, "they were made before it was noticed"
    assert audit(machine).deltas == 0, "and none of them is relied on"
    touch(volume, part=4)
    assert session(machine).vault_deltas == touched


def test_a_delta_whose_source_vanished_is_sent_again_with_the_first_that_notices(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path)
    session(machine)
    (base,) = data_packs(machine.vault)
    touch(volume)
    session(machine)
    assert audit(machine).deltas > 0
    base.unlink()
    with volume.open("r+b") as out:  # one block: what leans on the same pack is noticed with it
        out.seek(int(first_full(volume)) * BLOCK + 9 * PART_BYTES)
        out.write(b"changed")
    session(machine, problems=True)
    assert audit(machine).deltas == 0


def first_full(volume: Path) -> int:
    content = volume.read_bytes()
    return next(at // BLOCK for at in range(0, len(content), BLOCK) if any(content[at : at + BLOCK]))


def test_content_that_comes_back_is_found_in_its_delta_and_its_sources_are_named_again(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path)
    session(machine)
    touched = touch(volume)
    as_delta = volume.read_bytes()
    session(machine)
    volume.write_bytes(bytes(len(as_delta)))
    session(machine)
    volume.write_bytes(as_delta)
    assert session(machine).vault_blocks == 0, "nothing travels twice"
    assert audit(machine).deltas > 0
    touch(volume, part=8)
    found = session(machine)
    assert (found.vault_deltas, found.vault_blocks) == (0, touched), "where its parts lie was forgotten meanwhile"


def test_two_blocks_of_the_same_content_share_a_delta_and_only_its_maker_knows_its_parts(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path, blocks=1)
    block, other = random.Random(1).randbytes(BLOCK), random.Random(2).randbytes(BLOCK)
    volume.write_bytes(block + other)
    session(machine)
    changed = bytearray(block)
    changed[100:108] = b"changed!"
    volume.write_bytes(bytes(changed) * 2)
    found = session(machine)
    assert (found.vault_deltas, found.vault_blocks) == (1, 1)
    changed[-8:] = b"changed!"
    volume.write_bytes(bytes(changed) + other)
    session(machine)
    assert Recoverer.of(machine).restored() == volume.read_bytes()


def test_a_volume_that_grows_and_shrinks_keeps_its_last_block(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path, blocks=6)
    content = b"".join(bytes([n]) * 1000 for n in range(1, 250))
    for length in (250_000, 250_001, 249_999, 131_072, 131_073, 196_608, 4096, 4095, 65_537, 250_000):
        volume.write_bytes((content * 2)[:length])
        session(machine)
