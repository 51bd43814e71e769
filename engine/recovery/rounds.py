"""One pass over blocks in one store: their records, and those their deltas need, read in long stretches and opened.

    blocks → groups: their deltas are read and their links opened → jobs: what is left is read → opened in one hop to
    a worker thread, which also hands the contents on

What fails is left to others: a round only gives what lies where it is said to lie. `JOBS_MAX` jobs at once, of
`GROUPS_MAX` groups, bound the memory: 24 MiB of jobs, 24 MiB of deltas, and of opened blocks 8 MiB a thread; what
waits to be written comes on top (writer.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import anyio
import anyio.to_thread
import numpy as np
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from engine.block import DELTA_FLAG, Places, Refs, ids_from_bytes
from engine.delta import LINK
from engine.packread import GAP_BYTES, Extents, Range
from engine.recovery.jobs import (
    HELD_GAP_BYTES,
    DeltaWork,
    Held,
    Job,
    Located,
    Packs,
    Positions,
    Resolve,
    Sources,
    Spot,
    Spots,
    by_pack,
    cut_jobs,
    groups,
    locate,
)
from engine.recovery.opening import Records, Take, open_in_turn, take_apart
from engine.recovery.places import CACHE
from engine.recovery.supply import Supply

JOBS_MAX: Final = 4
GROUPS_MAX: Final = 2
# Read before and after the deltas of a group, where the first and last of them have most of their sources.
AROUND_BYTES: Final = 48 << 10
AROUND_PACKS_MAX: Final = 64
LINKS_BATCH: Final = 256  # deltas whose links are opened in one hop


class _Group:
    """What is held for the jobs of one group; `done` is called once for each of them and once at their end."""

    def __init__(self, held: Held, slots: anyio.Semaphore) -> None:
        self.held, self._slots, self._left = held, slots, 1

    def begin(self) -> None:
        self._left += 1

    def done(self) -> None:
        self._left -= 1
        if not self._left:
            self.held = {}
            self._slots.release()


class Round:
    """Gives blocks of `refs` from the store called `home`; `run` once.

    `resolve` names the packs of the places given to `run`, `pinned` those that deltas name; `count` is
    told how many bytes of content were handed to `take`.
    """

    def __init__(
        self,
        supply: Supply,
        home: str,
        refs: Refs,
        resolve: Resolve,
        pinned: Resolve,
        take: Take,
        count: Callable[[int], None],
    ) -> None:
        self._supply, self._home, self._refs = supply, home, refs
        self._resolve, self._pinned, self._take, self._count = resolve, pinned, take, count
        self._packs = Packs()
        self._slots = anyio.Semaphore(GROUPS_MAX)
        self._given: list[int] = []

    async def run(self, wanted: Positions, places: Places) -> Positions:
        """Give what lies at `places`, one for each of the positions `wanted`; return those not given, ascending.

        Raises: what `take` raises.
        """
        located = locate(wanted, places, self._home, self._packs, self._resolve)
        sender, receiver = anyio.create_memory_object_stream[tuple[_Group, Job]](0)
        async with anyio.create_task_group() as tasks, receiver, sender:
            for _ in range(JOBS_MAX):
                tasks.start_soon(self._work, receiver.clone())
            for group in groups(located):
                await self._slots.acquire()
                await self._send(group, sender)
            sender.close()
        return np.setdiff1d(wanted, np.array(self._given, dtype=np.intp))

    async def _send(self, group: Located, sender: MemoryObjectSendStream[tuple[_Group, Job]]) -> None:
        held, works = await self._deltas(group[group.deltas]) if group.deltas.any() else ({}, [])
        places = np.frombuffer(b"".join([work.links for work in works]), LINK)["place"]
        sources = Sources.of(works, await self._find_sources(works, places), held)
        state = _Group(held, self._slots)
        for job in cut_jobs(group[~group.deltas], works, sources, held):
            state.begin()
            await sender.send((state, job))
        state.done()

    async def _deltas(self, deltas: Located) -> tuple[Held, list[DeltaWork]]:
        """Read the deltas of a group and open their links."""
        spots = deltas.spots.listed()
        ranges = by_pack(spots)
        held = await self._read(ranges, HELD_GAP_BYTES, AROUND_BYTES if len(ranges) <= AROUND_PACKS_MAX else 0)
        records = Records(self._packs, held)
        works: list[DeltaWork] = []

        async def open_links(positions: Sequence[int], at: Sequence[Spot]) -> None:
            opened, problems = await anyio.to_thread.run_sync(
                take_apart, self._supply.turns, self._refs, positions, at, records, limiter=self._supply.openers
            )
            works.extend(opened)
            self._note(problems)

        positions = deltas.positions.tolist()
        async with anyio.create_task_group() as tasks:
            for first in range(0, len(spots), LINKS_BATCH):
                part = slice(first, first + LINKS_BATCH)
                tasks.start_soon(open_links, positions[part], spots[part])
        return held, works

    async def _find_sources(self, works: Sequence[DeltaWork], places: Places) -> Spots:
        """Return where the sources of deltas are read: in the cache if it has them, else at `places`, as they say."""
        found = self._supply.pinned(self._packs, places, self._pinned)
        cache = self._supply.store(CACHE)
        if cache is None or not works or not self._supply.has_index(CACHE):
            return found
        ids = ids_from_bytes(b"".join([work.delta.ids for work in works]))
        there = await anyio.to_thread.run_sync(cache.index.lookup, ids)
        near = self._packs.spots(CACHE, there, cache.index.pack_name)
        # A delta in a cache holds what some other delta there needs of it, which may not be what this one does.
        usable = (near.numbers >= 0) & ((there["length"] & DELTA_FLAG == 0) | (self._home == CACHE))
        return Spots(*(np.where(usable, *columns) for columns in zip(near, found, strict=True)))

    async def _work(self, jobs: MemoryObjectReceiveStream[tuple[_Group, Job]]) -> None:
        async with jobs:
            while True:
                try:
                    group, job = await jobs.receive()
                except anyio.EndOfStream:
                    return
                await self._do(group, job)
                # Nothing of a job may be held while the next one is waited for: that would be memory nobody counts.
                del group, job

    async def _do(self, group: _Group, job: Job) -> None:
        records = Records(self._packs, await self._read(job.ranges, GAP_BYTES, 0), group.held)
        opened = await anyio.to_thread.run_sync(
            open_in_turn,
            self._supply.turns,
            job,
            self._refs,
            self._supply.keys.blocks,
            records,
            self._take,
            limiter=self._supply.openers,
        )
        del records
        group.done()
        self._given += opened.positions
        self._count(opened.content_bytes)
        self._note(opened.problems)

    async def _read(self, ranges: Mapping[int, Sequence[Range]], gap_bytes: int, around_bytes: int) -> Held:
        """Read ranges of packs, those of all packs at once; what cannot be read is left out."""
        held: dict[int, Extents] = {}

        async def read(number: int, wanted: Sequence[Range]) -> None:
            extents = await self._supply.fetch(*self._packs[number], wanted, gap_bytes, around_bytes)
            if extents is not None:
                held[number] = extents

        if len(ranges) == 1:
            ((number, wanted),) = ranges.items()
            await read(number, wanted)
        else:
            async with anyio.create_task_group() as tasks:
                for number, wanted in ranges.items():
                    tasks.start_soon(read, number, wanted)
        return held

    def _note(self, problems: Sequence[str]) -> None:
        for problem in problems:
            self._supply.places.problems.add(problem)
