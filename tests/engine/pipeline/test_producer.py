"""Candidates and producers against a model of a volume, its map and two stores that know what they hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.bits import masks_of, rows_of
from engine.block import BATCH_BLOCKS, BLOCK_BYTES, PLACE, Ids, Mask, Places, blocks_in, ref_of
from engine.pipeline.candidates import CandidatePlan, candidates, forced
from engine.pipeline.producer import CACHE_LANE, VAULT_LANE, Producer
from engine.pipeline.resolve import missing_from, resolve
from engine.seal import Codec, Sealer, open_whole
from engine.state import Head
from tests.fakes import MemoryVolume
from tests.fakes_state import MemoryVolumeState

SUBKEY = bytes(range(32))
CONTENTS = [bytes([n]) * BLOCK_BYTES for n in range(6)]  # 0 is the zero block


class Store:
    """What a store's index says: ids it has, ids somebody is already sending."""

    def __init__(self) -> None:
        self.has: dict[bytes, int] = {}
        self.claimed: set[bytes] = set()

    def lookup(self, ids: Ids) -> Places:
        places = np.zeros(len(ids), dtype=PLACE)
        for row in range(len(ids)):
            if (known := self.has.get(ids[row].tobytes())) is not None:
                places[row] = (7, known, 99)
        return places

    def delta_sources(self, ids: Ids, places: Places) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64], Mask]:
        return np.empty(0, np.intp), np.empty(0, np.uint64), np.ones(len(ids), np.bool_)

    def claim(self, ids: Ids) -> tuple[Places, Mask]:
        claimed = np.zeros(len(ids), dtype=np.bool_)
        for row in range(len(ids)):
            ident = ids[row].tobytes()
            if ident not in self.has and ident not in self.claimed:
                self.claimed.add(ident)
                claimed[row] = True
        return self.lookup(ids), claimed

    def receive(self, idents: list[bytes]) -> None:
        for ident in idents:
            assert ident not in self.has, "sent twice"
            self.has[ident] = 64 + len(self.has)
        self.claimed.clear()


