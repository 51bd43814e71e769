"""Which names a folder may hold: plain ones only, so that no name can leave the root or mean a device."""

from __future__ import annotations

import re
from typing import Final

from engine.errors import StoreRejected

TMP: Final = "tmp"
NAME_CHARS_MAX: Final = 400
SEGMENTS_MAX: Final = 8

_SEGMENT: Final = "[a-z0-9-]{1,120}"
_FOLDER: Final = re.compile(rf"(?!{TMP}(?:/|$)){_SEGMENT}(?:/{_SEGMENT}){{0,{SEGMENTS_MAX - 2}}}")
_OBJECT: Final = re.compile(rf"(?!{TMP}/)(?:{_SEGMENT}/){{0,{SEGMENTS_MAX - 1}}}{_SEGMENT}(?:\.[1-9])?")


def is_object_name(name: str) -> bool:
    """Tell whether `name` may be an object's: segments of `a-z 0-9 -`, `/` between, perhaps `.1` … `.9` at the end."""
    return len(name) <= NAME_CHARS_MAX and _OBJECT.fullmatch(name) is not None


def check_object_name(name: str) -> None:
    """Return if `name` may be an object's. Raises: StoreRejected."""
    if not is_object_name(name):
        raise StoreRejected(f"{name!r} is no name an object may have")


def is_folder_name(name: str) -> bool:
    """Tell whether `name`, a path below the root, may be a folder that objects lie in."""
    return len(name) <= NAME_CHARS_MAX and _FOLDER.fullmatch(name) is not None
