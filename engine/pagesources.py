"""Pages of block maps from several stores: each page from the first store that has it whole, at last by its id.

Page packs have one name in all stores, so the same address serves everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread
import msgspec

from engine.block import ID_BYTES
from engine.errors import ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.page import PageAddress
from engine.pagestore import Fetch, FetchById, PageReader, Resolve
from engine.seal import open_whole


class PagesAway(StoreCorrupt):
    """A page that no store gave, while one that may hold it could not be asked; `away` says why, if it was tried."""

    def __init__(self, name: str, reason: str, away: StoreUnavailable | StoreRejected | None = None) -> None:
        super().__init__(name, reason)
        self.away = away


class PageStore(msgspec.Struct, frozen=True):
    """A store pages are read from; `by_id` None: it has no index to look them up in."""

    fetch: Fetch
    by_id: FetchById | None = None


class PageSources(PageReader):
    """A PageReader over several stores, the nearest first.

    `whole`: these are all the stores a page may lie in; what none of them has is gone for good. A store that cannot be
    asked is not asked again: an outage costs one call and its retries. Methods raise StoreCorrupt, PagesAway among
    them, and neither StoreUnavailable nor StoreRejected.
    """

    def __init__(
        self,
        stores: Sequence[PageStore],
        pages_subkey: bytes,
        resolve: Resolve = lambda _: None,
        *,
        whole: bool = True,
    ) -> None:
        super().__init__(_nowhere, resolve, None, pages_subkey)
        self._stores, self._whole = [*stores], whole
        self._away: StoreUnavailable | StoreRejected | None = None

    async def _read(
        self, name: PackName | None, addresses: list[PageAddress]
    ) -> list[tuple[PageAddress, bytes, PackName | None]]:
        found: dict[bytes, tuple[bytes, PackName | None]] = {}
        reason = "it is in no store" if name is not None else "no pack that is known is said to hold it"
        left = addresses
        for store in [*self._stores]:
            if name is None:
                break
            try:
                records: list[bytes | None] = [
                    *await store.fetch(name, [(address.offset, address.length) for address in left])
                ]
            except ObjectMissing:
                continue
            except StoreCorrupt as error:
                reason = error.reason
                continue
            except (StoreUnavailable, StoreRejected) as error:
                self._give_up(store, error)
                continue
            opened = await anyio.to_thread.run_sync(self._open_all, name, left, records)
            for address, content in zip(left, opened, strict=True):
                if isinstance(content, bytes):
                    found[address.ref] = content, name
                else:
                    reason = content or reason
            left = [address for address in left if address.ref not in found]
            if not left:
                break
        for address in left:
            found[address.ref] = await self._read_by_id(name, address, reason), None
        return [(address, *found[address.ref]) for address in addresses]

    async def _read_by_id(self, name: PackName | None, address: PageAddress, reason: str) -> bytes:
        ident = address.ref[:ID_BYTES]
        where = str(name) if name is not None else f"page {ident.hex()}"
        for store in [*self._stores]:
            if store.by_id is None:
                continue
            try:
                record = await store.by_id(ident)
                if record is not None:
                    return await anyio.to_thread.run_sync(open_whole, address.ref, record, self._subkey, where)
            except StoreCorrupt:
                continue
            except (StoreUnavailable, StoreRejected) as error:
                self._give_up(store, error)
        text = f"a page of the block map cannot be read ({self._away or reason}), and is nowhere else"
        raise StoreCorrupt(where, text) if self._whole else PagesAway(where, text, self._away)

    def _give_up(self, store: PageStore, error: StoreUnavailable | StoreRejected) -> None:
        self._whole, self._away = False, error
        if store in self._stores:  # nobody else has found out meanwhile
            self._stores.remove(store)


async def _nowhere(pack: PackName, _: Sequence[tuple[int, int]]) -> list[bytes]:
    raise ObjectMissing(str(pack))
