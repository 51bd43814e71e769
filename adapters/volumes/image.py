"""Image files as volumes, on every system; holes of sparse files are known where the system tells them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from adapters.volumes.descriptor import DescriptorVolume, not_a_volume, open_source
from engine.errors import SourceGone


def open_image(name: str, path: Path) -> DescriptorVolume:
    """Open the image file `path` as the volume `name`; its size is the file's now.

    Raises: SourceGone if it cannot be opened or is no file.
    """
    fd = open_source(name, path)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SourceGone(name, 0, 0, not_a_volume(path))
        return DescriptorVolume(name, fd, found.st_size)
    except BaseException:
        os.close(fd)
        raise
