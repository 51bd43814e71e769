"""Writing and reading the stamps of a cache: what a verification or a session saw, and what earlier stamps said.

The newest stamps of a system say all that its older ones said of packs that are still there; once they are durable,
the older ones go. So there are never more than what the packs of the cache take, and of one system a reader has few
objects to read. Cut off anywhere, older and newer stamps lie beside each other, which changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, Final, NamedTuple

import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import Bytes
from engine.cache import clocks
from engine.cache.comparison import seen_in
from engine.cache.packbits import PackBits
from engine.cache.stamps import (
    Seen,
    StampDetails,
    StampHead,
    day_of,
    encode_stamps,
    head_bytes,
    merged,
    open_head,
)
from engine.columns import Column64
from engine.distinct import among, distinct
from engine.errors import ObjectMissing, StateCorrupt, StoreCorrupt, StoreError
from engine.events import EventLog
from engine.names import StampName
from engine.packstore import PackStore
from engine.ports import ObjectStore
from engine.refresh import Members
from engine.scratch import MemoryScratch, ScratchFile
from engine.stage import flush
from engine.state import VolumeState
from engine.vault.identity import Identity

log = EventLog("stamps")

HEAD_READ_BYTES: Final = 1 << 16
OWN_STAMPS_MAX: Final = 32  # objects; a session that finds more writes them as few new ones
_COLUMNS: Final = {"packs": np.uint64, "newest": np.uint16, "oldest": np.uint16, "details": np.uint32}
MOVES_MAX: Final = 4  # times packs may leave between a look at the index and the stamp
STAMPS_MAX: Final = 4096  # of one system; a listing of more is nobody's doing but a fault's


class _Older(NamedTuple):
    """A stamp that is kept in a file: from `at` on its columns, then its details; its packs lie in [first, last]."""

    bare: StampHead  # without columns
    first: int
    last: int
    packs: int
    at: int


class OlderStamps:
    """What stamps that are to be replaced say, in a file (*sync*). `days`: of each, its day and `StampHead.since`."""

    def __init__(self, file: ScratchFile) -> None:
        self.days: list[tuple[int, int]] = []
        self._file, self._end = file, 0
        self._kept: list[_Older] = []

    def add(self, head: StampHead, details: StampDetails) -> None:
        """Keep a stamp in mind. Raises: SessionAborted."""
        self.days.append((head.name.day, head.since))
        if not len(head.packs):
            return
        none = {column: np.empty(0, dtype) for column, dtype in _COLUMNS.items()}
        bare = msgspec.structs.replace(head, **none)
        first, last = int(head.packs[0]), int(head.packs[-1])
        self._kept.append(_Older(bare, first, last, len(head.packs), self._end))
        for data in (*(getattr(head, column).data.cast("B") for column in _COLUMNS), details.data):
            self._file.write_at(self._end, data)
            self._end += len(data)

    def said(self, believed: int, present: Column64 | None) -> list[Iterator[Seen]]:
        """Return sources, each ascending, of all that is said of packs that are `present`, no later than `believed`.

        Stamps written together follow each other: then one at a time is in memory.
        """
        chains: list[list[_Older]] = []
        for each in sorted(self._kept, key=lambda each: each.first):
            for before in chains:
                if before[-1].last < each.first:
                    before.append(each)
                    break
            else:
                chains.append([each])
        return [chain.from_iterable(self._said(each, believed, present) for each in one) for one in chains]

    def _said(self, kept: _Older, believed: int, present: Column64 | None) -> Iterator[Seen]:
        at, columns = kept.at, dict[str, npt.NDArray[Any]]()
        for column, dtype in _COLUMNS.items():
            columns[column] = np.empty(kept.packs, dtype)
            self._file.read_into(at, columns[column].data.cast("B"))
            at += columns[column].nbytes
        head, data = msgspec.structs.replace(kept.bare, **columns), bytearray(kept.bare.details_bytes)
        self._file.read_into(at, memoryview(data))
        details = StampDetails(head, data)
        rows = np.arange(kept.packs)
        if present is not None:
            rows = rows[among(head.packs, present)]
        for row in rows:
            said = details.seen(int(row))
            yield Seen(said.pack, np.minimum(said.days, np.uint16(believed)))

    def close(self) -> None:
        """Let go of it; safe to call twice."""
        self._kept.clear()
        self._file.close()


class Stamping(msgspec.Struct, frozen=True):
    """The stamps in one cache as one system reads and writes them; `incarnation` (8 bytes) of its state directory."""

    objects: ObjectStore
    identity: Identity
    members: Members
    incarnation: bytes
    now_ms: int

    async def listed(self, writer: bytes | None = None) -> dict[bytes, list[StampName]]:
        """Return the stamps of the domain's systems, or of one of them, by writer, oldest first. Raises: StoreError."""
        found: dict[bytes, list[StampName]] = defaultdict(list)
        members = {*self.members.systems(), self.identity.system}
        async for info in self.objects.list(f"stamp/{writer.hex()}/" if writer is not None else "stamp/"):
            name = StampName.parse(info.name)
            if name is not None and name.writer in members and len(found[name.writer]) < STAMPS_MAX:
                found[name.writer].append(name)
        return {writer: sorted(names) for writer, names in found.items() if names}

    async def own_heads(self) -> list[StampHead]:
        """Return the heads of this system's stamps, as far as they can be read. Raises: StoreError."""
        heads = []
        for name in (await self.listed(self.identity.system)).get(self.identity.system, []):
            # What is damaged is told of when it is replaced; what is gone was written anew.
            with suppress(StoreCorrupt, ObjectMissing):
                heads.append(await self.head(name))
        return heads

    async def details(self, head: StampHead) -> StampDetails:
        """Return the days of single records that a stamp has. Raises: StoreCorrupt, ObjectMissing, StoreError."""
        data: Bytes = b""
        if head.details_bytes:
            data = await self.objects.get(str(head.name), head.details_at, head.details_bytes)
        return await anyio.to_thread.run_sync(StampDetails, head, data)

    async def renew(
        self,
        seen: Iterable[PackBits],
        present: Column64 | None = None,
        told: Sequence[Seen] = (),
        oldest: Callable[[int], None] = lambda _: None,
        scratch: Callable[[], ScratchFile] = MemoryScratch,
    ) -> list[str]:
        """Stamp what was seen (ascending by pack), and say again what own older stamps said, which then go.

        Returns problems. `present`: keys of all packs that are there, ascending; nothing is said of others. `told`
        (ascending): what is known of earlier days besides. `oldest` hears the least day anything was seen last, 0:
        nothing was. `scratch` makes a file for what older stamps say. Raises: StoreError.
        """
        older = OlderStamps(scratch())
        try:
            return await self._renew(older, seen, present, told, oldest)
        finally:
            older.close()

    async def _renew(
        self,
        older: OlderStamps,
        seen: Iterable[PackBits],
        present: Column64 | None,
        told: Sequence[Seen],
        oldest: Callable[[int], None],
    ) -> list[str]:
        listed = await self.listed()
        mine = listed.get(self.identity.system, [])
        problems: list[str] = []
        for name in mine:
            try:
                head = await self.head(name)
                await anyio.to_thread.run_sync(older.add, head, await self.details(head))
            except StoreCorrupt as error:
                problems.append(f"{error}; what it said of blocks that are in use is lost")
            except ObjectMissing:
                continue
        own = [day for day, _ in older.days]
        day, believed, problem = self._day(listed, own)
        problems += [f"cache: {problem}"] if problem is not None else []
        since = clocks.unbroken_since(day, older.days)
        sources = older.said(believed, present)
        said = _oldest_of(merged([*sources, seen_on(seen, day), _until(told, day)]), oldest)
        objects = encode_stamps(said, self._names(mine, day), since, self.identity.keys, self.identity.signer)
        count = await self._put(objects)
        for name in mine:
            await self.objects.delete(str(name))
        log.info("stamps_renewed", component="cache", day=day, stamps=count, replaced=len(mine))
        return problems

    async def add(self, seen: Iterable[PackBits], told: Sequence[Seen] = ()) -> list[str]:
        """Stamp what was seen besides what own older stamps say; return problems. See `renew`. Raises: StoreError."""
        mine = (await self.listed(self.identity.system)).get(self.identity.system, [])
        if len(mine) >= OWN_STAMPS_MAX:
            return await self.renew(seen, told=told)
        # Once a day the clock is compared with those of the others: their stamps may be many.
        days = [name.day for name in mine]
        alone = max(days, default=0) == day_of(self.now_ms)
        day, _, problem = self._day({} if alone else await self.listed(), days)
        since = clocks.unbroken_since(day, [await self.days(name) for name in mine[-1:]])
        said = merged([seen_on(seen, day), _until(told, day)])
        objects = encode_stamps(said, self._names(mine, day), since, self.identity.keys, self.identity.signer)
        await self._put(objects)
        return [f"cache: {problem}"] if problem is not None else []

    async def days(self, name: StampName) -> tuple[int, int]:
        """Return the day of a stamp, and since when those before it follow each other (0: nobody knows).

        Raises: StoreUnavailable, StoreRejected.
        """
        try:
            return name.day, (await self.head(name)).since
        except (StoreCorrupt, ObjectMissing):
            return name.day, 0

    async def head(self, name: StampName) -> StampHead:
        """Return the head of a stamp, checked. Raises: StoreCorrupt, ObjectMissing, StoreError."""
        # Most stamps are small: one request gives the head, often all of it.
        start = await self.objects.get(str(name), 0, HEAD_READ_BYTES)
        size = head_bytes(name, start)
        if size > len(start):
            start = await self.objects.get(str(name), 0, size)
        return await anyio.to_thread.run_sync(open_head, name, start, self.identity.keys, self.members)

    async def _put(self, objects: Iterator[tuple[StampName, bytes]]) -> int:
        count = 0
        while (found := await anyio.to_thread.run_sync(next, objects, None)) is not None:
            name, data = found
            await self.objects.put(str(name), data)
            count += 1
        await flush(self.objects)
        return count

    def _day(self, listed: Mapping[bytes, list[StampName]], own: Sequence[int]) -> tuple[int, int, str | None]:
        """Return what `clocks.stamped_day` does; `own`: days of own stamps."""
        newest = {writer: names[-1].day for writer, names in listed.items() if writer != self.identity.system}
        shown = day_of(self.now_ms)
        today = clocks.borne_out(shown, own, newest.values())
        day, believed, problem = clocks.stamped_day(today, own, clocks.voices(newest, today, own))
        if problem is None and today > shown:
            problem = (
                f"the clock of this machine is {today - shown} days behind the stamps it wrote, and other systems'"
            )
        return day, believed, problem

    def _names(self, mine: list[StampName], day: int) -> Iterator[StampName]:
        sequence = max((name.sequence for name in mine), default=0)
        while True:
            sequence += 1
            yield StampName(self.identity.system, day, self.incarnation, sequence)


