from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest

from adapters.state import identity as files
from engine.errors import ConfigError, SessionAborted
from engine.vault.identity import encode_identity
from tests.engine.vault.fakes_vault import flips, identity


def test_what_is_saved_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "identity"
    files.save(path, identity())
    assert files.load(path) == identity()
    assert os.listdir(path.parent) == ["identity"]


def test_only_the_owner_may_read_it_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "state" / "identity"
    before = os.umask(0)
    try:
        files.stage(path, identity())
        files.save(path, identity())
        files.stage(path, identity())
    finally:
        os.umask(before)
    for one in path.parent.iterdir():
        assert stat.S_IMODE(one.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_leftover_with_wider_rights_does_not_pass_them_on(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    (tmp_path / "identity.new").write_bytes(b"left over")
    (tmp_path / "identity.new").chmod(0o644)
    files.save(path, identity())
    assert files.load(path) == identity()


def test_a_missing_one_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run 'forebay init'") as caught:
        files.load(tmp_path / "identity")
    assert str(tmp_path / "identity") in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_one_that_others_may_read_or_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity"
    files.save(path, identity())
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        files.load(path)


def test_a_folder_in_its_place_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="identity file"):
        files.load(tmp_path)


def test_damage_anywhere_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    files.save(path, identity())
    for damaged in [b"", *flips(encode_identity(identity()), 211)]:
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="is damaged") as caught:
            files.load(path)
        assert str(path) in str(caught.value)


def test_saving_replaces_it_and_forgets_what_was_staged(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    files.save(path, identity())
    newer = msgspec.structs.replace(identity(), cache=bytes(16))
    files.stage(path, newer)
    assert files.load(path) == identity()
    assert files.load_staged(path) == newer
    files.save(path, newer)
    assert files.load(path) == newer
    assert files.load_staged(path) is None


def test_a_damaged_staged_one_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    assert files.load_staged(path) is None
    (tmp_path / "identity.enrolling").write_bytes(b"garbage")
    assert files.load_staged(path) is None
    files.unstage(path)
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SessionAborted, match="state directory"):
        files.save(tmp_path / "file" / "identity", identity())
