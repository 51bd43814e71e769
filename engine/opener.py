"""Opening a block from wherever its record lies: the pinned place, then every place of its id; whole or delta.

An undamaged store gives a block from at most five records: a delta and its four sources. Where pinned places fail,
look-ups by id are bounded too: at most `RECORDS_MAX` records are read for one block. A delta's sources are opened
with their *parts* keys alone, so a source that is itself a delta gives what travels in it and never leads further.
This is the careful way, one block at a time; a restore opens what is undamaged in batches (engine/recovery).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import msgspec
import numpy as np

from engine.block import ID_BYTES, LENGTH_MASK
from engine.delta import Delta, Parts, Source, assemble, has_all, open_links, open_parts, open_source, parse_delta
from engine.errors import ObjectMissing, StoreCorrupt
from engine.index import PackIndex
from engine.names import PackName
from engine.seal import RECORD_BYTES_MAX, RECORD_BYTES_MIN, WHOLE, open_whole, parse_header, verify_ref
from engine.subkeys import DomainKeys, record_keys

RECORDS_MAX: Final = 16

Resolve: TypeAlias = Callable[[int], PackName | None]
Read: TypeAlias = Callable[[PackName, Sequence[tuple[int, int]]], Awaitable[list[bytes]]]
_Delta: TypeAlias = tuple[Delta, bytes, str]  # a delta, its map, the pack it lies in


class Shelf(msgspec.Struct, frozen=True):
    """One store's records: what lies where, and its ranged reads."""

    index: PackIndex
    read: Read


class Candidate(NamedTuple):
    """Where a record may lie: `shelf` counts from the one opened, 0, through the others."""

    shelf: int
    pack: PackName
    offset: int
    length: int


class _Attempt(msgspec.Struct):
    """What one opening has read so far, and the first thing that went wrong."""

    records: int = 0
    failure: StoreCorrupt | ObjectMissing | None = None
    tried: set[Candidate] = set()

    def failed(self, error: StoreCorrupt | ObjectMissing) -> None:
        self.failure = self.failure or error


