"""Listing of a store in a share: folders are read as it goes, over a link of its own (worker threads only)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

from smbprotocol.exceptions import SMBResponseException

from adapters.stores.calls import Call
from adapters.stores.plainnames import is_folder_name, is_object_name
from adapters.stores.smberrors import ABSENT
from adapters.stores.smbfiles import SmbFiles
from adapters.stores.smblinks import Links
from adapters.stores.smbmessages import IS_FOLDER, IS_LINK
from adapters.stores.smbwire import Link
from engine.ports import ObjectInfo

_START: Final = re.compile(r"[a-z0-9.-]*")


class Listing:
    """One listing: a link is its own from the first rows to `close`, since open folders belong to their link."""

    def __init__(self, links: Links, files: SmbFiles, prefix: str, after: str) -> None:
        self._links, self._files, self._prefix, self._after = links, files, prefix, after
        self._link: Link | None = None
        self._found: Iterator[ObjectInfo] = iter(())
        self._ended = False

    def rows(self, call: Call, count: int) -> list[ObjectInfo]:
        """Return the next `count` rows, fewer at the end. Raises: as `Links.use`."""
        if self._link is None:
            # A link that idled may be dead: this is found out, and another one made, before it is the listing's.
            self._files.probe(call)
            self._link, _ = self._links.take(call)
            self._found = walk(self._link, self._files.folder, self._prefix, self._after)
        link = self._link
        call.waits_on(link.cut)
        with self._links.renaming(link):
            rows: list[ObjectInfo] = []
            for row in islice(self._found, count):
                rows.append(row)
                call.progress()
            call.progress()
            # Looked at again after the reading: a folder that went away meanwhile is away, not empty.
            self._files.place.check_marker(link)
            self._ended = len(rows) < count
            return rows

    def close(self) -> None:
        """End the listing; a link whose folders are still open is of no use to others."""
        if self._link is not None:
            if self._ended:
                self._links.give(self._link)
            else:
                self._link.close()


def walk(link: Link, root: str, prefix: str, after: str) -> Iterator[ObjectInfo]:
    """Yield the objects below `root` whose names start with `prefix` and are greater than `after`.

    The link is this listing's alone until it ends. Whatever else lies there is passed over; a folder of ours that
    cannot be read is an error. Raises: as `Link`.
    """
    folder, slash, start = prefix.rpartition("/")
    if (not slash or is_folder_name(folder)) and _START.fullmatch(start):
        yield from _walk_folder(link, root, folder, start, after)


def _walk_folder(link: Link, root: str, folder: str, start: str, after: str) -> Iterator[ObjectInfo]:
    try:
        for entry in link.entries(f"{root}/{folder}" if folder else root, f"{start}*"):
            # The server's pattern ignores case.
            if not entry.name.startswith(start) or entry.attributes & IS_LINK:
                continue
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.attributes & IS_FOLDER:
                # "0" is the character after "/": no name in the folder is greater than `after`.
                if is_folder_name(name) and name + "0" > after:
                    yield from _walk_folder(link, root, name, "", after)
            elif name > after and is_object_name(name):
                yield ObjectInfo(name, entry.size)
    except SMBResponseException as error:
        if error.status not in ABSENT:
            raise
