"""Whether a folder can be written to, told by writing: `init` and `check-config` ask before anything is changed."""

from __future__ import annotations

import tempfile
from pathlib import Path


def nearest_existing(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists: where `path` would be made. Raises: OSError."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def why_not_writable(folder: Path) -> str | None:
    """Return the system's reason why nothing can be written in `folder`; None if it can. Leaves nothing behind."""
    try:
        # Asking for rights answers wrongly on network and read-only mounts; a file without a name leaves nothing.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        return error.strerror or str(error)
    return None
