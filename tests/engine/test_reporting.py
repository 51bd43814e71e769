from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest

from engine.errors import StoreError, StoreRejected, StoreUnavailable
from engine.names import FORMAT, ReportId
from engine.ports import ObjectStore
from engine.report import ORDER_END, open_report
from engine.reporting import KEPT, Reporter
from engine.vault.formatobject import StoreKind, new_store
from tests.engine.recovery.build import System, World
from tests.engine.reports import HOUR, NOW, body
from tests.fakes import FaultPlan, FaultyStore, MemoryStore

INCARNATION = b"incarnat"


class Site:
    """A system with vault and cache, and what the stores in front of them are to do wrong."""

    def __init__(self) -> None:
        self.world = World()
        self.system: System = self.world.system()
        self.vault, cache = self.world.vault.objects, self.world.cache
        assert cache is not None
        self.cache: MemoryStore = cache.objects
        self.plan = FaultPlan()
        self.stores: dict[StoreKind, ObjectStore] = {"vault": FaultyStore(self.vault, self.plan), "cache": self.cache}

    def reporter(self, within_s: float = 60.0) -> Reporter:
        return Reporter(self.system.identity(self.world), self.stores, within_s)

    async def tell(self, time: int = NOW, *, incarnation: bytes = INCARNATION, **more: Any) -> list[StoreKind]:
        return await self.reporter(**more).put(body(time), incarnation)

    def names(self, store: MemoryStore) -> list[str]:
        return sorted(name for name in store.objects if name.startswith("report/"))

    def times(self, store: MemoryStore) -> list[int]:
        """Return when the reports in a store were written, by their names' order."""
        listing = self.system.listing_key
        verify = lambda *_: True  # noqa: E731
        opened = [open_report(name, store.objects[name], listing, verify) for name in self.names(store)]
        return [report.body.time for report in opened]


@pytest.fixture
def site() -> Site:
    return Site()


def test_a_report_lies_in_vault_and_cache_with_the_same_bytes(site: Site) -> None:
    assert anyio.run(site.tell) == ["vault", "cache"]
    (name,) = site.names(site.vault)
    assert name == ReportId(NOW, INCARNATION).name(site.system.id)
    assert site.cache.objects[name] == site.vault.objects[name]


def test_the_newest_eight_are_kept_in_each_store(site: Site) -> None:
    async def many() -> None:
        for hour in range(12):
            await site.tell(NOW + hour * HOUR)

    anyio.run(many)
    for store in (site.vault, site.cache):
        assert site.times(store) == [NOW + hour * HOUR for hour in range(12 - KEPT, 12)]


def test_reports_are_numbered_upwards_also_by_a_clock_that_was_put_back_and_after_local_state_was_lost(
    site: Site,
) -> None:
    async def three() -> None:
        await site.tell(NOW)
        await site.tell(NOW - 99 * HOUR, incarnation=b"zzzzzzzz")
        await site.tell(NOW - 98 * HOUR, incarnation=b"aaaaaaaa")

    anyio.run(three)
    assert site.times(site.vault) == [NOW, NOW - 99 * HOUR, NOW - 98 * HOUR]


def test_a_forged_name_of_a_far_future_uses_no_numbers_up_and_is_swept(site: Site) -> None:
    forged = [ReportId(ORDER_END + number, b"f" * 8).name(site.system.id) for number in range(10)]
    site.vault.objects.update(dict.fromkeys(forged, b"forged"))

    async def twice() -> None:
        await site.tell(NOW)
        await site.tell(NOW + HOUR)

    anyio.run(twice)
    names = site.names(site.vault)
    assert len(names) == KEPT
    assert set(names) - set(forged) == {
        ReportId(NOW + hour * HOUR, INCARNATION).name(site.system.id) for hour in (0, 1)
    }


def test_reports_of_other_systems_and_foreign_names_are_left_alone(site: Site) -> None:
    other = site.world.system("db-02")
    foreign = [ReportId(number, b"o" * 8).name(other.id) for number in range(20)]
    foreign += [f"report/{site.system.id.hex()}/readme", "report/x"]
    site.vault.objects.update(dict.fromkeys(foreign, b"foreign"))
    anyio.run(site.tell)
    assert set(foreign) < set(site.names(site.vault))


