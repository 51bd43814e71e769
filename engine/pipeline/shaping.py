"""The shape of a block in the vault: whole, or the delta of what changed; and what local state remembers of its parts.

Rules:
- Only a block this hop has to send, that differs from the map, and whose old parts are known, may become a delta.
  What is sent again because a pack turned out bad always goes whole: so of one content a session makes one delta at
  most, and what was staged for it can only be meant for that one.
- Of some deltas a source is remembered, at most one a pack: before the session relies on them a few are read back and
  must hold what was taken from them (reliance.py).
- Of every staged block the parts are remembered. What is staged of them is an expectation ("the delta made here", or
  "a whole record"); it counts only if the place the block gets in the end meets it (engine/parts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from engine.bits import masks_of
from engine.block import BATCH_BLOCKS, DELTA_FLAG, LENGTH_MASK, PARTS, Mask, Places
from engine.delta import Source, open_source
from engine.deltawriter import DeltaRecord, DeltaWriter, check_delta
from engine.distinct import distinct
from engine.errors import StoreCorrupt
from engine.names import PackName
from engine.partdigest import PartDigests, part_digests
from engine.parts import ORIGINS, PART_ENTRY, Origins, PartEntries, delta_expectation
from engine.pipeline.blocks import Blocks, Positions
from engine.state import PartState

CHECK_EVERY: Final = 64  # one delta in 64 is opened again before it travels

SAMPLES_MAX: Final = 1024  # sources remembered, of so many packs

_NO_ORIGINS: Final = bytes(ORIGINS.itemsize)

PackKeys: TypeAlias = npt.NDArray[np.uint64]


class Shaped(msgspec.Struct):
    """The parts of the staged ones among some blocks, at `positions`: digests, what was known, deltas.

    `known`, `origins`: of the map, shape (k,), zero where nothing is known; `deltas` by position among the blocks.
    """

    positions: Positions
    digests: PartDigests
    known: PartEntries
    deltas: dict[int, DeltaRecord] = {}


class SourceSample(msgspec.Struct, frozen=True):
    """A source as some delta uses it: which parts it is to hold, by number, and their digests under `seed`."""

    source: Source
    digests: Mapping[int, int]
    seed: int

    def range(self) -> tuple[int, int]:
        """Return (offset, length) of the source in its pack."""
        return int(self.source.place["offset"]), int(self.source.place["length"]) & LENGTH_MASK

    def check(self, record: bytes, where: str) -> None:
        """Raise StoreCorrupt unless `record` is this source and holds what was taken from it."""
        parts = open_source(self.source, record, where)
        for number, digest in self.digests.items():
            part = parts.get(number)
            if part is None or xxh3_64_intdigest(part, self.seed) != digest:
                raise StoreCorrupt(where, "a record does not hold the parts that a delta is to take from it")


class Shaper:
    """Makes deltas of one volume and stages its parts, from worker threads.

    `own_packs` names, by key, the packs of this system that may be relied on (None: may not).
    """

    def __init__(
        self,
        state: PartState,
        writer: DeltaWriter,
        own_packs: Callable[[PackKeys], Sequence[PackName | None]],
        seed: int,
        *,
        paranoid: bool = False,
    ) -> None:
        self._state, self._writer, self._own_packs, self._seed = state, writer, own_packs, seed
        self._check_every = 1 if paranoid else CHECK_EVERY
        self._made = 0
        # Asked once a session: packs are given up only after the round in which deltas are made.
        self._named: dict[int, PackName | None] = {}
        self.samples: dict[int, SourceSample] = {}  # by pack key

    def shape(self, blocks: Blocks, staged: Mask, send: Mask) -> Shaped:
        """Digest the `staged` ones of `blocks` and make deltas of those to `send`, where that pays.

        Both masks go over `blocks`. Raises: StateCorrupt.
        """
        positions = np.flatnonzero(staged)
        digests = part_digests([blocks.contents[i] for i in positions.tolist()], self._seed)
        shaped = Shaped(positions, digests, np.zeros(len(positions), PART_ENTRY))
        if not send.any():
            return shaped
        entries, origins = self._known(blocks, positions)
        shaped.known = entries
        tried = np.flatnonzero(send[positions] & (entries["place"]["length"] != 0))
        if not tried.size:
            return shaped
        packs = self._packs(entries[tried], origins[tried])
        at = positions[tried]
        refs = [blocks.refs[i].tobytes() for i in at.tolist()]
        contents = [blocks.contents[i] for i in at.tolist()]
        made = self._writer.make(
            refs, contents, digests[tried], blocks.old_refs[at], entries[tried], origins[tried], packs
        )  # fmt: skip
        for i, delta in enumerate(made):
            if delta is not None:
                self._made += 1
                if self._made % self._check_every == 1 % self._check_every:
                    check_delta(refs[i], delta, contents[i])
                    self._remember(delta, digests[tried[i]])
                shaped.deltas[int(at[i])] = delta
        return shaped

    def stage(self, blocks: Blocks, shaped: Shaped, places: Places, whole: Mapping[int, int]) -> None:
        """Stage the parts of `blocks`. `places`: known ones of them; `whole`: lengths of whole records sealed.

        Raises: StateCorrupt.
        """
        positions = shaped.positions
        if not positions.size:
            return
        # Lists, not arrays: what is done for every block is then no call into numpy.
        expected: list[int] = []
        estimates: list[int] = []
        rows: list[bytes] = []
        known, found_at = shaped.known["whole_bytes"].tolist(), places["length"][positions].tolist()
        for row, position in enumerate(positions.tolist()):
            delta = shaped.deltas.get(position)
            if delta is not None:
                expected.append(delta_expectation(delta.record))
                estimates.append(known[row])
                rows.append(delta.origins)
            else:
                length = whole.get(position, found_at[row])
                expected.append(0)
                estimates.append(0 if length & DELTA_FLAG else length)
                rows.append(_NO_ORIGINS)
        entries = np.zeros(len(positions), PART_ENTRY)
        entries["digests"], entries["whole_bytes"] = shaped.digests, estimates
        entries["place"]["length"] = expected
        origins = np.frombuffer(b"".join(rows), ORIGINS) if shaped.deltas else None
        page_of, bit_of = blocks.page_of[positions], blocks.bit_of[positions]
        for page in distinct(page_of).tolist():
            mine = page_of == page
            self._stage_page(
                int(blocks.pages[page]), bit_of[mine], entries[mine], None if origins is None else origins[mine]
            )

    def _remember(self, delta: DeltaRecord, digests: npt.NDArray[np.uint64]) -> None:
        for origin, source in enumerate(delta.sources()):
            key = int(source.place["pack"])
            if key not in self.samples and len(self.samples) < SAMPLES_MAX:
                taken = {part: int(digests[part]) for part in range(PARTS) if delta.part_map[part] == origin}
                self.samples[key] = SourceSample(source, taken, self._seed)

    def _stage_page(self, page: int, bits: Positions, entries: PartEntries, origins: Origins | None) -> None:
        chosen = np.zeros((1, BATCH_BLOCKS), np.bool_)
        chosen[0, bits] = True
        whole_page = np.zeros(BATCH_BLOCKS, PART_ENTRY)
        whole_page[bits] = entries
        rows = None
        if origins is not None and origins["map"].any():
            rows = np.zeros(BATCH_BLOCKS, ORIGINS)
            rows[bits] = origins
        self._state.stage_parts(page, int(masks_of(chosen)[0]), whole_page, rows)

    def _known(self, blocks: Blocks, positions: Positions) -> tuple[PartEntries, Origins]:
        asked, row = np.unique(blocks.page_of[positions], return_inverse=True)
        entries, origins = self._state.parts(blocks.pages[asked])
        bits = blocks.bit_of[positions]
        return entries[row, bits], origins[row, bits]

    def _packs(self, entries: PartEntries, origins: Origins) -> dict[int, PackName]:
        """Return the packs, by key, that the records holding these blocks' parts lie in, as far as usable."""
        keys = {*entries["place"]["pack"].tolist(), *origins["sources"]["place"]["pack"].ravel().tolist()}
        if asked := sorted(keys - self._named.keys()):
            self._named.update(zip(asked, self._own_packs(np.array(asked, dtype=np.uint64)), strict=True))
        return {key: name for key in keys if (name := self._named[key]) is not None}
