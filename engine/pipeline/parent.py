"""The parent of a session: what local state stands at, what the vault has, and whether the two belong together.

Rules (DESIGN.md §4 Commit, §5 Domains and identity, Rollback):
- An open intent is settled first: if its root lies in the vault with the intended bytes, the commit happened and
  is finished here; otherwise it counts as not committed, and its staged changes are dropped.
- The newest root of the system in the vault must be the one the newest map stands at. If it is not, the state was
  cloned or restored from a copy, or another machine goes on with this system: local state counts as lost, and the
  state directory gets a new incarnation. Forks are legal; nothing is ever overwritten.
- Only a root that opens, with this system's signature on it, counts as the newest; whoever may write to the vault
  may write any name. One that does not open is reported; the next root still comes after it, so that it is not
  taken for the latest for ever, unless no clock can have counted that far.
- The next root comes after every name that was seen, also after those that only notes name: a point that was deleted,
  by a state that was rolled back since, must not lend its name, and its notes, to another one. That holds for what a
  store showed before it was lost.
- A root the vault has lost or damaged is reported, and what relied on the lost one is compared again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from heapq import nlargest
from typing import Final

import msgspec
from blake3 import blake3

from engine.errors import FormatTooNew, ObjectMissing, StateCorrupt, StoreCorrupt, StoreError
from engine.names import PointId
from engine.ports import ObjectStore
from engine.root import PreviousRoot, open_root, root_header
from engine.signed import OBJECT_BYTES_MAX
from engine.state import Newest, StateStore, VolumeState
from engine.vault.certificate import Certificates
from engine.vault.identity import Identity
from engine.workers import together

ROOTS_TRIED_MAX: Final = 64
ORDER_OF_CLOCKS_MAX: Final = 1 << 62  # milliseconds


class Parent(msgspec.Struct):
    """What a session starts from.

    `newest`: the greatest point of the system seen anywhere (None: there is none); `order_min`: what the order of
    the next one must reach besides; `previous`: the root the new one names as its predecessor;
    `problems`: sentences for the user; `lost`: local state was there and counts as lost.
    """

    newest: PointId | None = None
    order_min: int = 0
    previous: PreviousRoot | None = None
    lost: bool = False
    problems: list[str] = []

    def comes_after(self, point: PointId) -> None:
        """Have the next root come after a point whose name is used, unless no clock can have counted that far."""
        if point.order < ORDER_OF_CLOCKS_MAX:
            self.order_min = max(self.order_min, point.order + 1)

    def next_order(self, clock_ms: int) -> int:
        """Return the order of the next root: after everything seen, and not before the clock."""
        return max(clock_ms, self.order_min, self.newest.order + 1 if self.newest else 0)


class Stores(msgspec.Struct, frozen=True):
    """Where roots of a system may lie: `vault` is None while it is away, `spool` and `cache` are None without one.

    `vault_id`, `spool_id`: 16 bytes each. The cache holds copies: what it lacks proves nothing, what it has counts in
    the vault's stead, and keeps its name.
    """

    vault_id: bytes
    vault: ObjectStore | None
    spool_id: bytes | None = None
    spool: ObjectStore | None = None
    cache: ObjectStore | None = None

    def holding(self, store: bytes) -> ObjectStore | None:
        """Return the store with this id, None if it is away or another one."""
        return {self.spool_id: self.spool, self.vault_id: self.vault}.get(store)

    def searched(self) -> list[ObjectStore]:
        """Return the stores whose roots count. The cache is asked in the vault's stead only."""
        first = self.vault if self.vault is not None else self.cache
        return [store for store in (first, self.spool) if store is not None]


