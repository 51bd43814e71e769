"""Open files and folders of a share, closed in good time; what there is, and what may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from smbprotocol.exceptions import SMBException, SMBResponseException

from adapters.stores.smberrors import ABSENT, COLLISION
from adapters.stores.smbmessages import Handle
from adapters.stores.smbwire import Link


@contextmanager
def closing(link: Link, handle: Handle, *, waiting: bool = False) -> Iterator[Handle]:
    """Close an open file at the end, in good time; `waiting`: only then it is done, and a failure of that is told."""
    try:
        yield handle
    except BaseException:
        with suppress(SMBException, OSError):
            link.close_handle(handle)
        raise
    if waiting:
        link.close_handle(handle)
    else:
        link.release(handle)


@contextmanager
def opened(link: Link, name: str, access: int, options: int) -> Iterator[Handle]:
    """Open a file or folder that exists, a path from the share's root."""
    with closing(link, link.create(name, access, options)) as handle:
        yield handle


@contextmanager
def suppress_absent() -> Iterator[None]:
    """Take it for success that there is nothing under a name."""
    try:
        yield
    except SMBResponseException as error:
        if error.status not in ABSENT:
            raise


def make_folder(link: Link, name: str) -> None:
    """Make a folder, a path from the share's root, unless it exists."""
    try:
        link.make_folder_later(name)()
    except SMBResponseException as error:
        if error.status != COLLISION:
            raise


def exists(link: Link, name: str) -> bool:
    """Tell whether there is a file or folder, a path from the share's root."""
    try:
        link.peek(name)
    except SMBResponseException as error:
        if error.status in ABSENT:
            return False
        raise
    return True
