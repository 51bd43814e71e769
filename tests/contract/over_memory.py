"""The contract over a memory store, with and without a barrier: of that store, and of stages before it."""

from __future__ import annotations

import pytest

from tests.contract.object_store import GoAway, ObjectStoreContract
from tests.fakes import MemoryStore


class OverMemory(ObjectStoreContract):
    @pytest.fixture(params=[False, True], ids=["durable puts", "barrier"])
    def memory(self, request: pytest.FixtureRequest) -> MemoryStore:
        return MemoryStore(barrier=request.param)

    @pytest.fixture
    def go_away(self, memory: MemoryStore) -> GoAway:
        async def leave() -> None:
            memory.away = True

        return leave
