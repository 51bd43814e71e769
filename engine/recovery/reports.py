"""The reports of systems, as vault and cache have them, and what they mean to whoever looks after many machines.

Of each system the newest report that opens counts. One that does not open is named, never believed, and keeps nobody
from reading the next older one, nor the reports of other systems.

How a system stands, worst first; the first that fits holds:

| state | when |
|---|---|
| unreadable | it has reports, and none of them opens |
| failed | its last session made no restore point |
| red | its cache is red |
| silent | its report is older than 3 days |
| unknown | it has no report |
| problems | something asked for was missing in its last session (exit code 4) or the vault, or it warns |
| yellow | its cache is yellow |
| waiting | restore points wait in its spool |
| gray | its cache is gray |
| green | its cache is green |
| done | its last session made a restore point; it has no cache |

A cache grows yellow and red by itself if nothing is heard of it: so a colour is told for the time of the reader.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Literal, TypeAlias, get_args

import anyio

from engine.cache.health import score_of
from engine.errors import StoreError
from engine.exitcodes import DONE, IN_SPOOL, SOMETHING_MISSING
from engine.names import PointId, ReportId
from engine.recovery.access import SystemAccess
from engine.recovery.places import Places
from engine.report import ORDER_END, REPORT_BYTES_MAX, Report
from engine.reportbody import CacheLine, ReportBody

State: TypeAlias = Literal[
    "unreadable", "failed", "red", "silent", "unknown", "problems", "yellow", "waiting", "gray", "green", "done"
]
STATES: Final[tuple[State, ...]] = get_args(State)  # worst first

READERS: Final = 16  # reports read at once
TRIED_MAX: Final = 16  # of one system: twice as many as it keeps
SILENT_MS: Final = 3 * 86_400_000


@dataclass(slots=True)
class Standing:
    """What is known of one system: its newest report that opens, or the order of its newest root instead.

    `where`: places that hold the report; `problems`: why others of its reports do not count.
    """

    access: SystemAccess
    report: Report | None = None
    where: list[str] = field(default_factory=list)
    newest_root: PointId | None = None
    problems: list[str] = field(default_factory=list)

    def state(self, now_ms: int) -> State:
        """Return how the system stands, seen at `now_ms` of the reader's clock."""
        if self.report is None:
            return "unreadable" if self.problems else "unknown"
        return state_of(self.report.body, now_ms)


def state_of(body: ReportBody, now_ms: int) -> State:
    """Return how a system stands that reported this, seen at `now_ms` of the reader's clock."""
    last = body.sessions[0] if body.sessions else None
    colour = colour_of(body.cache, now_ms)
    if last is not None and last.exit_code not in (DONE, IN_SPOOL, SOMETHING_MISSING):
        return "failed"
    if colour == "red":
        return "red"
    if now_ms - body.time > SILENT_MS:
        return "silent"
    if body.checked is not None and body.checked.completed and not body.checked.passed:
        return "problems"
    if body.warnings or (last is not None and last.exit_code == SOMETHING_MISSING):
        return "problems"
    if colour == "yellow":
        return "yellow"
    if body.backlog is not None and body.backlog.points:
        return "waiting"
    if colour == "green":
        return "green"
    return "gray" if colour is not None or last is None else "done"


def colour_of(cache: CacheLine | None, now_ms: int) -> str | None:
    """Return the colour of a cache at `now_ms`: the one reported, or what it has turned since; None: no cache."""
    if cache is None:
        return None
    if cache.colour in ("green", "yellow"):
        if cache.red is not None and now_ms > cache.red:
            return "red"
        if cache.yellow is not None and now_ms > cache.yellow:
            return "yellow"
    return cache.colour if cache.colour in ("red", "yellow", "green") else "gray"


def score_reported(cache: CacheLine | None) -> float | None:
    """Return the share of blocks present in percent, rounded down to two digits; None: nobody knows."""
    if cache is None or cache.blocks is None or cache.missing is None:
        return None
    return score_of(cache.blocks, cache.missing)


def worst_first(standings: Iterable[Standing], now_ms: int) -> list[Standing]:
    """Return systems in the order of their states; of the same state the one with the oldest point first, then by name.

    A point of an unknown age counts as the oldest.
    """

    def place(one: Standing) -> tuple[int, int, str]:
        return STATES.index(one.state(now_ms)), point_ms(one) or 0, one.access.name

    return sorted(standings, key=place)


def point_ms(standing: Standing) -> int | None:
    """Return when the newest point was made that is known of a system, by its own clock."""
    if standing.report is not None:
        return standing.report.body.point_time
    return standing.newest_root.order if standing.newest_root is not None else None


class Reports:
    """Reads the reports of systems over all places that are there."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._limiter = anyio.CapacityLimiter(READERS)

    async def read(self, systems: Sequence[SystemAccess]) -> list[Standing]:
        """Return what is known of each of `systems`, in their order. Raises: StoreError if no place is left."""
        standings = {access.system: Standing(access) for access in systems}
        only = f"{systems[0].system.hex()}/" if len(systems) == 1 else ""
        found: dict[bytes, dict[ReportId, list[str]]] = {}
        for place, rows in (await self._places.listing(f"report/{only}")).items():
            for row in rows:
                parsed = ReportId.parse(row.name)
                if parsed is not None and parsed[0] in standings and parsed[1].order < ORDER_END:
                    found.setdefault(parsed[0], {}).setdefault(parsed[1], []).append(place)
        async with anyio.create_task_group() as group:
            for system, standing in standings.items():
                group.start_soon(self._one, standing, found.get(system, {}))
        self._places.require()
        return list(standings.values())

    async def _one(self, standing: Standing, held: dict[ReportId, list[str]]) -> None:
        async with self._limiter:
            for number in heapq.nlargest(TRIED_MAX, held):
                name = number.name(standing.access.system)
                opens = partial(standing.access.open_report, name)
                reading = await self._places.read(name, held[number], opens, REPORT_BYTES_MAX)
                standing.problems += reading.sentences()
                if reading.value is not None:
                    standing.report, standing.where = reading.value, sorted(set(held[number]) - reading.failed.keys())
                    return
            standing.newest_root = await self._newest_root(standing.access.system)

    async def _newest_root(self, system: bytes) -> PointId | None:
        try:
            listing = await self._places.listing(f"root/{system.hex()}/")
        except StoreError:
            return None  # told by whoever asked for all of this
        parsed = [PointId.parse_root(row.name) for rows in listing.values() for row in rows]
        return max((each[1] for each in parsed if each is not None and each[1].order < ORDER_END), default=None)
