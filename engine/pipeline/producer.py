"""Producers: one hop to a worker thread reads, tests for zero, hashes, compares and seals whole batches.

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
from typing import Final, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from engine.bits import any_along, masks_of, rows_of
from engine.block import (
    BATCH_BLOCKS,
    ID_BYTES,
    Bytes,
    Ids,
    Mask,
    Places,
    ids_of,
)
from engine.deltawriter import DeltaRecord
from engine.names import PackName
from engine.pipeline.blocks import Blocks, joined
from engine.pipeline.candidates import Work
from engine.pipeline.reading import BlockReader
from engine.pipeline.report import Counts
from engine.pipeline.shaping import Shaped, Shaper, SourceSample
from engine.ports import VolumeReader
from engine.seal import Sealer
from engine.state import ENTRY, Entries, Pages, VolumeState

VAULT_LANE: Final = 1
CACHE_LANE: Final = 2
Lanes: TypeAlias = npt.NDArray[np.uint8]

CHECK_EVERY: Final = 64  # one sealed block in 64 is opened again before it travels


class Claims(Protocol):
    """The half of a store's index a producer sees."""

    def claim(self, ids: Ids) -> tuple[Places, Mask]:
        """Return known places (length 0: none) and which ids the caller now has to send."""
        ...


class Parcel(msgspec.Struct):
    """One sealed record on its way: `lanes` is the bit set of lanes that have to take it.

    `packs`: of a delta, those its sources lie in.
    """

    id: bytes
    record: Bytes
    lanes: int
    packs: tuple[PackName, ...] = ()


class Look(msgspec.Struct):
    """What reading one work found: sums, unreadable (offset, length) ranges in bytes, what has to be acted on, if any.

    The contents of `blocks` are valid until the thread's next read, unless they were kept. `untold`: the first block
    of the sample that changed though no hint tells of it.
    """

    counts: Counts
    unreadable: list[tuple[int, int]]
    blocks: Blocks | None
    untold: int | None = None

    def __len__(self) -> int:
        return 0 if self.blocks is None else len(self.blocks.contents)

    def keep(self) -> None:
        """Copy the contents, so that they outlive the buffer they were read into."""
        if self.blocks is not None:
            self.blocks.contents = [memoryview(bytes(content)) for content in self.blocks.contents]


