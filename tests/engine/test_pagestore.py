from __future__ import annotations

from collections.abc import Callable

import anyio
import numpy as np
import pytest

from engine.errors import StoreCorrupt, StoreUnavailable
from engine.names import PackName
from engine.pack import FinishedPack, check_pack
from engine.page import PageAddress
from engine.pagestore import PageHandle, PageWriter
from tests.engine.fakes_pages import PageVault

SMALL_PACK = 4000


def page(number: int, size: int = 1000) -> bytes:
    return np.random.default_rng(number).bytes(size)


def naming(
    children: list[PageHandle], seen: list[list[PageAddress]], size: int = 1000
) -> Callable[[Callable[[PageHandle], PageAddress]], bytes]:
    """Make an inner page of the children's addresses, padded to `size`; `seen` collects what each was named."""

    def make(place: Callable[[PageHandle], PageAddress]) -> bytes:
        seen.append([place(child) for child in children])
        return b"".join(bytes(address) for address in seen[-1]).ljust(size, b"\x01")

    return make


def put_one(vault: PageVault) -> PageAddress:
    async def main() -> PageAddress:
        writer = vault.writer()
        handle = await writer.put_leaf(page(1))
        await writer.close()
        return PageAddress.parse(writer.address(handle))

    return anyio.run(main)


def test_children_in_the_open_pack_are_named_by_themselves_and_the_others_by_their_pack() -> None:
    async def main() -> None:
        vault, seen = PageVault(SMALL_PACK), list[list[PageAddress]]()
        writer = vault.writer()
        leaves = await writer.put_leaves([page(number) for number in range(5)])
        parent = await writer.put_inner(naming(leaves, seen))
        await writer.close()
        first, second = writer.packs
        assert set(vault.packs) == {first, second}
        assert [address.pack for address in seen[-1]] == [first.key] * 3 + [0] * 2
        reader = vault.reader(indexed=False)
        content, pack = await reader.get(
            PageAddress.parse(writer.address(parent)), resolve={name.key: name for name in writer.packs}.get
        )
        assert pack == second
        assert content.startswith(b"".join(bytes(address) for address in seen[-1]))
        for number, address in enumerate(seen[-1]):
            found = await reader.get(address, pack, {name.key: name for name in writer.packs}.get)
            assert found == (page(number), first if number < 3 else second)

    anyio.run(main)


def test_a_parent_that_does_not_fit_is_made_again_for_the_pack_it_lands_in() -> None:
    async def main() -> None:
        vault, seen = PageVault(SMALL_PACK), list[list[PageAddress]]()
        writer = vault.writer()
        leaves = await writer.put_leaves([page(number) for number in range(3)])
        parent = await writer.put_inner(naming(leaves, seen))
        await writer.close()
        first, second = writer.packs
        assert [[address.pack for address in addresses] for addresses in seen] == [[0] * 3, [first.key] * 3]
        assert PageAddress.parse(writer.address(parent)).pack == second.key

    anyio.run(main)


def test_every_pack_written_is_a_whole_pack() -> None:
    vault = PageVault(SMALL_PACK)
    put_one(vault)
    for name, data in vault.packs.items():
        assert name.kind == "page"
        assert len(check_pack(name, data, vault.keys, None).offsets) == 1


def test_a_leaf_an_own_pack_holds_is_not_written_again_and_its_pack_is_listed() -> None:
    async def main() -> None:
        vault = PageVault()
        old = vault.writer()
        first = await old.put_leaf(page(1))
        await old.close()
        writer = vault.writer()
        again, fresh, twice = await writer.put_leaves([page(1), page(2), page(2)])
        await writer.close()
        assert writer.address(again) == old.address(first)
        assert writer.address(fresh) == writer.address(twice)
        assert sorted(writer.packs) == sorted(vault.packs)
        assert len(vault.packs) == 2
        assert sum(len(check_pack(name, data, None, None).offsets) for name, data in vault.packs.items()) == 2

    anyio.run(main)


def test_what_may_not_be_shared_is_written_again() -> None:
    async def main() -> None:
        vault = PageVault()
        old = vault.writer()
        first = await old.put_leaf(page(1))
        await old.close()
        writer = vault.writer()
        (again,) = await writer.put_leaves([page(1)], share=False)
        await writer.close()
        inner = await writer.put_inner(lambda place: page(1))
        await writer.close()
        assert len({old.address(first), writer.address(again), writer.address(inner)}) == 3

    anyio.run(main)


def test_a_place_in_a_pack_that_is_unknown_or_holds_data_is_no_place_for_a_leaf() -> None:
    async def main() -> None:
        vault = PageVault()
        old = vault.writer()
        await old.put_leaf(page(1))
        await old.close()
        for answer in (None, PackName("data", b"w" * 16, b"h" * 32, 99)):
            vault.name = {key.key: answer for key in vault.packs}.get  # type: ignore[method-assign, assignment]
            writer = vault.writer()
            await writer.put_leaf(page(1))
            await writer.close()
            assert [name.kind for name in writer.packs] == ["page"]
            vault.packs.popitem()

    anyio.run(main)


