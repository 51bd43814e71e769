"""What waits in the spool, and how much room is left for more: told by names and sizes, without a key or a loop."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from adapters.cli.moments import iso

if TYPE_CHECKING:
    from pathlib import Path

    from adapters.config import Config, Spool
    from engine.vault.identity import Identity

_PACK_FOLDERS: Final = ("data", "page")
_SIZE_DIGITS_MAX: Final = 10


@dataclass(frozen=True, slots=True)
class Backlog:
    """The points that wait in a spool, and its sizes in bytes.

    `oldest_ms`: when the oldest was made, by its order; `free`: what may still be written; `full`: the share of
    `max_size` that is used or, where the disk ends before, of the disk; `store`: the 16-byte id of the spool, None if
    its format object cannot be read.
    """

    store: bytes | None
    points: int
    oldest_ms: int | None
    used: int
    free: int
    full: float
    limited: bool  # by `max_size`, not by the disk

    def document(self, spool: Spool) -> dict[str, Any]:
        """Return what `status --json` and `check-config --json` say of the spool."""
        return {
            "path": str(spool.path),
            "there": True,
            "points": self.points,
            "oldest": iso(self.oldest_ms),
            "used_bytes": self.used,
            "max_bytes": spool.max_size_bytes,
            "free_bytes": self.free,
        }

    def warning(self, spool: Spool) -> str | None:
        """Return a sentence if the spool may soon be full, else None."""
        from engine.spoolroom import WARN_SHARE

        if self.full < WARN_SHARE:
            return None
        from adapters.cli.progress import bytes_text

        what = "raise [spool] max_size" if self.limited else "free some of its disk"
        waiting = "upload the points that wait in it, or " if self.points else ""
        return (
            f"spool: {spool.path} is {self.full:.0%} full, {bytes_text(self.free)} are left: {waiting}{what}; once it "
            "is full, sessions fail while the vault is away"
        )


def backlog_of(spool: Spool, system: bytes) -> Backlog | None:
    """Return what waits in `spool` of the system with this 16-byte id; None: no spool is there. Raises: OSError."""
    from engine.names import FORMAT, PointId
    from engine.spoolroom import left_on_disk

    if not (spool.path / FORMAT).exists():
        return None
    roots = {found[1] for name in _names(spool.path, "root", system) if (found := PointId.parse_root(name))}
    notes = [note for name in _names(spool.path, "note", system) if (note := PointId.parse_note(name))]
    points = roots - {point for _, point, kind in notes if kind == "removed"}
    used, disk = _bytes_below(spool.path), shutil.disk_usage(spool.path)
    free, limited = left_on_disk(disk.free), False
    full = 1 - free / disk.total if disk.total else 0.0
    if spool.max_size_bytes is not None:
        left, share = max(0, spool.max_size_bytes - used), used / spool.max_size_bytes
        limited = left <= free or share >= full
        free, full = min(free, left), share if limited else full
    return Backlog(
        _store_id(spool.path / FORMAT), len(points), min(points).order if points else None, used, free, full, limited
    )


def spool_said(config: Config, identity: Identity) -> tuple[dict[str, Any] | None, list[str]]:
    """Return what `status --json` says of the spool (None: there is none), and warnings about it."""
    if config.spool is None:
        return None, []
    try:
        backlog = backlog_of(config.spool, identity.system)
    except OSError as error:
        return _absent(config), [f"spool: {config.spool.path} cannot be read: {error.strerror or error}"]
    if backlog is None:
        return _absent(config), [
            f"spool: {config.spool.path} holds no Forebay store: mount its disk, or run 'forebay init'"
        ]
    warnings = [warning] if (warning := backlog.warning(config.spool)) is not None else []
    if backlog.store != identity.spool:
        known = "another spool than the one it has adopted" if identity.spool else "a spool that is not adopted yet"
        what = (
            "put that one back, or run 'forebay init --spool' to adopt this one"
            if identity.spool
            else "run 'forebay init'"
        )
        warnings.append(f"spool: {config.spool.path} holds {known}: {what}")
    return backlog.document(config.spool), warnings


def _absent(config: Config) -> dict[str, Any]:
    assert config.spool is not None
    return {"path": str(config.spool.path), "there": False}


def _store_id(path: Path) -> bytes | None:
    from engine.errors import ForebayError
    from engine.vault.formatobject import parse_format

    try:
        return parse_format(path.read_bytes()).store
    except ForebayError:
        return None


def _names(path: Path, kind: str, system: bytes) -> list[str]:
    """Return the names of the objects of a kind and a system."""
    prefix = f"{kind}/{system.hex()}"
    try:
        return [f"{prefix}/{name}" for name in os.listdir(path / prefix)]
    except FileNotFoundError:
        return []


def _bytes_below(path: Path) -> int:
    """Return the bytes of all files below a spool; a pack's are in its name, which saves asking for each of them."""
    total = 0
    folders = [(str(path), False)]
    while folders:
        folder, packs = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                size = entry.name.rpartition("-")[2]
                if packs and size.isdecimal() and len(size) <= _SIZE_DIGITS_MAX:
                    total += int(size)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((entry.path, packs or entry.name in _PACK_FOLDERS))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def spool_lines(spool: dict[str, Any] | None) -> list[str]:
    """Return what was said of a spool for people."""
    from adapters.cli.progress import bytes_text

    if spool is None:
        return ["  spool: none"]
    where = f"{spool['path']}, " if "path" in spool else ""
    if not spool["there"]:
        return [f"  spool: {where}away"]
    points = spool["points"]
    waiting = "nothing waits"
    if points:
        waiting = f"{points} restore point{'s' if points > 1 else ''} to be uploaded"
        if spool["oldest"] is not None:
            waiting += f", the oldest of {datetime.fromisoformat(spool['oldest']).astimezone():%Y-%m-%d %H:%M:%S}"
    return [
        f"  spool: {where}{waiting}; {bytes_text(spool['used_bytes'])} used, {bytes_text(spool['free_bytes'])} free"
    ]
