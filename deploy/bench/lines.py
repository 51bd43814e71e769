"""The lines of the bench's table: ours against a peer, or against a bound, and against the machine's limit. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from deploy.bench.limit import limits_of
from deploy.bench.results import Results

# Programs of the same kind. cp is measured for orientation: it neither compares, nor encrypts, nor keeps points.
PEERS = ("restic", "borg", "borg-fixed4m", "borg-fixed64k", "borg-zstd1")


class Rule(Enum):
    """How a floor is meant."""

    TIMES = "against / ours is at least"
    SHARE = "ours / against is at most"
    MOST = "ours is at most"


@dataclass(frozen=True)
class Floor:
    """What has to be reached."""

    rule: Rule
    value: float


def times(value: float) -> Floor:
    """Return the floor of being so many times as fast."""
    return Floor(Rule.TIMES, value)


def share(value: float) -> Floor:
    """Return the floor of needing no more than so many times what stands beside it needs."""
    return Floor(Rule.SHARE, value)


def most(value: float) -> Floor:
    """Return the floor of staying below a figure, whatever others do."""
    return Floor(Rule.MOST, value)


@dataclass(frozen=True)
class Line:
    """One line: `ours` beside `against`, which is what `which` needed; both in `unit`: "s", "B", "MiB" or "×".

    `limit`: what this machine could do, in the same unit.
    """

    name: str
    title: str
    unit: str
    ours: float
    against: float | None = None
    which: str = ""
    floor: Floor | None = None
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """Return ours beside the other, the way round the floor is meant; None where nothing stands beside it."""
        if self.against is None:
            return None
        return self.ours / self.against if self.floor and self.floor.rule is Rule.SHARE else self.against / self.ours

    @property
    def met(self) -> bool | None:
        """Tell whether the floor is reached; None without one, or without what it asks for."""
        if self.floor is None:
            return None
        if self.floor.rule is Rule.MOST:
            return self.ours <= self.floor.value
        if self.ratio is None:
            return None
        return self.ratio >= self.floor.value if self.floor.rule is Rule.TIMES else self.ratio <= self.floor.value

    @property
    def reached(self) -> float | None:
        """Return which part of what the machine can do is reached; None without a limit."""
        return None if self.limit is None else self.limit / self.ours


@dataclass(frozen=True)
class Work:
    """A piece of work that peers.py measures: `step` as `ours` does it, beside the best of `against`.

    `figure`: what is compared, "seconds" or "added" bytes. `limit`: whose limit it has; "" for its own.
    """

    name: str
    title: str
    ours: str
    step: str
    floor: Floor | None
    against: tuple[str, ...] = PEERS
    figure: str = "seconds"
    limit: str = ""


LZ4 = "forebay-lz4"
WORKS = (
    Work("first-lz4", "first backup, lz4", LZ4, "full", times(1.4)),
    Work("first-zstd", "first backup, zstd", "forebay-zstd", "full", times(2.2), ("restic",)),
    Work("first-zstd-all", "  against every peer", "forebay-zstd", "full", times(1.0), limit="first-zstd"),
    Work("nochange", "nothing changed, all compared", LZ4, "nochange", times(2.0)),
    Work("random", "1 % of random 4 KiB pages", LZ4, "a", times(2.0)),
    Work("random-bytes", "  bytes added", LZ4, "a", share(1 / 8), figure="added"),
    # Those pages lie in a fifth of all blocks, each of which is read and hashed whole: the floor is that in one piece.
    Work("hints", "  with hints, against without", "forebay-lz4-hints", "a", None, (LZ4,)),
    Work("files", "2 % in new files", LZ4, "b", None),
    Work("sequential", "64 MiB overwritten", LZ4, "c", None),
    Work("restore", "restore of the newest point", LZ4, "restore", times(1.5)),
    Work("cache", "first backup with the cache, against without", "forebay-lz4-cache", "full", share(1.4), (LZ4,)),
)


def lines_of(results: Results) -> list[Line]:
    """Return a line for all work that was measured."""
    limits = limits_of(results.limits, results.data)
    found = [line for work in WORKS if (line := compared(results, work, limits)) is not None]
    return found + list(own_work(results, limits))


def compared(results: Results, work: Work, limits: dict[str, float]) -> Line | None:
    """Return the line of work that the peers did too; None if it was not measured."""
    ours = results.figure(work.figure, peer=work.ours, step=work.step)
    if ours is None:
        return None
    against, which = best(results, work)
    unit, limit = "s", limits.get(work.limit or work.name)
    if work.figure == "added":
        unit, limit = "B", float(results.data["days"][work.step]["bytes"])
    return Line(work.name, work.title, unit, ours, against, which, work.floor, limit)


def best(results: Results, work: Work) -> tuple[float | None, str]:
    """Return the best figure of those beside ours, and whose it is."""
    figures = [
        (figure, peer)
        for peer in work.against
        if (figure := results.figure(work.figure, peer=peer, step=work.step)) is not None
    ]
    return min(figures) if figures else (None, "")


def own_work(results: Results, limits: dict[str, float]) -> Iterator[Line]:
    """Yield the lines of work that only Forebay did."""
    yield from restores_of_deltas(results, limits)
    plain = results.figure("seconds", work="contiguous", step="compare")
    hinted = results.figure("seconds", work="contiguous", step="hints")
    if plain is not None and hinted is not None:
        title = "1 % in one piece, with hints, against without"
        limit = limits.get("contiguous-hints")
        yield Line("contiguous", title, "s", hinted, plain, "without hints", share(1 / 5), limit)
    for days, bound in ((1, 1.15), (10, 1.25), (30, 1.5)):
        cost = added_per_changed(results, days)
        if cost is not None:
            title = f"bytes added per byte changed, {days} day{'s' if days > 1 else ''}"
            yield Line(f"days-{days}", title, "×", cost, floor=most(bound), limit=1.0)
    for step, title, bound in (("status", "status answers", 0.4), ("reading", "a backup starts reading", 0.6)):
        found = results.figure("wall", work="latency", step=step)
        if found is not None:
            yield Line(step, title, "s", found, floor=most(bound))
    yield from without_a_vault(results)
    yield from over_servers(results)
    for size, peak in peaks(results):
        yield Line(f"memory-{size}", f"peak memory, {size_text(size)}", "MiB", peak, floor=most(400.0))
    for row in results.select(work="verify"):
        yield from verify_lines(row["found"])
    for row in results.select(work="index"):
        yield from index_lines(row["found"])


def verify_lines(found: dict[str, Any]) -> Iterator[Line]:
    """Yield what a verification of the cache takes, from the document of verifybench.py."""
    title = f"verification of a cache of {size_text(found['blocks'] << 16)}, a TiB of it on one core"
    yield Line("verify", title, "s", float(found["cpu_s_per_tib"]), floor=most(60.0))
    yield Line("verify-memory", "  its peak memory", "MiB", float(found["memory"]["peak_rss_mib"]), floor=most(300.0))


def index_lines(found: dict[str, Any]) -> Iterator[Line]:
    """Yield what an index takes, and what looking up a batch in it takes, from the document of indexbench.py."""
    title = f"memory of an index of {found['entries'] / 1e6:,.0f} million entries"
    yield Line("index-memory", title, "MiB", float(found["memory"]["anonymous_of_the_index_mib"]))
    for case in found["lookups"]:
        batch, cache = case["batch"], case["page_cache"]
        if case["ids"] == "mixed":
            title = f"  {batch:,} look-ups, half of them of what is there, {cache}"
            yield Line(f"index-{cache}-{batch}", title, "s", case["wall_us_per_key"] * batch / 1e6)


def restores_of_deltas(results: Results, limits: dict[str, float]) -> Iterator[Line]:
    """Yield the restore of a point of ten days of deltas, beside the peers' and beside one of a point without any."""
    ours = results.figure("seconds", work="days", days=10, step="restore-latest")
    plain = results.figure("seconds", work="days", days=10, step="restore-first")
    if ours is None or plain is None:
        return
    limit = limits.get("restore")
    against, which = best(results, next(work for work in WORKS if work.name == "restore"))
    yield Line("restore-days", "restore of ten days of deltas", "s", ours, against, which, None, limit)
    newest = results.figure("seconds", peer=LZ4, step="restore")
    if newest is not None:
        yield Line("restore-own", "  against our newest point", "s", ours, newest, "forebay-lz4", share(1.5), limit)
    yield Line("restore-plain", "  against one without deltas", "s", ours, plain, "without deltas", None, limit)


