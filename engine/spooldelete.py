"""Deleting a point that waits in the spool, and what that does to local state (DESIGN.md §3.3).

Where local state stands at the point, it counts as lost before anything else happens: a session that relied on a map
of what is gone would make points with holes. The point local state ends with is then the one before, if that is
known. All of it happens under the lock of the state directory.
"""

from __future__ import annotations

from collections.abc import Sequence

import anyio.to_thread
import msgspec

from engine.errors import FormatTooNew, ObjectMissing, StateCorrupt, StoreCorrupt
from engine.names import PointId
from engine.root import Root
from engine.spool import Spool
from engine.state import Intent, Newest, StateStore

_HASH_UNKNOWN = bytes(32)


class Deletion(msgspec.Struct, frozen=True):
    """What deleting a point did: bytes that got free, and whether local state counts as lost."""

    freed_bytes: int
    state_lost: bool


async def delete_point(
    spool: Spool, state: StateStore, volumes: Sequence[str], point: PointId, now_ms: int, text: str = ""
) -> Deletion:
    """Delete a spooled point; `volumes` are the names of those that local state may have maps of.

    `text` is what the `removed` note says. Raises: StoreUnavailable, StoreRejected, StateCorrupt, SessionAborted.
    """
    lost = await anyio.to_thread.run_sync(_stands_at, state, volumes, spool.identity.system, point)
    if lost:
        newest = await _before(spool, point)
        gone = Intent(
            root=point.root(spool.identity.system),
            root_hash=_HASH_UNKNOWN,
            vault=spool.identity.spool or spool.identity.vault,
            heads={},
        )
        await anyio.to_thread.run_sync(_forget, state, volumes, newest, gone)
    return Deletion(await spool.delete(point, now_ms, text), lost)


def _stands_at(state: StateStore, volumes: Sequence[str], system: bytes, point: PointId) -> bool:
    try:
        newest, intent = state.newest(), state.intent()
        heads = [state.volume(name).head for name in volumes]
    except StateCorrupt:
        return True  # nobody knows; what is lost already costs nothing more
    if intent is not None and intent.root == point.root(system):
        return True
    known = [PointId(one.order, one.incarnation) for one in (newest, *heads) if one is not None]
    # A state that ends before the point was restored from a copy: its next point might get the same name once more.
    return newest is None or point >= known[0] or point in known


def _forget(state: StateStore, volumes: Sequence[str], newest: Newest | None, gone: Intent) -> None:
    # Maps of volumes that are configured no more are of another incarnation from here on: they are never used again.
    state.renew_incarnation()
    for name in volumes:
        state.volume(name).forget()
    if (intent := _intent(state)) is None or intent.root == gone.root:
        # A commit that did not happen, so to speak: no later point may come before what this one came after.
        state.write_intent(gone)
    if newest is None:
        state.clear_newest()
    else:
        state.set_newest(newest)


def _intent(state: StateStore) -> Intent | None:
    try:
        return state.intent()
    except StateCorrupt:
        return None


async def _before(spool: Spool, point: PointId) -> Newest | None:
    """Return what local state ends with without `point`; None: that is not known."""
    try:
        root: Root = (await spool.root(point))[0]
    except (StoreCorrupt, ObjectMissing, FormatTooNew):
        return None
    previous = root.body.previous
    if previous is None or previous.hash == _HASH_UNKNOWN or await _is_removed(spool, previous.point):
        return None
    spooled = previous.point in await spool.points()
    identity = spool.identity
    assert identity.spool is not None, "a spool that was opened is an adopted one"
    return Newest(
        order=previous.order,
        incarnation=previous.incarnation,
        root_hash=previous.hash,
        vault=identity.spool if spooled else identity.vault,
        system=identity.system,
    )


async def _is_removed(spool: Spool, point: PointId) -> bool:
    names = (await spool.notes()).get(point, [])
    return any(parsed is not None and parsed[2] == "removed" for parsed in map(PointId.parse_note, names))
