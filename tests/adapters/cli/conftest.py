"""Stores with restore points, for the commands that list and restore them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.cli import hostile
from tests.adapters.cli.recovery_site import Site, build


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return build(tmp_path_factory.mktemp("site"))


@pytest.fixture
def site(original: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    for name in ("FOREBAY_CONFIG", "FOREBAY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    return original.at(tmp_path)


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> hostile.Place:
    """Return an enrolled place that nobody changes."""
    return hostile.enrol(tmp_path_factory.mktemp("enrolled"))


@pytest.fixture
def place(enrolled: hostile.Place, tmp_path: Path) -> hostile.Place:
    return hostile.copy(enrolled, tmp_path)
