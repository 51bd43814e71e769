"""The memory store keeps the contract, with and without a barrier, and so does a faulty store without faults."""

from __future__ import annotations

import pytest

from engine.errors import ObjectMissing
from engine.ports import ObjectStore
from tests.contract.object_store import PACK
from tests.contract.over_memory import OverMemory
from tests.fakes import FaultPlan, FaultyStore, MemoryStore


class TestMemoryStore(OverMemory):
    @pytest.fixture
    def store(self, memory: MemoryStore) -> ObjectStore:
        return memory


class TestFaultyStoreWithoutFaults(TestMemoryStore):
    @pytest.fixture
    def store(self, memory: MemoryStore) -> ObjectStore:
        return FaultyStore(memory, FaultPlan())


class TestBarrier:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    async def test_a_power_cut_forgets_what_no_flush_made_durable(self) -> None:
        store = MemoryStore(barrier=True)
        await store.put("a/1", b"one")
        await store.flush()
        await store.put(PACK, b"hello")
        store.power_cut()
        assert await store.get("a/1") == b"one"
        with pytest.raises(ObjectMissing):
            await store.get(PACK)
