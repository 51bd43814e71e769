"""The connection to an S3 server: one client, and so one pool of connections, for all that a process does there."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import aiohttp
import anyio
import anyio.to_thread
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.exceptions import BotoCoreError
from botocore.loaders import Loader, create_loader

from adapters.stores.s3body import PIECE_BYTES, make_socket
from adapters.stores.s3digests import SIGNATURE, sign_known_digests
from adapters.stores.s3errors import renamed
from adapters.stores.s3limit import MOST, PutLimit
from adapters.stores.s3settings import S3Settings, read_keys
from engine.errors import StoreRejected
from engine.liveness import StallBound

READS_MAX: Final = 16  # connections beside those of puts
REGION: Final = "us-east-1"  # where a server, or Amazon, has none of its own


class S3Connection:
    """Makes its client when it is first needed; `aclose` ends it, on the same event loop."""

    def __init__(self, settings: S3Settings) -> None:
        self.settings = settings
        self.limit = PutLimit()
        self._making = anyio.Lock()
        self._stack = AsyncExitStack()
        self._client: Any = None
        self.conditional: bool | None = None  # whether the server honours If-None-Match; None: not asked yet
        self.locking = anyio.Lock()
        self.clock_ahead_s: float | None = None  # of the monotonic one, once it was compared with the server's

    async def aclose(self) -> None:
        """Close all connections."""
        self._client = None
        await self._stack.aclose()

    @asynccontextmanager
    async def client(self, name: str = "") -> AsyncIterator[Any]:
        """Give the client; what goes wrong while it is used is one of our errors, about the object `name`.

        Raises: StoreUnavailable, StoreRejected, ObjectMissing.
        """
        try:
            yield self._client or await self._made()
        except Exception as error:
            ours = renamed(error, self.settings.where, name)
            if ours is None:
                raise
            raise ours from error

    async def _made(self) -> Any:
        async with self._making:
            if self._client is None:
                self._client = await self._make()
        return self._client

    async def _make(self) -> Any:
        settings = self.settings
        keys: dict[str, str | None] = {}
        profile = None if settings.credentials_file is not None else settings.profile
        if settings.credentials_file is not None:
            found = await anyio.to_thread.run_sync(read_keys, settings.credentials_file, settings.profile)
            keys = {
                "aws_access_key_id": found.access_key,
                "aws_secret_access_key": found.secret_key,
                "aws_session_token": found.token,
            }
        # Without a certificate to look at, those of all the world need not be read.
        verify: bool | str | None = False if (settings.endpoint or "").startswith("http://") else None
        if settings.ca_file is not None:
            await anyio.to_thread.run_sync(_check_certificates, settings.ca_file)
            verify = str(settings.ca_file)
        self._quieten()
        session = AioSession(profile=profile)
        session.register_component("data_loader", _loader())
        region = settings.region or session.get_config_variable("region") or REGION
        config = AioConfig(
            connect_timeout=settings.connect_timeout_s,
            read_timeout=settings.stall_timeout_s,
            retries={"total_max_attempts": 1, "mode": "standard"},  # retries have one owner, and it is not here
            max_pool_connections=MOST + READS_MAX,
            proxies={"http": settings.proxy, "https": settings.proxy} if settings.proxy else None,
            s3={"addressing_style": settings.style},
            signature_version=SIGNATURE,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            user_agent_extra="forebay",
            connector_args={"socket_factory": make_socket, "keepalive_timeout": 60},
        )
        try:
            made = session.create_client(
                "s3", region_name=region, endpoint_url=settings.endpoint, verify=verify, config=config, **keys
            )
            client = await self._stack.enter_async_context(made)
        except (BotoCoreError, ValueError) as error:
            if (ours := renamed(error, settings.where)) is not None:
                raise ours from error
            raise StoreRejected(f"{settings.where}: it cannot be reached as configured: {error}") from error
        sign_known_digests(client)
        client.meta.events.register("before-sign.s3.PutObject", _send_small_at_once)
        return client

    def _quieten(self) -> None:
        """Keep what aiohttp's task that writes a request says from the log: who waits for the answer is told."""
        loop = asyncio.get_running_loop()
        before = loop.get_exception_handler()

        def handle(on: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if isinstance(context.get("exception"), aiohttp.ClientError):
                return
            if before is not None:
                before(on, context)
            else:
                on.default_exception_handler(context)

        loop.set_exception_handler(handle)
        self._stack.callback(loop.set_exception_handler, before)


def _send_small_at_once(request: Any, **_: object) -> None:
    """Leave `Expect: 100-continue` out of a small put: to wait for leave is a round trip, which is longer than it."""
    if int(request.headers.get("Content-Length", 0)) <= PIECE_BYTES:
        del request.headers["Expect"]


@cache
def _loader() -> Loader:
    """Return what reads the library's descriptions of S3, which takes most of the time a client takes."""
    return create_loader()


def _check_certificates(path: Path) -> None:
    try:
        ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise StoreRejected(f"certificate file {path} holds no certificate: correct [vault] ca_file") from None
    except OSError as error:
        raise StoreRejected(f"certificate file {path} cannot be read: {error.strerror or error}") from None


def bound(stall_timeout_s: float) -> StallBound:
    """Return the bound of one call: nothing hangs longer than this without moving a byte."""
    return StallBound(stall_timeout_s)
