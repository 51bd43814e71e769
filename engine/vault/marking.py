"""Marking restore points: which lack something is said in a note to each, and so is that one is whole again."""

from __future__ import annotations

import msgspec

from engine.errors import StoreError
from engine.events import EventLog
from engine.note import NoteBody, own_note
from engine.pipeline.lost import Ranges
from engine.pipeline.refill import Refill
from engine.pipeline.setup import SessionSetup
from engine.vault.check import VaultCheck
from engine.vault.kept import Kept, KeptPoint, holes_digest
from engine.vault.mending import Mending

log = EventLog("verify")


async def mark_all(
    kept: Kept, mending: Mending, refill: Refill, session: SessionSetup, check: VaultCheck, problems: list[str]
) -> VaultCheck:
    """Mark the points whose notes say another thing than what was found; return the check with what they lack.

    Raises: StoreUnavailable, StoreRejected of the vault.
    """
    for point in kept.points:
        holes = await mending.holes(point)
        check = msgspec.structs.replace(
            check,
            incomplete=check.incomplete + bool(holes),
            holes=check.holes + _count(holes),
            mended=check.mended + (bool(point.told) and not holes),
        )
        damaged = mending.damaged_in(point)
        if (holes_digest(holes, damaged) if holes else b"") == point.told:
            continue
        if holes:
            text = f"{_count(holes)} blocks that the vault lost could not be put there again"
            body = NoteBody(kind="incomplete", time=0, text=text, holes=holes, damaged=damaged)
            problems.append(f"restore point {point.id} is incomplete: {text}")
            log.error("point_incomplete", component="vault", point=str(point.id), blocks=_count(holes))
        else:
            body = NoteBody(kind="incomplete", time=0, text="what it lacked is there again", whole=True)
            log.info("point_whole", component="vault", point=str(point.id))
        await _put(body, point, refill, session, problems)
    return check


async def _put(body: NoteBody, point: KeptPoint, refill: Refill, session: SessionSetup, problems: list[str]) -> None:
    # The last word counts by its time, also where a clock was set back.
    told = msgspec.structs.replace(body, time=max(session.clock.now_ms(), point.told_ms + 1))
    name, data = own_note(told, point.id, session.identity)
    await refill.vault.objects.put(name, data)
    if refill.cache is not None:
        try:
            await refill.cache.objects.put(name, data)
        except StoreError as error:
            problems.append(f"cache: {error}; its copy of the restore point {point.id} lacks a note")


def _count(holes: dict[str, Ranges]) -> int:
    return sum(count for ranges in holes.values() for _, count in ranges)
