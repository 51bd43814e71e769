"""The delivery of a session: from its candidates to the root, in the vault or in the spool.

round: read, compare, seal, transmit, flush → places → reliance (what is not good is sent again in another round)
→ commit. With `on_loss = "resume"` the target may become the spool anywhere on the way; what was staged stays.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import anyio.to_thread
import msgspec
import numpy as np
import numpy.typing as npt

from engine.block import ids_from_bytes
from engine.cache.recheck import count_healed
from engine.distinct import distinct
from engine.errors import SessionAborted, StateCorrupt
from engine.events import EventLog
from engine.exitcodes import SOMETHING_MISSING
from engine.pack import FinishedPack, PackBuilder
from engine.packstore import PackStore
from engine.pagesources import PageSources, PageStore
from engine.pipeline.candidates import forced
from engine.pipeline.commit import CacheSide, Committer
from engine.pipeline.gate import VaultLost, VaultRefused
from engine.pipeline.lane import Lane, LaneResult
from engine.pipeline.locking import Locking
from engine.pipeline.parent import Parent
from engine.pipeline.reliance import Reliance
from engine.pipeline.report import SessionReport
from engine.pipeline.resolve import Resolved, resolve
from engine.pipeline.setup import SessionSetup
from engine.pipeline.shaping import SourceSample
from engine.pipeline.stores import Side
from engine.pipeline.target import Target
from engine.pipeline.transmit import CACHE, VAULT, Transmitter
from engine.pipeline.twins import Twins
from engine.pipeline.volume import VolumeRun
from engine.workers import together

log = EventLog("session")

ROUNDS_MAX: Final = 8  # checks of what is relied on, and rounds in which what turned out bad is sent again
ROOTS_MAX: Final = 3


class Delivery(msgspec.Struct):
    """One way of a session to a restore point; a session that starts again takes another one.

    `session` 16 bytes, its id; `pages`: stores besides the spool that pages of older runs may be read from, `whole`:
    the vault is among them; `phase` hears what is done now.
    """

    setup: SessionSetup
    session: bytes
    started_ms: int
    report: SessionReport
    chance: random.Random
    runs: Sequence[VolumeRun]
    cache: CacheSide
    parent: Parent
    target: Target
    phase: Callable[[str], None]
    pages: Sequence[PackStore] = ()
    whole: bool = False
    _transmitter: Transmitter | None = None
    _written: set[int] = set()
    _reliance: Reliance | None = None

    @property
    def transmitter(self) -> Transmitter:
        """The rounds of this delivery, over its lanes."""
        if self._transmitter is None:
            setup = self.setup
            self._transmitter = Transmitter(self._lanes(), setup.queue.bytes_max, setup.workers, setup.clock)
        return self._transmitter

    async def run(self) -> None:
        """Deliver and commit; the report has the point. Raises: ForebayError."""
        await self._reliance_on(self.target.side)
        self.phase("reading and sending")
        self._heard(await self.transmitter.round([(run, run.works()) for run in self.runs]))
        told = [(run, problem) for run in self.runs if (problem := run.disbelieve()) is not None]
        if told:
            self.report.problems += [problem for _, problem in told]
            self._heard(await self.transmitter.round([(run, run.works()) for run, _ in told]))
        self._tell_unreadable()
        while True:
            side = self.target.side
            try:
                return await self._commit(side)
            except (VaultLost, VaultRefused) as error:
                if self.report.point is not None:
                    raise  # the root is put and checked: nothing of the vault is asked after that
                await self.target.lost(error, side)

    async def _reliance_on(self, side: Side) -> Reliance:
        """Return what is checked of a store, the first time after recalling what is known to be bad there."""
        if self._reliance is None or self._reliance.store is not side.packs:
            setup = self.setup
            self._reliance = Reliance(
                side.packs,
                setup.history,
                setup.identity.keys.blocks,
                self.chance,
                beside=setup.identity.vault,
                trust_history=not setup.full,
                problems=self.report.problems,
            )
            await anyio.to_thread.run_sync(self._reliance.recall, self._names())
        return self._reliance

    def _names(self) -> list[str]:
        return [run.name for run in self.runs]

    def _lanes(self) -> list[Lane]:
        setup = self.setup
        identity = setup.identity

        def new_pack() -> PackBuilder:
            return PackBuilder("data", identity.keys, identity.system, self.session, identity.signer, pack_bytes)

        def wrote(finished: FinishedPack) -> None:
            self._written.add(finished.name.key)

        pack_bytes = setup.lane.pack_bytes
        finish = Twins().finish
        lanes = [Lane(VAULT, self.target, new_pack, setup.lane, setup.clock, on_ack=wrote, finish=finish)]
        cache = self.cache.side
        if cache is not None and setup.cache is not None and self.cache.gave_up is None:
            index = cache.packs.index
            lanes.append(
                Lane(
                    CACHE,
                    cache.packs,
                    new_pack,
                    setup.lane,
                    setup.clock,
                    errors=setup.cache.errors,
                    slow=setup.cache.slow,
                    on_drop=lambda ids: index.release(ids_from_bytes(b"".join(ids))),
                    finish=finish,
                )
            )
        return lanes

    async def _commit(self, side: Side) -> None:
        setup = self.setup
        reliance = await self._reliance_on(side)
        committer = Committer(
            setup.identity,
            setup.state,
            side,
            self.cache,
            self.parent,
            self.runs,
            self.session,
            setup.version,
            setup.codec,
            setup.lane.pack_bytes,
            self.started_ms,
            reliance,
            setup.identity.vault,
            share_pages=not setup.full,
            pages=self._pages(side),
        )
        notes: list[tuple[str, bytes]] = []
        for _ in range(ROOTS_MAX):
            self.phase("checking what is relied on")
            keys = await self._settle(reliance, committer)
            self.phase("writing the restore point")
            point, root = await committer.put_root()
            if await reliance.present(keys, frozenset(self._written)) and await committer.pages_present():
                break
            notes.append(await committer.supersede(point, "packs it relies on were lost while it was written"))
        else:
            raise SessionAborted("the vault loses packs faster than they are sent again; check what deletes from it")
        # From here on it stands, also if local state cannot follow it now.
        self.report.point = str(point)
        self.report.metadata_bytes = committer.metadata_bytes
        await committer.finish(point, root, notes)
        await anyio.to_thread.run_sync(self._count_healed, committer.healed)
        await anyio.to_thread.run_sync(reliance.healed, self._names())
        if setup.lock is not None and side.kind == "vault":
            self.phase("locking what the restore point needs")
            written = self._written | committer.pages_put
            relied = {name for name in side.packs.index.pack_names(distinct(keys)) if name is not None}
            relied = {name for name in (*relied, *committer.page_packs) if name.key not in written}
            cache = self.cache.good.objects if self.cache.good is not None else None
            locking = Locking(setup, setup.lock, self.started_ms, self.report.problems)
            await locking.after_session(committer.volumes, relied, written, cache)

    def _pages(self, side: Side) -> PageSources | None:
        if side.kind == "vault":
            return None
        near = [self.cache.side.packs] if self.cache.side is not None else []
        stores = [PageStore(packs.read_records, packs.record_by_id) for packs in (side.packs, *near, *self.pages)]
        return PageSources(stores, self.setup.identity.keys.pages, side.packs.index.pack_name, whole=self.whole)

    async def _settle(self, reliance: Reliance, committer: Committer) -> npt.NDArray[np.uint64]:
        """Give every staged block a place in a pack that is there, and write the pages that say so.

        Returns the keys of the packs relied on.

        What did not change and lies in a pack that turns out to be gone is staged and sent again, too.

        Raises: StoreError, SourceError, StateCorrupt, SessionAborted.
        """
        written = frozenset(self._written)
        for _ in range(ROUNDS_MAX):
            gone = reliance.take_gone()
            index = reliance.store.index
            resolved = [await anyio.to_thread.run_sync(resolve, run.state, index, gone) for run in self.runs]
            if any(found.pages.size for found in resolved):
                await self._send_again(resolved)
                written = frozenset(self._written)
                continue
            keys = distinct(*[found.keys for found in resolved])
            sources = {key: sample for run in self.runs for key, sample in run.producer.samples.items()}
            checks = partial(self._hold_good, reliance, keys, sources, written)
            if await self._beside_pages(checks, reliance, committer):
                return keys
        raise SessionAborted("packs in the vault do not hold what they should; see the problems listed")

    async def _hold_good(
        self,
        reliance: Reliance,
        keys: npt.NDArray[np.uint64],
        sources: Mapping[int, SourceSample],
        written: frozenset[int],
    ) -> bool:
        # What this session wrote, too: there are things on the way that take an error for success.
        return (
            await reliance.present(keys, frozenset())
            and await reliance.honest([run.state for run in self.runs], keys, written)
            and await reliance.sound(sources, written)
        )

    async def _beside_pages(
        self, checks: Callable[[], Awaitable[bool]], reliance: Reliance, committer: Committer
    ) -> bool:
        """Return what `checks` find; meanwhile the pages are written, in vain if they name a pack that is bad."""
        good = False

        async def check() -> None:
            nonlocal good
            good = await checks()

        with reliance.holding():
            await together(check, committer.write_pages, reliance.store.choose_name)
        return good

    async def _send_again(self, resolved: Sequence[Resolved]) -> None:
        works = [
            (run, forced(found.pages, found.masks))
            for run, found in zip(self.runs, resolved, strict=True)
            if found.pages.size
        ]
        log.warning("blocks_sent_again", blocks=sum(int(np.bitwise_count(found.masks).sum()) for found in resolved))
        self._heard(await self.transmitter.round(works))

    def _count_healed(self, healed: int) -> None:
        """Have the last verification of the cache know what it found missing and is there now (*sync*)."""
        cache, side = self.setup.cache, self.cache.good
        if cache is None or cache.history is None or side is None:
            return
        try:
            count_healed(cache.history, side.store_id, healed)
        except StateCorrupt as error:
            self.report.problems.append(f"{error}; the cache's score is told anew by its next verification")

    def _heard(self, results: dict[str, LaneResult]) -> None:
        if (cache := results.get(CACHE)) is not None and cache.gave_up is not None:
            self.cache.gave_up = cache.gave_up

    def _tell_unreadable(self) -> None:
        for run in self.runs:
            ranges = run.unreadable_ranges()
            if not ranges:
                continue
            total = sum(length for _, length in ranges)
            shown = ", ".join(f"{length} bytes at {offset}" for offset, length in ranges[:8])
            more = f" and {len(ranges) - 8} more ranges" if len(ranges) > 8 else ""
            self.report.problems.append(
                f"volume {run.name!r}: {total} bytes could not be read and were stored as zeros: {shown}{more}"
            )
            self.report.exit_code = SOMETHING_MISSING
