"""Queue and lanes together, under random slow, failing and cancelled lanes, in any order of the tasks.

What must hold: no block lost, none twice, none under another's number, the bound at every step, and an end.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import anyio
import hypothesis.strategies as st
from hypothesis import event, given, settings

from engine.block import Bytes
from engine.errors import StoreError, StoreRejected, StoreUnavailable
from engine.pipeline.lane import Lane, LaneResult
from engine.pipeline.queue import QueueAborted, Slot, TransmissionQueue
from engine.pipeline.retry import RetryingStore
from engine.policy import MIB, CacheErrorPolicy, LanePolicy, RetryPolicy, SlowPolicy
from tests.engine.pipeline.fakes_pipeline import (
    LoopClock,
    StoreSink,
    at_once,
    bytes_for,
    id_of,
    new_pack,
    number_of,
    record_of,
    run,
)
from tests.fakes import MemoryStore

RECORD_BYTES_MOST = 200
Fate = Literal["well", "flaky", "unavailable", "rejected", "no flush"]


@dataclass(frozen=True)
class Temper:
    """How a store behaves: seconds a put takes at most, and when it fails what way."""

    slow_s: float
    fate: Fate
    good_puts: int


@dataclass
class Plan:
    """One drawn case."""

    seed: int
    slots_max: int
    wishes: list[list[tuple[int, int]]]  # per producer: (lanes, record bytes) of its slots
    vault: Temper
    cache: Temper
    on_error: Literal["warn", "error", "fail"]
    skip: bool
    packs: int
    cancelled: str | None
    cancel_at_s: float


class MoodyStore(MemoryStore):
    """A store that takes its time and fails by temper."""

    def __init__(self, temper: Temper, chance: random.Random) -> None:
        super().__init__(barrier=True)
        self.temper, self.chance = temper, chance
        self.puts = self.running = 0

    async def put(self, name: str, data: Bytes) -> None:
        self.puts += 1
        self.running += 1
        try:
            await anyio.sleep(self.chance.uniform(0, self.temper.slow_s))
            self._fail(self.puts > self.temper.good_puts)
            await super().put(name, data)
            self._lose_acknowledgement()
        finally:
            self.running -= 1

    async def flush(self) -> None:
        if self.temper.fate == "no flush":
            raise StoreUnavailable("it cannot sync")
        await super().flush()

    def _fail(self, due: bool) -> None:
        if due and self.temper.fate == "unavailable":
            raise StoreUnavailable("away")
        if due and self.temper.fate == "rejected":
            raise StoreRejected("disk full")
        if self.temper.fate == "flaky" and self.chance.random() < 0.2:
            raise StoreUnavailable("a hiccup")

    def _lose_acknowledgement(self) -> None:
        if self.temper.fate == "flaky" and self.chance.random() < 0.2:
            raise StoreUnavailable("the acknowledgement was lost")


@dataclass
class Outcome:
    """What came of a case."""

    queue: TransmissionQueue
    vault: StoreSink
    cache: StoreSink
    wanted: dict[str, set[int]] = field(default_factory=dict)
    put: set[int] = field(default_factory=set)
    dropped: list[int] = field(default_factory=list)
    results: dict[str, LaneResult] = field(default_factory=dict)
    errors: list[BaseException] = field(default_factory=list)


tempers = st.builds(
    Temper,
    slow_s=st.sampled_from([0.0, 0.1, 5.0, 40.0]),
    fate=st.sampled_from(["well", "well", "flaky", "unavailable", "rejected", "no flush"]),
    good_puts=st.integers(0, 8),
)
plans = st.builds(
    Plan,
    seed=st.integers(0, 2**32),
    slots_max=st.integers(1, 12),
    wishes=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(64, RECORD_BYTES_MOST)), max_size=40), min_size=1, max_size=4
    ),
    vault=tempers,
    cache=tempers,
    on_error=st.sampled_from(["warn", "warn", "error", "fail"]),
    skip=st.booleans(),
    packs=st.integers(1, 5),
    cancelled=st.sampled_from([None, None, None, "vault", "cache", "producer"]),
    cancel_at_s=st.floats(0, 20),
)


class Case:
    """Runs a plan as a session does."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        chance = random.Random(plan.seed)
        clock = LoopClock()
        queue = TransmissionQueue(bytes_for(plan.slots_max, RECORD_BYTES_MOST), ("vault", "cache"), clock)
        self.stores = [MoodyStore(plan.vault, chance), MoodyStore(plan.cache, chance)]
        cache_errors = CacheErrorPolicy(plan.on_error, retries_max=3)
        policies = [RetryPolicy(stall_s=30), cache_errors.retry()]
        sinks = [
            StoreSink(RetryingStore(store, policy, clock, chance))
            for store, policy in zip(self.stores, policies, strict=True)
        ]
        self.outcome = Outcome(queue, sinks[0], sinks[1])
        lane_policy = LanePolicy(64 * MIB, 128 * MIB, unflushed_records_max=7)
        pack = new_pack(plan.packs, 100)
        slow = SlowPolicy("skip", 10) if plan.skip else SlowPolicy()
        self.lanes = [
            Lane("vault", sinks[0], pack, lane_policy, clock, on_drop=self.never, in_thread=at_once),
            Lane(
                "cache",
                sinks[1],
                pack,
                lane_policy,
                clock,
                errors=cache_errors,
                slow=slow,
                on_drop=lambda ids: self.outcome.dropped.extend(map(number_of, ids)),
                in_thread=at_once,
            ),
        ]
        self.scopes: dict[str, list[anyio.CancelScope]] = {}

        sinks[1].before_put = self.cache_is_not_given_up

    def cache_is_not_given_up(self) -> None:
        assert self.lanes[1].gave_up is None, "a put begins after the lane was given up"

    def never(self, ids: list[bytes]) -> None:
        raise AssertionError("the vault's lane dropped records")

    def bound_holds(self, step: int) -> None:
        fill = self.outcome.queue.fill
        assert 0 <= fill.held_bytes <= fill.bytes_max
        assert all(0 <= nbytes <= fill.held_bytes for nbytes in fill.lane_bytes.values())

    async def _caught(self, name: str, work: Callable[[], object]) -> None:
        """Run one participant; remember what it raised, as the session's task group would."""
        try:
            with anyio.CancelScope() as scope:
                self.scopes.setdefault(name, []).append(scope)
                await work()  # type: ignore[misc]
        except (StoreError, QueueAborted) as error:
            self.outcome.errors.append(error)

    async def _lane(self, lane: Lane) -> None:
        self.outcome.results[lane.name] = await lane.run(self.outcome.queue)

    async def _produce(self, slots: list[Slot]) -> None:
        chance = random.Random(self.plan.seed + len(slots))
        at = 0
        while at < len(slots):
            batch = slots[at : at + chance.randint(1, 8)]
            await self.outcome.queue.put(batch)
            self.outcome.put.update(number_of(slot.id) for slot in batch)
            at += len(batch)

    async def _produce_all(self) -> None:
        number = 0
        async with anyio.create_task_group() as producers:
            for wishes in self.plan.wishes:
                slots = []
                for lanes, record_bytes in wishes:
                    slots.append(Slot(id_of(number), record_of(number, record_bytes), lanes))
                    for bit, name in ((1, "vault"), (2, "cache")):
                        if lanes & bit:
                            self.outcome.wanted.setdefault(name, set()).add(number)
                    number += 1
                producers.start_soon(self._caught, "producer", lambda slots=slots: self._produce(slots))
        self.outcome.queue.close()

    async def session(self) -> Outcome:
        async with anyio.create_task_group() as group:
            for lane in self.lanes:
                group.start_soon(self._caught, lane.name, lambda lane=lane: self._lane(lane))
            group.start_soon(self._produce_all)
            if self.plan.cancelled is not None:
                await anyio.sleep(self.plan.cancel_at_s)
                for scope in self.scopes.get(self.plan.cancelled, []):
                    scope.cancel()
        puts = [store.puts for store in self.stores]
        await anyio.sleep(1000)
        assert [store.puts for store in self.stores] == puts, "something is put after the end"
        assert all(store.running == 0 for store in self.stores)
        return self.outcome