class Opener:
    """Opens records of one store; `read` is its ranged reads. `others`: stores where what it lacks is looked for."""

    def __init__(self, index: PackIndex, read: Read, keys: DomainKeys, others: Sequence[Shelf] = ()) -> None:
        self._shelves, self._keys = (Shelf(index, read), *others), keys

    async def open(
        self,
        ref: bytes,
        place: np.void | None = None,
        resolve: Resolve | None = None,
        subkey: bytes | None = None,
    ) -> bytes:
        """Return the content of a block by its 48-byte ref, whole or delta, from `place` or wherever its id lies.

        `resolve` names packs the index does not know; `subkey` is that of blocks if None.
        Raises: StoreCorrupt naming the pack that should have held it, ObjectMissing.
        """
        return (await self.open_from(ref, place, resolve, subkey))[0]

    async def open_from(
        self,
        ref: bytes,
        place: np.void | None = None,
        resolve: Resolve | None = None,
        subkey: bytes | None = None,
        read_before: int = 0,
    ) -> tuple[bytes, int]:
        """Return the content of `ref` and which store its record lay in: 0 for the one opened, then the others.

        `read_before`: how many records were read for this block before. Raises: as `open`.
        """
        attempt = _Attempt(read_before)
        for candidate in self._candidates(ref[:ID_BYTES], place, resolve):
            record = await self._try(candidate, attempt)
            if record is None:
                continue
            where = str(candidate.pack)
            try:
                if parse_header(record, where).kind == WHOLE:
                    return open_whole(ref, record, subkey or self._keys.blocks, where), candidate.shelf
                content = await self._open_delta(ref, record, where, subkey or self._keys.blocks, attempt, resolve)
                return content, candidate.shelf
            except StoreCorrupt as error:
                attempt.failed(error)
        raise attempt.failure or ObjectMissing(
            ref[:ID_BYTES].hex(), f"no pack this index knows holds the block with id {ref[:ID_BYTES].hex()}"
        )

    async def record_by_id(self, ident: bytes) -> bytes | None:
        """Return a whole record with this id, unopened, or None."""
        attempt = _Attempt()
        for candidate in self._candidates(ident, None, None):
            record = await self._try(candidate, attempt)
            if record is None:
                continue
            try:
                header = parse_header(record, str(candidate.pack))
            except StoreCorrupt:
                continue
            if header.id == ident and header.kind == WHOLE and header.record_bytes == len(record):
                return record
        return None

    async def _open_delta(
        self, ref: bytes, record: bytes, where: str, subkey: bytes, attempt: _Attempt, resolve: Resolve | None
    ) -> bytes:
        delta = parse_delta(record, where)
        if delta.id != ref[:ID_BYTES]:
            raise StoreCorrupt(where, "another record lies where the one looked for should be")
        parts_key, links_key = record_keys(ref[ID_BYTES:])
        sources, part_map = open_links(delta, links_key, where)
        own = open_parts(delta, parts_key, where)
        taken = {
            origin: await self._take(sources[origin], (delta, part_map, where), origin, attempt, resolve)
            for origin in sorted(set(part_map))
            if origin < len(sources)
        }
        content = assemble(delta, part_map, own, taken, where)
        verify_ref(ref, content, subkey, where)
        return content

    async def _take(
        self, source: Source, work: _Delta, origin: int, attempt: _Attempt, resolve: Resolve | None
    ) -> Parts:
        """Return the parts of one source, from its pinned place or any other of its id."""
        delta, part_map, where = work
        inner = _Attempt(attempt.records)
        for candidate in self._candidates(source.id, source.place, resolve):
            record = await self._try(candidate, inner)
            attempt.records = inner.records
            if record is None:
                continue
            at = str(candidate.pack)
            try:
                parts = open_source(source, record, at)
            except StoreCorrupt as error:
                inner.failed(error)
                continue
            if has_all(parts, part_map, origin, delta.block_length):
                return parts
            inner.failed(StoreCorrupt(at, "a record does not hold the parts a delta takes from it"))
        raise StoreCorrupt(where, f"a delta in it needs a record that cannot be had: {inner.failure}")

    async def _try(self, candidate: Candidate, attempt: _Attempt) -> bytes | None:
        """Read a candidate once, within the bound; None: not to be had."""
        if candidate in attempt.tried:
            return None
        attempt.tried.add(candidate)
        shelf, pack, offset, length = candidate
        if attempt.records >= RECORDS_MAX:
            attempt.failed(StoreCorrupt(str(pack), f"a block in it could not be had from {RECORDS_MAX} records"))
            return None
        if not RECORD_BYTES_MIN <= length <= RECORD_BYTES_MAX:
            attempt.failed(
                StoreCorrupt(str(pack), f"a place in it names {length} bytes, and no record is that long or short")
            )
            return None
        attempt.records += 1
        try:
            return (await self._shelves[shelf].read(pack, [(offset, length)]))[0]
        except (StoreCorrupt, ObjectMissing) as error:
            attempt.failed(error)
            return None

    def _candidates(self, ident: bytes, place: np.void | None, resolve: Resolve | None) -> Iterator[Candidate]:
        """Yield where a record may lie: the pinned place, then every place of the id, here and in the other stores."""
        if place is not None and place["length"]:
            yield from self._at(0, place, resolve)
        for number, shelf in enumerate(self._shelves):
            for each in shelf.index.all_places(ident):
                yield from self._at(number, each, None if number else resolve)

    def _at(self, shelf: int, place: np.void, resolve: Resolve | None) -> Iterator[Candidate]:
        key = int(place["pack"])
        named = resolve(key) if resolve is not None else None
        packs = [] if named is None else [named]
        packs += [pack for pack in self._shelves[shelf].index.packs_of_key(key) if pack != named]
        for pack in packs:
            yield Candidate(shelf, pack, int(place["offset"]), int(place["length"]) & LENGTH_MASK)