class Batch(msgspec.Struct):
    """What was made of some works: parcels for the queue, and what their looks told."""

    parcels: list[Parcel]
    counts: Counts
    unreadable: list[tuple[int, int]] = []
    untold: int | None = None


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

    def look(self, work: Work) -> Look:
        """Read the blocks of `work` and compare them (*sync*). Raises: SourceError, StateCorrupt."""
        counts = Counts()
        zeros = int(np.bitwise_count(work.zero).sum())
        found = self._blocks.read(work)
        counts.candidates, counts.read_bytes = len(found.contents) + zeros, found.read_bytes
        current = self.state.current(work.pages)
        old_refs = current["ref"][found.rows]
        changed = any_along(old_refs != found.refs)
        nonzero = any_along(found.refs)
        counts.changed, counts.zero = int(np.count_nonzero(changed)), int(np.count_nonzero(~nonzero)) + zeros
        gone: Mask | None = None
        if zeros:
            gone = rows_of(work.zero) & any_along(current["ref"])
            counts.changed += int(np.count_nonzero(gone))
            gone = gone if gone.any() else None
        untold: int | None = None
        if work.sample.any():
            untold = _untold(work, found.rows, changed, gone)
            counts.candidates -= int(np.bitwise_count(work.sample & (work.read | work.zero)).sum())
        forced: Mask = np.zeros_like(changed) if not work.force.any() else rows_of(work.force)[found.rows]
        caches = changed & nonzero
        if self._cache is None:
            caches[:] = False
        elif self._missing_unknown:
            caches = nonzero
        else:
            caches |= rows_of(self.state.missing(work.pages))[found.rows] & nonzero
        at = np.flatnonzero(changed | forced | caches)
        if not at.size and gone is None:
            return Look(counts, found.unreadable, None, untold)
        page_of, bit_of = np.nonzero(found.rows)
        blocks = Blocks(
            work.pages,
            page_of[at],
            bit_of[at],
            found.refs[at],
            old_refs[at],
            [found.contents[i] for i in at.tolist()],
            changed[at],
            forced[at],
            caches[at],
            rows_of(np.zeros(len(work.pages), np.uint64)) if gone is None else gone,
        )
        return Look(counts, found.unreadable, blocks, untold)

    def make(self, looks: Sequence[Look]) -> Batch:
        """Claim, seal and stage what was found (*sync*), all at once: most of the cost goes with the calls.

        Raises: StateCorrupt, SessionAborted (memory is not to be trusted).
        """
        counts = Counts()
        for look in looks:
            counts.add(look.counts)
        unreadable = [each for look in looks for each in look.unreadable]
        untold = min((look.untold for look in looks if look.untold is not None), default=None)
        found = [look.blocks for look in looks if look.blocks is not None]
        if not found:
            return Batch([], counts, unreadable, untold)
        blocks = joined(found)
        lanes, places = self._claim(blocks)
        parcels = self._shape(blocks, lanes, places, counts)
        new = np.zeros((len(blocks.pages), BATCH_BLOCKS), dtype=ENTRY)
        at = (blocks.page_of, blocks.bit_of)
        new["ref"][at] = blocks.refs
        new["place"][at] = places
        staged = blocks.gone.copy()
        staged[at] = blocks.staged
        self._stage(blocks.pages, staged, new)
        return Batch(parcels, counts, unreadable, untold)

    def _claim(self, blocks: Blocks) -> tuple[Lanes, Places]:
        """Ask both indexes; return the lanes that need each block, and the places the vault has it at."""
        ids = ids_of(blocks.refs)
        lanes: Lanes = np.zeros(len(ids), dtype=np.uint8)
        places: Places = np.zeros(len(ids), dtype=ENTRY["place"])
        ask = np.flatnonzero(blocks.to_store)
        if ask.size:
            places[ask], claimed = self._vault.claim(ids[ask])
            lanes[ask[claimed]] |= VAULT_LANE
        ask = np.flatnonzero(blocks.caches)
        if self._cache is not None and ask.size:
            _, claimed = self._cache.claim(ids[ask])
            lanes[ask[claimed]] |= CACHE_LANE
        return lanes, places

    def _shape(self, blocks: Blocks, lanes: Lanes, places: Places, counts: Counts) -> list[Parcel]:
        """Seal what is claimed: deltas for the vault where they pay, whole records for everything else."""
        deltas: Mapping[int, DeltaRecord] = {}
        shaped: Shaped | None = None
        keep = blocks.to_store
        if self._shaper is not None and keep.any():
            # Of staged blocks the parts are to be remembered; of those that are just changed a delta may be made.
            fresh = blocks.changed & ~blocks.forced & ((lanes & VAULT_LANE) > 0)
            shaped = self._shaper.shape(blocks, keep, fresh)
            deltas = shaped.deltas
        parcels = [
            Parcel(blocks.refs[i, :ID_BYTES].tobytes(), delta.record, VAULT_LANE, delta.packs)
            for i, delta in deltas.items()
        ]
        lanes[list(deltas)] &= ~np.uint8(VAULT_LANE)
        send_whole = np.flatnonzero(lanes).tolist()
        refs = [blocks.refs[i].tobytes() for i in send_whole]
        records = self._sealer.seal_batch(refs, [blocks.contents[i] for i in send_whole])
        step = 1 if self._paranoid else CHECK_EVERY
        for i in range(0, len(send_whole), step):
            self._sealer.check(refs[i], records[i], blocks.contents[send_whole[i]])
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
            self._shaper.stage(blocks, shaped, places, whole)
        return parcels

    def _stage(self, pages: Pages, staged: Mask, entries: Entries) -> None:
        masks = masks_of(staged)
        for position in np.flatnonzero(masks).tolist():
            self.state.stage(int(pages[position]), int(masks[position]), entries[position])


def _untold(work: Work, rows: Mask, changed: Mask, gone: Mask | None) -> int | None:
    """Return the first block of the sample that is not as the map has it. `changed` goes over `rows`, what was read."""
    differs = np.zeros_like(rows) if gone is None else gone.copy()
    differs[rows] = changed
    page_of, bit_of = np.nonzero(differs & rows_of(work.sample))
    return int(work.pages[page_of[0]]) * BATCH_BLOCKS + int(bit_of[0]) if page_of.size else None
