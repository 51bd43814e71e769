"""The ways to a bucket: where keys come from, proxies, encryption by the server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from adapters.stores.s3client import S3Connection
from engine.errors import StoreRejected, StoreUnavailable
from tests.s3front import S3Front
from tests.s3stores import opened, settings, write_keys
from tests.servers import S3Server

pytestmark = [pytest.mark.anyio, pytest.mark.services]

NAME = "data/object-1"
MARKER = b"F" * 56


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep what this machine and its user have for S3 out of it."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))


async def test_keys_of_the_environment(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    async with opened(settings(s3_server, tmp_path, credentials_file=None, endpoint_url=None)) as store:
        await store.put("format", MARKER)
        assert await store.get("format") == MARKER


async def test_keys_of_a_profile(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = write_keys(tmp_path / "aws", s3_server.access_key, s3_server.secret_key, "backup")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(keys))
    async with opened(settings(s3_server, tmp_path, credentials_file=None, profile="backup")) as store:
        await store.put("format", MARKER)
    async with opened(settings(s3_server, tmp_path, credentials_file=None, profile="other")) as store:
        with pytest.raises(StoreRejected, match=r"no such profile: correct \[vault\] profile"):
            await store.probe()


@asynccontextmanager
async def metadata_service(server: S3Server) -> AsyncIterator[str]:
    """Give the address of what tells a machine in a cloud the keys of its role."""

    async def answer(request: web.Request) -> web.Response:
        if request.method == "PUT":
            return web.Response(text="token")
        if request.path.endswith("/security-credentials/"):
            return web.Response(text="backup-role")
        keys = {
            "Code": "Success", "Type": "AWS-HMAC", "AccessKeyId": server.access_key,
            "SecretAccessKey": server.secret_key, "Token": "", "LastUpdated": "2026-01-01T00:00:00Z",
            "Expiration": "2099-01-01T00:00:00Z",
        }  # fmt: skip
        return web.json_response(keys)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_keys_of_the_role_of_a_machine(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with metadata_service(s3_server) as url:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        async with opened(settings(s3_server, tmp_path, credentials_file=None)) as store:
            await store.put("format", MARKER)
            assert await store.get("format") == MARKER


async def test_no_keys_at_all(s3_server: S3Server, tmp_path: Path) -> None:
    async with opened(settings(s3_server, tmp_path, credentials_file=None)) as store:
        with pytest.raises(StoreRejected, match=r"there are no credentials: set \[vault\] credentials_file"):
            await store.probe()


async def test_a_changed_key_is_taken_up_by_the_next_command(s3_server: S3Server, tmp_path: Path) -> None:
    to = settings(s3_server, tmp_path)
    write_keys(tmp_path / "keys", s3_server.access_key, "wrong")
    async with opened(to) as store:
        with pytest.raises(StoreRejected, match="the secret key is wrong"):
            await store.put("format", MARKER)
    write_keys(tmp_path / "keys", s3_server.access_key, s3_server.secret_key)
    async with opened(to) as store:
        await store.put("format", MARKER)


async def test_a_proxy_is_gone_through(s3_server: S3Server, tmp_path: Path) -> None:
    async with S3Front(s3_server) as front, opened(settings(s3_server, tmp_path, proxy=front.url)) as store:
        await store.put("format", MARKER)
        assert [method for method, _ in front.requests] == ["PUT"]
    async with opened(settings(s3_server, tmp_path, proxy="http://127.0.0.1:9")) as store:
        with pytest.raises(StoreUnavailable, match="the proxy cannot be reached"):
            await store.probe()


async def test_one_client_for_all_who_ask_at_once(s3_server: S3Server, tmp_path: Path) -> None:
    connection = S3Connection(settings(s3_server, tmp_path))
    async with connection.client() as first, connection.client() as second:
        assert first is second
    await connection.aclose()


async def test_encryption_by_the_server_is_asked_for_with_every_put(s3_server: S3Server, tmp_path: Path) -> None:
    async with S3Front(s3_server) as front:
        to = settings(s3_server, tmp_path, endpoint_url=front.url, encryption="aws:kms", kms_key="a-key")
        async with opened(to) as store:
            for name in ("format", NAME):
                await store.put(name, MARKER)
                assert front.headers["x-amz-server-side-encryption"] == "aws:kms"
                assert front.headers["x-amz-server-side-encryption-aws-kms-key-id"] == "a-key"
