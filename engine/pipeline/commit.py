"""The commit: from staged blocks to a restore point (DESIGN.md §4).

    places → reliance checked, run pages → index fragments → intent (synced) → root put → reliance checked again
    → cache: copies, index → missing bits → map (synced) → newest point → intent removed

What is between two arrows is done side by side: a vault far away is asked as few times one after the other as may be.

A restore point exists once its root does. Everything before the root may be lost without harm, everything after it
is done again from the intent by whoever comes next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import anyio
import anyio.to_thread
import msgspec
import numpy as np
from blake3 import blake3

from engine.block import PLACE, Ids, Places, blocks_in
from engine.cache.recheck import healing_packs, lacking_blocks
from engine.cache.stamping import stamp_session
from engine.distinct import distinct
from engine.errors import SessionAborted, StoreError
from engine.events import EventLog
from engine.names import PackName, PointId
from engine.note import NoteBody, NoteKind, own_note
from engine.pack import FinishedPack, PackBuilder
from engine.pagestore import PageReader, PageWriter
from engine.pipeline.newrun import RunMaker, stands_on
from engine.pipeline.pagecopies import PageCopies
from engine.pipeline.parent import Parent
from engine.pipeline.reliance import Reliance
from engine.pipeline.resolve import EVERY_PAGE, missing_from
from engine.pipeline.stores import Side
from engine.pipeline.volume import VolumeRun
from engine.root import PreviousRoot, RootBody, RunDescriptor, VolumePoint, encode_volume, seal_root
from engine.runs import envelope_info
from engine.seal import Codec, Sealer
from engine.state import Head, Intent, Pages, StateStore
from engine.vault import hpke
from engine.vault.identity import Identity
from engine.workers import together

log = EventLog("commit")

PAGE_ROUNDS_MAX: Final = 4


class CacheSide(msgspec.Struct):
    """The cache of a session: open, or not, and why it was given up; not `gives_up`: its errors end the session."""

    side: Side | None = None
    gave_up: StoreError | None = None
    gives_up: bool = True

    @property
    def good(self) -> Side | None:
        """The cache if everything it was to get so far lies in it."""
        return self.side if self.gave_up is None else None


class Committer(msgspec.Struct):
    """Writes the restore point of one session; `put_root` may be called again after a round that sent blocks again.

    `vault` is where the point goes to, the vault or the spool in its stead; `vault_id` (16 bytes) the vault's either
    way. `share_pages`: name pages that own packs of former sessions hold instead of writing them again. `pages`: where
    pages of older runs are read, if not in `vault` alone.
    """

    identity: Identity
    state: StateStore
    vault: Side
    cache: CacheSide
    parent: Parent
    runs: Sequence[VolumeRun]
    session: bytes
    version: str
    codec: Codec
    pack_bytes: int
    now_ms: int
    reliance: Reliance
    vault_id: bytes
    share_pages: bool
    pages: PageReader | None = None
    metadata_bytes: int = 0
    healed: int = 0  # blocks the cache lacked before and has now, or that are in use no more
    pages_put: set[int] = set()  # keys of packs
    _volumes: list[VolumePoint] = []
    _page_packs: list[PackName] = []  # of the runs written, older ones of shared leaves too
    _pages_cached: bool = False

    @property
    def volumes(self) -> Sequence[VolumePoint]:
        """The volumes of the point that was put last."""
        return self._volumes

    @property
    def page_packs(self) -> Sequence[PackName]:
        """The packs the pages of its new runs lie in, older ones included."""
        return self._page_packs

    async def write_pages(self) -> None:
        """Write the pages of what is staged; whether they are there is for `put_root` to see.

        Raises: StoreError, StateCorrupt.
        """
        writer = PageWriter(
            self._page_pack,
            self._put_page_pack,
            self.identity.keys.pages,
            Sealer(Codec.ZSTD if self.codec is Codec.NONE else self.codec, self.identity.keys.pages),
            self._shared_pages,
            self._own_pack,
        )
        self._volumes = [await self._volume_point(run, writer) for run in self.runs]
        await writer.close()
        self._page_packs = writer.packs

    async def put_root(self) -> tuple[PointId, bytes]:
        """Write index and root over the pages; return the point and the root's bytes. The intent stays open.

        Raises: StoreError, StateCorrupt, SessionAborted.
        """
        point = PointId(self.parent.next_order(self.now_ms), self.state.incarnation)
        for _ in range(PAGE_ROUNDS_MAX):
            if await self._listed():
                break
            await self.write_pages()
        else:
            raise SessionAborted("the vault loses packs faster than they are written again; check what deletes from it")
        volumes = self._volumes
        await self.vault.packs.flush()
        root = seal_root(
            RootBody(
                time=self.now_ms,
                version=self.version,
                session=self.session,
                ended=await anyio.to_thread.run_sync(self.state.open_sessions),
                previous=self.parent.previous,
                volumes=volumes,
            ),
            domain=self.identity.domain,
            system=self.identity.system,
            point=point,
            recovery_key_id=hpke.key_id(self.identity.recovery_public),
            certificate=self.identity.certificate_number,
            listing_key=self.identity.listing_key,
            signer=self.identity.signer,
        )
        await anyio.to_thread.run_sync(self._open_intent, point, root, volumes)
        self.parent.newest = point  # also if nobody ever knows whether this put got through: the name is used
        await self.vault.objects.put(point.root(self.identity.system), root)
        await self.vault.packs.flush()
        self.metadata_bytes += len(root)
        self.parent.previous = PreviousRoot(
            order=point.order, incarnation=point.incarnation, hash=blake3(root).digest()
        )
        log.info("root_put", point=str(point), bytes=len(root))
        return point, root

    async def supersede(self, point: PointId, reason: str) -> tuple[str, bytes]:
        """Say in a note that `point` does not count, and drop its intent; return the note's name and bytes.

        Raises: StoreError.
        """
        # Without its maps an interruption here leaves a root that local state does not know: a fork, read whole. Its
        # name stays known: should this session put no other, the next one must not use it again.
        await anyio.to_thread.run_sync(self._drop_intent)
        name, data = self._note("superseded", point, reason)
        await self.vault.objects.put(name, data)
        return name, data

    async def finish(self, point: PointId, root: bytes, more: Sequence[tuple[str, bytes]] = ()) -> None:
        """Copy the point to the cache, note what the cache lacks, and move local state to it.

        `more` are further objects for the cache (notes). Raises: StateCorrupt, SessionAborted.
        """
        await self._copy_to_cache([*more, (point.root(self.identity.system), root)])
        await self._check_healed()
        await self._stamp()
        await anyio.to_thread.run_sync(self._apply)
        log.info("restore_point_committed", point=str(point))

    async def pages_present(self) -> bool:
        """Tell, with the root put, whether pages of earlier sessions are there; if not, they are shared no more.

        Raises: StoreUnavailable, StoreRejected.
        """
        return await self._present(frozenset(self.pages_put))

    async def _present(self, written: frozenset[int]) -> bool:
        keys = distinct(np.array([name.key for name in self._page_packs], dtype=np.uint64))
        return await self.reliance.present(keys, written)

    async def _listed(self) -> bool:
        """List what was written in the index, and look once more at the store; False: pages of the point are gone."""
        present = False

        async def publish() -> None:
            size = await self.vault.packs.publish_index()
            self.metadata_bytes += size

        async def look() -> None:
            nonlocal present
            present = await self._present(frozenset())

        async def seal() -> None:  # now, instead of making the root wait for it
            for run in self.runs:
                await anyio.to_thread.run_sync(run.state.sync_staged)

        await together(publish, look, self.vault.recheck, seal)
        return present

    async def _volume_point(self, run: VolumeRun, writer: PageWriter) -> VolumePoint:
        parent = run.parent()
        index = self.vault.packs.index
        maker = RunMaker(
            run.state,
            writer,
            self._page_reader(),
            index.pack_names,
            index.delta_sources,
            self._seal_envelope,
            problems=self.reliance.problems,
        )
        size = run.reader.size_bytes
        older = parent.runs if parent else []
        pages = self._page_reader()
        stands = all([await stands_on(each, self.vault.packs, pages, self.reliance) for each in older])
        if not stands:
            told = f"volume {run.name!r}: the {self.vault.kind} has lost what its last restore point was made of"
            self.reliance.tell(f"{told}; its block map is written whole")
        return VolumePoint(
            name=run.name,
            bytes=size,
            blocks=blocks_in(size),
            unreadable=run.unreadable_ranges(),
            runs=await (maker.runs(older) if stands else maker.anew()),
            figures={"changed": run.report.changed, "vault_bytes": run.report.vault_bytes},
        )

    def _shared_pages(self, ids: Ids) -> Places:
        return self.vault.packs.index.lookup(ids) if self.share_pages else np.zeros(len(ids), PLACE)

    def _own_pack(self, key: int) -> PackName | None:
        name = self.vault.packs.index.pack_name(key)
        return name if name is not None and name.writer == self.identity.system else None

    def _page_reader(self) -> PageReader:
        packs = self.vault.packs
        return self.pages or PageReader(
            packs.read_records, packs.index.pack_name, packs.record_by_id, self.identity.keys.pages
        )

    def _page_pack(self) -> PackBuilder:
        return PackBuilder(
            "page", self.identity.keys, self.identity.system, self.session, self.identity.signer, self.pack_bytes
        )

    async def _put_page_pack(self, finished: FinishedPack) -> None:
        await self.vault.packs.put_pack(finished)
        self.pages_put.add(finished.name.key)
        self.metadata_bytes += len(finished.data)
        if (cache := self.cache.good) is not None:
            try:
                await cache.packs.put_pack(finished)
            except StoreError as error:
                if not self.cache.gives_up:
                    raise  # no root was put yet
                self._give_cache_up(error)

    def _seal_envelope(self, run: bytes, key_tree: bytes) -> bytes:
        info = envelope_info(self.identity.domain, self.identity.system, run)
        return hpke.seal(self.identity.recovery_public, key_tree, info)

    def _note(self, kind: NoteKind, point: PointId, text: str) -> tuple[str, bytes]:
        return own_note(NoteBody(kind=kind, time=self.now_ms, text=text), point, self.identity)

    def _open_intent(self, point: PointId, root: bytes, volumes: Sequence[VolumePoint]) -> None:
        digest = blake3(root).digest()
        heads = {
            run.name: self._head(run, point, digest, volume) for run, volume in zip(self.runs, volumes, strict=True)
        }
        intent = Intent(root=point.root(self.identity.system), root_hash=digest, vault=self.vault.store_id, heads=heads)
        self.state.write_intent(intent)

    def _drop_intent(self) -> None:
        intent = self.state.intent()
        assert intent is not None, "a root without its intent"
        self.state.write_intent(msgspec.structs.replace(intent, heads={}))

    def _head(self, run: VolumeRun, point: PointId, digest: bytes, volume: VolumePoint) -> Head:
        known = run.head.cache if run.head else None
        return Head(
            order=point.order,
            incarnation=point.incarnation,
            root_hash=digest,
            vault=self.vault_id,
            cache=self.cache.side.store_id if self.cache.side else known,
            domain=self.identity.domain,
            volume_bytes=run.reader.size_bytes,
            generation=run.changes.generation,
            point=encode_volume(volume),
            # What the cache got is settled after the root; a commit that is finished later does not know it.
            missing_known=not run.missing_unknown,
            unreadable=run.unreadable_blocks(),
        )

    async def _copy_to_cache(self, objects: Sequence[tuple[str, bytes]]) -> None:
        """Make the cache hold the point's root and pages, so that a restore runs with the vault gone."""
        if (cache := self.cache.good) is None:
            return
        copies = PageCopies(self.vault.packs, cache.packs, self._page_reader(), self._page_pack)
        try:
            cached = await copies.bring(self._page_packs, self._runs_to_copy(cache))
            await cache.packs.publish_index()
            for name, data in objects:
                await cache.objects.put(name, data)
            await cache.packs.flush()
            self._pages_cached = cached
        except StoreError as error:
            self._give_cache_up(error)

    def _runs_to_copy(self, cache: Side) -> Iterator[RunDescriptor]:
        """Yield the runs taken over from the parent whose pages the cache may lack."""
        for run, volume in zip(self.runs, self._volumes, strict=True):
            parent = run.parent()
            older = {known.run for known in parent.runs} if parent else set()
            if run.head is None or not run.head.pages_cached or run.head.cache != cache.store_id:
                yield from (descriptor for descriptor in volume.runs if descriptor.run in older)

    async def _check_healed(self) -> None:
        """See that the packs are there in which blocks now lie that the cache lacked; else they stay missing."""
        states = [run.state for run in self.runs if not run.missing_unknown]
        if (cache := self.cache.good) is None:
            return
        index = cache.packs.index
        keys = await anyio.to_thread.run_sync(healing_packs, states, index)
        try:
            absent = await cache.packs.absent([name for name in index.pack_names(keys) if name is not None])
        except StoreError as error:
            self._give_cache_up(error)
        else:
            index.bar(name.key for name in absent)

    async def _stamp(self) -> None:
        """Say in the cache that what this session wrote or found there was seen today."""
        if (cache := self.cache.good) is not None:
            states = [run.state for run in self.runs]
            await stamp_session(cache.packs, self.identity, self.state.incarnation, self.now_ms, states)

    def _give_cache_up(self, error: StoreError) -> None:
        self.cache.gave_up = error
        log.warning("cache_given_up", component="cache", error=str(error))

    def _apply(self) -> None:
        """Settle the missing bits, then move every map to the point (*sync*)."""
        intent = self.state.intent()
        assert intent is not None, "a commit without its intent"
        index = self.cache.good.packs.index if self.cache.good else None
        for run in self.runs:
            pages = distinct(run.state.staged_pages(), self._pages_lacking(run))
            known = index is not None or not run.missing_unknown
            before = 0 if run.missing_unknown else lacking_blocks(run.state)
            if known:
                missing_from(run.state, index, pages)
                run.state.sync_missing()
                self.healed += max(0, before - lacking_blocks(run.state)) if before else 0
            head = intent.heads[run.name]
            run.state.apply(msgspec.structs.replace(head, missing_known=known, pages_cached=self._pages_cached))
        self.state.set_newest(intent.newest())
        self.state.clear_intent()
        self.state.end_sessions()

    def _pages_lacking(self, run: VolumeRun) -> Pages:
        if run.missing_unknown:
            return run.state.used_pages(0, EVERY_PAGE)
        return run.state.missing_pages(0, EVERY_PAGE)
