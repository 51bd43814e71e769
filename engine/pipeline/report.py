"""What a session or an upload tells at its end: to `backup`, to history, to progress while it runs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from engine.exitcodes import DONE
from engine.pipeline.route import Route


class RouteChange(msgspec.Struct, frozen=True):
    """The route taken from the moment `at` (RFC 3339, UTC) on."""

    route: Route
    at: str


class Counts(msgspec.Struct, kw_only=True):
    """What was done for a volume, all sums, in blocks of 64 KiB or in bytes: of one hop, or of a whole session.

    `vault_deltas`: how many of the `vault_blocks` travelled as deltas.
    """

    candidates: int = 0
    read_bytes: int = 0
    changed: int = 0
    zero: int = 0
    vault_blocks: int = 0
    vault_deltas: int = 0
    cache_blocks: int = 0
    vault_bytes: int = 0
    cache_bytes: int = 0

    def add(self, other: Counts) -> None:
        """Add the sums of `other` to these."""
        for name in Counts.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class VolumeReport(Counts, kw_only=True):
    """What happened to one volume; `compared` says where changes were looked for."""

    bytes: int = 0
    compared: Literal["all", "hints"] = "all"
    unreadable_bytes: int = 0
    seconds: float = 0.0


class Uploaded(msgspec.Struct, frozen=True):
    """A point that was published: what travelled for it, and per volume the ranges of blocks it lacks, if any.

    `stands_as`: the name it got in the vault, where its own has rotted.
    """

    point: str
    packs: int
    bytes: int
    holes: dict[str, list[tuple[int, int]]] = {}
    stands_as: str | None = None


class SessionReport(msgspec.Struct, kw_only=True):
    """The document of `backup --json`.

    `point`: the new restore point, None if there is none; `route`: the last one; `problems`: sentences, also about
    what did not keep the session from succeeding; `cache`: "ok", "given up", "away" or None without one;
    `metadata_bytes`: what the vault got besides data packs; `fallback`: why the session went into the spool, and what
    to change if the vault refused; `uploaded`: points of the backlog that reached the vault at its end; `backlog`: how
    many wait in the spool now; `trim`: what became of the cache's bounds at its end, as `trim --json` tells it, None:
    nobody looked.
    """

    session: str
    point: str | None = None
    route: Route = "VAULT"
    route_history: list[RouteChange] = []
    exit_code: int = DONE
    problems: list[str] = []
    error: str | None = None
    started: str = ""
    seconds: float = 0.0
    cache: str | None = None
    metadata_bytes: int = 0
    fallback: str | None = None
    uploaded: list[Uploaded] = []
    backlog: int = 0
    trim: dict[str, Any] | None = None
    volumes: dict[str, VolumeReport] = {}

    def change_route(self, route: Route, at_ms: int) -> None:
        """Note that the route is `route` from `at_ms` on."""
        self.route = route
        self.route_history.append(RouteChange(route, iso_time(at_ms)))


class UploadReport(msgspec.Struct, kw_only=True):
    """What an upload did. `left`: points that are still in the spool; `stopped`: it gave way before it was done.

    `lost`: points whose root nobody can open any more.
    """

    uploaded: list[Uploaded] = []
    lost: list[str] = []
    left: int = 0
    stopped: bool = False
    error: str | None = None
    problems: list[str] = []
    seconds: float = 0.0
    exit_code: int = 0


def iso_time(ms: int) -> str:
    """Return milliseconds since 1970 UTC as RFC 3339."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
