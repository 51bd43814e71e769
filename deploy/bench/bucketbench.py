"""How fast packs go to a bucket and come back: the S3 store beside the plain client, on the same server.

    python -m deploy.bench.bucketbench --scripts ../shared/services --dir build/bucketbench

starts a server with the scripts named, puts and gets packs of 16 MiB, several at a time and by turns, and prints the
medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession

from adapters.stores.s3 import S3Store
from adapters.stores.s3client import S3Connection
from adapters.stores.s3settings import S3Settings

PACK_BYTES = 16 << 20
BUCKET = "bench"
FLOOR = 0.8  # of the plain client's speed


async def rate(packs: int, at_once: int, do: Callable[[int], Awaitable[object]]) -> float:
    """Return MiB a second of `packs` calls, `at_once` of them at a time."""
    places = anyio.CapacityLimiter(at_once)

    async def one(number: int) -> None:
        async with places:
            await do(number)

    began_s = time.perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(packs):
            group.start_soon(one, number)
    return packs * PACK_BYTES / (1 << 20) / (time.perf_counter() - began_s)


def pack(number: int, noise: bytes) -> bytes:
    """Return a pack that no other is like."""
    return number.to_bytes(8, "little") + noise[8:]


async def plain(server: dict[str, Any], packs: int, at_once: int, noise: bytes) -> tuple[float, float]:
    """Return the rates of put and get of the plain client."""
    prefix = secrets.token_hex(4)
    async with AioSession().create_client(
        "s3", region_name="us-east-1", endpoint_url=server["endpoint"], aws_access_key_id=server["access_key"],
        aws_secret_access_key=server["secret_key"], config=AioConfig(max_pool_connections=32),
    ) as client:  # fmt: skip

        async def put(number: int) -> None:
            await client.put_object(Bucket=BUCKET, Key=f"{prefix}/{number}", Body=pack(number, noise))

        async def get(number: int) -> None:
            answer = await client.get_object(Bucket=BUCKET, Key=f"{prefix}/{number}")
            async with answer["Body"] as body:
                assert len(await body.read()) == PACK_BYTES

        rates = await rate(packs, at_once, put), await rate(packs, at_once, get)
        for number in range(packs):
            await client.delete_object(Bucket=BUCKET, Key=f"{prefix}/{number}")
        return rates


async def ours(server: dict[str, Any], keys: Path, packs: int, at_once: int, noise: bytes) -> tuple[float, float]:
    """Return the rates of put and get of the S3 store."""
    to = S3Settings(bucket=BUCKET, prefix=secrets.token_hex(4), endpoint_url=server["endpoint"], credentials_file=keys)
    connection = S3Connection(to)
    store = S3Store(connection)
    await store.put("format", bytes(56))

    async def get(number: int) -> None:
        assert len(await store.get(f"data/{number}")) == PACK_BYTES

    put = await rate(packs, at_once, lambda number: store.put(f"data/{number}", pack(number, noise)))
    rates = put, await rate(packs, at_once, get)
    for number in range(packs):
        await store.delete(f"data/{number}")
    await connection.aclose()
    return rates


def main() -> int:
    """Measure, print, and return 1 if the store is slower than it may be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--scripts", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=21_800)
    parser.add_argument("--packs", type=int, default=24)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    script = [sys.executable, str(given.scripts / "s3_seaweed.py")]
    data = ["--data", str(given.dir / "server")]
    given.dir.mkdir(parents=True, exist_ok=True)
    server = json.loads(subprocess.check_output([*script, "start", *data, "--port", str(given.port)]))
    try:
        return asyncio.run(_measure(server, given))
    finally:
        subprocess.run([*script, "stop", *data, "--kill"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(given.dir, ignore_errors=True)


async def _measure(server: dict[str, Any], given: argparse.Namespace) -> int:
    keys = given.dir / "keys"
    keys.touch(mode=0o600)
    keys.write_text(
        f"[default]\naws_access_key_id={server['access_key']}\naws_secret_access_key={server['secret_key']}\n"
    )
    async with AioSession().create_client(
        "s3", region_name="us-east-1", endpoint_url=server["endpoint"], aws_access_key_id=server["access_key"],
        aws_secret_access_key=server["secret_key"],
    ) as client:  # fmt: skip
        await client.create_bucket(Bucket=BUCKET)
    noise = os.urandom(PACK_BYTES)
    theirs, own = [], []
    for _ in range(given.runs):  # by turns, so that both have the same neighbours
        theirs.append(await plain(server, given.packs, given.at_once, noise))
        own.append(await ours(server, keys, given.packs, given.at_once, noise))
    good = True
    for at, what in enumerate(("put", "get")):
        their, mine = (statistics.median(run[at] for run in runs) for runs in (theirs, own))
        good = good and mine >= FLOOR * their
        print(f"{what}: {mine:.0f} MiB/s, the plain client {their:.0f} MiB/s: {mine / their:.2f} (floor {FLOOR})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