async def stamp_session(
    cache: PackStore, identity: Identity, incarnation: bytes, now_ms: int, states: Sequence[VolumeState]
) -> None:
    """Stamp what a session staged and the cache now has. What is wrong with clock or cache costs nothing more."""
    stamping = Stamping(cache.objects, identity, cache.members, incarnation, now_ms)
    said: Column64 = np.empty(0, np.uint64)
    try:
        for _ in range(MOVES_MAX):
            known = removed_packs(cache)
            seen = await anyio.to_thread.run_sync(seen_in, states, cache.index)
            parts = [piece.take(np.flatnonzero(~among(piece.keys, said))) for piece in seen.pieces()]
            if not any(map(len, parts)):
                return
            for problem in await stamping.add(parts):
                log.warning("stamps_doubted", component="cache", reason=problem)
            said = distinct(said, *(part.keys for part in parts))
            if not await moved(cache, said, known):
                return
    except (StoreError, StateCorrupt) as error:
        # The next verification says the same again of all that is in use.
        log.warning("stamps_failed", component="cache", error=str(error))


def removed_packs(cache: PackStore) -> Column64:
    """Return the keys of all packs that are known to have left a cache, ascending."""
    assert cache.removals is not None, "not a cache"
    return cache.removals.keys


async def moved(cache: PackStore, said: Column64, known: Column64) -> bool:
    """Tell whether any of the packs `said` (ascending) that were stamped left the cache since `known` ones had.

    Who trims reads what was stamped before it lists a pack as removed, and says it of the pack that has its records
    now. Of what is stamped after that it knows nothing: so whoever stamped looks once more, and says it of that pack.
    Afterwards the index is as the store has it. Raises: StoreUnavailable, StoreRejected, StateCorrupt, SessionAborted.
    """
    await cache.refresh()
    removed = removed_packs(cache)
    return bool(among(removed[~among(removed, known)], said).any())


def seen_on(pieces: Iterable[PackBits], day: int) -> Iterator[Seen]:
    """Yield what was seen on a day, ascending by pack."""
    for bits in pieces:
        starts = bits.starts().tolist()
        for row, (pack, count) in enumerate(zip(bits.keys.tolist(), bits.counts.tolist(), strict=True)):
            there = np.unpackbits(bits.bits[starts[row] : starts[row + 1]], count=count, bitorder="little")
            if there.all():
                yield Seen(pack, np.array([day], np.uint16))
            elif there.any():
                yield Seen(pack, there * np.uint16(day))


def _oldest_of(said: Iterator[Seen], hear: Callable[[int], None]) -> Iterator[Seen]:
    """Yield what is said, and tell at its end the least day in it, 0: there is none."""
    oldest = 0
    for each in said:
        if (days := each.days[each.days > 0]).size:
            least = int(days.min())
            oldest = min(oldest or least, least)
        yield each
    hear(oldest)


def _until(told: Sequence[Seen], day: int) -> Iterator[Seen]:
    """Yield what was told, no later than a stamp's own day, but for packs it says nothing of."""
    for said in told:
        if said.days.any():
            yield Seen(said.pack, np.minimum(said.days, np.uint16(day)))
