"""Listing of a folder store: a generator that reads folders as it goes (worker threads only)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from adapters.stores.plainnames import is_folder_name, is_object_name
from engine.ports import ObjectInfo


def walk(root: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
    """Yield the objects whose names start with `prefix` and are greater than `after`.

    Whatever else lies there (temporary files, foreign names, broken links) is passed over; a folder of ours that
    cannot be read is an error: what is in it must not pass for absent. Raises: OSError.
    """
    folder, slash, start = prefix.rpartition("/")
    if not slash or is_folder_name(folder):
        yield from _walk_folder(root, folder, start, after)


def _walk_folder(root: str, folder: str, start: str, after: str) -> Iterator[ObjectInfo]:
    try:
        entries = os.scandir(os.path.join(root, *folder.split("/")))
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if not entry.name.startswith(start):
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            # "0" is the character after "/": no name in the folder is greater than `after`.
            if is_folder_name(name) and name + "0" > after and _is_folder(entry):
                yield from _walk_folder(root, name, "", after)
            elif name > after and is_object_name(name):
                size = _size(entry)
                if size is not None:
                    yield ObjectInfo(name, size)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        if entry.is_symlink():
            return False  # a link to nowhere or to itself is nobody's object
        raise


def _size(entry: os.DirEntry[str]) -> int | None:
    """Return the size of a file; None for what is none, or none any more."""
    try:
        found = entry.stat()
    except FileNotFoundError:
        return None
    except OSError:
        if entry.is_symlink():
            return None
        raise
    return found.st_size if stat.S_ISREG(found.st_mode) else None
