from __future__ import annotations

from typing import Any

import anyio
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from engine.errors import StoreUnavailable
from engine.names import ReportId
from engine.recovery.reports import (
    SILENT_MS,
    STATES,
    TRIED_MAX,
    Reports,
    Standing,
    colour_of,
    point_ms,
    score_reported,
    state_of,
    worst_first,
)
from engine.report import KIND, ORDER_END, REPORT_BYTES_MAX, own_report, report_header
from engine.reportbody import BacklogLine, CacheLine, ReportBody, SessionLine, VaultLine
from tests.engine.recovery.build import System, World, open_access
from tests.engine.reports import HOUR, NOW, body

INCARNATION = b"incarnat"


def put(world: World, system: System, said: ReportBody, *places: str, order: int | None = None) -> str:
    """Put a report of a system into these places (all by default); return its name."""
    number = ReportId(order if order is not None else said.time, INCARNATION)
    name, data = own_report(said, number, system.identity(world))
    for place, side in world.all_sides.items():
        if not places or place in places:
            side.objects.objects[name] = data
    return name


def read(world: World, *names: str) -> dict[str, Standing]:
    """Return what is known of all systems by name."""

    async def reading() -> list[Standing]:
        places, _ = world.places(*names)
        access = await open_access(places)
        return await Reports(places).read(access.systems)

    return {standing.access.name: standing for standing in anyio.run(reading)}


@pytest.fixture
def world() -> World:
    return World()


def test_the_newest_report_of_each_system_counts(world: World) -> None:
    for name in ("web-01", "db-02"):
        system = world.system(name)
        for hour in (3, 1, 2):
            put(world, system, body(NOW + hour * HOUR, name=name))
    found = read(world)
    assert list(found) == ["db-02", "web-01"]
    for name, standing in found.items():
        assert standing.report is not None
        assert (standing.report.body.time, standing.report.body.name) == (NOW + 3 * HOUR, name)
        assert (standing.where, standing.problems) == (["cache", "vault"], [])


def test_a_copy_in_the_cache_counts_where_the_vault_is_away_or_lacks_it(world: World) -> None:
    system = world.system()
    put(world, system, body(NOW), "vault", "cache")
    put(world, system, body(NOW + HOUR), "cache")
    for places in ((), ("cache",)):
        standing = read(world, *places)["web-01"]
        assert standing.report is not None
        assert (standing.report.body.time, standing.where) == (NOW + HOUR, ["cache"])


def flipped(data: bytes, at: int = 90) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_damaged_report_is_named_and_its_copy_or_the_one_before_it_is_used(world: World) -> None:
    web, db = world.system("web-01"), world.system("db-02")
    put(world, web, body(NOW))
    newest = put(world, web, body(NOW + HOUR))
    put(world, db, body(NOW, name="db-02"))
    vault = world.vault.objects.objects
    vault[newest] = flipped(vault[newest])
    standing = read(world)["web-01"]
    assert standing.report is not None
    assert (standing.report.body.time, standing.where) == (NOW + HOUR, ["cache"])
    assert [problem for problem in standing.problems if newest in problem and problem.startswith("vault: ")]
    alone = read(world, "vault")
    standing = alone["web-01"]
    assert standing.report is not None
    assert standing.report.body.time == NOW
    assert len(standing.problems) == 1
    assert alone["db-02"].problems == []


def hostile(world: World, web: System, db: System, kind: str) -> bytes:
    """Return what somebody puts in the place of the newest report of `web`."""
    said = body(NOW + HOUR)
    number = ReportId(said.time, INCARNATION)
    identity = web.identity(world)
    name, honest = own_report(said, number, identity)
    header = report_header(name, honest)
    plain = msgspec.msgpack.encode(said)
    strange = Ed25519PrivateKey.generate()
    match kind:
        case "of a neighbour":
            return own_report(said, number, db.identity(world))[1]
        case "signed by another key":
            return KIND.seal(header, plain, web.listing_key, strange.sign)
        case "signed by a neighbour":
            return KIND.seal(header, plain, web.listing_key, db.signing.sign)
        case "of a certificate that is not there":
            return KIND.seal(msgspec.structs.replace(header, certificate=2), plain, web.listing_key, identity.signer)
        case "of another domain":
            return KIND.seal(msgspec.structs.replace(header, domain=b"d" * 16), plain, web.listing_key, identity.signer)
        case "under another listing key":
            return KIND.seal(header, plain, b"l" * 32, identity.signer)
        case "too large":
            return honest + bytes(REPORT_BYTES_MAX)
        case "of a later version":
            return honest[:8] + b"\2" + honest[9:]
        case "empty":
            return b""
    return b"no report at all" * 9


