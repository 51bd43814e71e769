"""One volume in one session: what it starts from, where its candidates are, and whether its hints are believed.

Rules:
- Without a map (first session, lost state, `--full`) everything is read and compared, and the run is a base run.
- Hints count only for the generation the map was made at. A sample of 0.1 % of the blocks outside them, at least
  10, is compared along with what they tell; one difference turns the session into a full compare and is reported.
- Blocks the cache is known to lack are candidates; where nothing is known of the cache, all blocks are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import BLOCK_BYTES, blocks_in
from engine.columns import Column64
from engine.deltawriter import DeltaWriter
from engine.errors import SessionAborted
from engine.names import PackName
from engine.pipeline.candidates import CandidatePlan, Work, candidates
from engine.pipeline.producer import Batch, Claims, Producer
from engine.pipeline.report import VolumeReport
from engine.pipeline.shaping import Shaper
from engine.pipeline.stores import Side
from engine.ports import Changes, ChangeTracker, VolumeReader
from engine.root import VolumePoint, decode_volume
from engine.seal import Codec, Sealer
from engine.state import Head, VolumeState
from engine.subkeys import digest_seed
from engine.vault.identity import Identity

SAMPLE_SHARE: Final = 0.001
SAMPLE_BLOCKS_MIN: Final = 10
# 4 GiB of reading; the share of a volume of more than 64 TiB would be larger than a session can afford.
SAMPLE_BLOCKS_MAX: Final = 65536
SAMPLE_WHOLE_BLOCKS: Final = 1 << 20
UNREADABLE_RANGES_MAX: Final = 1024
UNREADABLE_BYTES_MAX: Final = 1 << 30


class VolumeSource(msgspec.Struct, frozen=True):
    """A volume of the configuration; `open` raises SourceError or ConfigError."""

    name: str
    open: Callable[[], VolumeReader]
    tracker: ChangeTracker
    skip_unreadable: bool = False


class VaultIndex(Claims, Protocol):
    """What volumes ask of where vault-bound blocks go."""

    def own_packs(self, keys: Column64, writer: bytes) -> list[PackName | None]:
        """Return, for each key, the pack of `writer` that may be relied on, or None."""
        ...


class Manner(msgspec.Struct, frozen=True):
    """How a session reads its volumes: who it is, how blocks are sealed, which stores are asked what they lack.

    `paranoid`: open everything again that was just sealed; `delta`: send only changed parts to the vault.
    """

    identity: Identity
    codec: Codec
    vault: VaultIndex
    cache: Side | None
    paranoid: bool = False
    delta: bool = True


class VolumeRun(msgspec.Struct):
    """A volume while a session runs."""

    source: VolumeSource
    state: VolumeState
    reader: VolumeReader
    head: Head | None
    producer: Producer
    changes: Changes
    missing_unknown: bool
    heal: bool
    report: VolumeReport = msgspec.field(default_factory=VolumeReport)
    unreadable: list[tuple[int, int]] = []
    extents: list[tuple[int, int]] | None = None
    sample: npt.NDArray[np.int64] = msgspec.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    untold: int | None = None  # a block that changed, and no hint tells of it
    position: int = 0  # bytes of the volume that were looked at so far

    @property
    def name(self) -> str:
        """The configured name."""
        return self.source.name

    def parent(self) -> VolumePoint | None:
        """Return the parent's volume point, None for a base run. Raises: StoreCorrupt."""
        return None if self.head is None else decode_volume(self.head.point, f"local state of volume {self.name!r}")

    def choose(self, chance: random.Random) -> list[str]:
        """Decide where candidates are, and draw the sample (*sync*); return problems. Raises: StateCorrupt."""
        problems = [self.changes.problem] if self.changes.problem else []
        self.extents = self.changes.extents if self.head is not None else None
        if self.extents is not None:
            self.sample = self._sample(chance)
        self.report.bytes = self.reader.size_bytes
        self.report.compared = "all" if self.extents is None else "hints"
        return problems

    def disbelieve(self) -> str | None:
        """Return why the hints are not believed after all, once; all the volume is work then. None: they are."""
        if self.extents is None or self.untold is None:
            return None
        self.extents = None
        self.report.compared = "all"
        return (
            f"volume {self.name!r}: block {self.untold} changed outside the hints: they are not believed, "
            "everything was compared; check what writes them"
        )

    def works(self) -> Iterator[Work]:
        """Yield all work there is, as long as nothing turns out bad (*sync*). Raises: SourceError, StateCorrupt."""
        plan = CandidatePlan(
            volume_bytes=self.reader.size_bytes,
            parent_bytes=self.head.volume_bytes if self.head else 0,
            extents=self.extents,
            missing_unknown=self.missing_unknown,
            heal=self.heal,
            unreadable=self.head.unreadable if self.head else [],
            sample=self.sample,
        )
        return candidates(self.reader, self.state, plan)

    def took(self, batch: Batch) -> None:
        """Add what a batch did to the sums. Raises: SessionAborted (more cannot be read than a point may lack)."""
        self.report.add(batch.counts)
        if self.untold is None:
            self.untold = batch.untold
        if batch.unreadable:
            self.unreadable = merged_ranges([*self.unreadable, *batch.unreadable])
            self.report.unreadable_bytes = sum(length for _, length in self.unreadable)
            self._check_unreadable()

    def _check_unreadable(self) -> None:
        # At once, not at the end: a dying disk takes seconds for each of its bad sectors, days for all of them.
        if len(self.unreadable) > UNREADABLE_RANGES_MAX:
            raise SessionAborted(
                f"volume {self.name!r} has more than {UNREADABLE_RANGES_MAX} unreadable ranges; "
                "the disk is failing: copy it to another one first"
            )
        if self.report.unreadable_bytes > UNREADABLE_BYTES_MAX:
            raise SessionAborted(
                f"volume {self.name!r}: more than {UNREADABLE_BYTES_MAX} bytes cannot be read: "
                "the disk is failing, copy it first"
            )

    def unreadable_ranges(self) -> list[tuple[int, int]]:
        """Return what could not be read as merged, ascending (offset, length) pairs in bytes."""
        return list(self.unreadable)

    def unreadable_blocks(self) -> list[int]:
        """Return the numbers of the blocks with unreadable ranges: candidates of the next session."""
        blocks: set[int] = set()
        for offset, length in self.unreadable:
            blocks.update(range(offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)))
        return sorted(blocks)

    def _sample(self, chance: random.Random) -> npt.NDArray[np.int64]:
        """Choose blocks outside the hints, of those both the map and the volume have, ascending."""
        assert self.head is not None
        blocks = min(blocks_in(self.reader.size_bytes), blocks_in(self.head.volume_bytes))
        # A short last block that grew is a candidate anyway, and differs rightly.
        if self.reader.size_bytes != self.head.volume_bytes:
            blocks = min(self.reader.size_bytes, self.head.volume_bytes) // BLOCK_BYTES
        if not blocks:
            return self.sample
        wanted = min(max(SAMPLE_BLOCKS_MIN, int(blocks * SAMPLE_SHARE)), SAMPLE_BLOCKS_MAX)
        # Of a large volume, more than wanted are drawn at random: those that fall into the hints are dropped.
        drawn = (
            np.arange(blocks, dtype=np.int64)
            if blocks <= SAMPLE_WHOLE_BLOCKS
            else np.array(sorted(chance.sample(range(blocks), 4 * wanted)), dtype=np.int64)
        )
        hinted = np.isin(drawn, np.array(self.head.unreadable, dtype=np.int64))
        if self.extents:
            # Extents ascend and do not touch, so the last one that begins before a block tells whether it is inside.
            extents = np.array(self.extents, dtype=np.int64)
            low, high = extents[:, 0] // BLOCK_BYTES, -(-extents.sum(axis=1) // BLOCK_BYTES)
            before = np.searchsorted(low, drawn, side="right") - 1
            hinted |= (before >= 0) & (drawn < np.maximum.accumulate(high)[before])
        outside = drawn[~hinted]
        if len(outside) > wanted:
            outside = outside[sorted(chance.sample(range(len(outside)), wanted))]
        return outside


