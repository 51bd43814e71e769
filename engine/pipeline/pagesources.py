"""Where a session that writes to the spool reads the pages of older runs: wherever they lie and can be had."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import ObjectMissing, StoreCorrupt, StoreError, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.packstore import PackStore


class PagesAway(StoreCorrupt):
    """A page that no store gave, while one that may hold it could not be asked."""


class PageSources:
    """Reads records from the first of several stores that gives them, the nearest first.

    `whole`: these are all the stores a page may lie in; what none of them has is gone for good. A store that cannot be
    asked is not asked again: an outage costs one call and its retries. `strict`: it ends the reading instead.
    """

    def __init__(self, stores: Sequence[PackStore], *, whole: bool, strict: bool = False) -> None:
        self._stores, self._whole, self._strict = [*stores], whole, strict

    async def read_records(self, pack: PackName, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the records at (offset, length) of one pack.

        Raises: StoreCorrupt, PagesAway among them; if `strict`, StoreUnavailable and StoreRejected.
        """
        reason = "it is in no store"
        for store in [*self._stores]:
            try:
                return await store.read_records(pack, ranges)
            except ObjectMissing:
                continue
            except StoreCorrupt as error:
                reason = error.reason
            except (StoreUnavailable, StoreRejected) as error:
                self._give_up(store, error)
                reason = str(error)
        raise (StoreCorrupt if self._whole else PagesAway)(str(pack), reason)

    async def record_by_id(self, ident: bytes) -> bytes | None:
        """Return a whole record with this id (16 bytes), or None. Raises: as `read_records`, if `strict`."""
        for store in [*self._stores]:
            try:
                record = await store.record_by_id(ident)
            except (StoreUnavailable, StoreRejected) as error:
                self._give_up(store, error)
                continue
            if record is not None:
                return record
        return None

    def _give_up(self, store: PackStore, error: StoreError) -> None:
        if self._strict:
            raise error
        self._whole = False
        if store in self._stores:  # nobody else has found out meanwhile
            self._stores.remove(store)
