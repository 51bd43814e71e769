"""What speaks SMB is imported by who talks to a share, and by nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.cli import hostile
from tests.adapters.cli.test_startup import among, imported

SPEAKERS = ("smbprotocol", "spnego", "adapters.stores.smb", "adapters.stores.smbwire")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> hostile.Place:
    return hostile.enrol(tmp_path_factory.mktemp("enrolled"))


def test_sessions_with_folders_need_nothing_that_speaks_to_shares(place: hostile.Place) -> None:
    for command in ("backup", "points", "check-config"):
        modules = imported(place, "--config", str(place.config), command)
        assert "adapters.stores.folder" in modules
        assert among(modules, *SPEAKERS) == []


def test_status_of_a_machine_with_shares_speaks_to_none(place: hostile.Place, tmp_path: Path) -> None:
    shared = hostile.copy(place, tmp_path)
    text = shared.config.read_text()
    lines = [
        'url = "smb://nas/share/vault"\nuser = "agent"' if line.startswith("url = ") else line
        for line in text.splitlines()
    ]
    shared.config.write_text("\n".join(lines))
    assert "smb://" in shared.config.read_text()
    modules = imported(shared, "--config", str(shared.config), "status")
    assert "adapters.config.places" in modules
    assert among(modules, *SPEAKERS, "adapters.openstore") == []
