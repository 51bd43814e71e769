"""Results of a bench with figures that are easy to reckon with."""

from __future__ import annotations

from typing import Any

from deploy.bench.results import Results, Row

SIZE = 8 << 30
MB = 1_000_000
BLOCK = 65536
STEPS = ("full", "nochange", "a", "b", "c", "restore")
# Seconds per step of STEPS, and megabytes added by "a".
FIGURES: dict[str, tuple[tuple[float, ...], float]] = {
    "forebay-lz4": ((10.0, 2.0, 3.0, 3.0, 2.5, 8.0), 90),
    "forebay-zstd": ((11.0, 2.0, 3.2, 3.1, 2.6, 8.5), 89),
    "forebay-lz4-hints": ((10.1, 0.5, 0.6, 0.7, 0.7, 8.1), 90.5),
    "forebay-lz4-cache": ((12.5, 2.1, 4.0, 3.5, 3.0, 6.0), 90),
    "restic": ((33.0, 12.0, 28.0, 15.0, 13.0, 14.0), 5488),
    "borg": ((25.0, 13.0, 29.0, 14.0, 13.0, 35.0), 4500),
    "borg-fixed4m": ((20.0, 4.5, 18.0, 6.0, 5.0, 32.0), 5786),
    "borg-fixed64k": ((19.0, 5.6, 8.4, 6.2, 5.8, 20.0), 1142),
    "borg-zstd1": ((21.0, 4.8, 20.0, 6.4, 5.2, 29.0), 5653),
}
LIMITS: dict[str, tuple[float, float]] = {
    "read+zero+blake3_64k_1t": (3.0, 3.0),
    "read+zero+blake3_64k_2p": (1.6, 3.1),
    "read+zero+blake3_64k_2thr": (1.5, 2.9),
    "pipeline_1p": (14.0, 14.0),
    "pipeline_2p": (7.5, 15.0),
    "pipeline_1p+localcache": (17.0, 17.0),
    "pipeline_2p+localcache": (9.0, 18.0),
    "uniq_lz4_1t": (4.0, 4.0),
    "uniq_lz4_2thr": (2.0, 4.0),
    "uniq_zstd1_1t": (8.0, 8.0),
    "uniq_zstd1_2thr": (4.0, 8.0),
    "dec_8192_aesgcm+lz4+blake3_1t": (0.5, 0.5),
    "dec_8192_aesgcm+lz4+blake3_2thr": (0.25, 0.5),
    "write_image_fsync": (5.0, 4.0),
}


def example(runs: int = 3) -> Results:
    """Return a full bench of 8 GiB whose medians are FIGURES; the other runs are a little better and much worse."""
    rows: list[Row] = []
    for run, factor in zip(range(runs), (1.0, 0.9, 2.0), strict=False):
        for peer, (seconds, added) in FIGURES.items():
            rows += [
                figures(seconds[at] * factor)
                | {"peer": peer, "step": step, "run": run, "size": SIZE, "added": added * MB if step == "a" else 5e9}
                for at, step in enumerate(STEPS)
            ]
    return Results(
        date="2026-05-01",
        size=SIZE,
        runs=runs,
        machine={"cpu": "Example 9000", "cores": 2, "memory_gib": 8, "kernel": "6.1", "python": "3.11"},
        programs={"forebay": "1.0", "restic": "0.14.0", "borg": "1.4.5"},
        data={
            "days": {day: {"bytes": 80 * MB, "blocks64k": 13107} for day in "abc"},
            "stats64k": {day: {"new": 20000} for day in "abc"},
        },
        limits={"size": SIZE, "unique_blocks": 98304}
        | {stage: {"wall": wall, "cpu": cpu} for stage, (wall, cpu) in LIMITS.items()},
        rows=rows + own_rows(),
    )


def figures(seconds: float, memory: float = 300.0) -> Row:
    """Return the figures of a step: a hundredth of the time goes into the sync afterwards."""
    return {"wall": seconds * 0.99, "sync_s": seconds * 0.01, "rss_mib": memory}


def own_rows() -> list[Row]:
    """Return what only Forebay is measured at."""
    rows: list[Row] = []
    for days, size in ((10, SIZE), (30, 2 << 30)):
        keys: dict[str, Any] = {"work": "days", "days": days, "size": size}
        rows += [
            keys | figures(3.0) | {"step": "backup", "day": day, "changed": 100, "added": 110 + 2 * day}
            for day in range(1, days + 1)
        ]
        rows += [keys | figures(9.0) | {"step": "restore-latest"}, keys | figures(7.5) | {"step": "restore-first"}]
    rows += [{"work": "contiguous", "size": SIZE} | figures(2.5) | {"step": "compare"}]
    rows += [{"work": "contiguous", "size": SIZE} | figures(0.6) | {"step": "hints"}]
    seconds = {"vault": 10.0, "spool": 10.5, "copy": 3.0, "upload": 3.6, "restore": 8.0}
    rows += [{"work": "away", "size": SIZE, "step": step} | figures(taken) for step, taken in seconds.items()]
    for kind, (put, get) in {"s3": (10.0, 5.0), "smb": (9.0, 4.0)}.items():
        seconds = {"put": put, "get": get, "plain-put": 8.0, "plain-get": 3.0}
        rows += [{"work": kind, "size": SIZE, "step": step} | figures(taken) for step, taken in seconds.items()]
        rows += [{"work": "line", "size": SIZE, "step": kind, "took": put * 5, "full": 0.96} | figures(put * 5.5)]
    rows += [{"work": "latency", "step": "status", "wall": wall} for wall in (0.3, 0.31, 0.9)]
    rows += [{"work": "latency", "step": "reading", "wall": wall} for wall in (0.5, 0.7, 0.9)]
    found = {
        "entries": 160_000_000,
        "memory": {"anonymous_of_the_index_mib": 17.0},
        "lookups": [
            {"ids": ids, "batch": batch, "page_cache": cache, "wall_us_per_key": 2.5}
            for ids in ("known", "mixed")
            for batch in (64, 4096)
            for cache in ("warm", "cold")
        ],
    }
    rows += [{"work": "index", "found": found}]
    return [*rows, {"work": "sparse", "step": "full", "size": 10 << 40} | figures(5.0, 410.0)]