async def settle_intent(state: StateStore, system: bytes, stores: Stores, parent: Parent) -> None:
    """Finish or drop the commit an earlier session may have been interrupted in.

    Where the store its root went to cannot be asked, the commit counts as not having happened: should the root be
    there after all, it is a restore point more, and the next one comes after it.

    Raises: StoreUnavailable, StoreRejected (a store that is there could not be asked; the intent stays open).
    """
    try:
        intent = state.intent()
    except StateCorrupt as error:
        # What it would have said can be found out by comparing: the maps are given up, not guessed at.
        parent.problems.append(f"{error}; local state is rebuilt from vault and volumes")
        parent.lost = True
        state.clear_intent()
        return
    if intent is None:
        return
    named = PointId.parse_root(intent.root)
    ours = named is not None and named[0] == system
    store = stores.holding(intent.vault) if ours and intent.heads else None
    copies = stores.cache if stores.vault is None else None
    store = store or (copies if ours and intent.heads else None)  # which get theirs after the root
    committed = store is not None and await _root_hash(store, intent.root) == intent.root_hash
    if named is not None and ours and not committed:
        parent.order_min = max(parent.order_min, named[1].order + 1)
    if committed:
        state.set_newest(intent.newest())
    for name, head in intent.heads.items():
        volume = state.volume(name)
        if committed:
            try:
                _count_staged_missing(volume)
                volume.apply(head)
            except StateCorrupt as error:
                # Of this volume only the point in the vault is left; asking again would end the same way for ever.
                volume.forget()
                parent.problems.append(f"{error}; volume {name!r} is read and compared whole")
        else:
            volume.discard_staged()
    if committed:
        state.end_sessions()
    if committed or not ours:
        state.clear_intent()
    elif intent.heads:
        # Dropped, but its order is remembered until a later commit: the root may be there all the same.
        state.write_intent(msgspec.structs.replace(intent, heads={}))


def _count_staged_missing(volume: VolumeState) -> None:
    """Mark what an interrupted commit staged as missing from the cache: nobody saw its flush."""
    pages = volume.staged_pages()
    for start in range(0, len(pages), 1024):
        part = pages[start : start + 1024]
        masks, _ = volume.read_staged(part)
        volume.set_missing(part, volume.missing(part) | masks)
    volume.sync_missing()


async def find_parent(
    state: StateStore,
    names: Iterable[str],
    identity: Identity,
    certificates: Certificates,
    stores: Stores,
    parent: Parent,
) -> None:
    """Settle what is open, compare local state with the stores, and say in `parent` what the session starts from.

    However this ends, `parent` knows after which names the next root must come.

    Raises: StoreUnavailable, StoreRejected, StoreCorrupt (too many roots that do not open).
    """
    await settle_intent(state, identity.system, stores, parent)
    volumes = {name: state.volume(name) for name in names}
    for volume in volumes.values():
        volume.discard_staged()
    for name, volume in volumes.items():
        try:
            head = volume.head
        except StateCorrupt as error:
            parent.problems.append(f"{error}; volume {name!r} is read and compared whole")
            volume.forget()
            continue
        if head is not None and (head.vault, head.domain) != (stores.vault_id, identity.domain):
            volume.forget()
            parent.problems.append(
                f"volume {name!r}: local state belongs to another vault or domain; the volume is read whole"
            )
    roots = _Roots(stores, identity, certificates)
    ours = _newest(state, identity.system, parent, stores)
    if ours is None and not parent.lost and any(volume.head is not None for volume in volumes.values()):
        parent.lost = True
        parent.problems.append(
            "local state ends with a restore point in a spool that is not the one of this session; everything is read "
            "and compared again"
        )
    await _compare(parent, ours, roots)
    if stores.vault is not None and stores.cache is not None:
        # A spool that is configured no more may hold the point; by one name, its copy and the new one would meet.
        with suppress(StoreError):  # its own opening tells what is wrong with it
            await _seen(stores.cache, identity.system, parent)
    if not parent.lost:
        await _forget_lost(volumes, parent, ours, stores, identity.system)
    if parent.lost:
        state.renew_incarnation()
    for volume in volumes.values():
        # A map of another incarnation is of a state that was lost, also if it was lost while another volume's
        # session ran.
        if volume.head is not None and volume.head.incarnation != state.incarnation:
            volume.forget()


