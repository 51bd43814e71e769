"""Listing the packs of a cache while another system trims it: what it writes anew is not taken for gone."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import numpy as np

from engine.cache.listing import LISTINGS_MAX, listed_as_known
from engine.names import PackName
from engine.ports import ObjectInfo
from tests.engine.fakes_packs import ALICE, BOB, Machine, Team, ids
from tests.fakes import MemoryStore

TEAM = Team()
CONTENTS = [bytes([number]) * 3000 for number in range(4)]
NOTHING = np.empty(0, np.uint64)


class Busy(MemoryStore):
    """A store in which something happens before packs are listed."""

    def __init__(self) -> None:
        super().__init__()
        self.before: list[PackName] = []
        self.listings = 0
        self.bob: Machine | None = None

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
        if prefix == "data/":
            self.listings += 1
            if self.before and self.bob is not None:
                await rewrite(self.bob, self.before.pop())
        async for info in super().list(prefix, after):
            yield info


async def put(machine: Machine, contents: list[bytes]) -> PackName:
    pack = TEAM.pack(contents, machine.writer)
    await machine.store.put_pack(pack)
    await machine.store.publish_index()
    return pack.name


async def rewrite(machine: Machine, old: PackName) -> None:
    """Do what a trimming does that finds all of a pack in use but half."""
    await machine.store.refresh()
    await put(machine, CONTENTS[:2])
    await machine.store.announce_removal([old])
    await machine.store.objects.delete(str(old))
    await machine.store.settle_removals()


def lacking(machine: Machine) -> int:
    return int((machine.index.lookup(ids(CONTENTS[:2], TEAM))["length"] == 0).sum())


def test_what_another_system_writes_anew_is_not_gone() -> None:
    async def main() -> None:
        store = Busy()
        alice, store.bob = Machine(store, TEAM, ALICE, trimmed=True), Machine(store, TEAM, BOB, trimmed=True)
        store.before.append(await put(alice, CONTENTS))
        await alice.restart().refresh()
        present = await listed_as_known(alice.store, NOTHING)
        alice.index.bar(alice.index.absent(present).tolist())
        assert lacking(alice) == 0
        assert store.listings == 3  # the last one shows that nobody removed anything since the index was read

    anyio.run(main)


def test_what_is_gone_and_nobody_removed_is_looked_for_once_more_and_only_once() -> None:
    async def main() -> None:
        store = Busy()
        alice = Machine(store, TEAM, ALICE, trimmed=True)
        pack = await put(alice, CONTENTS)
        await store.delete(str(pack))
        assert not len(await listed_as_known(alice.store, NOTHING))
        assert store.listings == 2
        # What is known to be gone is not looked for again.
        assert not len(await listed_as_known(alice.store, np.array([pack.key], np.uint64)))
        assert store.listings == 3

    anyio.run(main)


def test_who_never_comes_to_an_end_is_not_waited_for() -> None:
    async def main() -> None:
        store = Busy()
        alice, bob = Machine(store, TEAM, ALICE, trimmed=True), Machine(store, TEAM, BOB, trimmed=True)
        packs = [await put(bob, [bytes([number]) * 2000]) for number in range(10, 20)]
        await alice.restart().refresh()
        listings = 0

        class Vanishing(MemoryStore):
            async def list(self, prefix: str, after: str = "") -> AsyncIterator[ObjectInfo]:
                nonlocal listings
                if prefix == "data/":
                    listings += 1
                    await store.delete(str(packs.pop()))
                async for info in store.list(prefix, after):
                    yield info

        alice.store.objects = Vanishing()
        alice.store.objects.get = store.get  # type: ignore[method-assign]
        assert len(await listed_as_known(alice.store, NOTHING)) == len(packs)
        assert listings == LISTINGS_MAX

    anyio.run(main)
