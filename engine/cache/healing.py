"""Healing of restore points: what they need and the cache lost comes back from the vault (`heal = "points"`, §3.4).

    verification completed → what points that are kept need and the cache lacks (pointneeds.py), but for what is on the
    volumes, which sessions heal → pages of their maps, then blocks, newest first, as far as there is room (bringing.py)
    → those blocks looked up again → history

Rules:
- It runs after a verification, in its process: it delays no restore point, and nothing that fails here fails anything.
- It keeps away from the bounds of `[cache] trim`, brings nothing older than `max_age`, and what it brings is as old as
  it was: so trimming lets go of that when it would have anyway, and healing does not bring it back.
- It gives way to whoever wants the state directory, and begins again after that: what was put stays.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Final

import anyio
import anyio.to_thread
import msgspec

from engine.cache.attempt import PointsHealed
from engine.cache.bringing import Bringing
from engine.cache.inventory import listed_bytes
from engine.cache.pointneeds import HELD_MAX, Needed, PointNeeds
from engine.cache.pointsfound import PointsFound
from engine.cache.stamping import Stamping
from engine.cache.stamps import day_of
from engine.cache.trimplan import spare_bytes
from engine.distinct import distinct
from engine.errors import ForebayError
from engine.events import EventLog
from engine.names import PackName
from engine.pack import PackBuilder
from engine.packtable import KINDS, PackTable, rows_from_bytes
from engine.pipeline.pagecopies import PageCopies
from engine.pipeline.refill import Refill
from engine.pipeline.setup import SessionSetup
from engine.pipeline.stores import Side
from engine.policy import TrimPolicy
from engine.ports import Room
from engine.state import CacheHistory
from engine.vault.certificate import Certificates
from engine.vault.kept import Kept, Needs, read_kept, tables
from engine.vault.sides import open_cache, open_vault

log = EventLog("heal")

LOOK_S: Final = 0.1
NAMED_MAX: Final = 20  # problems of one kind that are told


class HealSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What healing is made of: stores, keys and local state, as a session has them; `volumes`: the configured names.

    `wanted` tells whether somebody waits for the state directory.
    """

    session: SessionSetup
    history: CacheHistory
    volumes: Sequence[str]
    wanted: Callable[[], bool] = lambda: False
    held_max: int = HELD_MAX


