"""Which adapter a place needs: opens the store in a folder, a share or a bucket, and makes new ones."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from adapters.config.buckets import Bucket
from adapters.lifetime import shared
from engine.ports import Device, ObjectStore, Retention

if TYPE_CHECKING:
    from adapters.config import Place, Remote
    from adapters.stores.s3 import S3Store
    from adapters.stores.s3client import S3Connection


class PlacedStore(ObjectStore, Protocol):
    """A store in some place; sweeps what its owner left half-done there."""

    async def sweep(self) -> int:
        """Remove what earlier calls of this owner left behind; return how much. Raises: StoreError."""
        ...


class RemoteStore(PlacedStore, Protocol):
    """A store beyond the network, where only the server can be asked what lies there."""

    async def look(self) -> Literal["store", "new"]:
        """Tell a store from a place where one can be made. Raises: ConfigError (neither), StoreError."""
        ...

    async def why_not_writable(self) -> str | None:
        """Return, in a sentence, why nothing can be put there; None if it can."""
        ...

    async def create(self, marker: bytes) -> None:
        """Make a new store with this format object. Raises: ConfigError, StoreError."""
        ...


def device_of(store: PlacedStore) -> Device | None:
    """Return the store as what tells the size and free space of its device; None: it cannot."""
    return store if isinstance(store, Device) else None


def open_store(
    place: Place,
    owner: str,
    sync: Literal["put", "flush"] = "put",
    *,
    connect_timeout_s: float = 15.0,
    stall_timeout_s: float = 30.0,
) -> PlacedStore:
    """Return the store in a place; nothing is looked at yet. `sync` is for folders: others make every put durable."""
    if isinstance(place, Path):
        from adapters.stores.folder import FolderStore

        return FolderStore(place, owner, sync, connect_timeout_s, stall_timeout_s)
    return open_remote(place, owner, connect_timeout_s=connect_timeout_s, stall_timeout_s=stall_timeout_s)


def open_remote(
    place: Remote, owner: str, *, connect_timeout_s: float = 15.0, stall_timeout_s: float = 30.0
) -> RemoteStore:
    """Return the store in a share or bucket, whether there is one already or not; nothing is looked at yet."""
    if isinstance(place, Bucket):
        return _open_bucket(place, connect_timeout_s, stall_timeout_s)
    from adapters.config.login import password_of
    from adapters.stores.smb import SmbStore
    from adapters.stores.smbconnection import Login

    url = place.url
    assert place.user is not None, "a share without a user is refused where it is configured"
    return SmbStore(
        Login(url.server, url.port, url.share, place.user, place.encrypt),
        url.folder,
        owner,
        partial(password_of, place),
        f"share {place}",
        connect_timeout_s=connect_timeout_s,
        stall_timeout_s=stall_timeout_s,
    )


async def weakness_of(place: Place, *, connect_timeout_s: float = 15.0) -> str | None:
    """Return, in a sentence, what the server of a store cannot do, if that is anything. Raises: StoreError."""
    if not isinstance(place, Bucket):
        return None
    return await _open_bucket(place, connect_timeout_s, connect_timeout_s).weakness()


def retention_of(place: Place, *, connect_timeout_s: float = 15.0, stall_timeout_s: float = 30.0) -> Retention:
    """Return what locks the objects in a bucket with `lock_s`."""
    from adapters.stores.s3lock import S3Locks

    assert isinstance(place, Bucket), "a lock for what is no bucket is refused where it is configured"
    return S3Locks(_connected(place, connect_timeout_s, stall_timeout_s))


def _open_bucket(place: Bucket, connect_timeout_s: float, stall_timeout_s: float) -> S3Store:
    """Return the store in a bucket; all of one lifetime share their connections."""
    from adapters.stores.s3 import S3Store

    return S3Store(_connected(place, connect_timeout_s, stall_timeout_s))


def _connected(place: Bucket, connect_timeout_s: float, stall_timeout_s: float) -> S3Connection:
    from adapters.stores.s3client import S3Connection
    from adapters.stores.s3settings import S3Settings

    settings = S3Settings(
        **msgspec.structs.asdict(place), connect_timeout_s=connect_timeout_s, stall_timeout_s=stall_timeout_s
    )
    return shared(settings, partial(S3Connection, settings))
