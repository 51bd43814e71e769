"""The bound of the spool keeps the contract of the store it stands above."""

from __future__ import annotations

import pytest

from engine.pipeline.bounded import BoundedStore
from engine.ports import ObjectStore
from tests.contract.object_store import GoAway, ObjectStoreContract
from tests.fakes import MemoryStore


class TestBoundedStore(ObjectStoreContract):
    @pytest.fixture(params=[False, True], ids=["durable puts", "barrier"])
    def memory(self, request: pytest.FixtureRequest) -> MemoryStore:
        return MemoryStore(barrier=request.param)

    @pytest.fixture
    def store(self, memory: MemoryStore) -> ObjectStore:
        return BoundedStore(memory, "/spool", 1 << 30, lambda: 1 << 40)

    @pytest.fixture
    def go_away(self, memory: MemoryStore) -> GoAway:
        async def leave() -> None:
            memory.away = True

        return leave
