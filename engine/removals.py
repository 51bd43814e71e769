"""The removal lists of one cache: what of them is known here, and this system's own (engine/removal.py).

Only names not seen before cost a download; what was downloaded lies beside the mirror of the index. A system writes a
list before it deletes packs, and once they are gone one that stands for its last ones, in which what no fragment lists
any more is left out. So lists stay few, and short as long as writers merge their fragments.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, TypeAlias

import anyio.to_thread
import numpy as np

from engine.block import Mask
from engine.columns import Column64
from engine.distinct import distinct
from engine.errors import ObjectMissing, StateCorrupt, StoreCorrupt, StoreRejected
from engine.names import PackName, RemovalName
from engine.ports import MirrorFiles, ObjectStore
from engine.refresh import Members
from engine.removal import (
    REMOVAL_READ_MAX,
    REMOVAL_SIZE_MIN,
    REMOVALS_PREFIX,
    RemovalList,
    encode_removals,
    open_removals,
    removal_domain,
)
from engine.stage import barrier_of, free_name, remove_damaged
from engine.subkeys import DomainKeys
from engine.trailer import Signer
from engine.workers import run_workers

LISTS_BYTES_MAX: Final = 64 << 20  # of other systems' lists held: the packs of 128 TiB
LISTS_MAX: Final = 4096  # of other systems
DOWNLOADS_MAX: Final = 8
SEQUENCES_TRIED_MAX: Final = 64
MERGED_PACKS_MAX: Final = 1 << 20  # a list that others are merged into is not longer

Named: TypeAlias = Callable[[bytes, Column64], Mask]  # (writer, keys) -> which of its packs a fragment may list


class Removals:
    """What is known of packs that left. Methods raise StoreUnavailable and StoreRejected where they ask the store."""

    def __init__(
        self,
        objects: ObjectStore,
        files: MirrorFiles,
        keys: DomainKeys,
        members: Members,
        writer: bytes,
        incarnation: bytes,
        signer: Signer,
    ) -> None:
        self._objects, self._files, self._keys, self._members = objects, files, keys, members
        self._writer, self._incarnation, self._signer = writer, incarnation, signer
        self._lists: dict[RemovalName, RemovalList] = {}
        self._sizes: dict[RemovalName, int] = {}
        self._damaged: dict[RemovalName, int] = {}  # own ones that are none, and their sizes
        self._others: set[RemovalName] = set()  # good lists of other domains of which their writers are members
        self._loaded = False
        self._sequence = 0
        self.keys: Column64 = np.empty(0, np.uint64)  # of all packs on any list, ascending

    async def refresh(self) -> list[str]:
        """Bring what is known up to what the store lists; return what is wrong there, a sentence each.

        Raises: StateCorrupt, SessionAborted.
        """
        listed: dict[RemovalName, int] = {}
        async for info in self._objects.list(REMOVALS_PREFIX):
            name = RemovalName.parse(info.name)
            if name is not None:
                listed[name] = info.size
        mine = [n.sequence for n in listed if (n.writer, n.incarnation) == (self._writer, self._incarnation)]
        self._sequence = max(mine, default=self._sequence)
        await anyio.to_thread.run_sync(self._load, listed)
        self._damaged.clear()
        problems = [
            f"object {name} was written again with other content by system {name.writer.hex()} or someone in its "
            "place; what it said first is used"
            for name, size in self._sizes.items()
            if listed[name] != size
        ]
        problems += await self._fetch(self._wanted(listed, problems), listed)
        self._join()
        return sorted(problems)

    def unsettled(self) -> list[RemovalList]:
        """Return the lists of which some packs may be there still, though nothing in them is needed."""
        covered = {cover for known in self._lists.values() for cover in known.covers}
        return [known for name, known in sorted(self._lists.items()) if not known.settled and name not in covered]

    async def announce(self, packs: Iterable[PackName]) -> RemovalList:
        """List packs that are about to be deleted; once this has returned, durably."""
        by_writer: dict[bytes, list[int]] = {}
        for pack in packs:
            by_writer.setdefault(pack.writer, []).append(pack.key)
        return await self._put({writer: distinct(np.array(keys, np.uint64)) for writer, keys in by_writer.items()})

    async def take_over(self, known: RemovalList) -> None:
        """List as this system's own what another one listed as removed and may not have deleted."""
        await self._put(known.packs)

    async def drop(self, known: RemovalList) -> None:
        """Remove the list of another system that was taken over, all of which is deleted now."""
        await self._delete([known.name])

    async def settle(self, named: Named) -> None:
        """Let one list stand for this system's own whose packs are all deleted now, less what nobody names any more.

        Older ones are taken in as long as they are not much longer, so that each key is written few times.
        """
        await self._delete(self._covered())
        await self._sweep()
        own = sorted((known for name, known in self._lists.items() if name.writer == self._writer), key=_size)
        merged = [known for known in own if not known.settled]
        if not merged:
            return
        total = sum(map(_size, merged))
        for known in (each for each in own if each.settled):
            if known.count > 2 * total or total + known.count > MERGED_PACKS_MAX:
                break
            merged.append(known)
            total += known.count
        left: dict[bytes, Column64] = {}
        for writer in {writer for known in merged for writer in known.packs}:
            keys = distinct(*(known.packs[writer] for known in merged if writer in known.packs))
            kept = keys[named(writer, keys)]
            if kept.size:
                left[writer] = kept
        covers = [known.name for known in merged]
        # Also if nothing is left: the greatest number of its lists must not be given again, others may have it still.
        await self._put(left, covers, settled=True)
        await self._delete(covers)
        self._join()

    def _covered(self) -> list[RemovalName]:
        """Return own lists that another one stands for: what an interrupted settlement left."""
        covered = {cover for known in self._lists.values() for cover in known.covers}
        return sorted(name for name in covered & self._lists.keys() if name.writer == self._writer)

    async def _sweep(self) -> None:
        """Remove what is damaged of this system's own lists: what it was to say was said again, or never happened.

        Not a newest one: others may hold it whole.
        """
        mine = [name for name in self._lists if name.writer == self._writer]
        check = partial(open_removals, keys=None, verifier=None)
        for name in await remove_damaged(self._objects, self._damaged, mine, check, REMOVAL_READ_MAX):
            del self._damaged[name]

    async def _delete(self, names: Sequence[RemovalName]) -> None:
        for name in names:
            await self._objects.delete(str(name))
            del self._lists[name], self._sizes[name]
            await anyio.to_thread.run_sync(self._files.remove, str(name))

    async def _put(
        self, packs: Mapping[bytes, Column64], covers: Sequence[RemovalName] = (), *, settled: bool = False
    ) -> RemovalList:
        name = await self._next_name()
        data = await anyio.to_thread.run_sync(
            lambda: encode_removals(name, packs, self._keys, self._signer, covers, settled=settled)
        )
        await self._objects.put(str(name), data)
        if (barrier := barrier_of(self._objects)) is not None:
            await barrier()
        known = open_removals(name, data, self._keys, None)
        await anyio.to_thread.run_sync(self._keep, known, data)
        self._join()
        return known

    async def _next_name(self) -> RemovalName:
        first = RemovalName(self._writer, self._incarnation, self._sequence + 1)
        name = await free_name(self._objects, first, SEQUENCES_TRIED_MAX)
        self._sequence = name.sequence if name is not None else self._sequence + SEQUENCES_TRIED_MAX
        if name is not None:
            return name
        raise StoreRejected(
            f"the cache holds {SEQUENCES_TRIED_MAX} removal lists of this system that were not there when it was "
            "opened: another machine runs with a copy of its state; run 'forebay init' there"
        )

    def _load(self, listed: Collection[RemovalName]) -> None:
        """Take up what lies here; let go of what is no longer listed."""
        if not self._loaded:
            for file in self._files.names():
                name = RemovalName.parse(file)
                if name is not None:
                    self._take_up(name, file)
            self._loaded = True
        for name in [name for name in self._lists if name not in listed]:
            del self._lists[name], self._sizes[name]
            self._files.remove(str(name))

    def _take_up(self, name: RemovalName, file: str) -> None:
        try:
            data = bytes(self._files.open(file))
            self._lists[name], self._sizes[name] = open_removals(name, data, self._keys, None), len(data)
        except (StoreCorrupt, StateCorrupt):
            self._files.remove(file)

    def _wanted(self, listed: Mapping[RemovalName, int], problems: list[str]) -> list[RemovalName]:
        """Return what to fetch: what members wrote, within the bounds."""
        members = {*self._members.systems(), self._writer}
        foreign = [name for name in self._lists if name.writer != self._writer]
        room, count = LISTS_BYTES_MAX - sum(self._sizes[name] for name in foreign), LISTS_MAX - len(foreign)
        wanted = []
        for name in sorted(listed.keys() - self._lists.keys() - self._others):
            if name.writer not in members:
                continue
            if name.writer != self._writer:
                room, count = room - listed[name], count - 1
                if room < 0 or count < 0:
                    problems.append("the cache holds more removal lists than are read; packs may seem to be there")
                    break
            wanted.append(name)
        return wanted

    async def _fetch(self, wanted: Collection[RemovalName], listed: Mapping[RemovalName, int]) -> list[str]:
        rest = iter(wanted)
        problems: list[str] = []

        async def work() -> None:
            for name in rest:
                try:
                    if not REMOVAL_SIZE_MIN <= listed[name] <= REMOVAL_READ_MAX:
                        raise StoreCorrupt(str(name), f"no removal list is {listed[name]} bytes long")
                    data = bytes(await self._objects.get(str(name), 0, listed[name]))
                    known = await anyio.to_thread.run_sync(self._check, name, data)
                    if known is None:
                        self._others.add(name)
                    else:
                        await anyio.to_thread.run_sync(self._keep, known, data)
                except StoreCorrupt as error:
                    if name.writer == self._writer:
                        self._damaged[name] = listed[name]
                    problems.append(f"{error}; it is not used (it has the name of system {name.writer.hex()})")
                except ObjectMissing:
                    continue

        await run_workers(work, min(DOWNLOADS_MAX, len(wanted)))
        return problems

    def _check(self, name: RemovalName, data: bytes) -> RemovalList | None:
        if removal_domain(data) != self._keys.domain:
            open_removals(name, data, None, self._members)
            return None
        return open_removals(name, data, self._keys, self._members)

    def _keep(self, known: RemovalList, data: bytes) -> None:
        self._files.publish(str(known.name), data)
        self._lists[known.name], self._sizes[known.name] = known, len(data)

    def _join(self) -> None:
        keys = [part for known in self._lists.values() for part in known.packs.values()]
        self.keys = distinct(np.empty(0, np.uint64), *keys)


def _size(known: RemovalList) -> int:
    return known.count
