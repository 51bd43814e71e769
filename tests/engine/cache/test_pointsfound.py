"""What is remembered of runs that were found in a cache: it counts as long as their packs do, and no longer."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engine.acks import PackAck
from engine.block import PLACE, Ids
from engine.cache import pointsfound
from engine.cache.pointsfound import LACKING_MAX, PointsFound, Stretch
from engine.index import PackIndex
from engine.page import BLOCKS_MAX
from engine.staterecords import FoundRuns, FoundStretch
from tests.engine.fakes_packs import ALICE, ack, random_ids

RUN, OTHER = b"r" * 16, b"o" * 16
ALL = (0, BLOCKS_MAX)
IDS = [random_ids(np.random.default_rng(seed), 50) for seed in range(4)]
PACKS = [ack(ALICE, seed, ids) for seed, ids in enumerate(IDS)]


def holding(*packs: PackAck) -> PackIndex:
    index = PackIndex()
    for pack in packs:
        index.add_pack(pack)
    return index


def stretch_of(found: PointsFound, first: int, stop: int, ids: Ids) -> Stretch:
    """Return what going through a stretch of a run gives that names these ids, from block `first` on."""
    blocks = np.arange(first, first + len(ids), dtype=np.uint64)
    packs, lacks, sure = found.look(ids)
    assert sure
    return Stretch(first, stop, packs, blocks[lacks], ids[lacks], np.zeros(len(ids), PLACE)[lacks])


def again(found: PointsFound, index: PackIndex, *runs: bytes) -> PointsFound:
    """Return what the next verification starts from."""
    noted = found.noted()
    assert noted is not None
    other = PointsFound(index, msgspec.msgpack.decode(msgspec.msgpack.encode(noted), type=FoundRuns), runs)
    other.check()
    return other


def test_a_run_that_was_found_is_not_gone_through_again_until_one_of_its_packs_is_relied_on_no_more() -> None:
    found = PointsFound(holding(*PACKS), FoundRuns(), [RUN, OTHER])
    assert found.unknown(RUN) == [ALL]
    assert found.noted() is None
    found.note(RUN, stretch_of(found, 0, 1000, np.concatenate(IDS[:2])))
    found.note(RUN, stretch_of(found, 1000, BLOCKS_MAX, IDS[2]))
    found.note(OTHER, stretch_of(found, 0, BLOCKS_MAX, IDS[3]))
    same = again(found, holding(*PACKS), RUN, OTHER)
    assert (same.unknown(RUN), same.unknown(OTHER), same.noted()) == ([], [], None)
    trimmed = again(found, holding(*PACKS[1:]), RUN, OTHER)
    assert (trimmed.unknown(RUN), trimmed.unknown(OTHER)) == ([(0, 1000)], [])
    index = holding(*PACKS)
    index.bar([PACKS[2].name.key])  # gone, or damaged
    barred = again(found, index, RUN, OTHER)
    assert (barred.unknown(RUN), barred.unknown(OTHER)) == ([(1000, BLOCKS_MAX)], [])
    # Of runs no point lists any more nothing is kept.
    noted = again(found, holding(*PACKS), RUN).noted()
    assert noted is not None
    assert noted.runs.keys() == {RUN}


def test_what_lacked_is_looked_up_again_and_nothing_else() -> None:
    found = PointsFound(holding(PACKS[0]), FoundRuns(), [RUN])
    found.note(RUN, stretch_of(found, 0, BLOCKS_MAX, np.concatenate(IDS[:3])))
    found = again(found, holding(*PACKS[:2]), RUN)
    (known,) = found.known(RUN)
    assert known.blocks.tolist() == list(range(100, 150))
    assert (known.ids == IDS[2]).all()
    # What came since counts on its pack from now on.
    assert again(found, holding(*PACKS[:2]), RUN).unknown(RUN) == []
    assert again(found, holding(PACKS[0]), RUN).unknown(RUN) == [ALL]


def test_a_delta_counts_as_long_as_the_packs_of_its_sources_do() -> None:
    source = PACKS[0]
    delta = msgspec.structs.replace(ack(ALICE, 9, IDS[1], delta=[0]), sources=((0, source.name),))
    found = PointsFound(holding(source, delta), FoundRuns(), [RUN])
    found.note(RUN, stretch_of(found, 0, BLOCKS_MAX, IDS[1]))
    assert again(found, holding(source, delta), RUN).unknown(RUN) == []
    index = holding(source, delta)
    index.bar([source.name.key])
    assert again(found, index, RUN).unknown(RUN) == [ALL]


def test_what_is_noted_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = PointsFound(holding(*PACKS), FoundRuns(), [RUN, OTHER])
    strange = random_ids(np.random.default_rng(7), LACKING_MAX + 1)
    found.note(RUN, stretch_of(found, 0, BLOCKS_MAX, strange))
    assert found.unknown(RUN) == [ALL]
    found.note(RUN, stretch_of(found, 0, BLOCKS_MAX, strange[:-1]))
    assert found.unknown(RUN) == []
    monkeypatch.setattr(pointsfound, "NOTED_BYTES_MAX", found.known(RUN)[0].noted_bytes)
    found.note(OTHER, stretch_of(found, 0, BLOCKS_MAX, IDS[0]))
    assert found.unknown(OTHER) == [ALL]
    found.forget(RUN)
    found.note(OTHER, stretch_of(found, 0, BLOCKS_MAX, IDS[0]))
    assert found.unknown(OTHER) == []


@pytest.mark.parametrize(
    "wrong",
    [
        FoundStretch(5, 5, b"", b"", b"", b""),
        FoundStretch(-1, 5, b"", b"", b"", b""),
        FoundStretch(0, BLOCKS_MAX + 1, b"", b"", b"", b""),
        FoundStretch(0, 5, b"x", b"", b"", b""),
        FoundStretch(0, 5, b"", bytes(8), b"", bytes(16)),
        FoundStretch(0, 5, b"", bytes(7), bytes(16), bytes(16)),
    ],
)
def test_what_makes_no_sense_is_gone_through_again(wrong: FoundStretch) -> None:
    assert PointsFound(holding(), FoundRuns({RUN: [wrong]}), [RUN]).unknown(RUN) == [ALL]
    good = FoundStretch(0, 10, b"", b"", b"", b"")
    assert PointsFound(holding(), FoundRuns({RUN: [good, good]}), [RUN]).unknown(RUN) == [(10, BLOCKS_MAX)]
