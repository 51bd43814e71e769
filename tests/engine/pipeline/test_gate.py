"""The reconnect gate: one loss for all workers, one prober, windows that add up, and nothing lost or done twice."""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from engine.block import Bytes
from engine.errors import StoreRejected, StoreUnavailable
from engine.pipeline import gate as gate_module
from engine.pipeline.gate import GatedStore, ReconnectGate, VaultLost, VaultRefused
from engine.pipeline.route import Route, RouteKeeper
from engine.policy import ReconnectPolicy
from engine.ports import ObjectInfo
from tests.fakes import FakeClock, FaultPlan, FaultyStore, MemoryStore

pytestmark = pytest.mark.anyio

WINDOW = ReconnectPolicy(window_s=600, total_s=1000)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class WeatherClock(FakeClock):
    """Sleeps pass at once; `events` happen when their second is reached."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[tuple[float, Callable[[], None]]] = []

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        for event in [event for event in self.events if event[0] <= self.monotonic()]:
            self.events.remove(event)
            event[1]()


class World:
    def __init__(self, policy: ReconnectPolicy = WINDOW, *, spool: bool = False) -> None:
        self.memory, self.clock = MemoryStore(), WeatherClock()
        self.plan = FaultPlan()
        self.inner = FaultyStore(self.memory, self.plan)
        self.routes: list[Route] = []
        self.keeper = RouteKeeper("VAULT", self.routes.append)
        self.probes = 0
        self.refuses = False
        self.gate = ReconnectGate(self._probe, policy, self.clock, random.Random(1), self.keeper, spool=spool)
        self.store = GatedStore(self.inner, self.gate)

    async def _probe(self) -> None:
        self.probes += 1
        if self.refuses:
            raise StoreRejected("wrong password; correct it in password_file")
        await self.memory.probe()

    def away(self, until_s: float | None = None) -> None:
        self.memory.away = True
        if until_s is not None:
            self.clock.events.append((until_s, self.back))

    def back(self) -> None:
        self.memory.away = False


async def test_while_the_vault_is_there_the_gate_is_not_noticed() -> None:
    world = World()
    store = world.store
    await store.put("a/1", b"one")
    assert await store.get("a/1", 1, 1) == b"n"
    assert await store.stat("a/1") == 3
    assert [info async for info in store.list("a/")] == [ObjectInfo("a/1", 3)]
    await store.flush()
    await store.probe()
    await store.delete("a/1")
    assert [info async for info in store.list("")] == []
    assert (world.routes, world.probes, world.clock.slept) == ([], 0, [])
    assert world.gate.outage is None


async def test_all_workers_wait_for_one_prober_and_go_on_where_they_were() -> None:
    world = World()
    await world.store.put("a/0", b"before")
    world.away(until_s=300)
    async with anyio.create_task_group() as group:
        for number in range(1, 9):
            group.start_soon(world.store.put, f"a/{number}", b"x" * number)
        group.start_soon(world.store.stat, "a/0")
    assert world.routes == ["RECONNECTING", "VAULT"]
    assert sorted(world.memory.objects) == [f"a/{number}" for number in range(9)]
    # One prober: its waits are all the waiting there was.
    assert len(world.clock.slept) == world.probes
    assert 300 <= world.clock.monotonic() < 340
    assert world.gate.outage is None


async def test_the_waits_of_the_prober_grow_and_are_random() -> None:
    world = World(ReconnectPolicy(window_s=600, backoff_s=2, backoff_max_s=30))
    world.away()
    with pytest.raises(VaultLost):
        await world.store.stat("x")
    slept = world.clock.slept
    bounds = [min(30.0, 2.0 * 2**n) for n in range(len(slept))]
    assert all(bound / 2 <= wait <= bound for wait, bound in zip(slept[:-1], bounds, strict=False))
    assert len({round(wait, 6) for wait in slept}) > len(slept) // 2


async def test_a_window_that_closes_ends_it_for_everybody_now_and_later() -> None:
    world = World()
    world.away()
    failed: list[str] = []

    async def put(name: str) -> None:
        try:
            await world.store.put(name, b"x")
        except VaultLost as error:
            failed.append(str(error))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(put, f"a/{number}")
    assert world.routes == ["RECONNECTING", "ABORTED"]
    assert world.clock.monotonic() == pytest.approx(600)
    assert len(failed) == 5
    assert "did not come back within 600 s" in failed[0]
    world.back()
    with pytest.raises(VaultLost):
        await world.store.get("a/0")
    with pytest.raises(VaultLost):
        _ = [info async for info in world.store.list("")]
    assert world.memory.objects == {}


async def test_the_last_try_is_at_the_very_end_of_the_window() -> None:
    world = World()
    world.away(until_s=600)
    await world.store.put("a/1", b"x")
    assert world.routes == ["RECONNECTING", "VAULT"]


async def test_without_a_window_the_vault_is_lost_at_once() -> None:
    world = World(ReconnectPolicy(window_s=0))
    world.away()
    with pytest.raises(VaultLost, match="the vault was lost: "):
        await world.store.put("a", b"x")
    assert (world.routes, world.probes, world.clock.slept) == (["ABORTED"], 0, [])


async def test_with_a_spool_the_route_after_the_window_is_fallback() -> None:
    world = World(spool=True)
    world.away()
    with pytest.raises(VaultLost):
        await world.store.put("a", b"x")
    assert world.routes == ["RECONNECTING", "FALLBACK"]


@pytest.mark.parametrize("spool", [False, True])
async def test_a_vault_that_comes_back_and_refuses_is_not_waited_for(spool: bool) -> None:
    world = World(spool=spool)
    world.away()
    world.clock.events.append((60, lambda: setattr(world, "refuses", True)))
    with pytest.raises(VaultLost, match="refuses since it is back: wrong password; correct it in password_file"):
        await world.store.put("a", b"x")
    assert world.routes == ["RECONNECTING", "FALLBACK" if spool else "ABORTED"]
    assert world.clock.monotonic() < 120


async def test_windows_count_per_loss_and_their_sum_is_bounded() -> None:
    world = World(ReconnectPolicy(window_s=600, total_s=1000))
    for number in range(2):
        world.away(until_s=world.clock.monotonic() + 400)
        await world.store.put(f"a/{number}", b"x")
    spent = world.clock.monotonic()
    assert 800 <= spent < 1000
    world.away()
    with pytest.raises(VaultLost):
        await world.store.put("a/2", b"x")
    assert world.clock.monotonic() == pytest.approx(1000)
    assert world.routes == ["RECONNECTING", "VAULT", "RECONNECTING", "VAULT", "RECONNECTING", "ABORTED"]


async def test_a_vault_that_answers_and_takes_nothing_was_never_back() -> None:
    world = World(ReconnectPolicy(window_s=600, total_s=7200))
    taken = 0

    class Deaf(MemoryStore):
        async def put(self, name: str, data: Bytes) -> None:
            nonlocal taken
            if name == "taken":
                taken += 1
                return
            await world.clock.sleep(20)
            raise StoreUnavailable("the put was cut off")

    store = GatedStore(Deaf(), world.gate)
    with pytest.raises(VaultLost):
        await store.put("a/1", b"x")
    assert 600 <= world.clock.monotonic() < 660

    # With progress of the same kind in between, each loss has a window of its own; reading is another kind.
    world = World(ReconnectPolicy(window_s=600, total_s=7200))
    deaf = Deaf()
    store = GatedStore(deaf, world.gate)
    ended = False

    async def progress() -> None:
        while not ended and world.clock.monotonic() < 3000:
            await store.put("taken", b"")
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        group.start_soon(progress)
        with pytest.raises(VaultLost):
            await store.put("a/1", b"x")
        ended = True
    assert taken
    assert world.clock.monotonic() > 2400


async def test_a_call_that_fails_late_does_not_open_a_second_window_for_the_same_loss() -> None:
    world = World()
    begun, release = anyio.Event(), anyio.Event()

    async def slow_put() -> None:
        begun.set()
        await release.wait()
        raise StoreUnavailable("the line was cut long ago")

    late = iter([slow_put])

    class Inner(MemoryStore):
        async def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
            if name == "late" and (fault := next(late, None)) is not None:
                await fault()
            await super().put(name, data)

    store = GatedStore(Inner(), world.gate)
    async with anyio.create_task_group() as group:
        group.start_soon(store.put, "late", b"x")
        await begun.wait()
        world.away(until_s=100)
        await world.store.put("early", b"x")
        probes = world.probes
        release.set()
    assert world.routes == ["RECONNECTING", "VAULT"]
    assert world.probes == probes


async def test_who_waits_may_be_cancelled_and_the_next_in_line_goes_on() -> None:
    world = World()
    world.clock = FakeClock(manual=True)  # type: ignore[assignment]
    world.gate = ReconnectGate(world._probe, WINDOW, world.clock, random.Random(1), world.keeper)
    world.store = GatedStore(world.inner, world.gate)
    world.away()
    done: list[str] = []

    async def put(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await world.store.put(name, b"x")
            done.append(name)

    first, second = anyio.CancelScope(), anyio.CancelScope()
    async with anyio.create_task_group() as group:
        group.start_soon(put, "first", first)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(put, "second", second)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
        await anyio.wait_all_tasks_blocked()
        assert world.gate.outage is not None
        world.back()
        world.clock.advance(30)
    assert done == ["second"]
    assert world.routes == ["RECONNECTING", "VAULT"]


async def test_a_refusal_of_one_call_passes_and_is_no_loss() -> None:
    world = World()
    await world.store.put("a", b"x")
    with pytest.raises(VaultRefused):
        await world.store.put("a", b"y")
    assert world.routes == []


async def test_a_gate_that_is_shut_lets_nobody_through_and_nobody_waits_any_longer() -> None:
    world = World(spool=True)
    world.away()
    world.clock.events.append((60, lambda: world.gate.shut(StoreRejected("no right to write"))))
    with pytest.raises(VaultLost):
        await world.store.put("a", b"x")
    assert world.clock.monotonic() < 120
    world.back()
    with pytest.raises(VaultLost, match="no right"):
        await world.store.get("a")
    assert world.gate.outage is None


async def test_while_it_waits_it_says_since_when_and_until_when() -> None:
    world = World()
    world.away(until_s=50)
    seen: list[tuple[int, int, str]] = []

    def look() -> None:
        outage = world.gate.outage
        assert outage is not None
        seen.append((outage.since_ms, outage.until_ms, outage.reason))

    world.clock.events.append((20, look))
    before = world.clock.now_ms()
    await world.store.put("a", b"")
    ((since, until, reason),) = seen
    assert (since, until) == (before, before + 600_000)
    assert reason


async def listed(world: World, prefix: str = "") -> list[str]:
    return [info.name async for info in world.store.list(prefix)]


class Breaking(MemoryStore):
    """A store whose listing breaks off after `rows` rows, once."""

    def __init__(self, rows: int, world: World) -> None:
        super().__init__()
        self.rows, self._world = rows, world

    async def list(self, prefix: str, after: str = ""):  # type: ignore[no-untyped-def]
        count = 0
        async for info in super().list(prefix, after):
            if count == self.rows:
                self.rows = -1
                self._world.away(until_s=self._world.clock.monotonic() + 30)
                raise StoreUnavailable("the line was cut")
            count += 1
            yield info


@pytest.mark.parametrize("rows", [0, 1, 5, 9])
async def test_a_listing_that_breaks_off_gives_every_row_once(rows: int) -> None:
    world = World()
    inner = Breaking(rows, world)
    for number in range(10):
        await inner.put(f"a/{number}", b"")
    world.store = GatedStore(inner, world.gate)
    assert sorted(await listed(world)) == [f"a/{number}" for number in range(10)]
    assert world.routes == ["RECONNECTING", "VAULT"]


async def test_a_listing_longer_than_what_is_remembered_raises_when_it_breaks_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate_module, "ROWS_KEPT_MAX", 3)
    world = World()
    inner = Breaking(5, world)
    for number in range(10):
        await inner.put(f"a/{number}", b"")
    world.store = GatedStore(inner, world.gate)
    with pytest.raises(StoreUnavailable, match="the line was cut"):
        await listed(world)
    assert len(await listed(world)) == 10
