"""The store in a share keeps the contract, against a real server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest

from adapters.stores.smb import SmbStore
from tests.contract.object_store import GoAway, ObjectStoreContract
from tests.samba import MARKER, Samba


@pytest.mark.root
@pytest.mark.services
class TestSmbStore(ObjectStoreContract):
    @pytest.fixture
    def folder(self) -> str:
        return uuid.uuid4().hex

    @pytest.fixture
    async def store(self, samba: Samba, folder: str) -> SmbStore:
        store = samba.store(folder)
        await store.create(MARKER)
        return store

    @pytest.fixture(autouse=True)
    def _closed(self, store: SmbStore) -> Iterator[None]:
        yield
        store.close()

    @pytest.fixture
    def go_away(self, samba: Samba, folder: str) -> GoAway:
        async def leave() -> None:
            os.rename(samba.path(folder), f"{samba.path(folder)} elsewhere")

        return leave
