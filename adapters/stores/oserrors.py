"""The one table operating system error → ours, for stores that are folders.

An error number that is in no table propagates: it is a bug, not an answer of the outside world.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from engine.errors import StoreError, StoreRejected, StoreUnavailable

_FULL = "there is no space left: free some, or raise the quota"
_RIGHTS = "this is not permitted: check the owner and the mode of the folder"
_READ_ONLY = "it is read-only: mount it for writing, and check the disk if it became so by itself"
_IN_THE_WAY = "something else is in the way: remove what does not belong there"
_DAMAGED = "its file system is damaged: unmount it and run its fsck"
_AWAY = "the disk or the network behind it does not answer: check that it is connected and mounted"
_SHORT = "this machine is short of memory or open files: try again later"
_BUSY = "it is in use by something else: try again later"

# By name, because not every system has every number.
_BY_NAME: Final[dict[str, tuple[type[StoreError], str]]] = {
    "ENOSPC": (StoreRejected, _FULL),
    "EDQUOT": (StoreRejected, _FULL),
    "EFBIG": (StoreRejected, "its file system cannot hold a file of this size: use another file system"),
    "EROFS": (StoreRejected, _READ_ONLY),
    "EACCES": (StoreRejected, _RIGHTS),
    "EPERM": (StoreRejected, _RIGHTS),
    "ENAMETOOLONG": (StoreRejected, "its file system cannot hold names of this length: use another file system"),
    "EISDIR": (StoreRejected, _IN_THE_WAY),
    "ENOTDIR": (StoreRejected, _IN_THE_WAY),
    "EEXIST": (StoreRejected, _IN_THE_WAY),
    "ELOOP": (StoreRejected, _IN_THE_WAY),
    "EUCLEAN": (StoreRejected, _DAMAGED),
    "EBADMSG": (StoreRejected, _DAMAGED),
    "EIO": (StoreUnavailable, _AWAY),
    "EREMOTEIO": (StoreUnavailable, _AWAY),
    "ENODEV": (StoreUnavailable, _AWAY),
    "ENXIO": (StoreUnavailable, _AWAY),
    "ENOMEDIUM": (StoreUnavailable, _AWAY),
    "ESTALE": (StoreUnavailable, _AWAY),
    "ENOTCONN": (StoreUnavailable, _AWAY),
    "ESHUTDOWN": (StoreUnavailable, _AWAY),
    "EHOSTDOWN": (StoreUnavailable, _AWAY),
    "EHOSTUNREACH": (StoreUnavailable, _AWAY),
    "ENETDOWN": (StoreUnavailable, _AWAY),
    "ENETUNREACH": (StoreUnavailable, _AWAY),
    "ENETRESET": (StoreUnavailable, _AWAY),
    "ECONNREFUSED": (StoreUnavailable, _AWAY),
    "ECONNRESET": (StoreUnavailable, _AWAY),
    "ECONNABORTED": (StoreUnavailable, _AWAY),
    "EPIPE": (StoreUnavailable, _AWAY),
    "ETIMEDOUT": (StoreUnavailable, _AWAY),
    "ENOENT": (StoreUnavailable, "a file of it vanished while it was in use: check that it is still mounted"),
    "EMFILE": (StoreUnavailable, _SHORT),
    "ENFILE": (StoreUnavailable, _SHORT),
    "ENOMEM": (StoreUnavailable, _SHORT),
    "ENOBUFS": (StoreUnavailable, _SHORT),
    "EAGAIN": (StoreUnavailable, _BUSY),
    "EBUSY": (StoreUnavailable, _BUSY),
    "ETXTBSY": (StoreUnavailable, _BUSY),
}
ERRNO_TABLE: Final = {getattr(errno, name): row for name, row in _BY_NAME.items() if hasattr(errno, name)}

# Windows answers many different things with EACCES or EINVAL; its own number tells them apart and comes first.
WINERROR_TABLE: Final[dict[int, tuple[type[StoreError], str]]] = {
    19: (StoreRejected, _READ_ONLY),  # ERROR_WRITE_PROTECT
    21: (StoreUnavailable, _AWAY),  # ERROR_NOT_READY
    32: (StoreUnavailable, _BUSY),  # ERROR_SHARING_VIOLATION
    33: (StoreUnavailable, _BUSY),  # ERROR_LOCK_VIOLATION
    39: (StoreRejected, _FULL),  # ERROR_HANDLE_DISK_FULL
    51: (StoreUnavailable, _AWAY),  # ERROR_REM_NOT_LIST
    53: (StoreUnavailable, _AWAY),  # ERROR_BAD_NETPATH
    55: (StoreUnavailable, _AWAY),  # ERROR_DEV_NOT_EXIST
    59: (StoreUnavailable, _AWAY),  # ERROR_UNEXP_NET_ERR
    64: (StoreUnavailable, _AWAY),  # ERROR_NETNAME_DELETED
    67: (StoreUnavailable, _AWAY),  # ERROR_BAD_NET_NAME
    112: (StoreRejected, _FULL),  # ERROR_DISK_FULL
    121: (StoreUnavailable, _AWAY),  # ERROR_SEM_TIMEOUT
    1117: (StoreUnavailable, _AWAY),  # ERROR_IO_DEVICE
    1167: (StoreUnavailable, _AWAY),  # ERROR_DEVICE_NOT_CONNECTED
    1231: (StoreUnavailable, _AWAY),  # ERROR_NETWORK_UNREACHABLE
    1392: (StoreRejected, _DAMAGED),  # ERROR_FILE_CORRUPT
}


@contextmanager
def renaming(where: str) -> Iterator[None]:
    """Raise our error for one of the operating system's; `where` names the folder, and the object if it is about one.

    Raises: StoreUnavailable, StoreRejected; the same OSError if no table knows it.
    """
    try:
        yield
    except OSError as error:
        row = WINERROR_TABLE.get(getattr(error, "winerror", None) or 0) or ERRNO_TABLE.get(error.errno or 0)
        if row is None:
            raise
        kind, advice = row
        raise kind(f"{where}: {advice} ({error.strerror})") from error
