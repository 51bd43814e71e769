"""Records with known parts, staged in volume states, and the truth that what is found must match or leave out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from adapters.state.files import Disk
from adapters.state.maps import VolumeMap
from engine.block import DELTA_FLAG, PLACE
from engine.parts import ORIGINS, PART_ENTRY, Origins, PartEntries
from engine.state import ENTRY, Entries, Masks, Pages, VolumeState
from tests.adapters.state.fakes_disk import WHOLE, head_of
from tests.fakes_state import MemoryVolumeState

PAGES = 10
BLOCKS = PAGES * 64
EVERY = np.arange(PAGES, dtype=np.int64)
KINDS = ("whole", "delta", "zero", "mistaken", "unknown")


class Truth:
    """Every record ever made: by its place, the entry and the origins that belong to it."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.records: dict[bytes, tuple[bytes, bytes]] = {}

    def page(self, kinds: Sequence[str]) -> tuple[Entries, int, PartEntries, Origins]:
        """Return map entries of 64 blocks, and the mask, part entries and origins that are to be staged with them.

        Kinds: a whole record, a delta, a zero block, a record of which only the parts of a delta are known that did not
        become the block's record, one of unknown parts.
        """
        entries = np.frombuffer(self.random.bytes(64 * ENTRY.itemsize), ENTRY).copy()
        parts = np.frombuffer(self.random.bytes(64 * PART_ENTRY.itemsize), PART_ENTRY).copy()
        origins = np.frombuffer(self.random.bytes(64 * ORIGINS.itemsize), ORIGINS).copy()
        parts["place"] = np.zeros((), PLACE)
        lengths = self.random.integers(1000, 60000, 64)
        delta, zero, mistaken, unknown = (np.array([kind == each for kind in kinds]) for each in KINDS[1:])
        entries["place"]["length"] = np.where(delta, lengths | DELTA_FLAG, lengths)
        entries[zero] = np.zeros((), ENTRY)
        parts["place"]["length"] = np.where(delta | mistaken, lengths | DELTA_FLAG, 0)
        origins["sources"]["place"]["length"][:, 0] |= 1
        origins[~(delta | mistaken)] = np.zeros((), ORIGINS)
        final = parts.copy()
        final["place"] = entries["place"]
        made = ~(zero | mistaken | unknown)
        self.records.update(
            zip(_rows(final["place"][made]), zip(_rows(final[made]), _rows(origins[made]), strict=True), strict=True)
        )
        mask = sum(1 << bit for bit in np.flatnonzero(~unknown).tolist())
        return entries, mask, parts, origins

    def check(self, volume: VolumeState, pages: Pages) -> int:
        """Compare what is known with the truth: it is that of the block's record, or nothing; return how many are."""
        entries, origins = volume.parts(pages)
        places = volume.read(pages)["place"]
        known = entries["place"]["length"] != 0
        assert (entries["place"][known] == places[known]).all()
        assert not entries[~known].view(np.uint8).any()
        assert not origins[~known].view(np.uint8).any()
        found = zip(*(_rows(array[known]) for array in (places, entries, origins)), strict=True)
        for place, entry, origin in found:
            assert (entry, origin) == self.records[place]
        return int(known.sum())


def _rows(array: npt.NDArray[np.void]) -> list[bytes]:
    data, size = array.tobytes(), array.dtype.itemsize
    return [data[at : at + size] for at in range(0, len(data), size)]


def staged_parts(volume: VolumeState, pages: Pages) -> tuple[Masks, PartEntries, Origins]:
    """Return masks, entries and origins staged for `pages`; outside the masks they are undefined."""
    if isinstance(volume, MemoryVolumeState):
        return volume.read_staged_parts(pages)
    assert isinstance(volume, VolumeMap)
    return volume._parts.read_staged(pages)


def stage_page(volumes: Sequence[VolumeState], truth: Truth, page: int, kinds: Sequence[str], mask: int) -> None:
    """Stage the blocks of a page that `mask` names, with their parts, in each of `volumes`.

    Of a block whose parts are staged already, nobody may stage another record without saying what is known of it.
    """
    (told,) = staged_parts(volumes[0], np.array([page]))[0].tolist()
    kinds = ["mistaken" if kind == "unknown" and told >> bit & 1 else kind for bit, kind in enumerate(kinds)]
    entries, known, parts, origins = truth.page(kinds)
    for volume in volumes:
        volume.stage(page, mask, entries)
        volume.stage_parts(page, mask & known, parts, origins if {"delta", "mistaken"} & set(kinds) else None)


def stage_some(volumes: Sequence[VolumeState], truth: Truth, chance: random.Random, pages: int, count: int) -> None:
    """Stage `count` changes of random pages and kinds in each of `volumes`."""
    for _ in range(count):
        some = chance.sample(KINDS, chance.randint(1, len(KINDS)))
        mask = chance.choice((WHOLE, chance.getrandbits(64), 1 << chance.randrange(64)))
        stage_page(volumes, truth, chance.randrange(pages), chance.choices(some, k=64), mask)


def opened(folder: Path, disk: Disk | None = None, keep_sealed: bool = True) -> VolumeMap:
    """Open a volume for a session."""
    return VolumeMap(folder, disk or Disk(), writable=True, keep_sealed=keep_sealed)


def committed(folder: Path, truth: Truth, pages: dict[int, str], blocks: int = BLOCKS) -> VolumeMap:
    """Return a volume of `pages`, each of one kind of blocks."""
    volume = opened(folder)
    for page, kind in pages.items():
        stage_page([volume], truth, page, [kind] * 64, WHOLE)
    commit(volume, 1, blocks)
    return volume


def commit(volume: VolumeMap, order: int, blocks: int = BLOCKS) -> None:
    """Seal and apply what is staged."""
    volume.sync_staged()
    volume.apply(head_of(order, blocks))
