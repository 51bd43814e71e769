"""What tests of several adapters need."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Return an empty folder to mount something on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder
