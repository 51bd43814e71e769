"""What a session says of itself, and of the stores it writes to, is so."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.state.directory import StateDirectory
from adapters.stores.folder import FolderStore
from engine.block import Bytes
from engine.errors import SessionAborted, StoreRejected
from engine.state import Newest
from tests.scenario.cheap import enrol, enrolled, restored
from tests.scenario.inprocess import backup
from tests.scenario.machine import Machine


def test_a_cache_that_was_never_adopted_gets_nothing_and_is_said_to_be_the_wrong_one(tmp_path: Path) -> None:
    machine, volume = enrolled(tmp_path, cache=True)
    assert backup(machine).cache == "ok"
    other = Machine(tmp_path / "o", tmp_path / "vault2", tmp_path / "cache2", name="o", volumes={"data": volume})
    enrol(other)
    machine.cache = other.cache
    report = backup(machine)
    assert (report.exit_code, report.cache) == (0, "away")
    assert any("forebay init --cache" in problem for problem in report.problems)
    (system,) = (machine.vault / "root").iterdir()
    assert not (tmp_path / "cache2" / "data" / system.name).exists()
    enrol(machine, "--cache")
    assert (backup(machine).cache, restored(machine, only_cache=True).content) == ("ok", volume.read_bytes())


def test_a_point_that_stands_is_named_even_if_local_state_cannot_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, volume = enrolled(tmp_path)

    def full(_: StateDirectory, newest: Newest) -> None:
        raise SessionAborted("the disk of the state directory is full")

    with monkeypatch.context() as patch:
        patch.setattr(StateDirectory, "set_newest", full)
        report = backup(machine)
    assert (report.exit_code, report.error) == (1, "the disk of the state directory is full")
    found = restored(machine)
    assert (found.point, found.content) == (report.point, volume.read_bytes())
    after = backup(machine)
    assert (after.exit_code, after.problems, after.volumes["data"].changed) == (0, [], 0)


def test_packs_of_a_former_identity_do_not_stand_in_the_way_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, volume = enrolled(tmp_path)
    real = FolderStore.put

    async def put(store: FolderStore, name: str, data: Bytes) -> None:
        if name.startswith("page/"):
            raise StoreRejected("the quota is used up")
        await real(store, name, data)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "put", put)
        assert backup(machine).exit_code == 1
    (machine.state / "identity").unlink()
    machine.name = "web-02"
    enrol(machine)
    assert (backup(machine).exit_code, backup(machine).problems) == (0, [])
    assert restored(machine).content == volume.read_bytes()
