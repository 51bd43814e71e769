"""Packs on their way from the spool to the vault: every byte checked, none sent that got there.

A pack that is damaged in the spool, or gone from there, may lie in the vault, from an upload that was cut off: there it
counts once it was read back, since nobody has its acknowledgement. What is damaged in both is `lost`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

import anyio.to_thread
import numpy as np

from engine.block import Bytes
from engine.errors import ObjectMissing, StoreCorrupt
from engine.names import PackName
from engine.pack import FinishedPack, check_pack
from engine.pipeline.setup import SessionSetup
from engine.pipeline.standin import put_anyway
from engine.pipeline.stores import Side
from engine.ports import ObjectStore
from engine.spool import PointPacks, Spool
from engine.vault.certificate import Certificates
from engine.workers import run_workers

IN_FLIGHT_BYTES: Final = 64 << 20  # of packs; a put may hold a copy of its own
PUTS_MAX: Final = 8


class Sending:
    """Sends the packs of one backlog, a point's at a time.

    `stopping` is asked between packs. `damaged`: packs found to be damaged, which was told; `lost`: in the vault, too;
    `sent`: keys of the packs that were put, until they are forgotten; `sent_bytes` counts them.
    """

    def __init__(
        self,
        setup: SessionSetup,
        vault: Side,
        spooled: Side,
        certificates: Certificates,
        stopping: Callable[[], bool],
        problems: list[str],
    ) -> None:
        self._setup, self._vault, self._spooled = setup, vault, spooled
        self._certificates, self._stopping, self._problems = certificates, stopping, problems
        self.damaged: set[PackName] = set()
        self.lost: set[PackName] = set()
        self.sent: set[int] = set()
        self.sent_bytes = 0

    async def send(self, spool: Spool, packs: PointPacks) -> tuple[int, int]:
        """Put a point's packs that the vault lacks; return how many, and their bytes.

        Raises: StoreUnavailable, StoreRejected.
        """
        held = await spool.held()
        # Where not all that the point lists is known, nothing that may belong to it is left behind.
        wanted = held if packs.unread else held & packs.listed
        own = {name for name in packs.listed if name.writer == self._setup.identity.system}
        wanted |= {name for name in own if not self._acknowledged(name)}
        mine = sorted(wanted, key=lambda name: (name.kind, name.hash))
        # An index that lists a pack's records was made after its acknowledgement; the listing tells if it is there yet.
        absent = await self._vault.packs.absent(mine)
        missing = [name for name in mine if name in absent or not self._acknowledged(name)]
        rest = iter([name for name in missing if name not in self.lost])
        sent: list[int] = []

        async def work() -> None:
            for name in rest:
                if self._stopping():
                    return
                if await self._put(name, held=name in held, there=name not in absent):
                    sent.append(name.size)

        largest = max((name.size for name in mine), default=1)
        await run_workers(work, max(1, min(PUTS_MAX, IN_FLIGHT_BYTES // largest)))
        return len(sent), sum(sent)

    async def absent(self, names: Collection[PackName]) -> set[PackName]:
        """Return those of `names` that are not in the vault, or damaged there.

        Raises: StoreUnavailable, StoreRejected.
        """
        lost = {name for name in self.lost.intersection(names) if not self._acknowledged(name)}
        return lost | await self._vault.packs.absent(names)

    def _acknowledged(self, name: PackName) -> bool:
        packs = self._vault.packs
        if (standing := packs.stand_in(name)) != name:
            return True
        # An index also names packs that hold sources of deltas in it, acknowledged or not: it lists none of theirs.
        return packs.index.own_packs(np.array([name.key], dtype=np.uint64), name.writer) == [standing]

    async def _put(self, name: PackName, *, held: bool, there: bool) -> bool:
        """Put a pack into the vault; False: nobody has it whole. `held`: something lies in the spool; `there`: here."""
        sides = [side for side, has in ((self._spooled, held), (self._vault, there)) if has]
        for side in sides:
            finished = await self._read(side.objects, name)
            if not isinstance(finished, str):
                break
            if name not in self.damaged:
                self._problems.append(f"{side.kind}: {finished}")
            self.damaged.add(name)
        else:
            self.lost.add(name)
            return False
        self._problems += await put_anyway(self._setup, self._vault.packs, finished)
        self.sent.add(self._vault.packs.stand_in(name).key)
        self.sent_bytes += name.size
        return True

    async def _read(self, store: ObjectStore, name: PackName) -> FinishedPack | str:
        """Return a pack, every byte of it checked, or what is wrong with it."""
        try:
            return await anyio.to_thread.run_sync(self._checked, name, await store.get(str(name), 0, name.size))
        except (StoreCorrupt, ObjectMissing) as error:
            return str(error)

    def _checked(self, name: PackName, data: Bytes) -> FinishedPack:
        entries = check_pack(name, data, self._setup.identity.keys, self._certificates)
        bare = FinishedPack(name, data, entries.ids, entries.offsets, entries.lengths)
        if not entries.sources:
            return bare
        index = self._spooled.packs.index
        which, keys, _ = index.delta_sources(entries.ids, bare.places())
        named = zip(which.tolist(), index.pack_names(keys), strict=True)
        sources = tuple((entry, source) for entry, source in named if source is not None)
        return FinishedPack(name, data, entries.ids, entries.offsets, entries.lengths, sources)