def merged_ranges(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return (offset, length) pairs ascending, those that touch or overlap as one."""
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if merged and offset <= sum(merged[-1]):
            begin, _ = merged[-1]
            merged[-1] = (begin, max(sum(merged[-1]), offset + length) - begin)
        else:
            merged.append((offset, length))
    return merged


def open_run(source: VolumeSource, state: VolumeState, how: Manner, reader: VolumeReader | None = None) -> VolumeRun:
    """Open a volume for a session (*sync*), or begin it again with its `reader`.

    Raises: SourceError, ConfigError, StateCorrupt.
    """
    keys, cache = how.identity.keys, how.cache
    shaper: Shaper | None = None
    if how.delta:
        own_packs = partial(how.vault.own_packs, writer=how.identity.system)
        seed = digest_seed(how.identity.listing_key)
        shaper = Shaper(state, DeltaWriter(how.codec), own_packs, seed, paranoid=how.paranoid)
    else:
        state.forget_parts()
    reader = reader or source.open()
    try:
        head = state.head
        known = head is not None and head.missing_known and (cache is None or head.cache == cache.store_id)
        producer = Producer(
            reader,
            state,
            Sealer(how.codec, keys.blocks),
            keys.blocks,
            how.vault,
            cache.packs.index if cache else None,
            missing_unknown=not known,
            skip_unreadable=source.skip_unreadable,
            paranoid=how.paranoid,
            shaper=shaper,
        )
        changes = source.tracker.changes(head.generation if head else None)
        return VolumeRun(source, state, reader, head, producer, changes, not known, cache is not None)
    except BaseException:
        reader.close()
        raise
