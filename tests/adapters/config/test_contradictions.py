"""Settings that are in each other's way: refused, before they cost a disk, a key or a backup."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.config import ConfigProblems, load_vault, parse_config
from engine.errors import ConfigError


def problems(folder: Path, *, system: str = "", volume: str = "path = 'data.img'", more: str = "") -> list[str]:
    text = (
        f"[system]\nname = 'web-01'\nstate_dir = 'state'\n{system}\n[[volume]]\nname = 'data'\n{volume}\n{more}\n"
        f"[vault]\nurl = '{(folder / 'vault').as_uri()}'\n[cache]\npath = 'cache'\n"
    )
    try:
        parse_config(text, folder / "forebay.toml")
    except ConfigProblems as error:
        return list(error.problems)
    return []


def test_places_of_their_own_are_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path) == []
    assert problems(tmp_path, system="identity_file = 'keys/identity'", volume="path = '/'\nhints = 'h'") == []


@pytest.mark.parametrize("place", ["vault", "cache", "state"])
def test_forebays_own_files_are_no_volume(tmp_path: Path, place: str) -> None:
    (sentence,) = problems(tmp_path, volume=f"path = '{place}/format'")
    assert f"'data' path ({tmp_path / place / 'format'}) lies in " in sentence
    assert "name another path" in sentence


@pytest.mark.parametrize("place", ["vault", "cache"])
def test_keys_do_not_lie_where_the_backups_are(tmp_path: Path, place: str) -> None:
    (sentence,) = problems(tmp_path, system=f"identity_file = '{place}/identity'")
    assert "keys must not lie where the backups are" in sentence


@pytest.mark.parametrize(
    ("file", "what"), [("data.img", "the path of [[volume]] 'data'"), ("forebay.toml", "this file")]
)
def test_the_identity_is_written_over_nothing_else(tmp_path: Path, file: str, what: str) -> None:
    (sentence,) = problems(tmp_path, system=f"identity_file = '{file}'")
    assert f"is also {what}" in sentence


def test_a_volume_forgotten_after_copying_a_table_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("data.img")
    for path in ("data.img", "./x/../data.img", "link"):
        (sentence,) = problems(tmp_path, more=f"[[volume]]\nname = 'home'\npath = '{path}'")
        assert "'data' and 'home' have the same path" in sentence


def test_hints_are_a_file_of_their_own(tmp_path: Path) -> None:
    (sentence,) = problems(tmp_path, volume="path = 'data.img'\nhints = 'data.img'")
    assert "is also its hints file" in sentence


def test_a_link_does_not_hide_a_place_inside_another(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "vault", target_is_directory=True)
    (sentence,) = problems(tmp_path)
    assert "must not lie inside each other" in sentence


def test_a_folder_given_as_vault_is_told_how_to_write_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write a folder as file://"):
        load_vault(str(tmp_path))
    with pytest.raises(ConfigError, match="vault '' is neither a URL nor a TOML file"):
        load_vault("")


def test_a_whole_configuration_given_as_vault_is_told_where_it_belongs(tmp_path: Path) -> None:
    file = tmp_path / "forebay.toml"
    file.write_text("[system]\nname = 'x'\n[cache]\npath = '/c'\n[vault]\nurl = 'file:///v'\n")
    with pytest.raises(ConfigError, match=r"not \[system\], \[cache\]: give the file with --config$"):
        load_vault(str(file))


def test_windows_paths_in_double_quotes_are_told_how_to_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="write Windows paths in 'single quotes'"):
        parse_config('[system]\nstate_dir = "C:\\users\\forebay"\n', tmp_path / "forebay.toml")
