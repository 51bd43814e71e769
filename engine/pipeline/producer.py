"""Producers: one hop to a worker thread reads, tests for zero, hashes, compares and seals a whole batch.

Rules:
- A block is read once. Its ref is compared with the map; what differs is *changed* and is staged under its
  block number at once, whether it has to travel or not.
- Vault and cache are asked independently: the vault about changed blocks (and those it is to be asked about
  again), the cache about changed blocks and those it is known to lack.
- Asking is claiming: of all batches that meet the same content, also in other volumes, exactly one gets the
  claim of a store, seals the block and puts it into the transmission queue for that store's lane. The same
  sealed bytes go to both lanes where both claimed.
- A place that is not known yet (the block is still on its way) stays zero here; the commit fills it in.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np

from engine.bits import any_along, masks_of, rows_of
from engine.block import (
    BATCH_BLOCKS,
    BATCH_BYTES,
    BLOCK_BYTES,
    REF_BYTES,
    Ids,
    Mask,
    Places,
    Refs,
    blocks_in,
    ids_of,
    ref_of,
    zero_mask,
)
from engine.pipeline.candidates import Work
from engine.pipeline.report import Counts
from engine.pipeline.skips import read_with_skips
from engine.ports import VolumeReader
from engine.seal import Sealer
from engine.state import ENTRY, Entries, VolumeState

VAULT_LANE: Final = 1
CACHE_LANE: Final = 2
BUFFER_ALIGNMENT: Final = 4096  # of batch buffers: devices can then be read straight into them
CHECK_EVERY: Final = 64  # one sealed block in 64 is opened again before it travels


class Claims(Protocol):
    """The half of a store's index a producer sees."""

    def claim(self, ids: Ids) -> tuple[Places, Mask]:
        """Return known places (length 0: none) and which ids the caller now has to send."""
        ...


@dataclass(slots=True)
class Parcel:
    """One sealed block on its way: `lanes` is the bit set of lanes that have to take it."""

    id: bytes
    record: bytes
    lanes: int


