"""What this machine can do at most, per work of the bench: seconds worked out from the stages limits.py measures.

A limit is the time of a program that does nothing but the unavoidable: every byte read and hashed once, what is new
compressed, encrypted and written with fsync, all of it overlapped over two processes, without starting, without
metadata, without an index.
"""

from __future__ import annotations

from typing import Any

BLOCK = 65536
DECODED_BLOCKS = 8192


def limits_of(measured: dict[str, Any], data: dict[str, Any]) -> dict[str, float]:
    """Return work → seconds; `measured`: what limits.py printed, `data`: the manifest of the volume; {} without."""
    if not measured:
        return {}

    def wall(*stages: str) -> float:
        return min(float(measured[stage]["wall"]) for stage in stages)

    size = int(measured["size"])
    unique = int(measured["unique_blocks"])
    compare = wall(*(f"read+zero+blake3_64k_{how}" for how in ("1t", "2p", "2thr")))
    first = wall("pipeline_1p", "pipeline_2p")
    zstd = max(0.0, wall("uniq_zstd1_1t", "uniq_zstd1_2thr") - wall("uniq_lz4_1t", "uniq_lz4_2thr"))

    def send(sent_bytes: float) -> float:
        """Return what compressing, encrypting and writing takes, in proportion to the first backup's."""
        return max(0.0, first - compare) * sent_bytes / (unique * BLOCK)

    changed = {day: float(each["bytes"]) for day, each in data["days"].items()}
    # Of the pages changed through the filesystem some are zeros, or were there before.
    fresh = {day: min(changed[day], float(data["stats64k"][day]["new"] * BLOCK)) for day in changed}
    hinted = compare * data["days"]["a"]["blocks64k"] * BLOCK / size
    restore = restoring(measured, unique)
    hundredth = size / 100
    return {
        "first-lz4": first,
        "first-zstd": first + zstd,
        "cache": wall("pipeline_1p+localcache", "pipeline_2p+localcache"),
        "nochange": compare,
        "random": compare + send(changed["a"]),
        "hints": hinted + send(changed["a"]),
        "files": compare + send(fresh["b"]),
        "sequential": compare + send(fresh["c"]),
        "contiguous": compare + send(hundredth),
        "contiguous-hints": compare / 100 + send(hundredth),
        "restore": restore,
    }


def restoring(measured: dict[str, Any], unique: int) -> float:
    """Return what decrypting, unpacking and checking every block once and writing the image takes, overlapped."""
    share = unique / min(unique, DECODED_BLOCKS)
    alone, both = measured["dec_8192_aesgcm+lz4+blake3_1t"], measured["dec_8192_aesgcm+lz4+blake3_2thr"]
    write = measured["write_image_fsync"]
    cpu = alone["cpu"] * share + write["cpu"]
    return float(max(min(alone["wall"], both["wall"]) * share, write["wall"], cpu / 2))
