"""What `status` tells of the last verification of the vault."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adapters.cli.moments import iso, local

if TYPE_CHECKING:
    from engine.state import VaultHistory


def check_document(history: VaultHistory, store: bytes) -> dict[str, Any] | None:
    """Return the last verification of the vault `store` as `status --json` has it, None: there was none."""
    last = next(iter(history.vault_checks(store, 1)), None)
    if last is None:
        return None
    return {
        "started": iso(last.started_ms),
        "ended": iso(last.ended_ms),
        "completed": last.completed,
        "passed": last.passed,
        "points": last.points,
        "incomplete": last.incomplete,
        "packs": last.packs,
        "bytes": last.bytes,
        "missing_packs": last.missing_packs,
        "damaged_packs": last.damaged_packs,
        "read_packs": last.read_packs,
        "read_bytes": last.read_bytes,
        "error": last.error,
    }


def check_line(check: dict[str, Any] | None) -> str:
    """Return the line that tells people of it."""
    if check is None:
        return "    never verified: 'forebay verify --vault' sees whether all is there"
    when = local(check["ended"]) if check["ended"] is not None else "at an unknown time"
    if not check["completed"]:
        return f"    last verification {when}, not finished: {check['error']}"
    lost = check["missing_packs"] + check["damaged_packs"]
    hurt = check["incomplete"]
    lacks = f"{lost} pack{'s' * (lost != 1)} lost, {hurt} restore point{'s' * (hurt != 1)} incomplete"
    found = "all is there" if check["passed"] else lacks
    return f"    last verification {when}: {found}"
