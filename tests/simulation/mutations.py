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
import engine.pipeline.commit
import engine.pipeline.delivery
import engine.pipeline.parent
import engine.pipeline.reliance
import engine.pipeline.resolve
import engine.recovery.restore
from adapters.state.files import Disk, StateFile
from adapters.state.maps import VolumeMap
from engine.acks import PackAck
from engine.packstore import PackStore
from engine.pipeline.pagecopies import PageCopies
from engine.pipeline.parent import Parent
from engine.pipeline.reliance import Reliance
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

    async def present(store: PackStore, names: Any) -> Any:
        there = {info.name.rpartition("-")[0] async for info in store.objects.list("")}
        return {name for name in names if str(name).rpartition("-")[0] not in there}

    put_in(PackStore, present=present)


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
        ("committed = store is not None and await", "committed = store is not None or await"),
    )


def staged_pages_lost() -> None:
    """A map moves to a point without what was staged for it."""
    rewritten(VolumeMap, "_finish", ("self._map.write(pages[written], images[written])", "pass"))


def unflushed_packs_trusted() -> None:
    """Packs no flush followed are relied on by the next session without being read back."""

    async def reads_back(store: PackStore, name: Any) -> bool:
        return True

    put_in(PackStore, _reads_back=reads_back)


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


# Each with the theme (world.THEMES) of the worlds in which it is looked for: None: any.
MUTATIONS: Final[dict[str, tuple[str | None, Callable[[], None]]]] = {
    made.__name__: (theme, made)
    for theme, made in (
        ("deaths", no_fsync),
        ("deaths", no_folder_fsync),
        ("cuts", no_cache_flush),
        ("losses", short_objects_trusted),
        ("losses", presence_not_checked),
        ("deaths", journal_not_replayed),
        ("deaths", journal_always_replayed),
        ("deaths", staged_pages_lost),
        ("cuts", unflushed_packs_trusted),
        (None, nothing_is_missing),
        (None, acknowledged_before_put),
        (None, order_by_the_clock),
        ("losses", sources_not_checked),
        ("losses", packs_not_checked_after_the_root),
        ("losses", holes_not_told),
        (None, pages_not_copied),
    )
}