def test_where_deleting_is_forbidden_reports_are_put_all_the_same(site: Site) -> None:
    site.plan.fail("delete", 1, 999, error=lambda: StoreRejected("it is locked"))

    async def many() -> None:
        for hour in range(12):
            assert await site.tell(NOW + hour * HOUR) == ["vault", "cache"]

    anyio.run(many)
    assert (len(site.names(site.vault)), len(site.names(site.cache))) == (12, KEPT)


@pytest.mark.parametrize("kind", ["vault", "cache"])
def test_a_store_that_is_away_keeps_the_other_from_nothing(site: Site, kind: StoreKind) -> None:
    away, there = (site.vault, site.cache) if kind == "vault" else (site.cache, site.vault)
    away.away = True
    assert anyio.run(site.tell) == [{"vault": "cache", "cache": "vault"}[kind]]
    assert (len(away.objects.keys() & set(site.names(away))), len(site.names(there))) == (0, 1)


@pytest.mark.parametrize("error", [StoreUnavailable("it went away"), StoreRejected("no right")])
@pytest.mark.parametrize("operation", ["get", "list", "put", "probe"])
def test_whatever_a_store_does_wrong_costs_no_more_than_the_report_in_it(
    site: Site, operation: Any, error: StoreError
) -> None:
    site.plan.fail(operation, 1, 9, error=lambda: error)
    assert anyio.run(site.tell) == ["cache"]


def test_a_store_that_hangs_is_given_up(site: Site) -> None:
    async def hang() -> list[StoreKind]:
        site.plan.stall("put", 1, until=anyio.Event())
        return await site.tell(within_s=0.05)

    assert anyio.run(hang) == ["cache"]


@pytest.mark.parametrize(
    "swap",
    [
        lambda store: store.objects.pop(FORMAT),
        lambda store: store.objects.update({FORMAT: new_store("vault").encode()}),
        lambda store: store.objects.update({FORMAT: b"no format at all"}),
    ],
)
def test_nothing_is_written_where_the_systems_own_vault_is_not(
    site: Site, swap: Callable[[MemoryStore], object]
) -> None:
    swap(site.vault)
    before = dict(site.vault.objects)
    assert anyio.run(site.tell) == ["cache"]
    assert site.vault.objects == before


def test_what_was_looked_at_beside_the_work_costs_one_put_at_its_end(site: Site) -> None:
    async def prepared() -> None:
        for hour in range(KEPT):
            await site.tell(NOW + hour * HOUR)
        reporter = site.reporter()
        await reporter.prepare("vault")
        assert (reporter.prepared("vault"), reporter.prepared("cache")) == (True, False)
        vault = site.stores["vault"]
        assert isinstance(vault, FaultyStore)
        vault.calls.clear()
        assert await reporter.put(body(NOW + 99 * HOUR), INCARNATION) == ["vault", "cache"]
        assert [operation for operation, _ in vault.calls] == ["put", "flush"]
        assert len(site.names(site.vault)) == KEPT

    anyio.run(prepared)


def test_a_store_that_came_back_after_it_was_prepared_for_gets_its_report(site: Site) -> None:
    async def back() -> list[StoreKind]:
        reporter = site.reporter()
        site.vault.away = True
        await reporter.prepare("vault")
        assert not reporter.prepared("vault")
        site.vault.away = False
        return await reporter.put(body(), INCARNATION)

    assert anyio.run(back) == ["vault", "cache"]


def test_a_store_that_is_known_to_be_away_is_not_asked(site: Site) -> None:
    async def without() -> list[StoreKind]:
        return await site.reporter().put(body(), INCARNATION, ["vault"])

    assert anyio.run(without) == ["cache"]
    vault = site.stores["vault"]
    assert isinstance(vault, FaultyStore)
    assert vault.calls == []


def test_two_copies_of_one_machine_both_report(site: Site) -> None:
    async def both() -> None:
        first, second = site.reporter(), site.reporter()
        await first.prepare("vault")
        await second.prepare("vault")
        assert await first.put(body(), b"a" * 8) == ["vault", "cache"]
        assert await second.put(body(), b"b" * 8) == ["vault", "cache"]

    anyio.run(both)
    assert len(site.names(site.vault)) == 2
