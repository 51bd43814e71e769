"""The bound of the spool: what does not fit waits for room, or is refused; nothing ever goes beyond it."""

from __future__ import annotations

import anyio
import pytest

from engine.block import Bytes
from engine.errors import StoreUnavailable
from engine.pipeline.bounded import BoundedStore, SpoolFull
from engine.spoolroom import RESERVE_BYTES
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

MIB = 1 << 20
BOUND = 64 * MIB

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def bounded(inner: MemoryStore | FaultyStore, max_bytes: int | None = BOUND, free: int = 1 << 40) -> BoundedStore:
    return BoundedStore(inner, "/spool", max_bytes, lambda: free)


def size(store: MemoryStore) -> int:
    return sum(len(data) for data in store.objects.values())


async def test_puts_at_once_do_not_go_beyond_the_bound_together() -> None:
    inner = MemoryStore()
    store = bounded(inner)
    refused = 0

    async def put(number: int) -> None:
        nonlocal refused
        try:
            await store.put(f"data/{number}", bytes(8 * MIB))
        except SpoolFull:
            refused += 1

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(put, number)
    assert refused > 0
    assert 0 < size(inner) <= BOUND


async def test_what_failed_or_was_there_is_not_counted() -> None:
    inner = MemoryStore()
    store = bounded(FaultyStore(inner, FaultPlan().fail("put", 2)))
    await store.put("data/1", bytes(8 * MIB))
    with pytest.raises(StoreUnavailable):
        await store.put("data/2", bytes(8 * MIB))
    await store.put("data/1", bytes(8 * MIB))
    assert await store.used_bytes() == 8 * MIB
    await store.delete("data/1")
    await store.delete("data/1")
    assert await store.used_bytes() == 0


async def test_what_does_not_fit_waits_for_room_which_is_made_once_for_all() -> None:
    inner = MemoryStore()
    store = bounded(inner)
    await store.put("data/old", bytes(48 * MIB))
    made: list[int] = []

    async def make_room() -> bool:
        made.append(size(inner))
        await store.delete("data/old")
        return len(made) == 1

    store.make_room = make_room
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(store.put, f"data/{number}", bytes(8 * MIB))
    assert len(made) == 1
    assert size(inner) == 40 * MIB


async def test_whoever_makes_room_finds_room_for_notes_and_for_the_index() -> None:
    store = bounded(MemoryStore())

    async def make_room() -> bool:
        raise AssertionError("an index fragment, or a note, must not wait for room: what makes it waits for them")

    store.make_room = make_room
    with pytest.raises(AssertionError):
        await store.put("data/big", bytes(BOUND))
    await store.put("data/some", bytes(48 * MIB))
    await store.put("index/1", bytes(7 * MIB))
    await store.put("note/1", bytes(1000))
    assert await store.used_bytes() <= BOUND


async def test_a_disk_keeps_a_reserve_for_those_who_share_it() -> None:
    inner = MemoryStore()
    with pytest.raises(SpoolFull, match="its disk is full"):
        await bounded(inner, None, RESERVE_BYTES + MIB).put("data/1", bytes(2 * MIB))
    assert not inner.objects


class Events:
    """A structlog logger's place, where a test listens."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warning(self, event: str, **_: object) -> None:
        self.heard.append(event)


async def test_a_spool_that_fills_up_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    events = Events()
    monkeypatch.setattr("engine.pipeline.bounded.log", events)
    store = bounded(MemoryStore())

    async def put(name: str, data: Bytes) -> list[str]:
        await store.put(name, data)
        return [*events.heard]

    assert await put("data/1", bytes(40 * MIB)) == []
    assert await put("data/2", bytes(12 * MIB)) == ["spool_fills_up"]
    assert await put("data/3", bytes(MIB)) == ["spool_fills_up"]
