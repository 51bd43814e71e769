"""Which names a folder may hold: plain ones only, so that no name can leave the root or mean a device."""

from __future__ import annotations

import re
from typing import Final

TMP: Final = "tmp"
NAME_CHARS_MAX: Final = 400
SEGMENTS_MAX: Final = 8

_SEGMENT = re.compile(r"[a-z0-9-]{1,120}")
_OBJECT = re.compile(rf"(?:{_SEGMENT.pattern}/){{0,{SEGMENTS_MAX - 1}}}{_SEGMENT.pattern}(?:\.[1-9])?")


def is_object_name(name: str) -> bool:
    """Tell whether `name` may be an object's: segments of `a-z 0-9 -`, `/` between, perhaps `.1` … `.9` at the end."""
    return len(name) <= NAME_CHARS_MAX and not name.startswith(f"{TMP}/") and _OBJECT.fullmatch(name) is not None


def is_folder_name(name: str) -> bool:
    """Tell whether a path of folders below the root may hold objects."""
    return (
        name != TMP and name.count("/") < SEGMENTS_MAX - 1 and _SEGMENT.fullmatch(name.rpartition("/")[2]) is not None
    )
