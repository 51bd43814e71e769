"""Opening a job: from records at hand to contents that hash to their refs. Pure CPU work, for worker threads.

Nothing is believed: a source proves only that whoever wrote the delta knew it, the content of a block counts once it
hashes to its ref. What does not open is left out and told; another way to the block is others' business.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, TypeAlias

from engine.block import ID_BYTES, KEY_BYTES, REF_BYTES, Bytes, Refs
from engine.delta import LINK, Parts, open_literal, open_parts, parse_delta, put_together, read_links
from engine.errors import StoreCorrupt
from engine.recovery.jobs import DeltaWork, Held, Job, Packs, Spot
from engine.seal import open_whole, verify_ref
from engine.subkeys import parts_key, record_keys

KEPT_MAX: Final = 32  # opened records kept within a job because another block of it needs them too


# Positions in the refs asked for, and their contents: called from worker threads, several at once.
Take: TypeAlias = Callable[[Sequence[int], Sequence[Bytes]], None]


@dataclass(slots=True)
class Opened:
    """The blocks of a job that opened and were handed on, and a sentence about each record that did not."""

    positions: list[int] = field(default_factory=list)
    content_bytes: int = 0
    problems: list[str] = field(default_factory=list)


class Records:
    """The records at hand: what was read for a job and what is held for its group."""

    def __init__(self, packs: Packs, *held: Held) -> None:
        self._packs, self._held, self._names = packs, held, packs.names

    def cut(self, spot: Spot) -> memoryview | None:
        """Return a record, or None if it is not at hand: what went wrong was told when it was read."""
        for held in self._held:
            extents = held.get(spot[0])
            record = extents.cut(spot[1], spot[2]) if extents is not None else None
            if record is not None:
                return record
        return None

    def where(self, spot: Spot) -> str:
        """Return the name of the pack a record lies in."""
        return self._names[spot[0]]

    def sentence(self, spot: Spot, error: StoreCorrupt) -> str:
        """Return what to tell of a record that does not open."""
        return f"{self._packs[spot[0]][0]}: {error}"


def take_apart(
    turns: threading.Semaphore, refs: Refs, positions: Sequence[int], spots: Sequence[Spot], records: Records
) -> tuple[list[DeltaWork], list[str]]:
    """Return, when it is its turn, the deltas at `spots`, their links open, and what is wrong with the others."""
    with turns:
        return _taken_apart(refs, positions, spots, records)


def _taken_apart(
    refs: Refs, positions: Sequence[int], spots: Sequence[Spot], records: Records
) -> tuple[list[DeltaWork], list[str]]:
    works: list[DeltaWork] = []
    problems: list[str] = []
    packed = refs[positions].tobytes()
    for at, (position, spot) in enumerate(zip(positions, spots, strict=True)):
        record = records.cut(spot)
        if record is None:
            continue
        where = records.where(spot)
        try:
            delta = parse_delta(record, where)
            if delta.id != packed[at * REF_BYTES : at * REF_BYTES + ID_BYTES]:
                raise StoreCorrupt(where, "another record lies where the one looked for should be")
            key, links_key = record_keys(packed[at * REF_BYTES + ID_BYTES : (at + 1) * REF_BYTES])
            links, part_map = read_links(delta, links_key, where)
        except StoreCorrupt as error:
            problems.append(records.sentence(spot, error))
            continue
        works.append(DeltaWork(position, spot, delta, key, links, part_map))
    return works, problems


def open_in_turn(
    turns: threading.Semaphore, job: Job, refs: Refs, subkey: bytes, records: Records, take: Take
) -> Opened:
    """Do `open_job` when it is its turn: the next job already waits in a thread when the one before it is done."""
    with turns:
        return open_job(job, refs, subkey, records, take)


def open_job(job: Job, refs: Refs, subkey: bytes, records: Records, take: Take) -> Opened:
    """Open all blocks of a job whose records are at hand and hand them to `take`; `refs` are those asked for.

    Raises: what `take` raises.
    """
    return _Opening(job, refs, subkey, records, take).run()


class _Opening:
    def __init__(self, job: Job, refs: Refs, subkey: bytes, records: Records, take: Take) -> None:
        self._job, self._subkey, self._records, self._take = job, subkey, records, take
        self._refs = refs[
            [block.position if isinstance(block, DeltaWork) else block[0] for block in job.blocks]
        ].tobytes()
        self._opened = Opened()
        # How often each record is needed, where some may be needed more than once.
        deltas = [block for block in job.blocks if isinstance(block, DeltaWork)]
        self._uses: Counter[Spot] = Counter(chain.from_iterable(work.sources for work in deltas))
        if deltas:
            self._uses.update(block[1] for block in job.blocks if not isinstance(block, DeltaWork))
        self._kept: dict[tuple[Spot, bytes], Parts] = {}

    def run(self) -> Opened:
        positions: list[int] = []
        contents: list[Bytes] = []
        for at, block in enumerate(self._job.blocks):
            ref = self._refs[at * REF_BYTES : (at + 1) * REF_BYTES]
            content: Bytes | None
            if isinstance(block, DeltaWork):
                position, content = block.position, self._delta(ref, block)
            else:
                position, content = block[0], self._whole(ref, block[1])
            if content is not None:
                positions.append(position)
                contents.append(content)
        # All at once: the blocks of a job mostly follow one another, and long ranges are written fastest.
        if positions:
            self._take(positions, contents)
            self._opened.positions = positions
            self._opened.content_bytes = sum(map(len, contents))
        return self._opened

    def _failed(self, spot: Spot, error: StoreCorrupt) -> None:
        self._opened.problems.append(self._records.sentence(spot, error))

    def _whole(self, ref: bytes, spot: Spot) -> bytes | None:
        record = self._records.cut(spot)
        if record is None:
            return None
        try:
            content = open_whole(ref, record, self._subkey, self._records.where(spot))
        except StoreCorrupt as error:
            self._failed(spot, error)
            return None
        if self._uses[spot] > 1:
            self._keep(spot, parts_key(ref[ID_BYTES:]), Parts({}, content))
        return content

    def _delta(self, ref: bytes, work: DeltaWork) -> Bytes | None:
        taken: dict[int, Parts] = {}
        spent: list[int] = []
        for origin, spot in enumerate(work.sources):
            if origin in work.part_map:
                shared = self._uses[spot] > 1
                parts = self._source(work, origin, spot, shared)
                if parts is None:
                    return None
                taken[origin] = parts
                if not shared:
                    spent.append(origin)
        where = self._records.where(work.spot)
        try:
            own = open_parts(work.delta, work.parts_key, where)
            content = put_together(work.delta, work.part_map, own, taken, where, spent)
            verify_ref(ref, content, self._subkey, where)
        except StoreCorrupt as error:
            self._failed(work.spot, error)
            return None
        return content

    def _source(self, work: DeltaWork, origin: int, spot: Spot, shared: bool) -> Parts | None:
        key = work.links[origin * LINK.itemsize : origin * LINK.itemsize + KEY_BYTES]
        if shared and (parts := self._kept.get((spot, key))) is not None:
            return parts
        record = self._records.cut(spot)
        if record is None:
            return None
        ident = work.delta.ids[origin * ID_BYTES : (origin + 1) * ID_BYTES]
        try:
            parts = open_literal(ident, key, record, self._records.where(spot))
        except StoreCorrupt as error:
            self._failed(spot, error)
            return None
        if shared:
            self._keep(spot, key, parts)
        return parts

    def _keep(self, spot: Spot, key: bytes, parts: Parts) -> None:
        if len(self._kept) < KEPT_MAX:
            self._kept[spot, key] = parts
