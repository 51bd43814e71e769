"""Mirror files too large to be hashed may be damaged anywhere: what is asked of the index then must not fail."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import mirror as mirror_module
from engine.acks import PackAck
from engine.block import DELTA_FLAG, LENGTH_MASK, PLACE
from engine.fragment import encode_fragment, open_fragment
from engine.index import PackIndex
from engine.mirror import Mirror
from engine.names import FragmentName
from tests.engine.fakes_packs import ALICE, BOB, MemoryMirror, Team, ack, random_ids

TEAM = Team()


@pytest.fixture(autouse=True, scope="module")
def nothing_is_hashed() -> Iterator[None]:
    """Treat small files like large ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mirror_module, "CHECKED_BYTES_MAX", 0)
        yield


def delta_pack(writer: bytes, number: int, generator: np.random.Generator) -> PackAck:
    """Return a pack of twelve records, four of them deltas with sources in other packs."""
    names = [ack(writer, each, random_ids(generator, 1)).name for each in range(number + 2)]
    pack = ack(writer, number, random_ids(generator, 12), delta=[1, 4, 5, 9])
    sources = tuple((at, name) for at in (1, 4, 9) for name in names[-3:])
    return PackAck(pack.name, pack.ids, pack.offsets, pack.lengths, sources)


@cache
def files() -> dict[str, bytes]:
    """Return a mirror of fragments and merges, own and foreign."""
    generator = np.random.default_rng(1)
    folder = MemoryMirror()
    mirror = Mirror(folder, TEAM.keys, ALICE, views_max=3)
    mirror.load()
    for writer in (ALICE, BOB):
        for sequence in range(1, 9):
            name = FragmentName(writer, b"i" * 8, sequence)
            packs = [delta_pack(writer, 10 * sequence + each, generator) for each in range(2)]
            data = encode_fragment(name, packs, TEAM.keys, TEAM.signer(writer))
            mirror.add(data, open_fragment(name, data, TEAM.keys, TEAM))
            mirror.compact()
    return dict(folder.files)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_mirror_answers_something(data: st.DataObject) -> None:
    folder = MemoryMirror()
    folder.files = dict(files())
    for file in data.draw(st.lists(st.sampled_from(sorted(folder.files)), min_size=1, max_size=3)):
        content = bytearray(folder.files[file])
        at = data.draw(st.integers(80, len(content) - 1))
        stop = at + data.draw(st.integers(1, 40))
        content[at:stop] = bytes([data.draw(st.integers(0, 255))]) * len(content[at:stop])
        folder.files[file] = bytes(content)
    mirror = Mirror(folder, TEAM.keys, ALICE, views_max=3)
    mirror.load()
    ids = np.concatenate([np.stack(view.columns[:2], axis=1) for views in mirror.views() for view in views])
    keys = np.concatenate([view.keys for views in mirror.views() for view in views])
    for views_max in (3, 1):
        index = PackIndex()
        index.install(*mirror.views())
        index.add_pack(delta_pack(ALICE, 999, np.random.default_rng(2)))
        places = index.lookup(ids)
        index.delta_sources(ids, places)
        index.delta_sources(ids, np.resize(np.array([(7, 64, 100 | DELTA_FLAG)], PLACE), len(ids)))
        assert set(index.pack_names(places["pack"][places["length"] & LENGTH_MASK > 0])) <= set(
            index.pack_names(keys)
        ) | {ack(ALICE, 999, ids[:1]).name, None}
        index.own_packs(keys, ALICE)
        index.count_packs({ALICE, BOB})
        for ident in ids[::29]:
            index.all_places(ident.tobytes())
        for key in keys[::5].tolist():
            index.packs_of_key(key)
        index.bar(keys[::3].tolist(), [BOB])
        index.claim(ids)
        mirror.reconcile([name for name in mirror.held() if name.sequence != views_max], [ALICE, BOB])
        mirror.compact()