@pytest.mark.parametrize(
    "kind",
    [
        "of a neighbour",
        "signed by another key",
        "signed by a neighbour",
        "of a certificate that is not there",
        "of another domain",
        "under another listing key",
        "too large",
        "of a later version",
        "empty",
        "garbage",
    ],
)
def test_what_is_no_report_of_the_system_is_named_and_never_believed(world: World, kind: str) -> None:
    web, db = world.system("web-01"), world.system("db-02")
    put(world, web, body(NOW))
    put(world, db, body(NOW, name="db-02"))
    name = ReportId(NOW + HOUR, INCARNATION).name(web.id)
    for side in world.all_sides.values():
        side.objects.objects[name] = hostile(world, web, db, kind)
    found = read(world)
    standing = found["web-01"]
    assert standing.report is not None
    assert standing.report.body.time == NOW
    assert [name in problem for problem in standing.problems] == [True, True]
    assert found["db-02"].report is not None
    assert found["db-02"].problems == []


def test_a_system_none_of_whose_reports_opens_is_unreadable_and_only_some_are_tried(world: World) -> None:
    web = world.system("web-01")
    for number in range(100):
        world.vault.objects.objects[ReportId(NOW + number, b"x" * 8).name(web.id)] = b"garbage"
    standing = read(world)["web-01"]
    assert standing.report is None
    assert standing.state(NOW) == "unreadable"
    assert len(standing.problems) == TRIED_MAX


def test_names_of_a_far_future_hide_nothing(world: World) -> None:
    web = world.system("web-01")
    put(world, web, body(NOW))
    for number in range(100):
        world.vault.objects.objects[ReportId(ORDER_END + number, b"x" * 8).name(web.id)] = b"garbage"
    standing = read(world)["web-01"]
    assert standing.report is not None
    assert standing.problems == []


def test_a_system_without_a_report_is_listed_with_its_newest_root(world: World) -> None:
    web = world.system("web-01")
    world.system("new-03")
    anyio.run(lambda: world.backup(web, {"data": b"content"}))
    last = anyio.run(lambda: world.backup(web, {"data": b"content"}))
    world.vault.objects.objects[f"root/{web.id.hex()}/{ORDER_END:016x}-{INCARNATION.hex()}"] = b"forged"
    found = read(world)
    assert (found["web-01"].newest_root, found["new-03"].newest_root) == (last, None)
    assert (found["web-01"].state(NOW), found["new-03"].state(NOW)) == ("unknown", "unknown")
    assert (point_ms(found["web-01"]), point_ms(found["new-03"])) == (last.order, None)


def test_reports_of_systems_nobody_knows_here_are_passed_over(world: World) -> None:
    web = world.system("web-01")
    put(world, web, body(NOW))
    world.vault.objects.objects[ReportId(NOW, INCARNATION).name(b"u" * 16)] = b"of another domain"
    assert list(read(world)) == ["web-01"]


def test_one_system_alone_costs_a_listing_of_its_own(world: World) -> None:
    web, db = world.system("web-01"), world.system("db-02")
    put(world, web, body(NOW))
    put(world, db, body(NOW, name="db-02"))

    async def one() -> list[Standing]:
        places, _ = world.places()
        access = await open_access(places)
        return await Reports(places).read([access.named("db-02")])

    (standing,) = anyio.run(one)
    assert standing.report is not None
    assert standing.report.body.name == "db-02"


def test_with_no_place_left_the_reason_is_raised(world: World) -> None:
    web = world.system("web-01")
    put(world, web, body(NOW))

    async def gone() -> None:
        places, _ = world.places()
        access = await open_access(places)
        for side in world.all_sides.values():
            side.objects.away = True
        await Reports(places).read(access.systems)

    with pytest.raises(StoreUnavailable, match="memory store is away"):
        anyio.run(gone)


