from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters.volumes.targets import FileTarget
from engine.errors import RestoreError
from tests.adapters.cli.recovery_site import Site, run


def files(site: Site) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in site.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("inside", ["vault/format", "cache/format", "vault/new", "state/identity", "link/format"])
def test_a_restore_never_writes_over_a_store_or_local_state(
    site: Site, inside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if inside.startswith("link"):
        (site.folder / "link").symlink_to(site.vault, target_is_directory=True)
    before = files(site)
    arguments: list[str | Path] = [
        "restore",
        "latest",
        "--volume",
        "data",
        "--to",
        site.folder / inside,
        "--overwrite",
        *site.secret,
    ]
    ran = run(capsys, "--config", site.config, *arguments)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "where Forebay keeps its own files: choose a path outside of it" in ran.err
    assert files(site) == before


def test_a_restore_without_configuration_spares_the_vault_too(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(site)
    to = site.vault / "format"
    ran = run(
        capsys, "restore", "latest", "--system", "web-01", "--volume", "data", "--to", to, "--overwrite", *site.detached
    )
    assert (ran.code, "where Forebay keeps its own files" in ran.err) == (2, True)
    assert files(site) == before


@pytest.mark.parametrize("to", ["", ".", os.sep])
def test_a_folder_as_target_is_told_from_a_file(to: str) -> None:
    with pytest.raises(RestoreError, match="is a folder: name a file in it"):
        FileTarget(Path(to), 1, overwrite=True)


def test_a_name_the_system_does_not_take_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RestoreError, match=r"cannot be (looked at|made): "):
        FileTarget(tmp_path / ("x" * 5000), 1, overwrite=True)
    assert os.listdir(tmp_path) == []
