"""The stage that looks whether what a store acknowledged is there: on the way an error may be taken for success.

Packs are looked at together, before the root that lists them (reliance.py, upload.py); whatever else is put is looked
at at once, below the retries: a 503 passes.
"""

from __future__ import annotations

from engine.block import Bytes
from engine.errors import ObjectMissing, StoreRejected, StoreUnavailable
from engine.names import PackName
from engine.stage import Stage


def not_kept(name: str) -> StoreRejected:
    """Return the error for a pack the vault took a moment ago and does not have."""
    return StoreRejected(
        f"the vault acknowledged object {name} and does not have it whole: find out what is in between"
    )


class KeptStore(Stage):
    """The stage that believes an acknowledgement once it sees the object."""

    async def put(self, name: str, data: Bytes) -> None:
        """Store an object, see ObjectStore."""
        await self._inner.put(name, data)
        if PackName.parse(name) is not None:
            return
        try:
            size = await self._inner.stat(name)
        except ObjectMissing:
            size = -1
        if size != len(data):
            raise StoreUnavailable(
                f"object {name} was acknowledged and is not there whole: something on the way takes errors for success"
            )
