"""Stores with restore points, for the commands that list and restore them; an enrolled machine, for `init`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.vault.slots import KdfCost
from tests.adapters.cli import hostile
from tests.adapters.cli.enrolled import Machine, taken_up
from tests.adapters.cli.recovery_site import Site, build
from tests.scenario.cheap import cheap_keys


@pytest.fixture(autouse=True)
def cheap() -> Iterator[type[KdfCost]]:
    """Make guessing a passphrase cheap, which is meant to be dear, for all commands in this process."""
    with cheap_keys() as real:
        yield real


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return build(tmp_path_factory.mktemp("site"))


@pytest.fixture
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FOREBAY_CONFIG", "FOREBAY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def site(original: Site, tmp_path: Path, nothing_from_outside: None) -> Site:
    return original.at(tmp_path)


@pytest.fixture(scope="session")
def enrolled(tmp_path_factory: pytest.TempPathFactory) -> hostile.Place:
    """Return an enrolled place that nobody changes."""
    with cheap_keys():
        return hostile.enrol(tmp_path_factory.mktemp("enrolled"))


@pytest.fixture
def place(enrolled: hostile.Place, tmp_path: Path) -> hostile.Place:
    return hostile.copy(enrolled, tmp_path)


@pytest.fixture(scope="session")
def enrolled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One enrolled machine, which nobody changes."""
    shared = tmp_path_factory.mktemp("enrolled-once")
    with cheap_keys():
        assert Machine(shared).init() == 0
    return shared


@pytest.fixture
def machine(enrolled_once: Path, tmp_path: Path) -> Machine:
    """Return a machine enrolled as web-01, with vault and cache, in a folder of its own."""
    return taken_up(enrolled_once, tmp_path)
