"""The two sides of a session, opened: a pack store each, over an object store behind its retry stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import StoreRejected
from engine.index import PackIndex
from engine.packstore import PackStore
from engine.ports import ObjectStore
from engine.state import StateStore
from engine.vault.certificate import Certificates
from engine.vault.formatobject import FormatObject, StoreKind, read_format
from engine.vault.identity import Identity


@dataclass(slots=True)
class Side:
    """One store while a session runs: `objects` is the object store behind its retry stage."""

    kind: StoreKind
    format: FormatObject
    objects: ObjectStore
    packs: PackStore
    certificates: Certificates

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
            raise StoreRejected(f"the {self.kind} was replaced by another store while the session ran; start it again")


async def open_side(
    kind: StoreKind,
    objects: ObjectStore,
    identity: Identity,
    state: StateStore,
    *,
    own_only: bool,
    distrust: bool,
    remembered: Callable[[bytes], None],
) -> tuple[Side, list[str]]:
    """Open a store for a session: format, certificates, index; return it and the problems found in it.

    `distrust`: throw the local mirror away first. `remembered` is called with the store id before anything local
    is used, and may refuse it. Raises: StoreError and what `remembered` raises.
    """
    found = await read_format(objects, kind, "write")
    remembered(found.store)
    certificates = await Certificates.load(objects, identity.domain, identity.vault_public)
    mirror = state.mirror(found.store)
    if distrust:
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
        kind,
        found.store,
    )
    problems = certificates.problems + await packs.refresh()
    return Side(kind, found, objects, packs, certificates), problems
