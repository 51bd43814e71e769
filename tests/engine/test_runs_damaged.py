from __future__ import annotations

from dataclasses import replace

import anyio
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.block import PLACE
from engine.errors import StoreCorrupt
from engine.page import CHILD, Children, Inner, KeyLeaf, Page, TableLeaf, encode
from engine.pagestore import PageWriter
from engine.root import RunDescriptor
from engine.runs import RunReader, overlay
from tests.engine.fakes_pages import PageVault, Run, chunk, data_packs


class Forge:
    """Writes trees that do not hold together."""

    def __init__(self) -> None:
        self.vault = PageVault()
        self.writer: PageWriter = self.vault.writer(share=False)
        self.run: Run = anyio.run(self.vault.write, chunk(list(range(0, 3000, 2))))

    def inner(self, *pages: Page, change: tuple[str, int, int] | None = None, level: int = 1) -> Run:
        """Return the run with an inner page over `pages` as its id tree; `change`: (field, child, value)."""

        async def main() -> bytes:
            handles = await self.writer.put_leaves([encode(page) for page in pages])
            await self.writer.close()
            children: Children = np.zeros(len(pages), CHILD)
            for row, page, handle in zip(children, pages, handles, strict=True):
                address = np.frombuffer(self.writer.address(handle), np.uint8)
                row["first"], row["entries"], row["ref"] = page.first_block, page.entries, address[:48]
                row["place"] = np.frombuffer(address[48:].tobytes(), PLACE)[0]
            if change is not None:
                children[change[0]][change[1]] = change[2]
            root = await self.writer.put_inner(lambda place: encode(Inner(level, children)))
            await self.writer.close()
            return self.writer.address(root)

        return replace(self.run, descriptor=msgspec.structs.replace(self.run.descriptor, id_tree=anyio.run(main)))

    def refuses(self, run: Run, reason: str) -> None:
        async def main() -> None:
            reader = run.read(self.vault, indexed=True)
            async for _ in reader.keyed():
                pass

        with pytest.raises(StoreCorrupt, match=reason) as caught:
            anyio.run(main)
        assert caught.value.name in [str(name) for name in self.vault.packs] or caught.value.name.startswith("run ")


@pytest.fixture(name="forge")
def make_forge() -> Forge:
    return Forge()


def leaves_of(first: int = 0) -> tuple[Page, Page]:
    low, high = chunk(list(range(first, first + 1000))), chunk(list(range(first + 1000, first + 1500)))
    return low.leaf()[0], high.leaf()[0]


def test_a_tree_that_does_not_hold_together_is_refused_and_named(forge: Forge) -> None:
    keys = KeyLeaf(1000, np.zeros((500, 32), np.uint8))
    table = TableLeaf(1000, data_packs(chunk([1, 2])))
    forge.refuses(forge.inner(*leaves_of(), change=("entries", 0, 999)), "as many entries")
    forge.refuses(forge.inner(*leaves_of(), change=("first", 1, 1001)), "begin")
    forge.refuses(forge.inner(*leaves_of(), change=("first", 1, 900)), "begin|next one")
    forge.refuses(forge.inner(leaves_of()[0], leaves_of(1)[1]), "do not go|keys")
    forge.refuses(forge.inner(*leaves_of(), level=2), "level")
    forge.refuses(forge.inner(keys, level=1), "another page|entries")
    forge.refuses(forge.inner(leaves_of()[0], table), "another page|entries")
    forge.refuses(forge.inner(*leaves_of()), "do not go|as many")
    forge.refuses(forge.inner(leaves_of()[0]), "entries")


def test_a_leaf_that_reaches_into_the_next_one_is_refused(forge: Forge) -> None:
    low, high = chunk([0, *range(500, 1499)]).leaf()[0], chunk(list(range(1400, 1900))).leaf()[0]
    forge.refuses(forge.inner(low, high), "reaches into the next")


def test_the_keys_of_another_run_are_not_taken(forge: Forge) -> None:
    other = anyio.run(forge.vault.write, chunk(list(range(1, 3001, 2))))
    forge.refuses(Run(forge.run.descriptor, other.key_address), "do not go")
    fewer = anyio.run(forge.vault.write, chunk(list(range(0, 2998, 2))))
    forge.refuses(Run(forge.run.descriptor, fewer.key_address), "entries")
    forge.refuses(Run(forge.run.descriptor, forge.run.descriptor.id_tree), "do not go")


def test_counts_in_the_root_that_do_not_fit_are_refused(forge: Forge) -> None:
    for field, value in (("entries", 1499), ("zeros", 1), ("leaves", 3)):
        descriptor = msgspec.structs.replace(forge.run.descriptor, **{field: value})

        async def main(descriptor: RunDescriptor = descriptor) -> None:
            async for _ in RunReader(forge.vault.reader(), descriptor).leaves():
                pass

        with pytest.raises(StoreCorrupt):
            anyio.run(main)


def test_a_pack_table_that_does_not_hold_together_is_refused(forge: Forge) -> None:
    rows = data_packs(chunk(list(range(9))))
    for pages in (
        [TableLeaf(0, rows), TableLeaf(5, rows)],
        [TableLeaf(0, rows), TableLeaf(len(rows), rows)],
        [KeyLeaf(0, np.zeros((1, 32), np.uint8))],
        [TableLeaf(1, rows)],
    ):
        run = forge.inner(*pages)
        descriptor = msgspec.structs.replace(forge.run.descriptor, table=run.descriptor.id_tree)
        with pytest.raises(StoreCorrupt):
            anyio.run(RunReader(forge.vault.reader(), descriptor).table)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_gives_the_right_blocks_or_an_error(data: st.DataObject) -> None:
    run, vault, truth = FLIP
    name = data.draw(st.sampled_from(sorted(vault.packs)))
    bit = data.draw(st.integers(0, len(vault.packs[name]) * 8 - 1))
    damaged = bytearray(vault.packs[name])
    damaged[bit // 8] ^= 1 << bit % 8
    copy = PageVault(packs=vault.packs | {name: bytes(damaged)})

    async def main() -> None:
        reader = run.read(copy)
        try:
            window = await overlay([reader], 0, 3000)
            table = await reader.table()
        except StoreCorrupt:
            return
        assert np.array_equal(window.refs, truth)
        assert set(vault.packs) <= set(table.names())

    anyio.run(main)


def flip_example() -> tuple[Run, PageVault, npt.NDArray[np.uint8]]:
    vault = PageVault(40_000)
    content = chunk(list(range(0, 3000, 2)), 7)
    truth = np.zeros((3000, 48), np.uint8)
    truth[::2] = content.refs
    return anyio.run(vault.write, content), vault, truth


FLIP = flip_example()


def test_a_page_pack_that_is_gone_is_named() -> None:
    run, vault, _ = FLIP
    assert len(vault.packs) > 2
    for name in vault.packs:
        copy = PageVault(packs={other: data for other, data in vault.packs.items() if other != name})

        async def main(copy: PageVault = copy) -> None:
            await overlay([run.read(copy)], 0, 3000)

        with pytest.raises(StoreCorrupt):
            anyio.run(main)
