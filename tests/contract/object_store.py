"""The conformance suite of the ObjectStore port: a subclass per store brings the fixtures `store` and `go_away`.

Every sentence of the port is a test here; what a store promises beyond it is tested with the store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
import pytest

from engine.errors import ObjectMissing, StoreRejected, StoreUnavailable
from engine.ports import ObjectStore

GoAway = Callable[[], Awaitable[None]]

WRITER = "00112233445566778899aabbccddeeff"
PACK = f"data/{WRITER}/{'ab' * 32}-5"


async def names(store: ObjectStore, prefix: str, after: str = "") -> list[str]:
    return sorted([info.name async for info in store.list(prefix, after)])


class ObjectStoreContract:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 40_000], ids=["empty", "one byte", "10 MB"])
    async def test_what_was_put_is_got(self, store: ObjectStore, data: bytes) -> None:
        await store.put(PACK, data)
        assert await store.get(PACK) == data
        assert await store.stat(PACK) == len(data)

    async def test_any_kind_of_bytes_can_be_put(self, store: ObjectStore) -> None:
        await store.put("a/1", bytearray(b"one"))
        await store.put("a/2", memoryview(b"a two b")[2:5])
        assert (await store.get("a/1"), await store.get("a/2")) == (b"one", b"two")

    async def test_the_same_content_again_is_success(self, store: ObjectStore) -> None:
        await store.put(PACK, b"hello")
        await store.put(PACK, b"hello")
        assert await store.get(PACK) == b"hello"

    @pytest.mark.parametrize("before", [b"", b"hell", b"hello!"])
    async def test_another_size_is_replaced(self, store: ObjectStore, before: bytes) -> None:
        await store.put(PACK, before)
        await store.put(PACK, b"hello")
        assert await store.get(PACK) == b"hello"
        assert await store.stat(PACK) == 5

    async def test_the_same_size_with_other_content_is_refused_and_changes_nothing(self, store: ObjectStore) -> None:
        await store.put(PACK, b"hello")
        with pytest.raises(StoreRejected, match=PACK):
            await store.put(PACK, b"hallo")
        assert await store.get(PACK) == b"hello"

    async def test_of_racing_puts_of_one_size_exactly_one_wins(self, store: ObjectStore) -> None:
        won: list[bytes] = []

        async def put(content: bytes) -> None:
            try:
                await store.put(PACK, content)
            except StoreRejected:
                return
            won.append(content)

        async with anyio.create_task_group() as group:
            for digit in b"0123456789abcdef":
                group.start_soon(put, bytes([digit]) * 5000)
        assert len(won) == 1
        assert await store.get(PACK) == won[0]

    async def test_racing_puts_of_the_same_content_all_succeed(self, store: ObjectStore) -> None:
        async with anyio.create_task_group() as group:
            for _ in range(16):
                group.start_soon(store.put, PACK, bytes(5000))
        assert await store.get(PACK) == bytes(5000)
        assert await names(store, "") == sorted({PACK, *await names(store, "format")})

    async def test_a_reader_sees_nothing_or_all_of_a_replacement(self, store: ObjectStore) -> None:
        short, long = b"s" * 100_000, b"l" * 300_000
        await store.put(PACK, short)
        seen: set[bytes] = set()
        done = anyio.Event()

        async def read() -> None:
            while not done.is_set():
                seen.add(bytes(await store.get(PACK)))

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for _ in range(10):
                await store.put(PACK, long)
                await store.put(PACK, short)
            done.set()
        assert seen <= {short, long}

    @pytest.mark.parametrize(
        ("offset", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (3, None, b"3456789"),
            (3, 4, b"3456"),
            (0, 0, b""),
            (8, 4, b"89"),
            (10, 1, b""),
            (11, None, b""),
            (1 << 40, 5, b""),
        ],
    )
    async def test_ranges_are_cut_where_the_object_ends(
        self, store: ObjectStore, offset: int, length: int | None, expected: bytes
    ) -> None:
        await store.put(PACK, b"0123456789")
        assert await store.get(PACK, offset, length) == expected

    async def test_a_range_of_a_large_object_is_exact(self, store: ObjectStore) -> None:
        data = bytes(range(251)) * 50_000
        await store.put(PACK, data)
        assert await store.get(PACK, 4_000_001, 5_000_003) == data[4_000_001 : 4_000_001 + 5_000_003]

    async def test_a_missing_object_is_named(self, store: ObjectStore) -> None:
        for call in (store.get, store.stat):
            with pytest.raises(ObjectMissing, match=PACK) as caught:
                await call(PACK)
            assert caught.value.name == PACK

    async def test_a_name_that_is_the_beginning_of_others_is_missing(self, store: ObjectStore) -> None:
        await store.put(PACK, b"hello")
        with pytest.raises(ObjectMissing):
            await store.stat(f"data/{WRITER}")
        with pytest.raises(ObjectMissing):
            await store.get(f"{PACK}/more")

    async def test_a_listing_tells_names_and_sizes(self, store: ObjectStore) -> None:
        await store.put("data/aa/1", b"1")
        await store.put("data/ab/22", b"22")
        rows = {info.name: info.size async for info in store.list("data/")}
        assert rows == {"data/aa/1": 1, "data/ab/22": 2}

    @pytest.mark.parametrize(
        ("prefix", "expected"),
        [
            ("data/", ["data/aa/10", "data/aa/11", "data/ab/20", "data/b/30"]),
            ("data/aa/", ["data/aa/10", "data/aa/11"]),
            ("data/a", ["data/aa/10", "data/aa/11", "data/ab/20"]),
            ("data/aa/1", ["data/aa/10", "data/aa/11"]),
            ("data/aa/10", ["data/aa/10"]),
            ("dat", ["data/aa/10", "data/aa/11", "data/ab/20", "data/b/30"]),
            ("data/aa/10/", []),
            ("data/c", []),
            ("nothing/", []),
            ("nothing/at/all/there", []),
        ],
    )
    async def test_a_prefix_may_end_anywhere(self, store: ObjectStore, prefix: str, expected: list[str]) -> None:
        for name in ("data/aa/10", "data/aa/11", "data/ab/20", "data/b/30", "root/aa/10"):
            await store.put(name, name.encode())
        assert await names(store, prefix) == expected

    async def test_an_empty_prefix_lists_everything(self, store: ObjectStore) -> None:
        await store.put("data/aa/10", b"1")
        await store.put("root/bb", b"2")
        assert {"data/aa/10", "root/bb"} <= set(await names(store, ""))

    async def test_a_listing_begins_after_a_name(self, store: ObjectStore) -> None:
        standing = ["index/a/1-1", "index/a/1-2", "index/a/2-1", "index/b/1-1"]
        for name in standing:
            await store.put(name, b"1")
        for after in ["", "index/a/1-1", "index/a/1-15", "index/a", "index/a/z", "index/b", "index/b/1-1", "z"]:
            assert await names(store, "index/", after) == [name for name in standing if name > after]

    async def test_a_long_listing_is_complete_and_can_be_left_early(self, store: ObjectStore) -> None:
        expected = [f"data/{WRITER}/{number:04x}" for number in range(1100)]
        async with anyio.create_task_group() as group:
            for first in range(0, 1100, 100):
                group.start_soon(self._put_all, store, expected[first : first + 100])
        assert await names(store, "data/") == expected
        seen = 0
        async for _ in store.list("data/"):
            seen += 1
            if seen == 3:
                break
        assert await names(store, f"data/{WRITER}/04") == [name for name in expected if name[-4:] >= "0400"]

    @staticmethod
    async def _put_all(store: ObjectStore, wanted: list[str]) -> None:
        for name in wanted:
            await store.put(name, b"1")

    async def test_a_deleted_object_is_gone_and_may_come_back(self, store: ObjectStore) -> None:
        await store.put(PACK, b"hello")
        await store.delete(PACK)
        with pytest.raises(ObjectMissing):
            await store.stat(PACK)
        assert await names(store, "data/") == []
        await store.put(PACK, b"hallo")
        assert await store.get(PACK) == b"hallo"

    async def test_deleting_what_is_not_there_is_success(self, store: ObjectStore) -> None:
        await store.delete(PACK)
        await store.delete("nothing/at/all/there")

    async def test_a_suffixed_name_is_an_object_of_its_own(self, store: ObjectStore) -> None:
        await store.put(PACK, b"hello")
        await store.put(f"{PACK}.1", b"again")
        assert await names(store, PACK) == [PACK, f"{PACK}.1"]
        assert await store.get(f"{PACK}.1") == b"again"

    async def test_a_cancelled_put_leaves_nothing_or_all_of_the_object(self, store: ObjectStore) -> None:
        data = bytes(8 << 20)
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(store.put, PACK, data)
                await anyio.lowlevel.checkpoint()
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        try:
            assert await store.get(PACK) == data
        except ObjectMissing:
            assert await names(store, "data/") == []
        await store.put(PACK, data)
        assert await store.stat(PACK) == len(data)

    async def test_a_store_that_is_there_answers_a_probe(self, store: ObjectStore) -> None:
        await store.probe()

    async def test_a_store_that_is_away_is_unavailable_for_everything(
        self, store: ObjectStore, go_away: GoAway
    ) -> None:
        await store.put(PACK, b"hello")
        await go_away()
        with pytest.raises(StoreUnavailable):
            await store.probe()
        with pytest.raises(StoreUnavailable):
            await store.put("a/b", b"hello")
        with pytest.raises(StoreUnavailable):
            await store.get(PACK)
        with pytest.raises(StoreUnavailable):
            await store.stat(PACK)
        with pytest.raises(StoreUnavailable):
            await store.delete(PACK)
        with pytest.raises(StoreUnavailable):
            await names(store, "")