def _newest(state: StateStore, system: bytes, parent: Parent, stores: Stores) -> Newest | None:
    try:
        newest = state.newest()
    except StateCorrupt as error:
        parent.problems.append(f"{error}; local state counts as lost, everything is read again")
        parent.lost = True
        return None
    if newest is not None and newest.system != system:
        parent.problems.append("local state is another system's: it is not used, everything is read and compared")
        parent.lost = True
        return None
    if newest is not None:  # in a spool that was lost, too: a copy of it may turn up
        parent.comes_after(PointId(newest.order, newest.incarnation))
    return newest if newest is not None and newest.vault in (stores.vault_id, stores.spool_id) else None


class _Roots(msgspec.Struct, frozen=True):
    """The roots of the system, wherever they lie."""

    stores: Stores
    identity: Identity
    certificates: Certificates

    async def newest(self, mine: PointId | None, parent: Parent) -> tuple[PreviousRoot, PreviousRoot | None] | None:
        """Return the greatest root that counts, and the one it stands for, if any; note the others in `parent`.

        The root of `mine` counts whatever its content: its hash is known. Raises: StoreCorrupt.
        """
        tried = await self._greatest(parent)
        for point in tried[:ROOTS_TRIED_MAX]:
            name = point.root(self.identity.system)
            data = await self._read(name)
            if data is None:
                continue
            known = PreviousRoot(order=point.order, incarnation=point.incarnation, hash=blake3(data).digest())
            if point == mine:
                return known, None
            counts, instead = self._counts(name, point, data, parent)
            if counts:
                return known, instead
        if len(tried) > ROOTS_TRIED_MAX:
            raise StoreCorrupt(
                tried[0].root(self.identity.system),
                f"the vault holds more than {ROOTS_TRIED_MAX} restore points of this system that do not open: "
                "find out who writes them, and remove them",
            )
        return None

    async def _read(self, name: str) -> bytes | None:
        for store in self.stores.searched():
            try:
                return bytes(await store.get(name, 0, OBJECT_BYTES_MAX))
            except ObjectMissing:
                continue
        return None

    async def _greatest(self, parent: Parent) -> list[PointId]:
        """Return the greatest points, one more than are tried if there are so many, the greatest first."""
        points: set[PointId] = set()
        for store in self.stores.searched():
            points |= await _seen(store, self.identity.system, parent)
        return nlargest(ROOTS_TRIED_MAX + 1, points)

    def _counts(self, name: str, point: PointId, data: bytes, parent: Parent) -> tuple[bool, PreviousRoot | None]:
        """Tell whether a root counts, and which one it stands for, if that is known."""
        try:
            if root_header(name, data).domain != self.identity.domain:
                # Written before this system joined its present domain; its keys are not here.
                return point.order < ORDER_OF_CLOCKS_MAX, None
            root = open_root(name, data, self.identity.listing_key, self.certificates.verify_number)
        except FormatTooNew:
            return True, None
        except StoreCorrupt as error:
            parent.problems.append(f"{error}: it is damaged or forged, and counts as no restore point")
            return False, None
        return True, root.body.stands_for