def without_a_vault(results: Results) -> Iterator[Line]:
    """Yield what a backup into the spool takes beside one into a folder vault, and its upload beside a plain copy."""
    into = {step: results.figure("seconds", work="away", step=step) for step in ("vault", "spool", "upload", "copy")}
    if into["vault"] is not None and into["spool"] is not None:
        title = "first backup into the spool, against into the vault"
        yield Line("fallback", title, "s", into["spool"], into["vault"], "into the vault", share(1.1))
    if into["upload"] is not None and into["copy"] is not None:
        title = "upload of the backlog, against a plain copy"
        yield Line("upload", title, "s", into["upload"], into["copy"], "cp", times(0.8))


def over_servers(results: Results) -> Iterator[Line]:
    """Yield backups to servers and restores beside a plain client's copies, and how full a thin line was kept."""
    for kind, store in (("s3", "S3"), ("smb", "SMB")):
        for step, what in (("put", f"first backup to {store}"), ("get", f"restore from {store}")):
            ours = results.figure("seconds", work=kind, step=step)
            plain = results.figure("seconds", work=kind, step=f"plain-{step}")
            if ours is not None and plain is not None:
                title = f"{what}, against a plain client's copy"
                yield Line(f"{kind}-{step}", title, "s", ours, plain, "plain client", times(0.8))
    for row in results.select(work="line"):
        title = f"changes over 20 Mbit/s, 80 ms late, {row['step'].upper()}, against the full line"
        yield Line(f"line-{row['step']}", title, "s", row["took"], row["took"] * row["full"], "full line", times(0.95))


def added_per_changed(results: Results, days: int) -> float | None:
    """Return what the vault took per byte changed in the first `days` days of the shortest history that has them."""
    rows = [row for row in results.select(work="days", step="backup") if row["days"] >= days]
    shortest = min((row["days"] for row in rows), default=0)
    chosen = [row for row in rows if row["days"] == shortest and row["day"] <= days]
    if len(chosen) < days:
        return None
    return float(sum(row["added"] for row in chosen) / sum(row["changed"] for row in chosen))


def peaks(results: Results) -> Iterator[tuple[int, float]]:
    """Yield per volume size the most memory any command of Forebay took there."""
    ours: list[dict[str, Any]] = [
        row
        for row in results.rows
        if {"rss_mib", "size"} <= row.keys() and str(row.get("peer", LZ4)).startswith("forebay")
    ]
    for size in sorted({int(row["size"]) for row in ours}):
        yield size, max(float(row["rss_mib"]) for row in ours if row["size"] == size)


def size_text(size: int) -> str:
    """Return the size of a volume for people."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size >= 1 << power:
            return f"{size / (1 << power):.3g} {unit}"
    return f"{size} bytes"
