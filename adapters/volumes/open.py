"""Chooses the reader of a volume, and the target of a restore, by what its path leads to."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

from adapters.volumes.image import open_image
from adapters.volumes.targets import FileTarget
from engine.errors import RestoreError
from engine.ports import RestoreTarget, VolumeReader

if sys.platform == "linux":
    from adapters.volumes.linux import open_device
    from adapters.volumes.linuxtarget import DeviceTarget


def _mode(path: Path) -> int:
    """Return the mode of what `path` leads to; 0 if that cannot be told."""
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def open_volume(name: str, path: Path) -> VolumeReader:
    """Open the device or image file `path` as the volume configured as `name`. Raises: SourceError."""
    if sys.platform == "linux" and stat.S_ISBLK(_mode(path)):
        return open_device(name, path)
    return open_image(name, path)


def volume_bytes(name: str, path: Path) -> int:
    """Return the size of the volume now. Raises: SourceError."""
    reader = open_volume(name, path)
    reader.close()
    return reader.size_bytes


def open_target(path: Path, size_bytes: int, overwrite: bool) -> RestoreTarget:
    """Begin a restore of `size_bytes` to the device or new file `path`.

    Raises: RestoreError; nothing was changed then.
    """
    mode = _mode(path)
    if stat.S_ISBLK(mode):
        if sys.platform == "linux":
            return DeviceTarget(path, size_bytes, overwrite)
        raise RestoreError(f"{path} is a device: on this system a restore goes to a file; give a file's path")
    return FileTarget(path, size_bytes, overwrite)
