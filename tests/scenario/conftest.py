"""What all tests that kill processes share: a forge of processes to be killed, and machines in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scenario.crash_backlog import Backlog, waiting
from tests.scenario.crash_machine import Forge, in_memory


@pytest.fixture(scope="module")
def forge() -> Iterator[Forge]:
    """Processes that are started at once, one for a module."""
    with Forge() as forge:
        yield forge


@pytest.fixture
def fast_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one."""
    with in_memory(tmp_path) as path:
        yield path


@pytest.fixture(scope="module")
def two(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backlog]:
    """A machine whose vault is there again: two points in it, two in the spool, and changes that are in none."""
    with in_memory(tmp_path_factory.mktemp("two")) as path:
        backlog = waiting(path / "template", forge, 2)
        backlog.machine.back()
        yield backlog
