"""What `backup` tells people of a session, and that settings arrive in it."""

from __future__ import annotations

import os

import pytest

from adapters import main
from engine.block import PART_BYTES
from tests.adapters.cli import hostile


def backup(place: hostile.Place, capsys: pytest.CaptureFixture[str]) -> str:
    assert main.run(["--config", str(place.config), "backup"]) == 0
    return capsys.readouterr().out


def rewrite_a_part(place: hostile.Place) -> None:
    with place.volume.open("r+b") as volume:
        volume.write(os.urandom(PART_BYTES))


def test_it_says_how_many_blocks_travelled_as_changed_parts(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    out = backup(place, capsys)
    assert "    to the vault: 3 blocks, " in out
    assert "    to the cache: 3 blocks, " in out
    rewrite_a_part(place)
    out = backup(place, capsys)
    assert "    to the vault: 1 block (1 of them only changed parts), " in out
    assert "    to the cache: 1 block, " in out


def test_blocks_travel_whole_where_deltas_are_switched_off(
    place: hostile.Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.configure("[vault]\n", "[vault]\ndelta = false\n")
    backup(place, capsys)
    rewrite_a_part(place)
    assert "    to the vault: 1 block, " in backup(place, capsys)
