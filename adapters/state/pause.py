"""A pause of the upload: until a time, or until the machine is in another network; kept in the state directory."""

from __future__ import annotations

import socket
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from adapters.state.atomic import read_struct, write_struct
from adapters.state.files import Disk
from engine.errors import StateCorrupt

_MAGIC: Final = b"FBPAUS\x00\x01"
# Addresses kept for documentation: a route to the world is looked up for them, nothing is ever sent.
_ELSEWHERE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))


class Pause(msgspec.Struct, frozen=True, kw_only=True):
    """`until_ms` since 1970 UTC, or `network`: the mark of the network in which nothing is to be uploaded."""

    until_ms: int | None = None
    network: str | None = None

    def sentence(self, now_ms: int) -> str | None:
        """Return why nothing is uploaded now, None: the pause is over."""
        if self.until_ms is not None:
            if now_ms >= self.until_ms:
                return None
            until = datetime.fromtimestamp(self.until_ms / 1000).astimezone()
            return f"the upload is paused until {until:%Y-%m-%d %H:%M}; 'forebay upload --resume' ends the pause"
        if self.network != network_mark():
            return None
        return "the upload is paused until the network changes; 'forebay upload --resume' ends the pause"


def network_mark() -> str:
    """Return a mark of the network this machine is in: a digest of its addresses on the way to the world."""
    addresses: list[str] = []
    for family, elsewhere in _ELSEWHERE:
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((elsewhere, 9))
                addresses.append(str(probe.getsockname()[0]))
        except OSError:
            addresses.append("")
    return blake3("|".join(addresses).encode()).hexdigest(16)


def set_pause(state_dir: Path, pause: Pause) -> None:
    """Keep a pause. Raises: SessionAborted."""
    write_struct(_path(state_dir), _MAGIC, pause)


def end_pause(state_dir: Path) -> None:
    """Forget the pause, if there is one. Raises: SessionAborted."""
    disk = Disk()
    disk.remove(_path(state_dir))
    disk.sync_folder(state_dir)


def paused(state_dir: Path, now_ms: int) -> str | None:
    """Return why nothing is uploaded now, None: no pause. A damaged pause is none."""
    try:
        found = read_struct(_path(state_dir), _MAGIC, Pause)
    except StateCorrupt:
        return None
    return found.sentence(now_ms) if found is not None else None


def _path(state_dir: Path) -> Path:
    return state_dir / "upload-pause"
