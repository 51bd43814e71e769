"""What must be true of points on their way from the spool to the vault."""

from __future__ import annotations

from engine.exitcodes import DONE, FAILED, IN_SPOOL
from engine.names import PackName
from engine.pack import FinishedPack, check_pack, stand_in_for
from engine.pipeline.report import UploadReport
from tests.simulation.losses import require
from tests.simulation.machines import Machine
from tests.simulation.model import Model
from tests.simulation.plans import Plan


async def check_moves(model: Model, machine: Machine, plan: Plan) -> None:
    """Look at every root that went into the vault, and at what left the spool, in what was done last."""
    usable = machine.settings.spool and machine.spool.there and not (plan.disk_full or plan.ailing)
    for put in machine.published:
        listed = await model.losses.packs_of(machine, put.root)
        early = [
            name
            for name in sorted(listed - put.packs)
            if ("vault", name) not in model.losses.ever and ("spool", name) not in model.losses.ever
        ]
        standing = [_standing_in(machine, name) for name in early]
        stood = [name in put.packs or ("vault", name) in model.losses.ever for name in standing]
        early = [name for name, each in zip(early, stood, strict=True) if not each]
        require(not early, f"root {put.root} went into the vault before its packs", f"{machine.name}: {early}")
        if put.waits is not None:
            older = put.spooled[: put.spooled.index(put.waits)] if put.waits in put.spooled else put.spooled
            require(
                put.waits in put.spooled and all([await _needs_cache(model, machine, plan, root) for root in older]),
                "points are not uploaded oldest first",
                f"{machine.name}: {put.root}, {put.spooled}",
            )
            model.uploaded[put.root] = put.began
        elif usable:
            past = [root for root in put.spooled if root < put.root]
            require(not past, "a session went past its backlog", f"{machine.name}: {put.root}, {past}")
    for drop in machine.dropped:
        kept = drop.pack in model.stores["vault"].written
        for root in drop.spooled:
            packs = await model.losses.packs_of(machine, root) if root in machine.roots else frozenset()
            # What a point needs that lost pages, or whose pages left with a pack that came back, is not known; what the
            # vault has is not lost.
            pages_lost = drop.back or not packs.isdisjoint(machine.spool.ruined)
            unknown = root in machine.spool.ruined or (kept and pages_lost)
            needed = drop.pack in packs and not unknown
            require(not needed, f"{drop.pack} left the spool, and a point there needs it", f"{machine.name}: {root}")
    machine.published.clear()
    machine.dropped.clear()


def _standing_in(machine: Machine, name: str) -> str:
    """Return the name of what stands in for a pack that waited, where something rotten had its name in the vault."""
    pack, data = PackName.parse(name), machine.spool.tried.get(name)
    if pack is None or data is None:
        return name
    entries = check_pack(pack, data, None, None)
    finished = FinishedPack(pack, data, entries.ids, entries.offsets, entries.lengths)
    return str(stand_in_for(finished, machine.identity.keys, machine.identity.signer).name)


async def _needs_cache(model: Model, machine: Machine, plan: Plan, root: str) -> bool:
    """Tell whether a point may be passed over: the cache may have what it lost, and is not well."""
    if root not in machine.roots:
        return False
    lost = model.losses.ever
    packs = await model.losses.packs_of(machine, root)
    return not plan.cache.calm and any({("vault", name), ("spool", name)} & lost for name in packs)


def check_upload(model: Model, machine: Machine, plan: Plan, report: UploadReport, before: list[str]) -> None:
    """Compare what `upload` tells with what was in its way, and with what lies in vault and spool."""
    told = f"{machine.name}: {report}"
    waiting = machine.waiting()
    incomplete = bool(report.lost) or any(each.holes for each in report.uploaded)
    if report.exit_code == DONE:
        require(not waiting, "exit code 0, and points wait in the spool", told)
        gone = [root for root in before if not machine.published_as(root) and root not in machine.to_delete]
        require(not gone, f"exit code 0, and points are not in the vault: {gone}", told)
    if report.exit_code == IN_SPOOL:
        why = report.stopped or any("waits in the spool" in problem for problem in report.problems)
        require(why and bool(waiting), "exit code 3 without a reason", told)
    if report.exit_code == FAILED:
        require(report.error is not None or incomplete, "an upload failed without a word", told)
    for each in report.uploaded:
        root = f"root/{machine.system}/{each.point}"
        require(bool(machine.published_as(root)), "a point was not uploaded", told)
        require(root not in waiting, "a point that was uploaded still waits", told)
        for volume, ranges in each.holes.items():
            holes = {block for first, count in ranges for block in range(first, first + count)}
            noted = model.losses.holes_of(machine, root, volume)
            require(holes <= noted, "a point was uploaded incomplete, and no note says so", told)
    stopped = machine.paused or not machine.settings.spool or model.spool_fails(machine)
    if not (model.in_the_way(machine, plan) or stopped or incomplete):
        require(report.exit_code == DONE, "an upload failed though nothing was in its way", told)
