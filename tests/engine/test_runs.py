from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import anyio
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StoreCorrupt
from engine.names import PackName, PointId
from engine.pack import FinishedPack
from engine.packtable import PackTable, rows_from_bytes, rows_of
from engine.page import LEAF_ENTRIES
from engine.root import RootBody, VolumePoint, seal_root
from engine.runbuild import LeafCutter, RunChunk
from engine.runs import RunReader, envelope_info, key_address, overlay, write_run
from engine.vault import hpke
from tests.engine.fakes_pages import PageVault, chunk, data_packs
from tests.engine.fakes_volume_model import SPACE, Pieces, VolumeModel, blocks_of, chosen, ranges


@settings(max_examples=30, deadline=None)
@given(ranges, ranges, st.integers(0, 1 << 30), st.booleans())
def test_a_run_reads_back_as_it_was_written_and_counts_itself(
    writes: Pieces, zeros: Pieces, seed: int, base: bool
) -> None:
    async def main() -> None:
        model = VolumeModel(seed)
        content = model.change(chosen(writes), chosen(zeros), SPACE)
        run = await model.vault.write(*model.pieces(content), base=base)
        reader = run.read(model.vault)
        leaves = [leaf async for leaf in reader.leaves()]
        keyed = [pair async for pair in reader.keyed()]
        assert run.descriptor.leaves == len(leaves) == len(keyed)
        assert run.descriptor.entries == len(content.blocks) == sum(len(leaf.blocks) for leaf in leaves)
        assert run.descriptor.zeros == (0 if base else int(content.zero_counts.sum()))
        refs = [ref.tobytes() for _, leaf_refs in keyed for ref in leaf_refs]
        assert refs == [ref.tobytes() for ref in content.refs]
        assert [block for leaf in leaves for block in leaf.blocks.tolist()] == content.blocks.tolist()
        if not base:
            zeroed = {block for leaf in leaves for block in blocks_of(leaf)}
            assert zeroed == set(blocks_of(content))
        else:
            assert all(len(set((leaf.blocks // LEAF_ENTRIES).tolist())) == 1 for leaf in leaves)

    anyio.run(main)


def test_the_pack_table_lists_the_data_packs_and_every_page_pack_of_the_run() -> None:
    async def main() -> None:
        for pack_bytes in (1 << 20, 30_000, 120_000):
            vault = PageVault(pack_bytes)
            content = chunk(list(range(0, 9000, 3)))
            run = await vault.write(content)
            table = await run.read(vault).table()
            assert set(table.names()) == set(vault.packs) | set(PackTable(data_packs(content)).names())
            near = set(PackTable(rows_from_bytes(run.descriptor.table_packs)).names())
            assert near <= set(vault.packs)
            assert len(near) <= 2

    anyio.run(main)


def test_a_table_of_thousands_of_packs_is_a_tree_and_is_found_without_an_index() -> None:
    names = [PackName("data", b"w" * 16, np.random.default_rng(number).bytes(32), 9) for number in range(2500)]

    async def main() -> None:
        vault = PageVault(60_000)
        descriptor = await write_run(
            vault.writer(),
            [chunk([1])],
            base=True,
            packs=lambda: rows_of(names),
            seal_envelope=lambda run, address: address,
        )
        table = await RunReader(vault.reader(indexed=False), descriptor).table()
        assert set(table.names()) == set(vault.packs) | set(names)
        assert len(vault.packs) > 1

    anyio.run(main)


def test_an_empty_run_has_no_trees_and_reads_as_nothing() -> None:
    async def main() -> None:
        vault = PageVault()
        for content in ([], [chunk([])], [chunk([], 0, [(5, 9)])]):
            run = await vault.write(*content, base=True)
            assert (run.descriptor.id_tree, run.descriptor.table, run.descriptor.table_packs) == (b"", b"", b"")
            assert run.key_address == b""
            assert [leaf async for leaf in run.read(vault).keyed()] == []
            assert len((await run.read(vault).table()).rows) == 0
        assert not vault.packs

    anyio.run(main)


def sparse_base() -> RunChunk:
    return chunk(list(range(0, 700 * LEAF_ENTRIES, LEAF_ENTRIES)))


def test_reading_a_range_fetches_the_pages_of_that_range_only() -> None:
    async def main() -> None:
        vault = PageVault()
        run = await vault.write(sparse_base(), base=True)
        assert run.descriptor.leaves == 700
        reader = run.read(vault)
        found = [leaf.blocks.tolist() async for leaf, _ in reader.keyed(600 * LEAF_ENTRIES - 5, 602 * LEAF_ENTRIES)]
        assert found == [[600 * LEAF_ENTRIES], [601 * LEAF_ENTRIES]]
        # Per tree: the root, one inner page, and three leaves (the first reaches into the range with nothing).
        assert sum(len(ranges) for _, ranges in vault.fetched) == 10
        assert [leaf async for leaf in reader.leaves(3, LEAF_ENTRIES)] == []

    anyio.run(main)


def test_leaves_are_read_ahead_together() -> None:
    async def main() -> None:
        vault = PageVault()
        run = await vault.write(sparse_base(), base=True)
        assert len([leaf async for leaf in run.read(vault).leaves()]) == 700
        assert sum(len(ranges) for _, ranges in vault.fetched) == 703
        assert len(vault.fetched) <= 3 + 32 + 12 + 1

    anyio.run(main)


def test_a_dense_base_shares_its_pages_when_it_is_written_again() -> None:
    async def main() -> None:
        vault = PageVault(1 << 22)
        content = chunk(list(range(100 * LEAF_ENTRIES)))
        first = await vault.write(content, base=True)
        whole = sum(len(data) for data in vault.packs.values())
        refs = content.refs.copy()
        refs[5000] ^= 1
        again = await vault.write(msgspec.structs.replace(content, refs=refs), base=True)
        added = sum(len(data) for data in vault.packs.values()) - whole
        assert added < whole / 40
        reader = again.read(vault)
        window = await overlay([reader], 4990, 5010)
        assert np.array_equal(window.refs, refs[4990:5010])
        assert set((await reader.table()).names()) > set(vault.packs)
        assert first.descriptor.entries == again.descriptor.entries

    anyio.run(main)


def test_leaves_of_other_runs_close_when_they_are_full_of_entries_or_of_extents() -> None:
    def cut(content: RunChunk) -> list[tuple[int, int]]:
        cutter = LeafCutter(base=False)
        return [(len(leaf.blocks), len(leaf.zero_starts)) for leaf in (*cutter.feed(content), *cutter.end())]

    assert cut(chunk(list(range(1024)))) == [(1024, 0)]
    assert cut(chunk(list(range(1025)))) == [(1024, 0), (1, 0)]
    assert cut(chunk([], 0, [(2 * number, 1) for number in range(1025)])) == [(0, 1024), (0, 1)]
    both = chunk([3 * number for number in range(3000)], 0, [(3 * number + 1, 1) for number in range(3000)])
    assert cut(both) == [(1024, 1024), (1024, 1024), (952, 952)]


def test_zero_extents_that_touch_become_one() -> None:
    async def main() -> None:
        vault = PageVault()
        run = await vault.write(chunk([9], 0, [(10, 5)]), chunk([], 0, [(15, 5), (20, 1)]), chunk([], 0, [(22, 1)]))
        (leaf,) = [leaf async for leaf in run.read(vault).leaves()]
        assert list(zip(leaf.zero_starts.tolist(), leaf.zero_counts.tolist(), strict=True)) == [(10, 11), (22, 1)]

    anyio.run(main)


def test_memory_does_not_grow_with_the_run() -> None:
    class Sink(PageVault):
        async def put(self, pack: FinishedPack) -> None:
            self.packs[pack.name] = b""

    def chunks(count: int) -> Iterator[RunChunk]:
        model = chunk(list(range(4096)))
        for first in range(0, count, 4096):
            yield msgspec.structs.replace(model, blocks=model.blocks + np.uint64(first))

    def peak(count: int) -> int:
        async def main() -> None:
            await write_run(
                Sink().writer(), chunks(count), base=True, packs=lambda: rows_of(()), seal_envelope=lambda run, key: key
            )

        tracemalloc.start()
        anyio.run(main)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(1 << 12)
    assert peak(1 << 18) < peak(1 << 16) * 1.3 + (1 << 20)


def test_an_increment_of_1000_random_blocks_costs_less_than_80_kib_with_the_root_of_16_runs() -> None:
    async def main() -> None:
        vault = PageVault()
        blocks = np.sort(np.random.default_rng(1).choice(1 << 24, 1000, replace=False)).astype(np.uint64)
        run = await vault.write(chunk(blocks))
        pages = sum(len(data) for data in vault.packs.values())
        envelope = np.random.default_rng(2).bytes(hpke.OVERHEAD_BYTES + 64)
        descriptor = msgspec.structs.replace(run.descriptor, envelope=envelope)
        runs = [msgspec.structs.replace(descriptor, base=position == 0) for position in range(16)]
        volume = VolumePoint(name="data", bytes=1 << 40, blocks=1 << 24, runs=runs)
        root = seal_root(
            RootBody(time=1, version="0.1.0", session=bytes(16), volumes=[volume]),
            domain=bytes(16),
            system=bytes(16),
            point=PointId(1, bytes(8)),
            recovery_key_id=bytes(8),
            certificate=1,
            listing_key=bytes(32),
            signer=lambda message: bytes(64),
        )
        assert pages < 56_000
        assert pages + len(root) < 80 << 10

    anyio.run(main)


def test_an_envelope_is_bound_to_its_run_and_must_hold_an_absolute_address() -> None:
    run = anyio.run(PageVault().write, chunk([1]))
    assert envelope_info(b"d" * 16, b"s" * 16, b"r" * 16) == b"forebay run v1\0" + b"d" * 16 + b"s" * 16 + b"r" * 16
    assert key_address("root/x", run.descriptor, run.key_address) == run.key_address
    relative = run.key_address[:48] + bytes(8) + run.key_address[56:]
    for wrong in (b"", run.key_address[:-1], relative):
        with pytest.raises(StoreCorrupt, match="root/x"):
            key_address("root/x", run.descriptor, wrong)
