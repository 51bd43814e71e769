"""Gives the contents of blocks, each from the nearest place that has it whole.

The order for a block (DESIGN.md §2, §5): the cache, found by id; the vault, at the place the run names; then, only
for what failed there, by id in the vault and again in the cache, every place an index knows. Nothing is believed:
a content counts once it hashes to its ref. What fails in one place is reported and taken from the next.

A vault without damage is read by places alone, so its index is fetched only when something is not where it should
be. Blocks are read in jobs: neighbours in one pack, up to `JOB_BYTES` with the gaps between them, one request each;
`READERS` jobs at once bound the memory (32 MiB of records, and once more while they are cut apart).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt

from engine.block import DELTA_FLAG, ID_BYTES, LENGTH_MASK, Places, Refs, ids_of
from engine.errors import (
    FormatTooNew,
    ObjectMissing,
    SessionAborted,
    StateCorrupt,
    StoreCorrupt,
    StoreRejected,
    StoreUnavailable,
)
from engine.names import PackName
from engine.packstore import PackStore
from engine.pagestore import Resolve
from engine.recovery.places import CACHE, VAULT
from engine.recovery.places import Places as Stores
from engine.seal import RECORD_BYTES_MAX, RECORD_BYTES_MIN, open_whole

READERS: Final = 16
OPENERS: Final = 4
JOB_BYTES: Final = 2 << 20
GAP_BYTES: Final = 64 << 10
PLACES_TRIED_MAX: Final = 8  # of one id in one store, besides the place its run names

Positions: TypeAlias = npt.NDArray[np.intp]
# (position in the refs asked for, content): called from worker threads, several at once.
Take: TypeAlias = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Records of one pack that are read together: `positions` in the refs asked for, ranges beside."""

    pack: PackName
    positions: list[int]
    ranges: list[tuple[int, int]]


