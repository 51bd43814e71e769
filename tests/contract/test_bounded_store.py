"""The bound of the spool keeps the contract of the store it stands above."""

from __future__ import annotations

import pytest

from engine.pipeline.bounded import BoundedStore
from engine.ports import ObjectStore
from tests.contract.over_memory import OverMemory
from tests.fakes import MemoryStore


class TestBoundedStore(OverMemory):
    @pytest.fixture
    def store(self, memory: MemoryStore) -> ObjectStore:
        return BoundedStore(memory, "/spool", 1 << 30, lambda: 1 << 40)
