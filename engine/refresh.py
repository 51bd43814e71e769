"""Bringing the local mirror of an index up to what lies in the store: only names not seen before cost a download.

What does not check out is reported by name and writer and never used. What is no longer listed leaves the mirror:
missing a duplicate is allowed, believing in a ghost is not. Names are held of those writers only whose fragments may
be: a vault of thousands of systems has many more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, Protocol

import anyio
import anyio.to_thread
import msgspec

from engine.errors import ObjectMissing, StoreCorrupt
from engine.fragment import FRAGMENT_READ_MAX, FRAGMENT_SIZE_MIN, Fragment, fragment_domain, open_fragment
from engine.mirror import Mirror
from engine.names import FragmentName
from engine.ports import ObjectStore
from engine.subkeys import DomainKeys
from engine.trailer import Verifier
from engine.workers import run_workers

FOREIGN_WRITERS_MAX: Final = 64
WRITERS_ROTATED: Final = 8  # a session, where there are more
INDEX_BYTES_MAX: Final = 1 << 30
DOWNLOADS_MAX: Final = 8
LARGE_BYTES: Final = 8 << 20  # fragments above this are downloaded one at a time
LISTED_MAX: Final = 1 << 16  # names of others' fragments that are held before it is known whose are wanted: 20 MiB
STRAY_NAMES_MAX: Final = 10
_ROUNDS_MAX: Final = 4


class Members(Verifier, Protocol):
    """The systems of a domain: those whose certificates are known."""

    def systems(self) -> Collection[bytes]:
        """Return the ids (16 bytes) of all systems."""
        ...


class Refresh(msgspec.Struct):
    """One refresh; its results are `listed`, less what turned out to be no fragment of its name, and `problems`.

    `damaged`: own fragments, and their sizes, that are none, for whoever may remove them.

    `own_only`: fetch no foreign fragments. `preferred`: writers never rotated out. `index_max` bounds the bytes of
    foreign fragments. `may_tear`: what was put is durable only after a flush, so that an own fragment may be torn.
    """

    objects: ObjectStore
    mirror: Mirror
    keys: DomainKeys
    members: Members
    writer: bytes
    preferred: Collection[bytes] = ()
    own_only: bool = False
    index_max: int = INDEX_BYTES_MAX
    may_tear: bool = False
    listed: dict[FragmentName, int] = {}
    problems: list[str] = []
    damaged: dict[FragmentName, int] = {}
    _others: set[bytes] = set()  # members besides that have fragments there
    _skipped: bool = False  # others' fragments were too many to hold their names
    _named: set[bytes] = set()  # writers of whom all fragments that lie there are known by name
    _doubted: set[bytes] = set()  # writers of whom a fragment went, or changed, while it was looked at
    _bad: set[FragmentName] = set()
    _large: anyio.Lock = msgspec.field(default_factory=anyio.Lock)
    _mirror_lock: anyio.Lock = msgspec.field(default_factory=anyio.Lock)

    async def run(self) -> None:
        """List, let go, fetch, merge. Raises: StoreUnavailable, StoreRejected, StateCorrupt, SessionAborted."""
        await self._list()
        await anyio.to_thread.run_sync(self.mirror.load)
        writers = self._choose_writers()
        if self._skipped:
            await self._list_of(self._others.intersection(writers))
            self._named.intersection_update({self.writer, *self.preferred, *writers})
        self._report_rewritten()
        for _ in range(_ROUNDS_MAX):
            # Again after every round: what was fetched may stand for what is held, which then leaves.
            await anyio.to_thread.run_sync(self.mirror.reconcile, self.listed, writers)
            wanted = self._wanted(writers)
            if not wanted:
                break
            await self._download(wanted)
        else:
            await anyio.to_thread.run_sync(self.mirror.reconcile, self.listed, writers)
        await anyio.to_thread.run_sync(self.mirror.compact)
        # Whoever may write to the store may use any name, the last number of this system's own fragments, too.
        for name in self._bad:
            self.listed.pop(name, None)
        self.problems.sort()

    def whole_writers(self) -> set[bytes]:
        """Return the systems, own and of those asked for, of which everything that fragments list is in the mirror.

        So nothing else lies in packs of theirs that anybody could find; a system without fragments may be one of them.
        """
        known = self.mirror.superseded() | self.mirror.held().keys()
        unknown = {name.writer for name in {*self.listed, *self._bad} - known}
        return self._named - unknown - self._doubted

    async def _list(self) -> None:
        stray = 0
        needed = {self.writer, *self.preferred}
        members = set(() if self.own_only else self.members.systems()) - needed
        self._named = needed | members
        foreign: dict[FragmentName, int] = {}
        async for info in self.objects.list("index/"):
            name = FragmentName.parse(info.name)
            if name is None:
                stray += 1
                if stray <= STRAY_NAMES_MAX:
                    self.problems.append(
                        f"object {info.name} is not an index fragment; remove it if nothing else needs it"
                    )
            elif name.writer in needed:
                self.listed[name] = info.size
            elif name.writer in members:
                self._others.add(name.writer)
                if not self._skipped:
                    foreign[name] = info.size
                    if len(foreign) > LISTED_MAX:
                        self._skipped = True
                        foreign.clear()
        if not self._skipped:
            self.listed |= foreign

    async def _list_of(self, writers: Collection[bytes]) -> None:
        for writer in sorted(writers):
            async for info in self.objects.list(f"index/{writer.hex()}/"):
                name = FragmentName.parse(info.name)
                if name is not None:
                    self.listed[name] = info.size

    def _report_rewritten(self) -> None:
        for name, stamp in self.mirror.held().items():
            if self.listed.get(name, stamp.size) == stamp.size:
                continue
            if self.may_tear and name.writer == self.writer:
                # Nobody else can read what it listed, so that counts as not there; what lacks it is put again.
                self.damaged[name] = self.listed.pop(name)
                self._bad.add(name)
                self.problems.append(f"object {name} is damaged: it has another size; what it listed is put again")
            else:
                self._doubted.add(name.writer)
                self.problems.append(
                    f"object {name} was written again with other content by system {name.writer.hex()} or someone in "
                    "its place; what it said first is used"
                )

    def _choose_writers(self) -> list[bytes]:
        """Return whose fragments to hold, the most wanted first: own ones, the preferred, then others in rotation."""
        if self.own_only:
            return [self.writer]
        others = sorted(self._others)
        turn = max((name.sequence for name in self.listed if name.writer == self.writer), default=0)
        first = turn * WRITERS_ROTATED % len(others) if len(others) > FOREIGN_WRITERS_MAX else 0
        rotated = [*others[first:], *others[:first]][:FOREIGN_WRITERS_MAX]
        chosen = [self.writer, *sorted(set(self.preferred) - {self.writer}), *rotated]
        # What is held already stays while it fits, so that a full mirror does not fetch the same things for ever.
        room = self.index_max
        kept = [self.writer]
        held: dict[bytes, int] = {}
        for name, stamp in self.mirror.held().items():
            held[name.writer] = held.get(name.writer, 0) + stamp.size
        for writer in chosen[1:]:
            room -= held.get(writer, 0)
            if room < 0:
                break
            kept.append(writer)
        return kept

    def _wanted(self, writers: list[bytes]) -> list[FragmentName]:
        """Return what to fetch: listed, not held, not stood for by what is held, within `index_max`."""
        held = self.mirror.held()
        known = self.mirror.superseded() | held.keys() | self._bad
        room = self.index_max - sum(stamp.size for name, stamp in held.items() if name.writer != self.writer)
        by_writer: dict[bytes, list[FragmentName]] = {writer: [] for writer in writers}
        for name in sorted(self.listed.keys() - known):
            if name.writer in by_writer:
                by_writer[name.writer].append(name)
        wanted: list[FragmentName] = []
        for writer, names in by_writer.items():
            for name in names:
                room -= self.listed[name] if writer != self.writer else 0
                if room < 0:
                    return wanted
                wanted.append(name)
        return wanted

    async def _download(self, names: list[FragmentName]) -> None:
        rest = iter(names)
        await run_workers(lambda: self._download_from(rest), min(DOWNLOADS_MAX, len(names)))

    async def _download_from(self, names: Iterator[FragmentName]) -> None:
        for name in names:
            size = self.listed[name]
            try:
                if not FRAGMENT_SIZE_MIN <= size <= FRAGMENT_READ_MAX:
                    raise StoreCorrupt(str(name), f"no index fragment is {size} bytes long")
                if size > LARGE_BYTES:
                    async with self._large:
                        await self._fetch(name, size)
                else:
                    await self._fetch(name, size)
            except StoreCorrupt as error:
                self._bad.add(name)
                if name.writer == self.writer:
                    self.damaged[name] = size
                self.problems.append(f"{error}; it is not used (it has the name of system {name.writer.hex()})")
            except ObjectMissing:
                # Collected since it was listed: what stands for it may be there, and not be listed.
                self.listed.pop(name, None)
                self._doubted.add(name.writer)

    async def _fetch(self, name: FragmentName, size: int) -> None:
        data = bytes(await self.objects.get(str(name), 0, size))
        fragment = await anyio.to_thread.run_sync(self._check, name, data)
        if fragment is None:
            self._bad.add(name)
            return
        async with self._mirror_lock:
            await anyio.to_thread.run_sync(self.mirror.add, data, fragment)

    def _check(self, name: FragmentName, data: bytes) -> Fragment | None:
        """Return a fragment, or None for a good one of another domain, of which its writer was or is a member."""
        if fragment_domain(data) != self.keys.domain:
            open_fragment(name, data, None, self.members)
            return None
        return open_fragment(name, data, self.keys, self.members)
