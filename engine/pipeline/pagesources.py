"""Where a session that writes to the spool reads the pages of older runs: wherever they lie and can be had."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.packstore import PackStore


class PagesAway(StoreCorrupt):
    """A page that no store gave, while one that may hold it could not be asked."""


class PageSources:
    """Reads records from the first of several stores that gives them, the nearest first.

    `whole`: these are all the stores a page may lie in; what none of them has is gone for good.
    """

    def __init__(self, stores: Sequence[PackStore], *, whole: bool) -> None:
        self._stores, self._whole = stores, whole

    async def read_records(self, pack: PackName, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the records at (offset, length) of one pack. Raises: StoreCorrupt, PagesAway among them."""
        away = not self._whole
        reason = "it is in no store"
        for store in self._stores:
            try:
                return await store.read_records(pack, ranges)
            except ObjectMissing:
                continue
            except StoreCorrupt as error:
                reason = error.reason
            except (StoreUnavailable, StoreRejected) as error:
                away, reason = True, str(error)
        raise (PagesAway if away else StoreCorrupt)(str(pack), reason)

    async def record_by_id(self, ident: bytes) -> bytes | None:
        """Return a whole record with this id (16 bytes), or None."""
        for store in self._stores:
            try:
                record = await store.record_by_id(ident)
            except (StoreUnavailable, StoreRejected):
                continue
            if record is not None:
                return record
        return None