@dataclass(slots=True)
class Batch:
    """What one hop made: parcels for the queue, sums, and unreadable (offset, length) ranges in bytes."""

    parcels: list[Parcel]
    counts: Counts
    unreadable: list[tuple[int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Read:
    """Blocks read by a hop: their row and bit in the work's pages, their refs (zero for zero blocks), contents."""

    rows: Mask  # bool[pages, 64]
    refs: Refs  # uint8[k, 48]
    contents: list[memoryview]
    unreadable: list[tuple[int, int]]


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
    ) -> None:
        self.reader, self.state = reader, state
        self._sealer, self._subkey = sealer, blocks_subkey
        self._vault, self._cache = vault, cache
        self._missing_unknown, self._skip, self._paranoid = missing_unknown, skip_unreadable, paranoid
        self._volume_bytes = reader.size_bytes

    def make(self, work: Work) -> Batch:
        """Do one hop (*sync*). Raises: SourceError, StateCorrupt, SessionAborted (memory is not to be trusted)."""
        counts = Counts()
        counts.candidates = int(np.bitwise_count(work.read).sum() + np.bitwise_count(work.zero).sum())
        found = self._read(work, counts)
        current = self.state.current(work.pages)
        read_refs = current["ref"][found.rows]
        changed_read = any_along(read_refs != found.refs)
        new = np.zeros((len(work.pages), BATCH_BLOCKS), dtype=ENTRY)
        new["ref"][found.rows] = found.refs
        gone = rows_of(work.zero) & any_along(current["ref"])
        nonzero = any_along(found.refs)
        parcels, places = self._claim(work, found, changed_read, nonzero, counts)
        new["place"][found.rows] = places
        gone_count = np.count_nonzero(gone)
        staged = gone
        staged[found.rows] |= changed_read | rows_of(work.force)[found.rows]
        counts.changed = int(np.count_nonzero(changed_read) + gone_count)
        counts.zero = int(np.count_nonzero(~nonzero) + np.bitwise_count(work.zero).sum())
        self._stage(work, staged, new)
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
            found = self._read(Work(pages, masks_of(data), none, none), Counts())
            current = self.state.current(pages)["ref"]
            differing = rows & ~data & any_along(current)
            differing[found.rows] = any_along(current[found.rows] != found.refs)
            page_of, bit_of = np.nonzero(differing)
            changed += (pages[page_of] * BATCH_BLOCKS + bit_of).tolist()
        return changed

    def _has_data(self, block: int) -> bool:
        start = block * BLOCK_BYTES
        return any(True for _ in self.reader.data_extents(start, min(start + BLOCK_BYTES, self._volume_bytes)))

    def _read(self, work: Work, counts: Counts) -> _Read:
        rows = rows_of(work.read)
        page_of, bit_of = np.nonzero(rows)
        numbers = work.pages[page_of] * BATCH_BLOCKS + bit_of
        buffer = _buffer()
        unreadable: list[tuple[int, int]] = []
        last = blocks_in(self._volume_bytes) - 1
        total = len(numbers)
        position = 0
        for begin, count in _runs(numbers):
            offset = begin * BLOCK_BYTES
            length = min(count * BLOCK_BYTES, self._volume_bytes - offset)
            view = buffer[position * BLOCK_BYTES : position * BLOCK_BYTES + length]
            if self._skip:
                unreadable += read_with_skips(self.reader, offset, view)
            else:
                self.reader.read_into(offset, view)
            if length < count * BLOCK_BYTES:
                # The rest of a short last block's slot holds a former batch: the zero test must not see it.
                end = (position + count) * BLOCK_BYTES
                buffer[position * BLOCK_BYTES + length : end] = bytes(end - position * BLOCK_BYTES - length)
            counts.read_bytes += length
            position += count
        refs: Refs = np.zeros((total, REF_BYTES), dtype=np.uint8)
        contents: list[memoryview] = []
        zero = zero_mask(buffer[: total * BLOCK_BYTES]) if total else np.empty(0, dtype=np.bool_)
        digests = bytearray()
        for position, (number, is_zero) in enumerate(zip(numbers.tolist(), zero.tolist(), strict=True)):
            start = position * BLOCK_BYTES
            length = BLOCK_BYTES if number != last else self._volume_bytes - number * BLOCK_BYTES
            content = buffer[start : start + length]
            contents.append(content)
            digests += bytes(REF_BYTES) if is_zero else ref_of(self._subkey, content)
        refs = np.frombuffer(bytes(digests), dtype=np.uint8).reshape(total, REF_BYTES)
        return _Read(rows, refs, contents, unreadable)

    def _claim(
        self, work: Work, found: _Read, changed: Mask, nonzero: Mask, counts: Counts
    ) -> tuple[list[Parcel], Places]:
        """Ask both indexes, seal what is claimed; return the parcels and the vault places of all blocks read."""
        ids = ids_of(found.refs)
        total = len(ids)
        lanes = np.zeros(total, dtype=np.uint8)
        ask = np.flatnonzero((changed | rows_of(work.force)[found.rows]) & nonzero)
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
        send = np.flatnonzero(lanes).tolist()
        refs = [found.refs[i].tobytes() for i in send]
        records = self._sealer.seal_batch(refs, [found.contents[i] for i in send])
        step = 1 if self._paranoid else CHECK_EVERY
        for i in range(0, len(send), step):
            self._sealer.check(refs[i], records[i], found.contents[send[i]])
        parcels = [Parcel(ref[:16], record, int(lanes[i])) for i, ref, record in zip(send, refs, records, strict=True)]
        for parcel in parcels:
            if parcel.lanes & VAULT_LANE:
                counts.vault_blocks += 1
                counts.vault_bytes += len(parcel.record)
            if parcel.lanes & CACHE_LANE:
                counts.cache_blocks += 1
                counts.cache_bytes += len(parcel.record)
        return parcels, places

    def _stage(self, work: Work, staged: Mask, entries: Entries) -> None:
        masks = masks_of(staged)
        for position in np.flatnonzero(masks).tolist():
            self.state.stage(int(work.pages[position]), int(masks[position]), entries[position])


# One batch a worker thread, whatever the number of volumes: what is read lives no longer than its hop.
_BUFFERS: Final = threading.local()


def _buffer() -> memoryview:
    buffer: memoryview | None = getattr(_BUFFERS, "view", None)
    if buffer is None:
        room = np.empty(BATCH_BYTES + BUFFER_ALIGNMENT, dtype=np.uint8)
        start = -int(room.__array_interface__["data"][0]) % BUFFER_ALIGNMENT
        buffer = _BUFFERS.view = room.data[start : start + BATCH_BYTES]
    return buffer


def _runs(numbers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> list[tuple[int, int]]:
    """Return (first, count) of the runs of consecutive block numbers, each at most a batch long."""
    if not numbers.size:
        return []
    starts = np.concatenate(([0], np.flatnonzero(np.diff(numbers) != 1) + 1))
    stops = np.concatenate((starts[1:], [len(numbers)]))
    return [(int(numbers[a]), int(b - a)) for a, b in zip(starts, stops, strict=True)]
