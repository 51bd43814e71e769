"""What healing put back into the cache for older restore points, in `verify` and in `status`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.cache.attempt import PointsHealed
    from engine.reportbody import PointsLine


def points_said(healed: PointsHealed | PointsLine | None) -> dict[str, Any] | None:
    """Return what `--json` says of it, None: nothing was to be put back."""
    if healed is None:
        return None
    return {name: getattr(healed, name) for name in healed.__struct_fields__}


def points_lines(said: dict[str, Any] | None) -> list[str]:
    """Return the same for people."""
    from adapters.cli.progress import blocks_text, bytes_text

    if said is None:
        return []
    if said["error"] is not None:
        return [f"Older restore points: not looked to the end what the cache lacks of them: {said['error']}"]
    if not said["missing"]:
        return ["Older restore points: the cache lacks nothing of them"]
    back = f"{blocks_text(said['healed'])} put back from the vault, {bytes_text(said['put_bytes'])}"
    room = f"; no room for {blocks_text(said['no_room'])}" if said["no_room"] else ""
    return [f"Older restore points: the cache lacked {blocks_text(said['missing'])} of them; {back}{room}"]
