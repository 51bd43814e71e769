"""What a session that writes to the spool may rely on in the vault, without asking the vault (DESIGN.md §5).

Relied on are the packs the map refers to, and those that hold the sources of its deltas: the last published point
lists them all, and so does every point in the spool. What else the local mirror of the vault's index knows may be gone
by the time the point is uploaded; only packs this session itself has sent there are relied on as well (`resume`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from engine.acks import decode_log
from engine.bits import any_along
from engine.block import DELTA_FLAG, ids_of
from engine.distinct import distinct
from engine.errors import StateCorrupt
from engine.index import PackIndex
from engine.mirror import Mirror
from engine.names import PackName
from engine.pipeline.resolve import CHUNK_PAGES, EVERY_PAGE
from engine.pipeline.setup import SessionSetup
from engine.spool import Published
from engine.state import StateStore, VolumeState
from engine.subkeys import DomainKeys
from engine.view import View, join_views, view_of_pack
from engine.viewset import Beside

_JOINED_MAX: Final = 1024  # packs of the ack log that are made one view at a time


def lie_beside(
    state: StateStore,
    vault: bytes,
    keys: DomainKeys,
    writer: bytes,
    volumes: Sequence[VolumeState],
    spooled: Sequence[View],
    sent: Iterable[int] = (),
) -> Beside:
    """Return what of the vault with this id may be relied on (*sync*).

    `volumes`: whose maps name it; `spooled`: views of the spool's index, which know the sources of the deltas there;
    `sent`: keys of packs this session had acknowledged by the vault. Raises: StateCorrupt.
    """
    own, foreign = _known(state, vault, keys, writer)
    relied_on = distinct(_relied_on(volumes, [*spooled, *own]), np.array(sorted(sent), np.uint64))
    for view in (*own, *foreign):
        view.bar_packs(view.keys[~np.isin(view.keys, relied_on)])
    return Beside(relied_on, tuple(own), tuple(foreign))


def published(setup: SessionSetup) -> Published:
    """Return what tells (*sync*) whether all these packs of this system are known to have got to the vault."""
    identity = setup.identity

    def known(packs: Sequence[PackName]) -> bool:
        wanted = np.array([name.key for name in packs], np.uint64)
        try:
            own, _ = _known(setup.state, identity.vault, identity.keys, identity.system)
        except StateCorrupt:
            return False
        listed = [view.lists_packs(wanted) for view in own]
        return bool(np.any([np.zeros(len(wanted), np.bool_), *listed], axis=0).all())

    return known


def _known(state: StateStore, vault: bytes, keys: DomainKeys, writer: bytes) -> tuple[list[View], Sequence[View]]:
    """Return views of what is known of the vault's index, with what it acknowledged since: own and foreign ones."""
    mirror = Mirror(state.mirror(vault), keys, writer)
    mirror.load()
    own, foreign = mirror.views()
    durable, volatile = decode_log(state.acks(vault).read())
    packs = [view_of_pack(ack) for ack in (*durable, *volatile) if ack.name.writer == writer]
    own += [join_views(packs[start : start + _JOINED_MAX]) for start in range(0, len(packs), _JOINED_MAX)]
    return own, foreign


def _relied_on(volumes: Sequence[VolumeState], own: Sequence[View]) -> npt.NDArray[np.uint64]:
    """Return the keys of the packs the maps refer to, of their deltas' sources too, ascending."""
    index = PackIndex()
    index.install(own, ())
    keys = np.empty(0, np.uint64)
    for state in volumes:
        used = state.used_pages(0, EVERY_PAGE) if state.head is not None else np.empty(0, np.int64)
        for start in range(0, len(used), CHUNK_PAGES):
            entries = state.read(used[start : start + CHUNK_PAGES])
            chosen = entries[any_along(entries["ref"])]
            deltas = chosen[(chosen["place"]["length"] & np.uint32(DELTA_FLAG)) > 0]
            _, sources, _ = index.delta_sources(ids_of(deltas["ref"]), deltas["place"])
            keys = distinct(keys, np.ascontiguousarray(chosen["place"]["pack"]), sources)
    return keys
