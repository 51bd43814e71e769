"""Producers: one hop to a worker thread reads, tests for zero, hashes, compares and seals a whole batch.

Rules:
- A block is read once. Its ref is compared with the map; what differs is *changed* and is staged under its
  block number at once, whether it has to travel or not.
- Vault and cache are asked independently: the vault about changed blocks (and those it is to be asked about
  again), the cache about changed blocks and those it is known to lack.
- Asking is claiming: of all batches that meet the same content, also in other volumes, exactly one gets the
  claim of a store, seals the block and puts it into the transmission queue for that store's lane. The same
  sealed bytes go to both lanes where both claimed, but for a block of which only parts changed: the vault gets a
  delta then (shaping.py), the cache the whole block.
- A place that is not known yet (the block is still on its way) stays zero here; the commit fills it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from engine.bits import any_along, masks_of, rows_of
from engine.block import (
    BATCH_BLOCKS,
    BLOCK_BYTES,
    ID_BYTES,
    Bytes,
    Ids,
    Mask,
    Places,
    Refs,
    ids_of,
)
from engine.deltawriter import DeltaRecord
from engine.names import PackName
from engine.pipeline.candidates import Work
from engine.pipeline.reading import BlockReader, Read
from engine.pipeline.report import Counts
from engine.pipeline.shaping import Shaped, Shaper, SourceSample
from engine.ports import VolumeReader
from engine.seal import Sealer
from engine.state import ENTRY, Entries, VolumeState

VAULT_LANE: Final = 1
CACHE_LANE: Final = 2
Lanes: TypeAlias = npt.NDArray[np.uint8]

CHECK_EVERY: Final = 64  # one sealed block in 64 is opened again before it travels


class Claims(Protocol):
    """The half of a store's index a producer sees."""

    def claim(self, ids: Ids) -> tuple[Places, Mask]:
        """Return known places (length 0: none) and which ids the caller now has to send."""
        ...


@dataclass(slots=True)
class Parcel:
    """One sealed record on its way: `lanes` is the bit set of lanes that have to take it.

    `packs`: of a delta, those its sources lie in.
    """

    id: bytes
    record: Bytes
    lanes: int
    packs: tuple[PackName, ...] = ()


@dataclass(slots=True)
class Batch:
    """What one hop made: parcels for the queue, sums, and unreadable (offset, length) ranges in bytes."""

    parcels: list[Parcel]
    counts: Counts
    unreadable: list[tuple[int, int]] = field(default_factory=list)


