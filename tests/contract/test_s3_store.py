"""The S3 store keeps the contract, on servers that know conditional puts and on those that do not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.stores.s3 import S3Store
from adapters.stores.s3client import S3Connection
from engine.ports import ObjectStore
from tests.contract.object_store import GoAway, ObjectStoreContract
from tests.s3stores import settings
from tests.servers import S3Server, chaos_proxy


@pytest.mark.services
class TestS3Store(ObjectStoreContract):
    @pytest.fixture
    async def proxy(self, s3_server: S3Server) -> AsyncIterator[object]:
        proxy = chaos_proxy("127.0.0.1", s3_server.port)
        await proxy.start()
        yield proxy
        await proxy.stop()

    @pytest.fixture
    async def store(self, s3_server: S3Server, proxy: object, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        url = f"http://127.0.0.1:{proxy.port}"  # type: ignore[attr-defined]
        connection = S3Connection(settings(s3_server, tmp_path, endpoint_url=url, stall_timeout_s=20.0))
        store = S3Store(connection)
        await store.put("format", b"F" * 56)
        yield store
        await connection.aclose()

    @pytest.fixture
    def go_away(self, proxy: object) -> GoAway:
        async def leave() -> None:
            proxy.mode = "refuse"  # type: ignore[attr-defined]
            proxy.kill_all()  # type: ignore[attr-defined]

        return leave
