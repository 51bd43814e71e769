"""The folder store keeps the contract, with durable puts and with a barrier."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, cast

import pytest

from adapters.stores.folder import FolderStore
from engine.ports import ObjectStore
from tests.contract.object_store import GoAway, ObjectStoreContract


class TestFolderStore(ObjectStoreContract):
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        return tmp_path / "store"

    @pytest.fixture(params=["put", "flush"])
    async def store(self, request: pytest.FixtureRequest, root: Path) -> ObjectStore:
        await FolderStore.create(root, b"F" * 56)
        return FolderStore(root, "me", sync=cast("Literal['put', 'flush']", request.param))

    @pytest.fixture
    def go_away(self, root: Path) -> GoAway:
        async def leave() -> None:
            os.rename(root, f"{root} elsewhere")

        return leave