def session(exit_code: int) -> SessionLine:
    return SessionLine(started=NOW - HOUR, duration=1, route="VAULT", exit_code=exit_code)


def cache(colour: str, *, yellow: int | None = None, red: int | None = None) -> CacheLine:
    return CacheLine(enabled=True, colour=colour, why="passed", yellow=yellow, red=red)


def reported(**more: Any) -> ReportBody:
    said: dict[str, Any] = {"time": NOW, "version": "0.1.0", "name": "web-01", "sessions": [session(0)]}
    return ReportBody(**said | more)


WAITING = BacklogLine(there=True, points=1)
NOTHING_WAITS = BacklogLine(there=True)


@pytest.mark.parametrize(
    ("said", "after_ms", "state"),
    [
        (reported(sessions=[]), 0, "gray"),
        (reported(), 0, "done"),
        (reported(sessions=[session(3)]), 0, "done"),
        (reported(sessions=[session(1)], cache=cache("red"), warnings=["w"]), 0, "failed"),
        (reported(sessions=[session(2)]), 0, "failed"),
        (reported(sessions=[session(77)]), 0, "failed"),
        (reported(sessions=[session(1), session(0)]), SILENT_MS * 9, "failed"),
        (reported(sessions=[session(0), session(1)]), 0, "done"),
        (reported(cache=cache("red")), SILENT_MS * 9, "red"),
        (reported(cache=cache("green")), SILENT_MS, "green"),
        (reported(cache=cache("green")), SILENT_MS + 1, "silent"),
        (reported(warnings=["w"], cache=cache("green")), SILENT_MS + 1, "silent"),
        (reported(), -SILENT_MS * 9, "done"),
        (reported(sessions=[session(4)], cache=cache("yellow")), 0, "problems"),
        (reported(warnings=["w"], cache=cache("green")), 0, "problems"),
        (reported(checked=VaultLine(started=1, ended=2, completed=True)), 0, "problems"),
        (reported(checked=VaultLine(started=1, ended=2, error="away")), 0, "done"),
        (reported(checked=VaultLine(started=1, ended=2, completed=True, passed=True)), 0, "done"),
        (reported(cache=cache("yellow"), backlog=WAITING), 0, "yellow"),
        (reported(cache=cache("green"), backlog=WAITING), 0, "waiting"),
        (reported(cache=cache("gray"), backlog=WAITING), 0, "waiting"),
        (reported(cache=cache("green"), backlog=NOTHING_WAITS), 0, "green"),
        (reported(cache=cache("gray")), 0, "gray"),
        (reported(cache=cache("mauve")), 0, "gray"),
        (reported(cache=cache("green", yellow=NOW + 5, red=NOW + 9)), 5, "green"),
        (reported(cache=cache("green", yellow=NOW + 5, red=NOW + 9)), 6, "yellow"),
        (reported(cache=cache("green", yellow=NOW + 5, red=NOW + 9)), 10, "red"),
        (reported(cache=cache("yellow", yellow=NOW - 5, red=NOW + 9)), 10, "red"),
        (reported(cache=cache("gray", yellow=NOW - 5, red=NOW - 3)), 0, "gray"),
    ],
)
def test_states(said: ReportBody, after_ms: int, state: str) -> None:
    assert state_of(said, NOW + after_ms) == state
    assert state in STATES


def test_a_cache_has_no_colour_where_there_is_none() -> None:
    assert colour_of(None, NOW) is None
    assert score_reported(None) is None
    assert score_reported(cache("gray")) is None
    assert score_reported(msgspec.structs.replace(cache("green"), blocks=20_000, missing=5)) == 99.97


def test_the_worst_come_first_and_of_the_same_state_the_one_with_the_oldest_point(world: World) -> None:
    reports = {
        "a-done": reported(point_time=5),
        "b-done": reported(point_time=4),
        "failed": reported(sessions=[session(1)], point_time=9),
        "green": reported(cache=cache("green")),
        "red": reported(cache=cache("red")),
    }
    for name, said in reports.items():
        put(world, world.system(name), msgspec.structs.replace(said, name=name))
    world.system("unknown")
    found = read(world)
    ordered = [standing.access.name for standing in worst_first(found.values(), NOW)]
    assert ordered == ["failed", "red", "unknown", "green", "b-done", "a-done"]
