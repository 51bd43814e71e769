"""Packs that rotted in the vault under the names of packs that wait: others stand in for them (DESIGN.md §3.3, §5).

Under such a name nothing else can be put, and nobody may remove it. So the records, sealed as they are, go into a pack
with another name, at the same offsets, which the index lists: a record not found at its place is looked up by its id.
Here, what stands in is read, asked about and kept locked instead; the damaged pack is relied on no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import anyio.to_thread

from engine.errors import ContentDiffers, SessionAborted, StateCorrupt, StoreRejected
from engine.events import EventLog
from engine.names import PackName
from engine.pack import FinishedPack, stand_in_for
from engine.packstore import PackStore
from engine.pipeline.setup import SessionSetup

log = EventLog("upload")

TRIED_MAX: Final = 9  # what stands in may be damaged as well


def recall(setup: SessionSetup, packs: PackStore) -> str | None:
    """Have a store take what stands in for its damaged packs (*sync*); return what is wrong with the notes of it."""
    if setup.stand_ins is None:
        return None
    try:
        known = setup.stand_ins.stand_ins(packs.store_id)
    except StateCorrupt as error:
        return f"{error}; packs that are damaged in the {packs.store_name} may be taken for whole"
    packs.rely_instead(known)
    return None


async def put_anyway(setup: SessionSetup, packs: PackStore, finished: FinishedPack) -> list[str]:
    """Put a pack, or, if its name has rotted away, what stands in for it; return what to tell, a sentence each.

    Raises: StoreUnavailable, StoreRejected.
    """
    damaged: list[PackName] = []
    standing = finished
    stood_in = packs.stand_in(finished.name) != finished.name
    # What is damaged may have been taken away, and what stood in for it as well.
    packs.rely_instead({finished.name: finished.name})
    while True:
        try:
            await packs.put_pack(standing)
            break
        except StoreRejected as error:
            if not _differs(error) or len(damaged) == TRIED_MAX:
                raise
            damaged.append(standing.name)
            standing = await anyio.to_thread.run_sync(
                stand_in_for, standing, setup.identity.keys, setup.identity.signer
            )
    if not damaged and not stood_in:
        return []
    problems = [_sentence(packs, name, standing.name) for name in damaged]
    for name in damaged:
        log.warning("damaged_pack_replaced", component=packs.store_name, pack=str(name), by=str(standing.name))
    stand_ins = dict.fromkeys(damaged or [finished.name], standing.name)
    packs.rely_instead(stand_ins)
    if problem := await anyio.to_thread.run_sync(_note, setup, packs, stand_ins):
        problems.append(problem)
    return problems


def _differs(error: StoreRejected) -> bool:
    return isinstance(error, ContentDiffers) or isinstance(error.__cause__, ContentDiffers)


def _sentence(packs: PackStore, damaged: PackName, name: PackName) -> str:
    return (
        f"object {damaged} in the {packs.store_name} is not what was put there: it was damaged or forged; what belongs "
        f"there was put as {name}, and the restore points that need it are whole: look at the disk or server"
    )


def _note(setup: SessionSetup, packs: PackStore, stand_ins: Mapping[PackName, PackName]) -> str | None:
    if setup.stand_ins is None:
        return None
    try:
        for damaged, name in stand_ins.items():
            setup.stand_ins.add_stand_in(packs.store_id, damaged, name)
    except (StateCorrupt, SessionAborted) as error:
        return f"{error}; what stands in for damaged packs of the {packs.store_name} is known to this upload only"
    return None
