"""The two sides of a session, opened: a pack store each, over an object store behind its retry stage."""

from __future__ import annotations

import anyio.to_thread
import msgspec

from engine.errors import StoreRejected
from engine.index import PackIndex
from engine.packstore import PackStore
from engine.pipeline.gate import VaultRefused
from engine.ports import ObjectStore
from engine.state import StateStore
from engine.vault.certificate import Certificates
from engine.vault.formatobject import FormatObject, StoreKind, read_format
from engine.vault.identity import Identity


class Side(msgspec.Struct):
    """One store while a session runs: `objects` is the object store behind its retry stage."""

    kind: StoreKind
    format: FormatObject
    objects: ObjectStore
    packs: PackStore

    @property
    def store_id(self) -> bytes:
        """The store's random id, 16 bytes."""
        return self.format.store

    async def recheck(self) -> None:
        """Read the format object again: still the same store, still writable by this version.

        Raises: StoreUnavailable, StoreRejected, StoreCorrupt, FormatTooNew.
        """
        found = await read_format(self.objects, self.kind, "write")
        if found.store != self.format.store:
            refused = VaultRefused if self.kind == "vault" else StoreRejected
            raise refused(f"the {self.kind} was replaced by another store while the session ran; start it again")


async def open_side(
    found: FormatObject,
    objects: ObjectStore,
    identity: Identity,
    state: StateStore,
    certificates: Certificates,
    *,
    own_only: bool,
    distrust: bool = False,
    look_again: bool = False,
) -> tuple[Side, list[str]]:
    """Open the store that `found` is the format object of; return it and the problems found in it.

    `certificates` are those of the vault, for the cache too: they say who is enrolled. `distrust`: throw the local
    mirror away first; `look_again`: whether packs of the cache that were gone still are is found out by the caller.
    Raises: StoreError, StateCorrupt.
    """
    mirror = state.mirror(found.store)
    # Fragments leave the spool again, and their names come back: a mirror out of a restored state would know others.
    if distrust or found.kind == "spool":
        for name in mirror.names():
            mirror.remove(name)
    index = PackIndex(own_only=own_only)
    packs = PackStore(
        objects,
        index,
        mirror,
        state.acks(found.store),
        identity.keys,
        certificates,
        identity.system,
        state.incarnation,
        identity.signer,
        found.kind,
        found.store,
        # A vault's puts are durable by themselves, the others flush; only from the spool do packs leave again.
        durable_puts=found.kind == "vault",
        passing=found.kind == "spool",
        trimmed=found.kind == "cache",
    )
    problems = certificates.problems + await packs.refresh()
    if found.kind == "cache":
        # The index lists them still; relied on, they would never be sent again.
        lost = await anyio.to_thread.run_sync(state.upkeep(found.store).lost_packs)
        index.bar([*lost.damaged.tolist(), *([] if look_again else lost.gone.tolist())])
    return Side(found.kind, found, objects, packs), problems
