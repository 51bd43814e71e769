"""Stores over the S3 server of the tests."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiobotocore.session import AioSession

from adapters.stores.s3 import S3Store
from adapters.stores.s3client import S3Connection
from adapters.stores.s3settings import S3Settings
from tests.servers import BUCKET, S3Server


def write_keys(path: Path, access_key: str, secret_key: str, profile: str = "default") -> Path:
    """Write a credentials file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(f"[{profile}]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n")
    return path


def settings(server: S3Server, folder: Path, **other: Any) -> S3Settings:
    """Return what reaches a prefix of the server that nobody else uses."""
    keys = folder / "keys"
    if not keys.exists():
        write_keys(keys, server.access_key, server.secret_key)
    defaults: dict[str, Any] = {
        "bucket": BUCKET,
        "prefix": f"t/{secrets.token_hex(8)}",
        "endpoint_url": server.endpoint,
        "credentials_file": keys,
    }
    return S3Settings(**(defaults | other))


@asynccontextmanager
async def plain_client(server: S3Server) -> AsyncIterator[Any]:
    """Give a client that knows nothing of stores."""
    async with AioSession().create_client(
        "s3", region_name="us-east-1", endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key, aws_secret_access_key=server.secret_key,
    ) as client:  # fmt: skip
        yield client


@asynccontextmanager
async def opened(to: S3Settings) -> AsyncIterator[S3Store]:
    """Give a store, and close its connections."""
    connection = S3Connection(to)
    try:
        yield S3Store(connection)
    finally:
        await connection.aclose()