def test_nothing_written_makes_no_pack_and_writing_may_go_on_after_a_close() -> None:
    async def main() -> None:
        vault = PageVault()
        writer = vault.writer()
        await writer.close()
        assert writer.packs == []
        first = await writer.put_leaf(page(1))
        await writer.close()
        second = await writer.put_leaf(page(2))
        await writer.close()
        assert len(writer.packs) == len(vault.packs) == 2
        reader = vault.reader(indexed=True)
        for number, handle in ((1, first), (2, second)):
            assert (await reader.get(PageAddress.parse(writer.address(handle))))[0] == page(number)

    anyio.run(main)


def test_tasks_that_share_a_writer_do_not_mix_up_their_packs() -> None:
    async def main() -> None:
        vault = PageVault(SMALL_PACK)
        writer = vault.writer()
        written: dict[int, PageHandle] = {}

        async def write(start: int) -> None:
            for number in range(start, start + 10):
                written[number] = await writer.put_leaf(page(number))

        async with anyio.create_task_group() as group:
            for start in range(0, 50, 10):
                group.start_soon(write, start)
        await writer.close()
        reader = vault.reader()
        for number, handle in written.items():
            assert (await reader.get(PageAddress.parse(writer.address(handle))))[0] == page(number)

    anyio.run(main)


def test_a_failing_put_is_raised_where_the_page_was_written() -> None:
    async def refuse(pack: FinishedPack) -> None:
        raise StoreUnavailable("away")

    async def main() -> None:
        vault = PageVault(SMALL_PACK)
        vault.put = refuse  # type: ignore[method-assign]
        writer: PageWriter = vault.writer()
        with pytest.raises(StoreUnavailable):
            await writer.put_leaves([page(number) for number in range(5)])

    anyio.run(main)


def damaged(vault: PageVault, name: PackName, offset: int) -> None:
    data = bytearray(vault.packs[name])
    data[offset] ^= 1
    vault.packs[name] = bytes(data)


def test_a_page_is_checked_against_its_ref_and_a_damaged_one_names_its_pack() -> None:
    vault = PageVault()
    address = put_one(vault)
    (name,) = vault.packs
    damaged(vault, name, address.offset + address.length // 2)
    for indexed in (False, True):
        with pytest.raises(StoreCorrupt) as caught:
            anyio.run(vault.reader(indexed).get, address, None, {name.key: name}.get)
        assert caught.value.name == str(name)


def test_a_place_that_fails_is_looked_up_by_id() -> None:
    vault = PageVault()
    address = put_one(vault)
    (name,) = vault.packs
    elsewhere = PackName("page", name.writer, b"e" * 32, 1 << 20)
    wrong = {
        "a pack that is not known": PageAddress(address.ref, 77, address.offset, address.length),
        "a pack that is not there": PageAddress(address.ref, elsewhere.key, address.offset, address.length),
        "another offset": PageAddress(address.ref, name.key, address.offset + 1, address.length),
        "beyond the end": PageAddress(address.ref, name.key, 1 << 31, address.length),
        "an impossible length": PageAddress(address.ref, name.key, address.offset, 1 << 31),
        "no length": PageAddress(address.ref, name.key, address.offset, 0),
        "its own pack, which is none": PageAddress(address.ref, 0, address.offset, address.length),
    }
    resolve = {name.key: name, elsewhere.key: elsewhere}.get
    for what, place in wrong.items():
        assert anyio.run(vault.reader().get, place, None, resolve) == (page(1), None), what
        with pytest.raises(StoreCorrupt, match="nowhere else"):
            anyio.run(vault.reader(indexed=False).get, place, None, resolve)
    assert all(length <= 1 << 17 for _, ranges in vault.fetched for _, length in ranges)


def test_another_record_of_the_same_id_is_not_taken_for_the_page() -> None:
    vault = PageVault()
    address = put_one(vault)
    forged = PageAddress(address.ref[:16] + bytes(32), address.pack, address.offset, address.length)
    with pytest.raises(StoreCorrupt):
        anyio.run(vault.reader().get, forged)


def test_a_store_that_is_away_is_not_taken_for_damage() -> None:
    async def away(name: PackName, ranges: list[tuple[int, int]]) -> list[bytes]:
        raise StoreUnavailable("away")

    vault = PageVault()
    address = put_one(vault)
    vault.fetch = away  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        anyio.run(vault.reader().get, address)


def test_pages_of_one_pack_are_fetched_together_and_kept_up_to_the_bound() -> None:
    async def main() -> None:
        vault = PageVault()
        writer = vault.writer()
        handles = await writer.put_leaves([page(number) for number in range(10)])
        await writer.close()
        addresses = [PageAddress.parse(writer.address(handle)) for handle in handles]
        reader = vault.reader(cache_bytes=5000)
        for wanted, fetched in ((range(10), 10), (range(5, 10), 0), (range(5), 5), (range(4, 6), 1)):
            vault.fetched.clear()
            found = await reader.get_many([addresses[number] for number in wanted], None)
            assert [content for content, _ in found] == [page(number) for number in wanted]
            assert [len(ranges) for _, ranges in vault.fetched] == ([fetched] if fetched else [])

    anyio.run(main)
