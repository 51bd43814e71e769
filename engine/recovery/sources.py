"""Opens what a restore reads from: one pack store per place, for reading only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from engine.index import PackIndex
from engine.packstore import PackStore
from engine.recovery.blocksource import BlockSource
from engine.recovery.catalogue import Point
from engine.recovery.places import CACHE, Places
from engine.recovery.supply import OPENERS, Supply

if TYPE_CHECKING:
    from engine.ports import MirrorFiles


class _NoAcks:
    """An AckLog of a reader: it puts nothing, so it remembers nothing."""

    def append(self, entry: bytes) -> None:
        """Fail: a reader puts no packs."""
        raise AssertionError("a recovery puts no packs")

    def read(self) -> list[bytes]:
        """Return nothing."""
        return []

    def clear(self) -> None:
        """Do nothing."""


def _no_signer(message: bytes) -> bytes:
    raise AssertionError("a recovery signs nothing")


def open_source(
    places: Places, point: Point, mirror: Callable[[str], MirrorFiles], openers: int = OPENERS
) -> BlockSource:
    """Return the source of a point's blocks over all places that are there.

    `mirror` gives an empty folder for the index of a place, by the place's name; it is filled only if the index is
    needed. `openers` threads open records. Raises: StoreCorrupt if the point is damaged.
    """
    root, access = point.require_root(), point.access
    keys, certificates = access.keys(root), access.certificates(root)
    stores = {
        place.name: PackStore(
            place.objects,
            PackIndex(),
            mirror(place.name),
            _NoAcks(),
            keys,
            certificates,
            access.system,
            bytes(8),
            _no_signer,
            place.name,
            bytes(16),
            trimmed=place.name == CACHE,
        )
        for place in places.usable()
    }
    return BlockSource(Supply(places, stores, keys, anyio.CapacityLimiter(openers + 1), threading.Semaphore(openers)))
