"""What a trimming of the cache did and could not do, for people: in `trim`, and after a backup."""

from __future__ import annotations

from typing import Any

from adapters.cli.progress import bytes_text, packs_text


def trim_lines(told: dict[str, Any]) -> list[str]:
    """Return what is worth a line of a trimming's document; nothing if nothing had to go."""
    lines = []
    if told["deleted"] or told["rewritten"]:
        lines.append(
            f"Trimmed: {bytes_text(max(told['freed_bytes'], 0))} freed, {packs_text(told['deleted'])} deleted, "
            f"{told['rewritten']} written anew without what was old"
        )
    if told["refused"] is not None:
        lines.append(f"Nothing was trimmed: {told['refused']}")
    elif not told["met"]:
        lines.append(
            f"NOT within its bounds: {bytes_text(told['lacking_bytes'])} more would have to go, but "
            f"{bytes_text(told['protected_bytes'])} of it are protected: some system saw that less than 14 days ago, "
            "or it is the last known copy of what a restore point needs"
        )
    if not told["met"] and told["full_on"] is not None:
        lines.append(f"The device is full on {told['full_on']}, if the cache goes on growing as it did")
    return lines