class Healing:
    """One healing, or what is left of it after a pause; `run` once. May be watched while it runs.

    `before`: what one that gave way had done.
    """

    def __init__(self, setup: HealSetup, before: PointsHealed | None = None) -> None:
        self._setup, self._session = setup, setup.session
        self._before = before or PointsHealed()
        self.done = self._before
        self._packed = secrets.token_bytes(16)  # what its packs name instead of a session
        self._found: PointsFound | None = None
        self.phase = "opening the vault"
        self.problems: list[str] = []

    async def run(self) -> bool:
        """Heal; True: it is over, however it ended, and recorded, False: it gave way and is to go on later.

        Raises: StateCorrupt, SessionAborted: it cannot be recorded.
        """
        over = False
        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as working:
                group.start_soon(self._watch, working)
                try:
                    await self._heal()
                    self.done = msgspec.structs.replace(self.done, completed=True)
                except ForebayError as error:
                    self.problems.append(f"what the cache lacks of older restore points was not put there: {error}")
                    self.done = msgspec.structs.replace(self.done, error=str(error))
                over = True
            group.cancel_scope.cancel()
        await anyio.to_thread.run_sync(self._note_found)
        if over:
            await anyio.to_thread.run_sync(self._record)
        return over

    async def _watch(self, working: anyio.CancelScope) -> None:
        while not self._setup.wanted():
            await self._session.clock.sleep(LOOK_S)
        self.phase = "giving way"
        working.cancel()

    async def _heal(self) -> None:
        vault, members, problems = await open_vault(self._session, writes=False)
        self.problems += problems
        opened = await open_cache(self._session, members)
        if opened is None:
            return
        cache, problems = opened
        self.problems += problems
        lost = await anyio.to_thread.run_sync(self._session.state.upkeep(vault.store_id).lost_packs)
        vault.packs.index.bar([*lost.gone.tolist(), *lost.damaged.tolist()])
        kept = await read_kept(vault.objects, self._session.identity, members, cache.objects)
        self.problems += [*kept.problems[:NAMED_MAX], *kept.broken[:NAMED_MAX]]
        self.done = msgspec.structs.replace(self.done, points=len(kept.points))
        await self._bring_all(vault, cache, members, kept)

    async def _bring_all(self, vault: Side, cache: Side, members: Certificates, kept: Kept) -> None:
        """Bring what is needed, as much at once as is held, until there is no more of it, or no room."""
        refill = Refill(self._session, vault, [], cache, members)
        pages = refill.pages(cache_first=True)
        needs = Needs()
        async for number, rows in tables(kept, pages):
            self.phase = f"reading what restore points need: {number + 1} of {len(kept.runs)} runs"
            table = rows if rows is not None else rows_from_bytes(kept.runs[number].table_packs)
            await anyio.to_thread.run_sync(needs.add, table)
        await anyio.to_thread.run_sync(needs.close)
        if await self._spare(cache):
            self.phase = "looking for pages of block maps"
            copies = PageCopies(vault.packs, cache.packs, pages, lambda: self._new_pack("page"))
            await copies.bring(needs.names(needs.rows["kind"] == KINDS.index("page")), ())
            await cache.packs.publish_index()
        noted = await anyio.to_thread.run_sync(self._session.state.heal_notes(cache.store_id).found)
        self._found = PointsFound(cache.packs.index, noted, kept.digests)
        name_of = PackTable(needs.rows).find
        while True:
            needed, problems = await self._needed(kept, refill)
            healed = self.done.healed
            await self._bring(vault, cache, members, name_of, needed)
            if not needed.more or self.done.no_room or self.done.healed == healed:
                break
        self.problems += problems[:NAMED_MAX]

    async def _needed(self, kept: Kept, refill: Refill) -> tuple[Needed, list[str]]:
        state, today, age = self._session.state, self._today, self._policy.age_days_in_force
        assert self._found is not None
        await anyio.to_thread.run_sync(self._found.check)
        looking = PointNeeds(
            kept,
            refill.pages(cache_first=True),
            self._found,
            {name: state.volume(name) for name in self._setup.volumes},
            today,
            today - age if age is not None else 0,
            self._looked,
            held_max=self._setup.held_max,
        )
        return await looking.run(), looking.problems

    async def _bring(
        self, vault: Side, cache: Side, members: Certificates, name_of: Callable[[int], PackName | None], needed: Needed
    ) -> None:
        session = self._session
        stamping = Stamping(cache.objects, session.identity, members, session.state.incarnation, session.clock.now_ms())
        bringing = Bringing(
            vault.packs, cache.packs, stamping, members, name_of, lambda: self._new_pack("data"),
            lambda: self._spare(cache),
        )  # fmt: skip
        self.phase = "bringing blocks from the vault"
        start = self.done
        try:
            await bringing.bring(needed)
        finally:
            self.problems += bringing.problems[:NAMED_MAX]
            self.done = msgspec.structs.replace(
                start,
                # What earlier rounds did not bring is among what this one was to bring.
                missing=start.healed + bringing.wanted,
                healed=start.healed + bringing.healed,
                no_room=bringing.no_room,
                put_bytes=start.put_bytes + bringing.put_bytes,
                read_bytes=start.read_bytes + bringing.read_bytes,
            )

    async def _spare(self, cache: Side) -> int:
        """Return how much may be put into the cache now."""
        settings = self._session.cache
        assert settings is not None
        assert cache.packs.removals is not None
        lost = await anyio.to_thread.run_sync(self._session.state.upkeep(cache.store_id).lost_packs)
        left = distinct(cache.packs.removals.keys, lost.gone)
        size = await anyio.to_thread.run_sync(listed_bytes, cache.packs.index.views(), left)
        trimmed = await anyio.to_thread.run_sync(self._session.state.trim_notes(cache.store_id).last)
        size += trimmed.report.unlisted_bytes if trimmed is not None else 0
        room = await settings.device.room() if settings.device is not None else Room()
        return spare_bytes(self._policy, size, room)

    @property
    def _policy(self) -> TrimPolicy:
        settings = self._session.cache
        return settings.trim if settings is not None and settings.trim is not None else TrimPolicy()

    @property
    def _today(self) -> int:
        return day_of(self._session.clock.now_ms())

    def _new_pack(self, kind: str) -> PackBuilder:
        identity = self._session.identity
        return PackBuilder(
            kind, identity.keys, identity.system, self._packed, identity.signer, self._session.lane.pack_bytes
        )

    def _looked(self, done: int, runs: int) -> None:
        self.phase = f"looking for what restore points need: {done} of {runs} runs"

    def _note_found(self) -> None:
        """Note what was found, for the next one (*sync*). Raises: SessionAborted."""
        cache = self._session.identity.cache
        if self._found is not None and cache is not None and (found := self._found.noted()) is not None:
            self._session.state.heal_notes(cache).put_found(found)

    def _record(self) -> None:
        """Note with the verification it follows what was done, and that nothing is left to go on with (*sync*)."""
        done, identity = self.done, self._session.identity
        tell = log.info if done.error is None else log.warning
        tell(
            "points_healed" if done.error is None else "points_not_healed",
            component="cache",
            missing=done.missing,
            healed=done.healed,
            no_room=done.no_room,
            put_bytes=done.put_bytes,
            read_bytes=done.read_bytes,
            error=done.error,
        )
        assert identity.cache is not None
        last = self._setup.history.last_completed(identity.cache)
        if last is not None:
            self._setup.history.put_attempt(msgspec.structs.replace(last, points=done))
        self._session.state.upkeep(identity.cache).set_checkpoint(None)
