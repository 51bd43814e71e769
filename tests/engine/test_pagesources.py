"""Pages from several stores: each from the first that has it whole, and what is told where none has."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import pytest

from engine.block import ref_of
from engine.errors import ObjectMissing, StoreCorrupt, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.page import PageAddress
from engine.pagesources import PagesAway, PageSources, PageStore
from engine.seal import Codec, Sealer

pytestmark = pytest.mark.anyio
SUBKEY = bytes(range(32))
PACK = PackName("page", bytes(16), bytes(range(32)), 1 << 20)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Shelf:
    """A store of pages: `at` by offset, `loose` by id; `error` is what every call raises."""

    def __init__(self) -> None:
        self.at: dict[int, bytes] = {}
        self.loose: dict[bytes, bytes] = {}
        self.error: Exception | None = None
        self.calls = 0

    async def fetch(self, pack: PackName, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        self.calls += 1
        if self.error is not None:
            raise self.error
        if not self.at:
            raise ObjectMissing(str(pack))
        return [self.at[offset] for offset, _ in ranges]

    async def by_id(self, ident: bytes) -> bytes | None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        return self.loose.get(ident)


class Pages:
    """Two pages in one pack, in two stores."""

    def __init__(self) -> None:
        sealer = Sealer(Codec.NONE, SUBKEY)
        self.contents = [secrets.token_bytes(500), secrets.token_bytes(600)]
        refs = [ref_of(SUBKEY, content) for content in self.contents]
        self.records = [bytes(sealer.seal(ref, content)) for ref, content in zip(refs, self.contents, strict=True)]
        self.addresses = [
            PageAddress(ref, PACK.key, 1000 * at, len(record))
            for at, (ref, record) in enumerate(zip(refs, self.records, strict=True))
        ]
        self.near, self.far = Shelf(), Shelf()
        for shelf in (self.near, self.far):
            shelf.at = {1000 * at: record for at, record in enumerate(self.records)}

    def damage(self, shelf: Shelf, page: int) -> None:
        record = bytearray(shelf.at[1000 * page])
        record[200] ^= 1
        shelf.at[1000 * page] = bytes(record)

    async def read(self, *, whole: bool = True) -> list[bytes]:
        return [content for content, _ in await self.reader(whole=whole).get_many(self.addresses, None)]

    def reader(self, *, whole: bool = True) -> PageSources:
        stores = [PageStore(shelf.fetch, shelf.by_id) for shelf in (self.near, self.far)]
        return PageSources(stores, SUBKEY, lambda key: PACK if key == PACK.key else None, whole=whole)


async def test_the_nearest_store_gives_what_it_has_whole() -> None:
    pages = Pages()
    assert await pages.read() == pages.contents
    assert pages.far.calls == 0


async def test_each_page_comes_from_the_first_store_in_which_it_opens() -> None:
    pages = Pages()
    pages.damage(pages.near, 0)
    pages.damage(pages.far, 1)
    assert await pages.read() == pages.contents


async def test_a_page_that_opens_in_no_place_is_found_by_its_id_in_any_store() -> None:
    pages = Pages()
    for shelf in (pages.near, pages.far):
        pages.damage(shelf, 1)
    ident = pages.addresses[1].ref[:16]
    pages.near.loose[ident] = pages.near.at[1000]  # damaged as well
    pages.far.loose[ident] = pages.records[1]
    assert await pages.read() == pages.contents


async def test_what_no_store_has_is_gone_for_good_where_all_could_be_asked() -> None:
    pages = Pages()
    pages.near.at, pages.far.at = {}, {}
    with pytest.raises(StoreCorrupt) as gone:
        await pages.read()
    assert not isinstance(gone.value, PagesAway)
    assert str(PACK) in str(gone.value)


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreRejected("no right")])
async def test_a_store_that_cannot_be_asked_is_asked_once_and_the_others_serve(error: Exception) -> None:
    pages = Pages()
    pages.near.error = error
    reader = pages.reader()
    for address, content in zip(pages.addresses, pages.contents, strict=True):
        assert (await reader.get(address))[0] == content
    assert pages.near.calls == 1


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreRejected("no right")])
async def test_what_may_lie_in_a_store_that_cannot_be_asked_is_not_gone(error: Exception) -> None:
    pages = Pages()
    pages.near.error, pages.far.at = error, {}
    with pytest.raises(PagesAway) as away:
        await pages.read()
    assert away.value.away is error
    assert str(error) in str(away.value)


async def test_where_a_store_is_left_out_nothing_is_gone_for_good() -> None:
    pages = Pages()
    pages.near.at, pages.far.at = {}, {}
    with pytest.raises(PagesAway) as away:
        await pages.read(whole=False)
    assert away.value.away is None
