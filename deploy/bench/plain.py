"""A plain client that copies a file to a server in pieces of a pack's size, and back: what stores are held against.

    python plain.py s3|smb found|put|get PORT FOLDER FILE

aiobotocore with 8 requests at a time, smbclient of smbprotocol in 2 threads with a connection cache each: what was
found to be the fastest of each. User and secret are in PLAIN_USER and PLAIN_SECRET.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PACK_BYTES = 16 << 20
S3_AT_ONCE = 8
SMB_THREADS = 2
SMB_REQUEST_BYTES = 1 << 20
BUCKET = "bench"


def pieces(size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each piece of a file."""
    for offset in range(0, size, PACK_BYTES):
        yield offset, min(PACK_BYTES, size - offset)


async def s3(do: str, port: int, folder: str, fd: int) -> None:
    """Make the bucket, or copy to it or from it; `fd` is the open file."""
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession

    async with AioSession().create_client(
        "s3", region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=os.environ["PLAIN_USER"], aws_secret_access_key=os.environ["PLAIN_SECRET"],
        config=AioConfig(max_pool_connections=S3_AT_ONCE),
    ) as client:  # fmt: skip
        if do == "found":
            await client.create_bucket(Bucket=BUCKET)
            return
        rest = pieces(os.fstat(fd).st_size)

        async def work() -> None:
            for offset, length in rest:
                key = f"{folder}/{offset}"
                if do == "put":
                    data = await asyncio.to_thread(os.pread, fd, length, offset)
                    await client.put_object(Bucket=BUCKET, Key=key, Body=data)
                else:
                    answer = await client.get_object(Bucket=BUCKET, Key=key)
                    async with answer["Body"] as body:
                        await asyncio.to_thread(os.pwrite, fd, await body.read(), offset)

        await asyncio.gather(*(work() for _ in range(S3_AT_ONCE)))


def smb(do: str, port: int, folder: str, fd: int) -> None:
    """Make the folder, or copy to it or from it; `fd` is the open file."""
    import smbclient

    user, secret = os.environ["PLAIN_USER"], os.environ["PLAIN_SECRET"]
    place = rf"\\127.0.0.1\share\{folder}"
    lock, rest = threading.Lock(), pieces(os.fstat(fd).st_size)
    failed: list[BaseException] = []

    def work() -> None:
        options: dict[str, Any] = {"username": user, "password": secret, "port": port, "connection_cache": {}}
        if do == "found":
            smbclient.mkdir(place, **options)
            return
        while True:
            with lock:
                piece = next(rest, None)
            if piece is None:
                return
            offset, length = piece
            name = rf"{place}\{offset}"
            with smbclient.open_file(name, "wb" if do == "put" else "rb", buffering=0, **options) as remote:
                for at in range(offset, offset + length, SMB_REQUEST_BYTES):
                    count = min(SMB_REQUEST_BYTES, offset + length - at)
                    if do == "put":
                        remote.write(os.pread(fd, count, at))
                    else:
                        os.pwrite(fd, remote.read(count), at)

    def guarded() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=guarded) for _ in range(SMB_THREADS if do != "found" else 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def main() -> None:
    """Do what the arguments say."""
    kind, do, port, folder, file = sys.argv[1:]
    with Path(file).open("r+b", buffering=0) as opened:
        if kind == "s3":
            asyncio.run(s3(do, int(port), folder, opened.fileno()))
        else:
            smb(do, int(port), folder, opened.fileno())


if __name__ == "__main__":
    main()