def durable(sink: StoreSink, store: MemoryStore) -> Counter[int]:
    """Return how often each number lies in the store's durable objects, every pack and record checked."""
    by_name = {str(pack.name): pack for pack in sink.acknowledged}
    stored = [pack for name, pack in by_name.items() if name in store.objects]
    assert all(store.objects[str(pack.name)] == pack.data for pack in stored)
    held = StoreSink(store)
    held.acknowledged = stored
    return Counter(held.numbers)


@settings(max_examples=400, deadline=None)
@given(plans)
def test_no_block_is_lost_duplicated_or_put_under_a_wrong_number(plan: Plan) -> None:
    case = Case(plan)
    outcome = run(case.session, plan.seed, case.bound_holds)
    queue, ended = outcome.queue, outcome.results
    assert queue.fill.held_bytes == 0
    assert queue.fill.puts_waiting == 0
    in_vault, in_cache = durable(outcome.vault, case.stores[0]), durable(outcome.cache, case.stores[1])
    assert set(in_vault.values()) | set(in_cache.values()) <= {1}, "a block was put twice"
    wanted_vault, wanted_cache = outcome.wanted.get("vault", set()), outcome.wanted.get("cache", set())
    assert set(in_vault) <= wanted_vault
    assert set(in_cache) <= wanted_cache
    event(f"{sorted(ended)} gave up: {ended['cache'].gave_up is not None if 'cache' in ended else None}")
    if len(ended) < 2:
        # Someone failed or was cancelled: nobody may have reported success for what another still has to do.
        assert outcome.errors or plan.cancelled
        assert plan.cancelled or any(not isinstance(error, QueueAborted) for error in outcome.errors)
        return
    if plan.cancelled is None:
        assert outcome.put == set(range(sum(map(len, plan.wishes))))
        assert set(in_vault) == wanted_vault
        assert set(in_cache) | set(outcome.dropped) == wanted_cache
    assert outcome.put & wanted_vault <= set(in_vault)
    assert outcome.put & wanted_cache <= set(in_cache) | set(outcome.dropped)
    assert max(Counter(outcome.dropped).values(), default=1) == 1, "a block was reported twice"
    assert ended["vault"].records == len(in_vault)
    assert ended["cache"].dropped == len(outcome.dropped)
    if ended["cache"].gave_up is None and not plan.skip:
        assert outcome.dropped == []


@settings(max_examples=250, deadline=None)
@given(plans)
def test_a_vault_that_stays_up_gets_everything_whatever_becomes_of_the_cache(plan: Plan) -> None:
    plan.vault = Temper(plan.vault.slow_s if plan.vault.slow_s < 30 else 5.0, "well", 0)
    plan.on_error = "warn" if plan.on_error == "fail" else plan.on_error
    plan.cancelled = None
    case = Case(plan)
    outcome = run(case.session, plan.seed, case.bound_holds)
    assert outcome.errors == []
    assert set(durable(outcome.vault, case.stores[0])) == outcome.wanted.get("vault", set())
    lacking = outcome.wanted.get("cache", set()) - set(durable(outcome.cache, case.stores[1]))
    assert lacking <= set(outcome.dropped), "the cache lacks a block nobody knows of"
