"""A restore's partial file in a folder where others write, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.volumes.open import open_target
from adapters.volumes.targets import PARTIAL_SUFFIX
from engine.errors import RestoreError


@pytest.mark.parametrize("overwrite", [False, True])
def test_no_other_restore_slips_in_while_a_finished_one_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    path = tmp_path / "restored.img"
    if overwrite:
        path.write_bytes(b"old")
    target = open_target(path, 4096, overwrite)
    target.write(0, [b"a" * 4096])
    refused: list[RestoreError] = []

    def slipping_in(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with pytest.raises(RestoreError, match="is being written by another restore") as caught:
                open_target(path, 4096, True)
            refused.append(caught.value)
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "link"):
            patch.setattr(os, name, slipping_in(getattr(os, name)))
        target.finish()
    assert refused
    assert path.read_bytes() == b"a" * 4096


def test_another_name_of_somebody_s_file_is_not_taken_for_a_partial_file(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "restored.img"
    victim.write_bytes(b"precious")
    os.link(victim, f"{path}{PARTIAL_SUFFIX}")
    target = open_target(path, 10, overwrite=False)
    target.write(0, [b"restored"])
    target.finish()
    assert (victim.read_bytes(), path.read_bytes()) == (b"precious", b"restored\0\0")


def test_what_is_restored_is_its_owner_s_alone_whoever_made_the_partial_file(tmp_path: Path) -> None:
    path = tmp_path / "restored.img"
    partial = Path(f"{path}{PARTIAL_SUFFIX}")
    partial.touch()
    partial.chmod(0o666)
    open_target(path, 10, overwrite=False).finish()
    assert path.stat().st_mode & 0o777 == 0o600
