"""Opening what is read: which records are opened, which turn out bad, and how much is held meanwhile."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapters.state.directory import StateDirectory
from engine.block import BLOCK_BYTES, ref_of
from engine.cache.comparison import Stopped
from engine.cache.deep import check_whole
from engine.cache.seals import Seals, in_groups
from engine.errors import StoreCorrupt
from engine.pack import FinishedPack
from engine.seal import Codec, Sealer
from engine.state import ENTRY, Head, StateStore
from engine.view import view_of_pack
from tests.engine.fakes_packs import ALICE, BOB, Team

TEAM = Team()
BLOCKS = [random.Random(number).randbytes(BLOCK_BYTES) for number in range(8)]


def known_to(state: StateStore, blocks: list[bytes]) -> None:
    """Let the map of a volume have these blocks, far apart, and no others."""
    volume = state.volume("data")
    for number, content in enumerate(blocks):
        entries = np.zeros(64, ENTRY)
        entries[5]["ref"] = np.frombuffer(ref_of(TEAM.keys.blocks, content), np.uint8)
        entries[5]["place"] = (1, 64, 5000)
        volume.stage(number * 700, 1 << 5, entries)
    volume.sync_staged()
    volume.apply(
        Head(
            order=1,
            incarnation=state.incarnation,
            root_hash=bytes(32),
            vault=bytes(16),
            domain=bytes(16),
            volume_bytes=len(blocks) * 700 * 64 * BLOCK_BYTES,
            generation=None,
            point=b"",
            cache=None,
            missing_known=False,
        )
    )


def seals_of(state: StateStore, *packs: FinishedPack, stopping: Any = lambda: False) -> Seals:
    found = Seals([state.volume("data")], TEAM.keys.blocks, stopping)
    found.gather(np.concatenate([pack.ids for pack in packs]))
    return found


@pytest.fixture
def state(tmp_path: Path) -> Any:
    with StateDirectory.open(tmp_path / "state") as state:
        yield state


def lying(claimed: bytes, content: bytes) -> FinishedPack:
    """Return a sound pack of a system that seals other content under the id of a block."""
    builder = TEAM.builder(BOB)
    record = bytearray(Sealer(Codec.NONE, TEAM.keys.blocks).seal(ref_of(TEAM.keys.blocks, content), content))
    record[:16] = ref_of(TEAM.keys.blocks, claimed)[:16]
    builder.add(bytes(record))
    return builder.finish()


def test_of_a_sound_pack_everything_opens(state: StateStore) -> None:
    known_to(state, BLOCKS[:5])
    pack = TEAM.pack(BLOCKS)
    seals = seals_of(state, pack)
    check_whole(pack.name, pack.data, seals)
    stopped = Seals([state.volume("data")], TEAM.keys.blocks, lambda: True)
    with pytest.raises(Stopped):
        stopped.gather(pack.ids)


def test_a_pack_whose_bytes_are_those_that_were_written_and_no_block_is_damaged(state: StateStore) -> None:
    known_to(state, BLOCKS[:2])
    pack = lying(BLOCKS[1], BLOCKS[7])
    with pytest.raises(StoreCorrupt) as caught:
        check_whole(pack.name, pack.data, seals_of(state, pack))
    assert caught.value.name == str(pack.name)
    length = int(pack.lengths[0])
    assert f"1 of 1 records in it that this system has the keys of do not open, {length} bytes" in caught.value.reason
    # Whoever has no key of it cannot tell.
    check_whole(pack.name, pack.data, Seals([], TEAM.keys.blocks))


def test_it_is_said_how_much_of_a_damaged_pack_is_bad_and_where(state: StateStore) -> None:
    known_to(state, BLOCKS[:6])
    pack = TEAM.pack(BLOCKS, ALICE)
    data = bytearray(pack.data)
    hurt = [int(pack.offsets[at]) for at in (1, 4)]
    for offset in (*hurt, int(pack.offsets[7])):  # of the last one no key is known
        data[offset + 100] ^= 1
    with pytest.raises(StoreCorrupt) as caught:
        check_whole(pack.name, bytes(data), seals_of(state, pack))
    bad = int(pack.lengths[1] + pack.lengths[4])
    assert "2 of 6 records" in caught.value.reason
    assert f"{bad} bytes, at offset {hurt[0]}, {hurt[1]}" in caught.value.reason
    # Without its footer nobody knows where they are; the pack is as damaged.
    with pytest.raises(StoreCorrupt) as caught:
        check_whole(pack.name, bytes(data[:-1]) + b"x", seals_of(state, pack))
    assert "records" not in caught.value.reason


def test_packs_are_taken_together_until_they_have_so_many_records() -> None:
    packs = [TEAM.pack(BLOCKS[:count], writer) for count, writer in ((3, ALICE), (1, BOB), (4, ALICE), (2, BOB))]
    views = [view_of_pack(pack) for pack in packs]
    order = np.array([packs[at].name.key for at in (2, 0, 3, 1)], np.uint64)
    groups = list(in_groups(views, order, at_once=5))
    assert [keys.tolist() for keys, _ in groups] == [order[:1].tolist(), order[1:3].tolist(), order[3:].tolist()]
    for keys, ids in groups:
        listed = {row.tobytes() for pack in packs if pack.name.key in keys.tolist() for row in pack.ids}
        assert {row.tobytes() for row in ids} == listed
    # One that has more than that alone, and one that no index knows.
    unknown = np.array([*order.tolist(), 7], np.uint64)
    groups = list(in_groups(views, unknown, at_once=1))
    assert [len(keys) for keys, _ in groups[:3]] == [1, 1, 1]
    assert sum(len(keys) for keys, _ in groups) == 5
    assert list(in_groups(views, order[:0])) == []
