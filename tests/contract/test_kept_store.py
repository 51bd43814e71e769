"""The look at what was acknowledged keeps the contract of the store it stands above, and believes no empty word."""

from __future__ import annotations

import pytest

from engine.errors import StoreUnavailable
from engine.pipeline.kept import KeptStore
from engine.ports import ObjectStore
from tests.contract.object_store import PACK
from tests.contract.over_memory import OverMemory
from tests.fakes import FaultPlan, FaultyStore, MemoryStore


class TestKeptStore(OverMemory):
    @pytest.fixture
    def store(self, memory: MemoryStore) -> ObjectStore:
        return KeptStore(memory)

    @pytest.mark.parametrize("kept", [0, 3, 5])
    async def test_what_is_acknowledged_and_not_there_whole_may_be_put_again(
        self, memory: MemoryStore, kept: int
    ) -> None:
        plan = FaultPlan().acknowledge_only(instead=lambda data: data[: kept - 1] if kept else None)
        store = KeptStore(FaultyStore(memory, plan))
        with pytest.raises(StoreUnavailable, match="root/a was acknowledged"):
            await store.put("root/a", b"hello")
        await store.put("root/a", b"hello")
        assert await memory.get("root/a") == b"hello"

    async def test_packs_are_looked_at_by_whoever_lists_them(self, memory: MemoryStore) -> None:
        faulty = FaultyStore(memory, FaultPlan())
        await KeptStore(faulty).put(PACK, b"hello")
        assert [operation for operation, _ in faulty.calls] == ["put"]
