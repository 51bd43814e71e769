"""Small deliberate mistakes, each of which the simulator must find: what proves that it can find others.

A mutation changes one thing in the agent, in this process only; `python -m tests.simulation.run --mutation NAME` runs
seeds until a promise is seen to be broken.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

import engine.packread
import engine.packstore
import engine.pipeline.beside
import engine.pipeline.commit
import engine.pipeline.delivery
import engine.pipeline.opening
import engine.pipeline.parent
import engine.pipeline.refill
import engine.pipeline.reliance
import engine.pipeline.resolve
import engine.pipeline.route
import engine.pipeline.sending
import engine.pipeline.standin
import engine.pipeline.upload
import engine.recovery.restore
import engine.spool
import engine.spooldelete
from adapters.state.files import Disk, StateFile
from adapters.state.maps import VolumeMap
from engine.acks import PackAck
from engine.block import Bytes
from engine.names import PointId
from engine.packstore import PackStore
from engine.pipeline.bounded import BoundedStore
from engine.pipeline.opening import Opening
from engine.pipeline.pagecopies import PageCopies
from engine.pipeline.parent import Parent
from engine.pipeline.reliance import Reliance
from engine.pipeline.upload import Upload
from engine.ports import ObjectStore
from tests.simulation.clockwork import put_in


def rewritten(owner: Any, name: str, *changes: tuple[str, str]) -> None:
    """Replace a function by its own source with pieces of it changed; every piece must be there exactly once."""
    plain: Any = inspect.getattr_static(owner, name)
    source = inspect.cleandoc("\n" + inspect.getsource(plain)) + "\n"
    for old, new in changes:
        assert source.count(old) == 1, f"{name}: {old!r} is there {source.count(old)} times"
        source = source.replace(old, new)
    scope: dict[str, Any] = {}
    exec(
        compile("from __future__ import annotations\n" + source, f"<mutated {name}>", "exec"), plain.__globals__, scope
    )
    made = scope[name]
    setattr(owner, name, made)


def no_fsync() -> None:
    put_in(StateFile, sync=lambda file: None)


def no_folder_fsync() -> None:
    put_in(Disk, sync_folder=lambda disk, path: None)


def no_cache_flush() -> None:
    """Local state notes what the cache has before the cache made it durable."""
    flush = PackStore.flush

    async def skipped(store: PackStore) -> None:
        if store.store_name == "vault":
            await flush(store)

    put_in(PackStore, flush=skipped)


def short_objects_trusted() -> None:
    """A pack counts as present whatever its size is."""

    async def absent(store: PackStore, names: Any) -> Any:
        there = {info.name.rpartition("-")[0] async for info in store.objects.list("")}
        return {name for name in names if str(name).rpartition("-")[0] not in there}

    put_in(PackStore, absent=absent)


def presence_not_checked() -> None:
    async def present(reliance: Reliance, keys: Any, written: Any) -> bool:
        return True

    put_in(Reliance, present=present)


def journal_not_replayed() -> None:
    """An open intent is dropped, whether its root lies in the vault or not."""
    rewritten(engine.pipeline.parent, "settle_intent", ("committed = store is not None and", "committed = False and"))


def journal_always_replayed() -> None:
    """An open intent counts as committed, whether its root lies in the vault or not."""
    rewritten(
        engine.pipeline.parent,
        "settle_intent",
        ("committed = store is not None and", "committed = bool(intent.heads) or store is not None and"),
    )


def staged_pages_lost() -> None:
    """A map moves to a point without what was staged for it."""
    rewritten(VolumeMap, "_finish", ("self._map.write(pages[written], images[written])", "pass"))


def unflushed_packs_trusted() -> None:
    """Packs no flush followed are relied on by the next session without being read back."""
    rewritten(
        PackStore,
        "_recall",
        ("(data := await self._reads.whole(ack.name)) is not None", "True"),
        ("await self.objects.put(str(ack.name), data)", "pass"),
    )


def nothing_is_missing() -> None:
    """The missing-block bitmap stays empty, whatever the cache did not get."""
    put_in(engine.pipeline.commit, missing_from=lambda state, index, pages: None)


def acknowledged_before_put() -> None:
    """A pack is listed in the index although it was not put, now and then."""
    put = PackStore.put_pack
    count = 0

    async def put_pack(store: PackStore, finished: Any) -> None:
        nonlocal count
        count += 1
        if count % 50:
            await put(store, finished)
        else:
            store._acknowledge(PackAck.of(finished))

    put_in(PackStore, put_pack=put_pack)


def order_by_the_clock() -> None:
    put_in(Parent, next_order=lambda parent, clock_ms: clock_ms)


def sources_not_checked() -> None:
    """A delta is sent whether the packs of its sources are there or not."""
    rewritten(engine.pipeline.resolve, "resolve", ('[places["length"] > 0], sources)', '[places["length"] > 0])'))
    put_in(engine.pipeline.delivery, resolve=engine.pipeline.resolve.resolve)

    async def sound(reliance: Reliance, samples: Any, written: Any) -> bool:
        return True

    put_in(Reliance, sound=sound)


def packs_not_checked_after_the_root() -> None:
    rewritten(
        engine.pipeline.delivery.Delivery,
        "_commit",
        ("if await reliance.present(keys, frozenset(self._written)) and await committer.pages_present():", "if True:"),
    )


def holes_not_told() -> None:
    rewritten(engine.recovery.restore.Restore, "_report", ("exit_code=FAILED if", "exit_code=DONE if"))


def pages_not_copied() -> None:
    """The cache is said to have a point's pages although it got none of older sessions'."""

    async def bring(copies: PageCopies, packs: Any, runs: Any) -> bool:
        return True

    put_in(PageCopies, bring=bring)


def returned_to_the_vault() -> None:
    """A session in the fallback puts its root into the vault, if that was there at its opening."""
    open_stores, put = Opening.open, BoundedStore.put
    vault: list[ObjectStore] = []

    async def remembered(opening: Opening) -> Any:
        opened = await open_stores(opening)
        vault[:] = [opened.vault.objects] if opened.vault is not None else []
        return opened

    async def elsewhere(store: BoundedStore, name: str, data: Bytes) -> None:
        if name.startswith("root/") and vault:
            await vault[0].put(name, data)
        else:
            await put(store, name, data)

    put_in(Opening, open=remembered)
    put_in(BoundedStore, put=elsewhere)


def backlog_passed() -> None:
    """A session goes to the vault though points wait in the spool."""
    rewritten(Opening, "open_spool", ("self.backlog = await self.spool.points()", "self.backlog = []"))


def root_before_its_packs() -> None:
    """An upload publishes the root first."""
    publish = Upload._publish

    async def early(upload: Upload, point: PointId) -> None:
        vault, _, spool = upload._opened()
        name = point.root(upload._setup.identity.system)
        await vault.objects.put(name, bytes(await spool.objects.get(name)))
        await publish(upload, point)

    put_in(Upload, _publish=early)


def left_before_its_root() -> None:
    """A point leaves the spool before its root is in the vault."""
    rewritten(
        engine.pipeline.upload.Upload,
        "_publish",
        ("    await spool.remove(point, root)\n", ""),
        ("    await vault.recheck()\n", "    await spool.remove(point, root)\n    await vault.recheck()\n"),
    )


def unanswered_root_trusted() -> None:
    """A root that was put without an answer counts as uploaded."""
    rewritten(
        engine.pipeline.upload.Upload,
        "_publish",
        (
            "    await vault.objects.put(put.point.root(self._setup.identity.system), put.data)\n",
            "    try:\n"
            "        await vault.objects.put(put.point.root(self._setup.identity.system), put.data)\n"
            "    except StoreError:\n"
            "        pass\n",
        ),
    )


def shared_packs_dropped() -> None:
    """A point that leaves the spool takes all its packs along, also those that others there list."""
    rewritten(engine.spool.Spool, "_leave", ("if pack in listed and pack not in needed.listed", "if pack in listed"))


def everything_relied_on() -> None:
    """A session in the fallback relies on all packs of the vault that it ever heard of."""
    rewritten(
        engine.pipeline.beside,
        "lie_beside",
        ("view.bar_packs(view.keys[~np.isin(view.keys, relied_on)])", "relied_on = distinct(relied_on, view.keys)"),
    )
    put_in(engine.pipeline.opening, lie_beside=engine.pipeline.beside.lie_beside)


def nothing_completed() -> None:
    """An upload does not look whether all that the point lists is in the vault."""

    async def complete(upload: Upload, point: PointId, root: Any, packs: Any) -> dict[str, Any]:
        return {}

    put_in(Upload, _complete=complete)


def spool_not_flushed() -> None:
    """Packs and root of a spooled point are not made durable."""

    async def skipped(store: BoundedStore) -> None:
        pass

    put_in(BoundedStore, flush=skipped)


def rotten_packs_trusted() -> None:
    """A pack whose put is refused, because something else lies under its name, counts as put."""
    rewritten(engine.pipeline.standin, "put_anyway", ("damaged.append(standing.name)", "return []"))
    for user in (engine.pipeline.sending, engine.pipeline.refill):
        put_in(user, put_anyway=engine.pipeline.standin.put_anyway)


def newest_first() -> None:
    rewritten(engine.pipeline.upload.Upload, "oldest", ("self._publish(rest[0])", "self._publish(rest[-1])"))


def holes_not_noted() -> None:
    """A point is published incomplete, and no note says what it lacks."""

    async def put_note(upload: Upload, point: PointId, holes: Any, text: str) -> None:
        pass

    put_in(Upload, _put_note=put_note)


def deleted_point_relied_on() -> None:
    """Local state stays at a point of the spool that is deleted, and nobody asks the spool for it or its packs."""

    async def left(*_: Any) -> bool:
        return False

    async def stands(*_: Any) -> bool:
        return True

    put_in(engine.spooldelete, _stands_at=lambda state, volumes, system, point: False)
    put_in(engine.pipeline.parent, _left_the_spool=left, _forget_lost=left)
    put_in(engine.pipeline.commit, stands_on=stands)


# Each with the theme (themes.py) of the worlds in which it is looked for, None: any, and the seed that found it first.
MUTATIONS: Final[dict[str, tuple[str | None, int, Callable[[], None]]]] = {
    made.__name__: (theme, first, made)
    for theme, first, made in (
        ("deaths", 1, no_fsync),
        ("deaths", 6, no_folder_fsync),
        ("cuts", 1, no_cache_flush),
        ("losses", 2, short_objects_trusted),
        ("losses", 6, presence_not_checked),
        ("deaths", 7, journal_not_replayed),
        ("deaths", 8, journal_always_replayed),
        ("deaths", 1, staged_pages_lost),
        ("cuts", 2, unflushed_packs_trusted),
        (None, 13, nothing_is_missing),
        (None, 10, acknowledged_before_put),
        (None, 1, order_by_the_clock),
        ("losses", 2, sources_not_checked),
        ("losses", 45, packs_not_checked_after_the_root),
        ("losses", 1, holes_not_told),
        (None, 3, pages_not_copied),
        ("fallback", 1, returned_to_the_vault),
        ("fallback", 1, backlog_passed),
        ("backlog", 1, root_before_its_packs),
        ("backlog", 1, left_before_its_root),
        ("fallback", 17, unanswered_root_trusted),
        ("fallback", 1, shared_packs_dropped),
        ("fallback", 7, everything_relied_on),
        ("misfortunes", 9, nothing_completed),
        ("backlog", 5, spool_not_flushed),
        ("misfortunes", 11, rotten_packs_trusted),
        ("backlog", 3, newest_first),
        ("misfortunes", 1, holes_not_noted),
        ("deletions", 2, deleted_point_relied_on),
    )
}
