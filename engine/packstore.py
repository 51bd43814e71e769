"""The pack store: packs and their index over one object store. Vault, cache and spool are each one of these.

A pack that was put is remembered in the ack log, so that the next session knows it even if this one dies before
it lists it in an index fragment. Where puts are durable only after a flush, packs that no flush followed are read
back and hashed before a later session relies on them.

In a store that packs leave again, the spool, what the index lists counts only while a listing has it. Beside a store
may lie packs of another one that are relied on all the same: those of the vault beside the spool.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import numpy as np

from engine.acks import PackAck, decode_log, encode_durable, rewrite
from engine.block import Bytes, Mask
from engine.columns import Column64
from engine.distinct import distinct
from engine.errors import StoreRejected
from engine.fragment import encode_fragment, open_fragment
from engine.index import PackIndex
from engine.indexmerge import FragmentMerge
from engine.mirror import Mirror
from engine.names import FragmentName, PackName
from engine.opener import Opener
from engine.pack import FinishedPack, Signer
from engine.packread import PackReads, listed_keys
from engine.ports import AckLog, MirrorFiles, ObjectStore
from engine.refresh import INDEX_BYTES_MAX, Members, Refresh
from engine.removal import RemovalList
from engine.removals import SEQUENCES_TRIED_MAX, Removals
from engine.stage import barrier_of, free_name
from engine.subkeys import DomainKeys
from engine.view import View
from engine.viewset import Beside, lists_any

UNLISTED_ENTRIES_MAX: Final = 1 << 18  # acknowledged records without a fragment; at more, one is written
READ_BACK_BYTES_MAX: Final = 1 << 30  # of packs an interrupted session did not flush; the rest is sent again


class PackStore:
    """One pack store of one system.

    `writer` 16 bytes: this system; `incarnation` 8 bytes: of its state directory. `store_name` is what users call
    the store. `index_max` bounds the bytes of other systems' fragments held locally. `durable_puts`: the object
    store makes every put durable by itself; `passing`: packs leave it again, by whoever holds this store; `trimmed`:
    any system may remove any pack, and lists it as removed. Methods raise StoreUnavailable and StoreRejected where they
    ask the store, and SessionAborted where the state directory's disk is full.
    """

    def __init__(
        self,
        objects: ObjectStore,
        index: PackIndex,
        mirror: MirrorFiles,
        acks: AckLog,
        keys: DomainKeys,
        verifier: Members,
        writer: bytes,
        incarnation: bytes,
        signer: Signer,
        store_name: str,
        store_id: bytes = b"",
        *,
        index_max: int = INDEX_BYTES_MAX,
        durable_puts: bool = False,
        passing: bool = False,
        trimmed: bool = False,
    ) -> None:
        self.objects, self.index = objects, index
        self.writer, self.incarnation = writer, incarnation
        self.store_name, self.store_id = store_name, store_id
        self._mirror = Mirror(mirror, keys, writer)
        removals = Removals(objects, mirror, keys, verifier, writer, incarnation, signer)
        self.removals = removals if trimmed else None
        self._acks, self._keys, self._verifier, self._signer = acks, keys, verifier, signer
        self._index_max, self._durable_puts, self._passing = index_max, durable_puts, passing
        self._there: set[int] | None = None  # keys of the packs in a passing store; None: they are not looked at
        self._beside: Beside | None = None
        self._stand_ins: dict[PackName, PackName] = {}
        self._known_whole: set[bytes] = set()  # writers of whom all fragments in the store are in the mirror
        self._reads = PackReads(objects, index)
        self._opener = Opener(index, self._reads.read, keys)
        # One refresh or fragment at a time; the thread lock keeps log, list and index in step.
        self._busy = anyio.Lock()
        self._ack_lock = threading.Lock()
        self._unlisted: list[PackAck] = []
        self._unlisted_entries = 0
        self._durable = 0  # of the unlisted packs, how many from the start a flush has followed
        self._recalled = False
        self._sequence = 0
        self._name: FragmentName | None = None  # chosen for the next fragment
        self._own_listed: dict[FragmentName, int] = {}  # and their sizes, by the last listing
        self._own_damaged: dict[FragmentName, int] = {}

    async def refresh(self, preferred: Collection[bytes] = ()) -> list[str]:
        """Bring the index up to what the store lists; return what is wrong there, a sentence each.

        `preferred`: writers (16 bytes each) whose fragments are always held, such as those the parent point relies
        on. The first time, packs an interrupted session got acknowledged are recalled. Raises: StateCorrupt.
        """
        async with self._busy:
            refresh = Refresh(
                self.objects, self._mirror, self._keys, self._verifier, self.writer,
                # What is trimmed is the whole cache, whatever of it this system relies on.
                preferred, self.index.own_only and self.removals is None, self._index_max, not self._durable_puts,
            )  # fmt: skip
            await refresh.run()
            mine = [
                name.sequence
                for name in {*refresh.listed, *self._mirror.held()}
                if (name.writer, name.incarnation) == (self.writer, self.incarnation)
            ]
            self._sequence = max(mine, default=self._sequence)
            self._own_listed = {name: size for name, size in refresh.listed.items() if name.writer == self.writer}
            self._own_damaged = refresh.damaged
            if self._passing:
                self._there = await listed_keys(self.objects)
            if self.removals is not None:
                # After the fragments: whoever knows what took the place of packs must not believe in those still.
                refresh.problems += await self.removals.refresh()
                self._known_whole = refresh.whole_writers()
            await anyio.to_thread.run_sync(self._install)
            if not self._recalled:
                await self._recall()
                self._recalled = True
            return refresh.problems

    def knows_all_of(self, writer: bytes) -> bool:
        """Tell whether all that fragments in the store list of this writer's packs was known at the last refresh."""
        return writer in self._known_whole

    async def announce_removal(self, packs: Collection[PackName]) -> None:
        """List packs as removed: from now on nothing in them is relied on, here and by whoever refreshes."""
        assert self.removals is not None
        async with self._busy:
            await self.removals.announce(packs)
            await anyio.to_thread.run_sync(self._install)

    async def take_over_removals(self, known: RemovalList) -> None:
        """List as removed, in this system's name, what another one listed and may not have deleted."""
        assert self.removals is not None
        async with self._busy:
            await self.removals.take_over(known)

    async def settle_removals(self) -> None:
        """Say that all packs this system listed as removed are deleted."""
        assert self.removals is not None
        async with self._busy:
            await self.removals.settle(self._may_be_listed)
            await anyio.to_thread.run_sync(self._install)

    async def merge_fragments(self) -> int:
        """Merge this system's own fragments if they are many; return how many went (indexmerge.py)."""
        assert self.removals is not None
        async with self._busy:
            return await FragmentMerge(
                self.objects, self._keys, self._verifier, self._signer, self._own_listed, self._own_damaged,
                self._mirror.superseded(), self.removals.keys, self._next_name, self.flush,
            ).run()  # fmt: skip

    async def rely_beside(self, beside: Beside) -> None:
        """Rely on the packs of another store besides."""
        async with self._busy:
            self._beside = beside
            await anyio.to_thread.run_sync(self._install)

    async def lies_beside_now(self, keys: Iterable[int]) -> None:
        """Rely on these packs besides, which were copied out of this store into the one beside it."""
        async with self._busy:
            before = self._beside or Beside(np.empty(0, np.uint64))
            known = distinct(before.keys, np.fromiter(keys, np.uint64))
            self._beside = msgspec.structs.replace(before, keys=known)
            await anyio.to_thread.run_sync(self._install)

    def rely_instead(self, stand_ins: Mapping[PackName, PackName]) -> None:
        """Take others for packs damaged in this store; one that stands in for itself is whole again (*sync*)."""
        self._stand_ins.update(stand_ins)
        self.index.rely_instead({damaged.key: name.key for damaged, name in stand_ins.items()})

    def stand_in(self, name: PackName) -> PackName:
        """Return the pack that stands in for one that is damaged; `name` itself: none does."""
        return self._stand_ins.get(name, name)

    @property
    def members(self) -> Members:
        """The systems whose objects count in this store."""
        return self._verifier

    def lies_beside(self, keys: Column64) -> Mask:
        """Tell of which of these packs nothing is asked of this store: they lie beside it."""
        return np.isin(keys, self._beside.keys) if self._beside is not None else np.zeros(len(keys), np.bool_)

    def holds(self, name: PackName) -> bool:
        """Tell whether a pack lies in this store, by its last listing: asked only where packs leave the store again."""
        return self._there is not None and name.key in self._there

    def keeps(self, names: Iterable[PackName]) -> bool:
        """Tell whether all these packs lie in this store, by its last listing, or are known beside it.

        True for a store that packs do not leave: nobody but `PackStore` takes them out of a passing one.
        """
        if self._there is None:
            return True
        keys = np.array([name.key for name in names if not self.holds(name)], np.uint64)
        beside = self._beside or Beside(np.empty(0, np.uint64))
        return bool((self.lies_beside(keys) | lists_any((*beside.own, *beside.foreign), keys)).all())

    def own_views(self) -> list[View]:
        """Return the views of what this store's index lists of this system."""
        return self._mirror.views()[0]

    async def put_pack(self, finished: FinishedPack) -> None:
        """Put a pack and list it in the index; acknowledged once this has returned, durable after `flush`."""
        await self.objects.put(str(finished.name), finished.data)
        await anyio.to_thread.run_sync(self._acknowledge, PackAck.of(finished))
        if self._unlisted_entries > UNLISTED_ENTRIES_MAX:
            async with self._busy:
                if self._unlisted_entries > UNLISTED_ENTRIES_MAX:
                    await self._publish()

    async def flush(self) -> None:
        """Return once everything put before is durable."""
        barrier = barrier_of(self.objects)
        before = list(self._unlisted)
        if barrier is not None:
            await barrier()
        if len(before) > self._durable and not self._durable_puts:
            await anyio.to_thread.run_sync(self._mark_durable, before[0].name, len(before))

    async def publish_index(self) -> int:
        """List all acknowledged packs in a new index fragment, after they are durable; return its size in bytes.

        0: there was nothing to list.
        """
        async with self._busy:
            return await self._publish()

    async def choose_name(self) -> None:
        """Find a free name for the next index fragment, so that publishing it is one request less."""
        async with self._busy:
            if self._unlisted and self._name is None:
                self._name = await self._next_name()

    async def read_records(self, pack: PackName, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the records at (offset, length) of one pack, in the order asked for, by few coalesced requests.

        Raises: ObjectMissing (the pack is gone, or has another size than its name says, which counts as gone),
        StoreCorrupt (a range lies outside the pack).
        """
        return await self._reads.read(self.stand_in(pack), ranges)

    async def record_by_id(self, ident: bytes) -> bytes | None:
        """Return a whole record with this id (16 bytes) from any place the index knows, or None; it is not opened."""
        return await self._opener.record_by_id(ident)

    async def absent(self, names: Collection[PackName]) -> set[PackName]:
        """Return those of `names` that are not there with the right size; of damaged ones, what stands in counts."""
        absent = await self._reads.absent([*map(self.stand_in, names)])
        return {name for name in names if self.stand_in(name) in absent}

    async def _publish(self) -> int:
        packs = list(self._unlisted)
        if not packs:
            return 0
        await self.flush()
        if self.removals is not None and not (packs := await self._still_there(packs)):
            return 0
        name, self._name = self._name or await self._next_name(), None
        data = await anyio.to_thread.run_sync(encode_fragment, name, packs, self._keys, self._signer)
        await self.objects.put(str(name), data)
        await self.flush()
        await anyio.to_thread.run_sync(self._settle, name, data, packs)
        return len(data)

    async def _still_there(self, packs: list[PackAck]) -> list[PackAck]:
        """Let go of packs that were removed as such that nobody lists; return the others."""
        gone = await self.absent([pack.name for pack in packs])
        if gone:
            self.index.bar(name.key for name in gone)
            await anyio.to_thread.run_sync(self._let_go, gone)
        return [pack for pack in packs if pack.name not in gone]

    async def _recall(self) -> None:
        """Take up the packs of an interrupted session that no fragment lists."""
        durable, volatile = decode_log(await anyio.to_thread.run_sync(self._acks.read))
        own = self._mirror.views()[0]
        if self._durable_puts:
            durable, volatile = durable + volatile, []
        durable = await self._not_listed(durable, own)
        room = READ_BACK_BYTES_MAX
        again: list[PackAck] = []
        for ack in await self._not_listed(volatile, own):
            room -= ack.name.size
            if room < 0:
                break
            if (data := await self._reads.whole(ack.name)) is not None:
                # What was read may lie in memory only, and a flush vouches for what was put through this store object.
                await self.objects.put(str(ack.name), data)
                again.append(ack)
        await anyio.to_thread.run_sync(self._take_up, [*durable, *again], len(durable))

    async def _not_listed(self, acks: Sequence[PackAck], own: Sequence[View]) -> list[PackAck]:
        """Return those own packs that no fragment lists and that may be there."""
        # A fragment may list its writer's packs only; a state directory may outlive an identity.
        mine = [ack for ack in acks if ack.name.writer == self.writer]
        if self.removals is not None:
            mine = [ack for ack in mine if not np.isin(ack.name.key, self.removals.keys)]
        if self._there is not None:
            mine = [ack for ack in mine if ack.name.key in self._there]
        keys = np.array([ack.name.key for ack in mine], np.uint64)
        mine = [ack for ack, known in zip(mine, lists_any(own, keys).tolist(), strict=True) if not known]
        gone = await self.absent([ack.name for ack in mine]) if self.removals is not None else ()
        return [ack for ack in mine if ack.name not in gone]

    async def _next_name(self) -> FragmentName:
        first = FragmentName(self.writer, self.incarnation, self._sequence + 1)
        name = await free_name(self.objects, first, SEQUENCES_TRIED_MAX)
        self._sequence = name.sequence if name is not None else self._sequence + SEQUENCES_TRIED_MAX
        if name is not None:
            return name
        raise StoreRejected(
            f"the {self.store_name} holds {SEQUENCES_TRIED_MAX} index fragments of this system that were not there "
            "when the session began: another machine runs with a copy of its state; run 'forebay init' there"
        )

    def _acknowledge(self, ack: PackAck) -> None:
        with self._ack_lock:
            if any(known.name == ack.name for known in self._unlisted):
                return
            self._acks.append(ack.encode())
            self._unlisted.append(ack)
            self._unlisted_entries += len(ack.ids)
            if self._there is not None:
                self._there.add(ack.name.key)
            self.index.add_pack(ack)

    def _install(self) -> None:
        """Have the index look into what the mirror holds, and into what lies beside."""
        own, foreign = self._mirror.views()
        beside = self._beside or Beside(np.empty(0, np.uint64))
        if self._there is not None:
            kept = distinct(np.fromiter(self._there, np.uint64, len(self._there)), beside.keys)
            for view in (*own, *foreign):
                # Sources of deltas lie beside: as long as nobody said what does, nothing is known of them.
                named = view.keys if self._beside is not None else view.keys[view.listed()]
                view.bar_packs(named[~np.isin(named, kept)])
        if self.removals is not None and self.removals.keys.size:
            for view in (*own, *foreign):
                view.bar_packs(self.removals.keys)
        self.index.install([*own, *beside.own], [*foreign, *beside.foreign])

    def _may_be_listed(self, writer: bytes, keys: Column64) -> Mask:
        """Tell which of these packs of `writer` a fragment in the store may list."""
        return lists_any(chain(*self._mirror.views()), keys) | np.bool_(writer not in self._known_whole)

    def _mark_durable(self, first: PackName, count: int) -> None:
        with self._ack_lock:
            # A fragment published meanwhile has emptied the log the count was taken of.
            if self._unlisted and self._unlisted[0].name == first and count > self._durable:
                self._acks.append(encode_durable(count))
                self._durable = count

    def _settle(self, name: FragmentName, data: Bytes, packs: Sequence[PackAck]) -> None:
        """Let a fragment that was put take the place of what the log and memory hold of `packs`."""
        self._mirror.load()
        self._mirror.add(bytes(data), open_fragment(name, data, self._keys, None))
        self._mirror.compact()
        with self._ack_lock:
            rest = self._unlisted[len(packs) :]
            self._rewrite_log(rest, 0)
            self._install()

    def _let_go(self, gone: Collection[PackName]) -> None:
        """Forget packs that were put and not listed (*sync*)."""
        with self._ack_lock:
            durable = sum(pack.name not in gone for pack in self._unlisted[: self._durable])
            self._rewrite_log([pack for pack in self._unlisted if pack.name not in gone], durable)

    def _take_up(self, packs: list[PackAck], durable: int) -> None:
        with self._ack_lock:
            if packs or self._acks.read():
                self._rewrite_log(packs, durable)
            for pack in packs:
                self.index.add_pack(pack)

    def _rewrite_log(self, packs: list[PackAck], durable: int) -> None:
        rewrite(self._acks, packs, durable)
        self._unlisted, self._durable = packs, durable
        self._unlisted_entries = sum(len(pack.ids) for pack in packs)
