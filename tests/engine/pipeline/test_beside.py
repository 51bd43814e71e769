"""What a session into the spool relies on in the vault: what the maps name, what their deltas lean on, what it sent."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from adapters.state.directory import StateDirectory
from engine.acks import PackAck
from engine.block import DELTA_FLAG, PLACE, ids_of
from engine.fragment import encode_fragment, open_fragment
from engine.index import PackIndex
from engine.mirror import Mirror
from engine.names import FragmentName
from engine.pipeline.beside import lie_beside
from engine.state import ENTRY, Head
from engine.viewset import Beside
from tests.engine.fakes_packs import ALICE, BOB, Team, ack, ids, random_ids
from tests.fakes_state import MemoryVolumeState

TEAM = Team()
VAULT = b"v" * 16
HEAD = Head(
    order=1,
    incarnation=bytes(8),
    root_hash=bytes(32),
    vault=VAULT,
    cache=None,
    domain=bytes(16),
    volume_bytes=1 << 22,
    generation=None,
    point=b"",
    missing_known=True,
)


class Local:
    """Local state that knows packs of the vault, and a map that names some of them."""

    def __init__(self, state: StateDirectory) -> None:
        self.state, self.volume = state, MemoryVolumeState()
        self.volume.head = HEAD
        self._fragments = 0

    def listed(self, pack: PackAck) -> PackAck:
        """Have the local mirror of the vault's index list a pack."""
        self._fragments += 1
        name = FragmentName(pack.name.writer, b"i" * 8, self._fragments)
        data = encode_fragment(name, [pack], TEAM.keys, TEAM.signer(pack.name.writer))
        mirror = Mirror(self.state.mirror(VAULT), TEAM.keys, ALICE)
        mirror.load()
        mirror.add(data, open_fragment(name, data, TEAM.keys, TEAM))
        return pack

    def map(self, pack: PackAck, row: int, block: int) -> None:
        """Have the map name a record of a pack."""
        page = self.volume.map.setdefault(0, np.zeros(64, ENTRY))
        page[block]["ref"][:16] = np.frombuffer(pack.ids[row].tobytes(), np.uint8)
        page[block]["ref"][16:] = 1
        page[block]["place"] = (pack.name.key, pack.offsets[row], pack.lengths[row])

    def beside(self, *sent: int) -> Beside:
        return lie_beside(self.state, VAULT, TEAM.keys, ALICE, [self.volume], (), sent)

    def found(self, pack: PackAck, *sent: int) -> bool:
        """Tell whether a session that sent `sent` finds all records of a pack."""
        beside = self.beside(*sent)
        index = PackIndex()
        index.install(beside.own, beside.foreign)
        hits = index.lookup(pack.ids)["length"] > 0
        assert hits.all() == hits.any()
        assert bool(hits.all()) == (pack.name.key in beside.keys)
        return bool(hits.all())


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    with StateDirectory.open(tmp_path / "state") as state:
        yield Local(state)


def a_pack(number: int, writer: bytes = ALICE, **more: object) -> PackAck:
    return ack(writer, number, random_ids(np.random.default_rng(number), 5), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("writer", [ALICE, BOB])
def test_packs_the_map_names_are_relied_on_and_no_others(local: Local, writer: bytes) -> None:
    named, other = local.listed(a_pack(1, writer)), local.listed(a_pack(2, writer))
    local.map(named, 2, 7)
    assert local.found(named)
    assert not local.found(other)


def test_without_a_map_nothing_is_relied_on(local: Local) -> None:
    pack = local.listed(a_pack(1))
    local.map(pack, 0, 0)
    local.volume.head = None
    assert not local.found(pack)
    assert local.beside().keys.size == 0


def test_what_the_session_sent_before_it_lost_the_vault_is_relied_on(local: Local) -> None:
    sent, other = a_pack(1), a_pack(2)
    for pack in (sent, other):
        local.state.acks(VAULT).append(pack.encode())
    assert local.found(sent, sent.name.key)
    assert not local.found(other, sent.name.key)


def test_acknowledged_packs_that_no_fragment_lists_yet_count_if_the_map_names_them(local: Local) -> None:
    mine, foreign = a_pack(1), a_pack(2, BOB)
    for number, pack in enumerate((mine, foreign)):
        local.state.acks(VAULT).append(pack.encode())
        local.map(pack, 0, number)
    assert local.found(mine)
    beside = local.beside()
    assert not any(view.lists_packs(np.array([foreign.name.key], np.uint64)).any() for view in beside.own)


def test_packs_that_sources_of_deltas_lie_in_are_relied_on(local: Local) -> None:
    source, unrelated = local.listed(a_pack(1)), local.listed(a_pack(2))
    made = a_pack(3, delta=[1])
    delta = local.listed(PackAck(made.name, made.ids, made.offsets, made.lengths, ((1, source.name),)))
    local.map(delta, 1, 4)
    assert int(delta.lengths[1]) & DELTA_FLAG
    assert local.found(source)
    assert not local.found(unrelated)


def test_zero_blocks_name_nothing(local: Local) -> None:
    pack = local.listed(a_pack(1))
    local.map(pack, 0, 3)
    local.volume.map[0][3]["ref"] = 0
    assert not local.found(pack)


def test_a_record_is_found_where_it_lies(local: Local) -> None:
    contents = [secrets.token_bytes(4096) for _ in range(3)]
    finished = TEAM.pack(contents)
    pack = local.listed(PackAck.of(finished))
    for row in range(3):
        local.map(pack, row, row)
    beside = local.beside()
    index = PackIndex()
    index.install(beside.own, beside.foreign)
    places = index.lookup(ids(contents, TEAM))
    expected = np.array([(pack.name.key, pack.offsets[row], pack.lengths[row]) for row in range(3)], PLACE)
    assert (places == expected).all()
    assert (ids_of(local.volume.map[0]["ref"][:3]) == pack.ids).all()