class World:
    def __init__(self) -> None:
        self.volume = MemoryVolume("v", bytearray())
        self.state = MemoryVolumeState()
        self.vault, self.cache = Store(), Store()
        self.parent_bytes = 0
        self.missing_known = False

    def session(
        self, extents: list[tuple[int, int]] | None, cache: bool, unreadable: list[int] | None = None
    ) -> tuple[int, int]:
        """Back up once; return how many blocks each lane got."""
        producer = Producer(
            self.volume,
            self.state,
            Sealer(Codec.LZ4, SUBKEY),
            SUBKEY,
            self.vault,
            self.cache if cache else None,
            missing_unknown=not self.missing_known,
            skip_unreadable=False,
        )
        plan = CandidatePlan(
            volume_bytes=self.volume.size_bytes,
            parent_bytes=self.parent_bytes,
            extents=extents if self.state.head else None,
            missing_unknown=not self.missing_known,
            heal=cache,
            unreadable=unreadable or [],
        )
        parcels = [
            parcel
            for work in candidates(self.volume, self.state, plan)
            for parcel in producer.make([producer.look(work)]).parcels
        ]
        for parcel in parcels:
            content = next(c for c in self.contents() if ref_of(SUBKEY, c)[:16] == parcel.id)
            assert open_whole(ref_of(SUBKEY, content), parcel.record, SUBKEY, "parcel") == content
        to_vault = [parcel.id for parcel in parcels if parcel.lanes & VAULT_LANE]
        to_cache = [parcel.id for parcel in parcels if parcel.lanes & CACHE_LANE]
        self.vault.receive(to_vault)
        self.cache.receive(to_cache)
        resolved = resolve(self.state, self.vault)
        assert not resolved.pages.size
        self.commit(cache)
        return len(to_vault), len(to_cache)

    def contents(self) -> list[bytes]:
        data = bytes(self.volume.content)
        return [data[at : at + BLOCK_BYTES] for at in range(0, len(data), BLOCK_BYTES)]

    def commit(self, cache: bool) -> None:
        lacking = self.state.missing_pages(0, 1 << 20)
        if cache and not self.missing_known:
            lacking = self.state.used_pages(0, 1 << 20)
        pages = np.union1d(self.state.staged_pages(), lacking)
        missing_from(self.state, self.cache if cache else None, pages)
        self.missing_known = self.missing_known or cache
        size = self.volume.size_bytes
        head = Head(
            order=1, incarnation=bytes(8), root_hash=bytes(32), vault=bytes(16), cache=None, domain=bytes(16),
            volume_bytes=size, generation=None, point=b"", missing_known=self.missing_known,
        )  # fmt: skip
        self.state.apply(head)
        self.parent_bytes = size

    def check(self, cache_complete: bool) -> None:
        """The map is the volume; both stores hold what it names."""
        blocks = self.contents()
        pages = np.arange(-(-len(blocks) // BATCH_BLOCKS) + 1, dtype=np.int64)
        entries = self.state.read(pages).reshape(-1)
        for number, content in enumerate(blocks):
            expected = bytes(48) if not any(content) else ref_of(SUBKEY, content)
            assert entries[number]["ref"].tobytes() == expected
            if any(content):
                assert entries[number]["place"]["offset"] == self.vault.has[expected[:16]]
                assert not cache_complete or expected[:16] in self.cache.has
        assert not entries[len(blocks) :]["ref"].any()
        if cache_complete:
            assert not self.state.missing_pages(0, 1 << 20).size


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_history_of_sessions_keeps_map_and_stores_in_step(data: st.DataObject) -> None:
    world = World()
    changed: set[int] = set()
    for _ in range(data.draw(st.integers(1, 5))):
        size = data.draw(st.integers(0, 150))
        tail = data.draw(st.sampled_from([0, 0, 1, 4095, 65535]))
        old = bytes(world.volume.content)
        content = bytearray(old[: size * BLOCK_BYTES + tail].ljust(size * BLOCK_BYTES + tail, b"\0"))
        changed = set()
        for number in data.draw(st.lists(st.integers(0, max(size - 1, 0)), max_size=20)) if size else []:
            content[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES] = data.draw(st.sampled_from(CONTENTS))
            changed.add(number)
        world.volume.content = content
        hints = data.draw(st.booleans())
        extents = [(number * BLOCK_BYTES + 5, 17) for number in sorted(changed)]
        before_vault, before_cache = set(world.vault.has), set(world.cache.has)
        with_cache = data.draw(st.booleans())
        world.session(extents if hints else None, with_cache)
        needed = {ref_of(SUBKEY, block)[:16] for block in world.contents() if any(block)}
        # Each store got exactly what it lacked of what was asked about; the vault is always complete.
        assert set(world.vault.has) == before_vault | needed
        if with_cache:
            assert set(world.cache.has) == before_cache | needed
        world.check(cache_complete=with_cache)


def test_what_a_cache_missed_goes_there_once_it_is_back_and_to_nobody_twice() -> None:
    world = World()
    world.volume.content = bytearray(CONTENTS[1] + CONTENTS[2])
    assert world.session(None, cache=False) == (2, 0)
    assert world.session(None, cache=True) == (0, 2)
    world.volume.content[:BLOCK_BYTES] = CONTENTS[3]
    assert world.session(None, cache=False) == (1, 0)
    assert world.session(None, cache=True) == (0, 1)
    world.check(cache_complete=True)


def test_holes_are_not_read_and_pages_of_nothing_are_not_visited() -> None:
    world = World()
    blocks = 1000
    world.volume.content = bytearray(blocks * BLOCK_BYTES)
    world.volume.content[500 * BLOCK_BYTES : 501 * BLOCK_BYTES] = CONTENTS[1]
    world.volume.extents = [(500 * BLOCK_BYTES, BLOCK_BYTES)]
    assert world.session(None, cache=True) == (1, 1)
    assert world.volume.reads == [(500 * BLOCK_BYTES, BLOCK_BYTES)]
    world.volume.content[500 * BLOCK_BYTES : 501 * BLOCK_BYTES] = CONTENTS[0]
    world.volume.extents, world.volume.reads = [], []
    assert world.session(None, cache=True) == (0, 0)
    assert world.volume.reads == []
    world.check(cache_complete=True)


def test_a_batch_whose_buffer_held_another_does_not_see_it() -> None:
    world = World()
    world.volume.content = bytearray(CONTENTS[3] * 64 + bytes(100))
    world.session(None, cache=False)
    world.check(cache_complete=False)


def test_forced_blocks_are_asked_about_again() -> None:
    world = World()
    world.volume.content = bytearray(CONTENTS[1] + CONTENTS[2])
    world.session(None, cache=True)
    gone = ref_of(SUBKEY, CONTENTS[2])[:16]
    del world.vault.has[gone]
    producer = Producer(
        world.volume, world.state, Sealer(Codec.NONE, SUBKEY), SUBKEY, world.vault, world.cache,
        missing_unknown=False, skip_unreadable=False,
    )  # fmt: skip
    rows = np.zeros((1, BATCH_BLOCKS), dtype=np.bool_)
    rows[0, :2] = True
    batches = [producer.make([producer.look(work)]) for work in forced(np.array([0], dtype=np.int64), masks_of(rows))]
    assert [(p.id, p.lanes) for batch in batches for p in batch.parcels] == [(gone, VAULT_LANE)]
    world.vault.receive([gone])
    assert not resolve(world.state, world.vault).pages.size
    assert int(rows_of(world.state.read_staged(np.array([0], dtype=np.int64))[0]).sum()) == 2


def test_candidates_by_hints_are_hints_edges_missing_and_unreadable_blocks() -> None:
    world = World()
    world.volume.content = bytearray(b"".join(CONTENTS[1 + n % 5] for n in range(300)))
    world.session(None, cache=True)
    world.state.lacking = {2: 1 << 5}
    world.volume.content += CONTENTS[5][:100]
    plan = CandidatePlan(
        volume_bytes=world.volume.size_bytes,
        parent_bytes=world.parent_bytes,
        extents=[(10, 1), (70 * BLOCK_BYTES - 1, 2)],
        heal=True,
        unreadable=[250],
    )
    seen = {
        int(page) * BATCH_BLOCKS + bit
        for work in candidates(world.volume, world.state, plan)
        for page, row in zip(work.pages, rows_of(work.read | work.zero), strict=True)
        for bit in np.flatnonzero(row).tolist()
    }
    assert seen == {0, 69, 70, 2 * BATCH_BLOCKS + 5, 250, 300}
    assert blocks_in(world.volume.size_bytes) == 301


@pytest.mark.parametrize(
    ("changed", "sample", "untold"),
    [
        ([70], [1, 70, 250], 70),
        ([1, 70], [1, 70, 250], 1),
        ([5], [1, 70, 250], None),  # nobody asks about it
        ([70], [], None),
        ([130], [130], None),  # hinted as well: a candidate
    ],
)
@pytest.mark.parametrize("hole", [False, True])
def test_a_block_of_the_sample_that_differs_is_told_and_saved(
    changed: list[int], sample: list[int], untold: int | None, hole: bool
) -> None:
    world = World()
    world.volume.content = bytearray(b"".join(CONTENTS[1 + n % 5] for n in range(300)))
    world.session(None, cache=False)
    for block in changed:
        content = bytes(BLOCK_BYTES) if hole else bytes([99]) * BLOCK_BYTES
        world.volume.content[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = content
    if hole:
        ends = [*changed, 300]
        starts = [0, *[block + 1 for block in changed]]
        world.volume.extents = [
            (a * BLOCK_BYTES, (b - a) * BLOCK_BYTES) for a, b in zip(starts, ends, strict=True) if a < b
        ]
    plan = CandidatePlan(
        volume_bytes=world.volume.size_bytes,
        parent_bytes=world.volume.size_bytes,
        extents=[(128 * BLOCK_BYTES, 3 * BLOCK_BYTES)],
        sample=np.array(sample, dtype=np.int64),
    )
    producer = Producer(
        world.volume, world.state, Sealer(Codec.NONE, SUBKEY), SUBKEY, world.vault, None,
        missing_unknown=False, skip_unreadable=False,
    )  # fmt: skip
    batches = [producer.make([producer.look(work)]) for work in candidates(world.volume, world.state, plan)]
    assert min((batch.untold for batch in batches if batch.untold is not None), default=None) == untold
    assert sum(batch.counts.candidates for batch in batches) == 3
    seen = set(changed) & {*sample, 128, 129, 130}
    assert sum(batch.counts.changed for batch in batches) == len(seen)