class Producer:
    """Makes batches of one volume. `make` runs in worker threads, several at once for different pages."""

    def __init__(
        self,
        reader: VolumeReader,
        state: VolumeState,
        sealer: Sealer,
        blocks_subkey: bytes,
        vault: Claims,
        cache: Claims | None,
        *,
        missing_unknown: bool,
        skip_unreadable: bool,
        paranoid: bool = False,
        shaper: Shaper | None = None,
    ) -> None:
        self.reader, self.state = reader, state
        self._sealer, self._shaper = sealer, shaper
        self._vault, self._cache = vault, cache
        self._missing_unknown, self._paranoid = missing_unknown, paranoid
        self._blocks = BlockReader(reader, blocks_subkey, skip_unreadable=skip_unreadable)
        self._volume_bytes = reader.size_bytes

    @property
    def samples(self) -> Mapping[int, SourceSample]:
        """Sources of the deltas made, one a pack, by pack key: to be read back before they are relied on."""
        return self._shaper.samples if self._shaper is not None else {}

    def make(self, work: Work) -> Batch:
        """Do one hop (*sync*). Raises: SourceError, StateCorrupt, SessionAborted (memory is not to be trusted)."""
        counts = Counts()
        counts.candidates = int(np.bitwise_count(work.read).sum() + np.bitwise_count(work.zero).sum())
        found = self._blocks.read(work)
        counts.read_bytes = found.read_bytes
        current = self.state.current(work.pages)
        read_refs = current["ref"][found.rows]
        changed_read = any_along(read_refs != found.refs)
        gone = rows_of(work.zero) & any_along(current["ref"])
        nonzero = any_along(found.refs)
        forced = rows_of(work.force)[found.rows]
        counts.changed = int(np.count_nonzero(changed_read) + np.count_nonzero(gone))
        counts.zero = int(np.count_nonzero(~nonzero) + np.bitwise_count(work.zero).sum())
        staged = changed_read | forced
        lanes, places = self._claim(work, found, changed_read, staged, nonzero)
        parcels = self._shape(work, found, read_refs, staged & nonzero, changed_read & ~forced, lanes, places, counts)
        new = np.zeros((len(work.pages), BATCH_BLOCKS), dtype=ENTRY)
        new["ref"][found.rows] = found.refs
        new["place"][found.rows] = places
        rows = gone
        rows[found.rows] |= staged
        self._stage(work, rows, new)
        return Batch(parcels, counts, found.unreadable)

    def differs(self, blocks: Sequence[int]) -> list[int]:
        """Return which of `blocks` (numbers) differ from the map (*sync*). Raises: SourceError, StateCorrupt."""
        changed: list[int] = []
        for start in range(0, len(blocks), BATCH_BLOCKS):
            numbers = np.array(blocks[start : start + BATCH_BLOCKS], dtype=np.int64)
            pages, where = np.unique(numbers // BATCH_BLOCKS, return_inverse=True)
            rows = np.zeros((len(pages), BATCH_BLOCKS), dtype=np.bool_)
            rows[where, numbers % BATCH_BLOCKS] = True
            # A hole is not read: it differs if the map has something for it.
            data = np.zeros_like(rows)
            data[where, numbers % BATCH_BLOCKS] = [self._has_data(number) for number in numbers.tolist()]
            none = np.zeros(len(pages), dtype=np.uint64)
            found = self._blocks.read(Work(pages, masks_of(data), none, none))
            current = self.state.current(pages)["ref"]
            differing = rows & ~data & any_along(current)
            differing[found.rows] = any_along(current[found.rows] != found.refs)
            page_of, bit_of = np.nonzero(differing)
            changed += (pages[page_of] * BATCH_BLOCKS + bit_of).tolist()
        return changed

    def _has_data(self, block: int) -> bool:
        start = block * BLOCK_BYTES
        return any(True for _ in self.reader.data_extents(start, min(start + BLOCK_BYTES, self._volume_bytes)))

    def _claim(self, work: Work, found: Read, changed: Mask, staged: Mask, nonzero: Mask) -> tuple[Lanes, Places]:
        """Ask both indexes; return the lanes that need each block read, and the places the vault has it at."""
        ids = ids_of(found.refs)
        total = len(ids)
        lanes: Lanes = np.zeros(total, dtype=np.uint8)
        ask = np.flatnonzero(staged & nonzero)
        places: Places = np.zeros(total, dtype=ENTRY["place"])
        if ask.size:
            known, claimed = self._vault.claim(ids[ask])
            places[ask] = known
            lanes[ask[claimed]] |= VAULT_LANE
        if self._cache is not None:
            if self._missing_unknown:
                ask = np.flatnonzero(nonzero)
            else:
                lacking = rows_of(self.state.missing(work.pages))[found.rows]
                ask = np.flatnonzero((changed | lacking) & nonzero)
            if ask.size:
                _, claimed = self._cache.claim(ids[ask])
                lanes[ask[claimed]] |= CACHE_LANE
        return lanes, places

    def _shape(
        self,
        work: Work,
        found: Read,
        old_refs: Refs,
        staged: Mask,
        fresh: Mask,
        lanes: Lanes,
        places: Places,
        counts: Counts,
    ) -> list[Parcel]:
        """Seal what is claimed: deltas for the vault where they pay, whole records for everything else.

        `staged` are the blocks whose parts local state is to remember; `fresh` those of which a delta may be made.
        """
        deltas: Mapping[int, DeltaRecord] = {}
        shaped: Shaped | None = None
        if self._shaper is not None and staged.any():
            send = fresh & ((lanes & VAULT_LANE) > 0)
            shaped = self._shaper.shape(work, found, old_refs, staged, send)
            deltas = shaped.deltas
        parcels = [
            Parcel(found.refs[i, :ID_BYTES].tobytes(), delta.record, VAULT_LANE, delta.packs)
            for i, delta in deltas.items()
        ]
        for i in deltas:
            lanes[i] &= ~np.uint8(VAULT_LANE)
        send_whole = np.flatnonzero(lanes).tolist()
        refs = [found.refs[i].tobytes() for i in send_whole]
        records = self._sealer.seal_batch(refs, [found.contents[i] for i in send_whole])
        step = 1 if self._paranoid else CHECK_EVERY
        for i in range(0, len(send_whole), step):
            self._sealer.check(refs[i], records[i], found.contents[send_whole[i]])
        parcels += [
            Parcel(ref[:ID_BYTES], record, int(lanes[i]))
            for i, ref, record in zip(send_whole, refs, records, strict=True)
        ]
        counts.vault_deltas = len(deltas)
        for parcel in parcels:
            if parcel.lanes & VAULT_LANE:
                counts.vault_blocks += 1
                counts.vault_bytes += len(parcel.record)
            if parcel.lanes & CACHE_LANE:
                counts.cache_blocks += 1
                counts.cache_bytes += len(parcel.record)
        if self._shaper is not None and shaped is not None:
            whole = {i: len(record) for i, record in zip(send_whole, records, strict=True)}
            self._shaper.stage(work, found, shaped, places, whole)
        return parcels

    def _stage(self, work: Work, staged: Mask, entries: Entries) -> None:
        masks = masks_of(staged)
        for position in np.flatnonzero(masks).tolist():
            self.state.stage(int(work.pages[position]), int(masks[position]), entries[position])