async def _compare(parent: Parent, ours: Newest | None, roots: _Roots) -> None:
    """Hold the point local state ends with against the newest root; sets newest, previous, lost, problems."""
    mine = PointId(ours.order, ours.incarnation) if ours else None
    found, instead = await roots.newest(mine, parent) or (None, None)
    newest = found.point if found else None
    parent.newest = max((point for point in (newest, mine) if point), default=None)
    parent.previous = found
    if ours is None or mine is None:
        return
    known = PreviousRoot(order=ours.order, incarnation=ours.incarnation, hash=ours.root_hash)
    if instead == known:
        return  # uploaded under another name, since its own had rotted in the vault
    # What lies in the vault under the name of a point that a spool has proves nothing, unless it is that point.
    there = found == known or roots.stores.vault is None or roots.stores.holding(ours.vault) is not None
    if found is not None and newest == mine and there and not await _left_the_spool(ours, mine, roots):
        if found != known:
            parent.problems.append(
                f"object {mine.root(roots.identity.system)} is not what was written there: "
                "the restore point is damaged; the session goes on from local state"
            )
            parent.previous = known
    elif newest is not None and newest > mine:
        parent.lost = True
        parent.problems.append(
            f"local state ends at restore point {mine}, but there already is {newest}: this machine was "
            "cloned or its state restored from a copy, or a session was cut off between writing two points; local "
            "state counts as lost, everything is read again"
        )
    elif roots.stores.vault is None and roots.stores.holding(ours.vault) is None:
        parent.previous = known  # the vault is away: nothing says that it has lost the point
    elif roots.stores.holding(ours.vault) is None:
        # A point that goes to the vault must not name what only a spool has.
        parent.lost = True
        parent.problems.append(
            f"local state ends at restore point {mine}, which waits in a spool that cannot be used now: everything is "
            "read and compared again, and what the vault lacks is sent"
        )
    else:
        parent.lost = True
        where = "vault" if ours.vault == roots.stores.vault_id else "spool"
        parent.problems.append(
            f"the {where} has lost restore point {mine}; everything is read and compared again, "
            f"and what the {where} lacks is sent again"
        )


async def _seen(store: ObjectStore, system: bytes, parent: Parent) -> set[PointId]:
    """Return the greatest of the points a store has roots of; the next one comes after all it has, and after its notes.

    Raises: StoreUnavailable, StoreRejected; what was listed before counts all the same.
    """
    points: set[PointId] = set()

    async def roots() -> None:
        nonlocal points
        async for info in store.list(f"root/{system.hex()}/"):
            if (found := PointId.parse_root(info.name)) is not None:
                parent.comes_after(found[1])
                points.add(found[1])
                if len(points) > 16 * ROOTS_TRIED_MAX:
                    points = set(nlargest(ROOTS_TRIED_MAX + 1, points))

    async def notes() -> None:
        async for info in store.list(f"note/{system.hex()}/"):
            if (found := PointId.parse_note(info.name)) is not None:
                parent.comes_after(found[1])

    await together(roots, notes)
    return points


async def _forget_lost(
    volumes: Mapping[str, VolumeState], parent: Parent, ours: Newest | None, stores: Stores, system: bytes
) -> None:
    """Forget the maps whose restore point, older than the one local state ends with, is nowhere any more.

    Spooled packs that no point lists are swept: what the map names there may be gone, its pages too.
    """
    if stores.vault is None:
        return
    for name, volume in volumes.items():
        head = volume.head
        if head is None or (ours is not None and (head.order, head.incarnation) == (ours.order, ours.incarnation)):
            continue
        point = PointId(head.order, head.incarnation)
        if await _nowhere(stores, point.root(system)):
            volume.forget()
            parent.problems.append(
                f"volume {name!r}: restore point {point}, which its local state stands at, is gone; the volume is read "
                "and compared whole"
            )


async def _left_the_spool(ours: Newest, mine: PointId, roots: _Roots) -> bool:
    """Tell whether the spool has lost the point, and the vault has not got it.

    That the cache has a copy of the root is no help: packs that no point of the spool lists are swept from it.
    """
    stores, name = roots.stores, mine.root(roots.identity.system)
    if stores.spool is None or ours.vault != stores.spool_id:
        return False
    return await _nowhere(stores, name)


async def _nowhere(stores: Stores, root: str) -> bool:
    """Tell whether neither vault nor spool, as far as they are there, has a root."""
    places = [store for store in (stores.vault, stores.spool) if store is not None]
    return all([await _root_hash(store, root) is None for store in places])


async def _root_hash(vault: ObjectStore, name: str) -> bytes | None:
    """Return the BLAKE3 of an object, None where it does not exist."""
    try:
        return bytes(blake3(await vault.get(name, 0, OBJECT_BYTES_MAX)).digest())
    except ObjectMissing:
        return None
