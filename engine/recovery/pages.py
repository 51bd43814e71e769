"""Pages of block maps from every place that has them: the cache's copies, the spool, the vault, then by id."""

from __future__ import annotations

from engine.errors import ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.packstore import PackStore
from engine.page import PageAddress
from engine.pagestore import Fetch, PageReader
from engine.recovery.blocksource import BlockSource
from engine.recovery.places import VAULT, Place


def _unknown(_: int) -> PackName | None:
    return None


class PlacesReader(PageReader):
    """A PageReader over several places: a page that does not open in one is reported and read from the next.

    Page packs have one name in all places, so the same address serves everywhere. What opens in no place is looked
    up by id, last.
    """

    def __init__(self, source: BlockSource, pages_subkey: bytes) -> None:
        self._source = source
        self._absent: set[tuple[str, str]] = set()
        self._readers = {
            name: PageReader(self._fetch_from(name, store), _unknown, None, pages_subkey)
            for name, store in source.stores.items()
        }
        super().__init__(self._fetch_nowhere, _unknown, source.record, pages_subkey)

    async def _read(
        self, name: PackName | None, addresses: list[PageAddress]
    ) -> list[tuple[PageAddress, bytes, PackName | None]]:
        places = self._source.places
        for place in places.usable() if name is not None else []:
            reader = self._readers.get(place.name)
            if reader is None:
                continue
            try:
                return await reader._read(name, addresses)
            except StoreCorrupt as error:
                self._report(place, error.name)
            except (StoreUnavailable, StoreRejected) as error:
                places.put_aside(place, error)
        places.require()
        return await super()._read(name, addresses)

    def _report(self, place: Place, pack: str) -> None:
        if (place.name, pack) not in self._absent:
            sentence = f"object {pack} is damaged: a page of the block map in it cannot be read"
        elif place.name != VAULT:
            return  # that the cache has no copy of a page pack, or the spool never had it, is no damage
        else:
            sentence = f"object {pack} does not exist in the store"
        self._source.places.problems.add(f"{place.name}: {sentence}")

    def _fetch_from(self, name: str, store: PackStore) -> Fetch:
        async def fetch(pack: PackName, ranges: list[tuple[int, int]]) -> list[bytes]:
            try:
                return await store.read_records(pack, ranges)
            except ObjectMissing:
                self._absent.add((name, str(pack)))
                raise

        return fetch

    @staticmethod
    async def _fetch_nowhere(pack: PackName, _: list[tuple[int, int]]) -> list[bytes]:
        raise ObjectMissing(str(pack))
