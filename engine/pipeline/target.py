"""Where vault-bound blocks go: one stage between the lane and the stores, which may change stores once.

With `resume` a session that loses its vault goes on where it is: packs not acknowledged yet go to the spool, blocks are
compared with the spool and with what may be relied on beside it. What was deduplicated before is looked up again at the
commit (resolve.py), so nothing in the point leans on what only the lost vault's index promised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

import anyio

from engine.block import Ids, Mask, Places
from engine.columns import Column64
from engine.errors import StoreError
from engine.names import PackName
from engine.pack import FinishedPack
from engine.pipeline.gate import VaultLost, VaultRefused
from engine.pipeline.stores import Side

# Opens the side to go on with: given why the first one is used no more, and the keys of the packs it acknowledged.
Switch: TypeAlias = Callable[[StoreError, frozenset[int]], Awaitable[Side]]


class Target:
    """The sink of the vault's lane and the index its producers ask; `side` is where both lead now.

    `switch` None: what ends the vault ends the session's way there.
    """

    def __init__(self, side: Side, switch: Switch | None = None) -> None:
        self.side = side
        self._first, self._switch = side, switch
        self._sent: set[int] = set()
        self._lock = anyio.Lock()

    async def put_pack(self, finished: FinishedPack) -> None:
        """Put a pack where packs go now. Raises: StoreError."""
        side = self.side
        try:
            await side.packs.put_pack(finished)
        except (VaultLost, VaultRefused) as error:
            await self.lost(error, side)
            await self.side.packs.put_pack(finished)
        else:
            if side is self._first:
                self._sent.add(finished.name.key)

    async def flush(self) -> None:
        """Return once every acknowledged pack is durable; a vault's are by themselves. Raises: StoreError."""
        side = self.side
        try:
            await side.packs.flush()
        except (VaultLost, VaultRefused) as error:
            await self.lost(error, side)
            await self.side.packs.flush()

    async def lost(self, error: StoreError, side: Side) -> None:
        """Take note that `side` is used no more; return once there is another one. Raises: `error`, StoreError."""
        async with self._lock:
            if self.side is not side:
                return
            if self._switch is None:
                raise error
            self.side = await self._switch(error, frozenset(self._sent))

    def claim(self, ids: Ids) -> tuple[Places, Mask]:
        """See `PackIndex.claim`."""
        return self.side.packs.index.claim(ids)

    def own_packs(self, keys: Column64, writer: bytes) -> list[PackName | None]:
        """See `PackIndex.own_packs`."""
        return self.side.packs.index.own_packs(keys, writer)