@dataclass(slots=True)
class BlockSource:
    """Blocks of one domain from `stores`, by place name; `given_bytes` counts what each of them gave, in content.

    `subkey` is the domain's subkey of blocks; `writers` (16 bytes each): whose index fragments are wanted most.
    """

    places: Stores
    stores: Mapping[str, PackStore]
    subkey: bytes
    given_bytes: dict[str, int] = field(default_factory=dict)
    writers: set[bytes] = field(default_factory=set)
    _indexed: set[str] = field(default_factory=set)
    _opening: anyio.Lock = field(default_factory=anyio.Lock)
    _openers: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(OPENERS))

    @property
    def total_bytes(self) -> int:
        """Bytes of content given so far, from all places."""
        return sum(self.given_bytes.values())

    async def give(self, refs: Refs, hints: Places, resolve: Resolve, take: Take) -> Positions:
        """Give every block of `refs` (`uint8[n, 48]`, none twice, none zero) to `take`; return those it could not.

        `hints` are their places in the vault, whose packs `resolve` names. Raises: what `take` raises, and
        StoreError once no place is left.
        """
        open_: Positions = np.arange(len(refs))
        cache, vault = self._store(CACHE), self._store(VAULT)
        if cache is not None:
            found = await self._lookup(CACHE, cache, refs)
            open_ = await self._round(CACHE, refs, open_, found, cache.index.pack_name, take)
        if vault is not None and len(open_):
            open_ = await self._round(VAULT, refs, open_, hints[open_], resolve, take)
        for name, store in ((VAULT, vault), (CACHE, cache)):
            if store is not None and len(open_):
                open_ = await self._by_id(name, store, refs, open_, take)
        self.places.require()
        return open_

    async def record(self, ident: bytes) -> bytes | None:
        """Return a record of the id (16 bytes) from wherever an index knows one: the way out for pages."""
        for name in (CACHE, VAULT):
            store = self._store(name)
            if store is None:
                continue
            await self._open_index(name, store)
            try:
                record = await store.record_by_id(ident)
            except (StoreUnavailable, StoreRejected) as error:
                self._put_aside(name, error)
                continue
            except (StoreCorrupt, ObjectMissing) as error:
                self.places.problems.add(f"{name}: {error}")
                continue
            if record is not None:
                return record
        return None

    def _store(self, name: str) -> PackStore | None:
        return self.stores.get(name) if self.places.get(name) is not None else None

    def _put_aside(self, name: str, error: StoreUnavailable | StoreRejected) -> None:
        place = self.places.get(name)
        if place is not None:
            self.places.put_aside(place, error)

    async def _open_index(self, name: str, store: PackStore) -> None:
        """Fetch a store's index, once; what is wrong with it is reported, and the rest of it used."""
        async with self._opening:
            if name in self._indexed:
                return
            self._indexed.add(name)
            try:
                for problem in await store.refresh(self.writers):
                    self.places.problems.add(f"{name}: {problem}")
            except (StoreUnavailable, StoreRejected) as error:
                self._put_aside(name, error)
            except (StoreCorrupt, FormatTooNew, StateCorrupt, SessionAborted) as error:
                # A mirror that cannot be kept (a full disk) costs the way by id, not the restore.
                self.places.problems.add(f"the index of the {name} cannot be used: {error}")

    async def _lookup(self, name: str, store: PackStore, refs: Refs) -> Places:
        await self._open_index(name, store)
        return await anyio.to_thread.run_sync(lambda: store.index.lookup(ids_of(refs)))

    async def _by_id(self, name: str, store: PackStore, refs: Refs, open_: Positions, take: Take) -> Positions:
        """Try every place the store's index knows, one after the other, until each block is given."""
        await self._open_index(name, store)

        def look_up() -> dict[int, Places]:
            idents = ((at, refs[at, :ID_BYTES].tobytes()) for at in open_.tolist())
            return {at: store.index.all_places(ident)[:PLACES_TRIED_MAX] for at, ident in idents}

        known = await anyio.to_thread.run_sync(look_up)
        for turn in range(PLACES_TRIED_MAX):
            trying = np.array([at for at in open_.tolist() if len(known[at]) > turn], dtype=np.intp)
            if not len(trying) or self._store(name) is None:
                break
            places = np.concatenate([known[at][turn : turn + 1] for at in trying.tolist()])
            failed = await self._round(name, refs, trying, places, store.index.pack_name, take)
            open_ = np.setdiff1d(open_, np.setdiff1d(trying, failed))
        return open_

    async def _round(
        self, name: str, refs: Refs, wanted: Positions, places: Places, resolve: Resolve, take: Take
    ) -> Positions:
        """Read the blocks at `wanted` from one store at `places`; return those that were not given, ascending."""
        whole = (places["length"] & DELTA_FLAG) == 0
        jobs = _jobs(wanted[whole], places[whole], resolve)
        deltas = zip(wanted[~whole].tolist(), places[~whole], strict=True)
        given: list[int] = []

        async def read_jobs() -> None:
            for job in jobs:
                given.extend(await self._read(name, job, refs, take))

        async def read_deltas() -> None:
            for position, place in deltas:
                given.extend(await self._read_delta(name, position, place, refs, resolve, take))

        async with anyio.create_task_group() as group:
            for _ in range(READERS):
                group.start_soon(read_jobs)
                group.start_soon(read_deltas)
        return np.setdiff1d(wanted, np.array(given, dtype=np.intp))

    async def _read(self, name: str, job: _Job, refs: Refs, take: Take) -> list[int]:
        """Read one job and give what opens; return the positions given."""
        store = self._store(name)
        if store is None:
            return []
        try:
            records = await store.read_records(job.pack, job.ranges)
        except (StoreUnavailable, StoreRejected) as error:
            self._put_aside(name, error)
            return []
        except (StoreCorrupt, ObjectMissing) as error:
            self.places.problems.add(f"{name}: {error}")
            return []
        return await self._open(name, job, records, refs, take)

    async def _open(self, name: str, job: _Job, records: Sequence[bytes], refs: Refs, take: Take) -> list[int]:
        def work() -> tuple[list[int], int, list[str]]:
            given: list[int] = []
            problems: list[str] = []
            given_bytes = 0
            for position, record in zip(job.positions, records, strict=True):
                try:
                    content = open_whole(refs[position].tobytes(), record, self.subkey, str(job.pack))
                except StoreCorrupt as error:
                    problems.append(f"{name}: {error}")
                    continue
                take(position, content)
                given.append(position)
                given_bytes += len(content)
            return given, given_bytes, problems

        given, given_bytes, problems = await anyio.to_thread.run_sync(work, limiter=self._openers)
        self._count(name, given_bytes, problems)
        return given

    async def _read_delta(
        self, name: str, position: int, place: np.void, refs: Refs, resolve: Resolve, take: Take
    ) -> list[int]:
        store = self._store(name)
        if store is None:
            return []
        try:
            content = await store.open_block(refs[position].tobytes(), place, resolve)
        except (StoreUnavailable, StoreRejected) as error:
            self._put_aside(name, error)
            return []
        except (StoreCorrupt, ObjectMissing) as error:
            self._count(name, 0, [f"{name}: {error}"])
            return []
        await anyio.to_thread.run_sync(take, position, content, limiter=self._openers)
        self._count(name, len(content), [])
        return [position]

    def _count(self, name: str, given_bytes: int, problems: Sequence[str]) -> None:
        self.given_bytes[name] = self.given_bytes.get(name, 0) + given_bytes
        for problem in problems:
            self.places.problems.add(problem)


def _jobs(wanted: Positions, places: Places, resolve: Resolve) -> Iterator[_Job]:
    """Yield the records at `places` as jobs: by pack, in the order they lie in; impossible places are left out."""
    lengths = (places["length"] & LENGTH_MASK).astype(np.int64)
    stops = places["offset"].astype(np.int64) + lengths
    plausible = np.flatnonzero((lengths >= RECORD_BYTES_MIN) & (lengths <= RECORD_BYTES_MAX))
    order = plausible[np.lexsort((places["offset"][plausible], places["pack"][plausible]))]
    job: _Job | None = None
    key, pack = -1, None
    first = last = 0
    for row in order.tolist():
        if int(places["pack"][row]) != key:
            key = int(places["pack"][row])
            pack = resolve(key)
            if job is not None:
                yield job
            job = None
        offset, stop = int(places["offset"][row]), int(stops[row])
        if pack is None or stop > pack.size:
            continue
        if job is not None and (offset - last > GAP_BYTES or stop - first > JOB_BYTES):
            yield job
            job = None
        if job is None:
            job, first, last = _Job(pack, [], []), offset, offset
        job.positions.append(int(wanted[row]))
        job.ranges.append((offset, stop - offset))
        last = max(last, stop)
    if job is not None:
        yield job
