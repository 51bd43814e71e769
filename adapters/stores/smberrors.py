"""The one table foreign error → ours, for stores in a share: what servers answer, sockets and the library raise.

An error that is in no table propagates: it is a bug, not an answer of the outside world. The library's own errors of
answered requests carry the server's NTSTATUS; their errno would be 0 for most.
"""

from __future__ import annotations

import errno
import socket
from typing import Final, TypeAlias

from smbprotocol.exceptions import (
    SMBAuthenticationError,
    SMBConnectionClosed,
    SMBException,
    SMBResponseException,
    SMBUnsupportedFeature,
)

from engine.errors import StoreError, StoreRejected, StoreUnavailable

Meaning: TypeAlias = tuple[type[StoreError], str]

_LOGIN = "the server does not let this user log in"
_PASSWORD = "the server does not know this user with this password: correct user and password"
_RIGHTS = "this user is not permitted to do that: give it the right to read, write and delete there"
_FULL = "there is no space left on the share: free some, or raise the quota"
_READ_ONLY = "the share is read-only: let this user write to it"
_IN_THE_WAY = "something else is in the way: remove what does not belong there"
_DAMAGED = "its file system is damaged: have the server check its disk"
_NAMES = "the share cannot hold names of this kind: use another share"
_BUSY = "it is in use by something else: try again later"
_DISK = "the server cannot read or write its disk: check the disk"
_SHORT = "the server is short of resources: try again later"
GONE = "the server ended the connection: check that it is on and its share is still there"
NONSENSE = "what it answers makes no sense: check that a file server (SMB) is there"
_VANISHED = "a file of it vanished while it was in use: check that the folder is still there"
_CLOCK = "its clock and this machine's are too far apart: set the clocks"

# What means "there is nothing under this name", where that is a possible answer.
ABSENT: Final = frozenset(
    {
        0xC0000034,  # OBJECT_NAME_NOT_FOUND
        0xC000003A,  # OBJECT_PATH_NOT_FOUND
        0xC000000F,  # NO_SUCH_FILE
        0xC0000103,  # NOT_A_DIRECTORY: a file stands where a folder would
        0xC00000BA,  # FILE_IS_A_DIRECTORY: a folder stands where a file would
        0x8000002D,  # STOPPED_ON_SYMLINK
    }
)
COLLISION: Final = 0xC0000035
ACCESS_DENIED: Final = 0xC0000022
# What passes by itself once somebody else has closed a file.
BUSY: Final = frozenset({0xC0000043, 0xC0000054, 0xC0000055, 0xC0000056})

STATUS_TABLE: Final[dict[int, Meaning]] = {
    0xC000006D: (StoreRejected, _PASSWORD),  # LOGON_FAILURE
    0xC000006A: (StoreRejected, _PASSWORD),  # WRONG_PASSWORD
    0xC0000064: (StoreRejected, _PASSWORD),  # NO_SUCH_USER
    0xC000006E: (StoreRejected, f"{_LOGIN} (a restriction of its account, such as an empty password)"),
    0xC000006F: (StoreRejected, f"{_LOGIN} at this hour: change the hours of its account"),
    0xC0000070: (StoreRejected, f"{_LOGIN} from this machine: change the restrictions of its account"),
    0xC0000071: (StoreRejected, f"{_LOGIN}: its password has expired, set a new one"),
    0xC0000224: (StoreRejected, f"{_LOGIN}: its password must be changed first"),
    0xC0000072: (StoreRejected, f"{_LOGIN}: its account is disabled"),
    0xC0000193: (StoreRejected, f"{_LOGIN}: its account has expired"),
    0xC0000234: (StoreRejected, f"{_LOGIN}: its account is locked, unlock it"),
    0xC000015B: (StoreRejected, f"{_LOGIN} over the network: give it that right"),
    0xC0000133: (StoreRejected, _CLOCK),  # TIME_DIFFERENCE_AT_DC
    0xC000005E: (StoreUnavailable, "the server finds no domain controller that could check the login"),
    0xC000018D: (StoreUnavailable, "the server's trust in its domain is broken: join it again"),
    0xC0000022: (StoreRejected, _RIGHTS),  # ACCESS_DENIED
    0xC0000061: (StoreRejected, _RIGHTS),  # PRIVILEGE_NOT_HELD
    0xC00000CA: (StoreRejected, _RIGHTS),  # NETWORK_ACCESS_DENIED
    0xC0000121: (StoreRejected, _RIGHTS),  # CANNOT_DELETE
    0xC00000CC: (StoreRejected, "the server has no such share: correct its name"),  # BAD_NETWORK_NAME
    0xC00000CB: (StoreRejected, "that share holds no files: name another"),  # BAD_DEVICE_TYPE
    0xC0000257: (StoreRejected, "the folder lies on another server (DFS): name that server and its share"),
    0xC000007F: (StoreRejected, _FULL),  # DISK_FULL
    0xC0000044: (StoreRejected, _FULL),  # QUOTA_EXCEEDED
    0xC0000904: (StoreRejected, "its file system cannot hold a file of this size: use another share"),
    0xC00000A2: (StoreRejected, _READ_ONLY),  # MEDIA_WRITE_PROTECTED
    0xC0000032: (StoreRejected, _DAMAGED),  # DISK_CORRUPT_ERROR
    0xC0000102: (StoreRejected, _DAMAGED),  # FILE_CORRUPT_ERROR
    0xC0000033: (StoreRejected, _NAMES),  # OBJECT_NAME_INVALID
    0xC0000106: (StoreRejected, _NAMES),  # NAME_TOO_LONG
    COLLISION: (StoreRejected, _IN_THE_WAY),
    0xC00000BA: (StoreRejected, _IN_THE_WAY),  # FILE_IS_A_DIRECTORY
    0xC0000103: (StoreRejected, _IN_THE_WAY),  # NOT_A_DIRECTORY
    0x8000002D: (StoreRejected, _IN_THE_WAY),  # STOPPED_ON_SYMLINK
    0xC0000034: (StoreUnavailable, _VANISHED),
    0xC000003A: (StoreUnavailable, _VANISHED),
    0xC000000F: (StoreUnavailable, _VANISHED),
    0xC0000128: (StoreUnavailable, _VANISHED),  # FILE_CLOSED
    **dict.fromkeys(BUSY, (StoreUnavailable, _BUSY)),
    0xC0000185: (StoreUnavailable, _DISK),  # IO_DEVICE_ERROR
    0xC000009C: (StoreUnavailable, _DISK),  # DEVICE_DATA_ERROR
    0xC00000E9: (StoreUnavailable, _DISK),  # UNEXPECTED_IO_ERROR
    0xC00000A3: (StoreUnavailable, _DISK),  # DEVICE_NOT_READY
    0xC000009A: (StoreUnavailable, _SHORT),  # INSUFFICIENT_RESOURCES
    0xC0000205: (StoreUnavailable, _SHORT),  # INSUFF_SERVER_RESOURCES
    0xC00000CE: (StoreUnavailable, _SHORT),  # TOO_MANY_SESSIONS
    0xC00000D0: (StoreUnavailable, _SHORT),  # REQUEST_NOT_ACCEPTED
    0xC000011F: (StoreUnavailable, _SHORT),  # TOO_MANY_OPENED_FILES
    0xC0000017: (StoreUnavailable, _SHORT),  # NO_MEMORY
    0xC00000BF: (StoreUnavailable, _SHORT),  # NETWORK_BUSY
    0xC00000C9: (StoreUnavailable, GONE),  # NETWORK_NAME_DELETED
    0xC0000203: (StoreUnavailable, GONE),  # USER_SESSION_DELETED
    0xC000035C: (StoreUnavailable, GONE),  # NETWORK_SESSION_EXPIRED
    0xC000020C: (StoreUnavailable, GONE),  # CONNECTION_DISCONNECTED
    0xC000020D: (StoreUnavailable, GONE),  # CONNECTION_RESET
    0xC00000C4: (StoreUnavailable, GONE),  # UNEXPECTED_NETWORK_ERROR
    0xC00000B5: (StoreUnavailable, GONE),  # IO_TIMEOUT
    0xC0000120: (StoreUnavailable, GONE),  # CANCELLED
    0xC00000DC: (StoreUnavailable, GONE),  # INVALID_SERVER_STATE
    0xC00002FE: (StoreUnavailable, GONE),  # SHUTDOWN_IN_PROGRESS
}
# Statuses after which a link is of no use any more.
LOST: Final = frozenset(
    {0xC00000C9, 0xC0000203, 0xC000035C, 0xC000020C, 0xC000020D, 0xC00000C4, 0xC00000DC, 0xC00002FE}
)

# The library has one class for these and no code: the beginnings of its sentences.
_SENTENCES: Final[tuple[tuple[str, Meaning], ...]] = (
    (
        "SMB encryption is required but the connection does not support it",
        (
            StoreRejected,
            "the server cannot encrypt: switch that on there (SMB 3), or set smb_encrypt = false where nobody listens",
        ),
    ),
    ("SMB encryption or signing was required but session was authenticated as a guest", (StoreRejected, _PASSWORD)),
    ("Cannot verify negotiate information without a session signing key", (StoreRejected, _PASSWORD)),
    (
        "Server message signature could not be verified",
        (StoreUnavailable, "what it answers was altered on the way: check the network"),
    ),
    ("Request requires ", (StoreUnavailable, _SHORT)),
    ("Connection timeout of ", (StoreUnavailable, "the server does not answer: check that it is well")),
)
_NO_CONNECTION: Final = "Failed to connect"
# By name, because not every system has every number.
_NETWORK: Final = frozenset(
    getattr(errno, name)
    for name in (
        "ENETDOWN",
        "ENETUNREACH",
        "ENETRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENOTCONN",
        "ESHUTDOWN",
        "ENOBUFS",
    )
    if hasattr(errno, name)
)


class ShortWrite(Exception):
    """The server took less than it was given."""


class Garbled(Exception):
    """An answer has not the form it must have."""


def meaning_of(error: BaseException) -> Meaning | None:
    """Return what an error of the library or of the operating system means; None: nothing the outside world does."""
    if isinstance(error, SMBResponseException):
        return STATUS_TABLE.get(error.status)
    if isinstance(error, SMBConnectionClosed):
        return StoreUnavailable, GONE
    if isinstance(error, ShortWrite):
        return StoreRejected, _FULL
    if isinstance(error, Garbled):
        return StoreUnavailable, NONSENSE
    if isinstance(error, SMBAuthenticationError):
        reason = str(error).rpartition("Context: ")[2]
        return StoreRejected, f"there is no way to log in: set password_file, or get a Kerberos ticket ({reason})"
    if isinstance(error, SMBUnsupportedFeature):
        return StoreRejected, f"the server is too old ({error}): use one that speaks SMB 2.1 or later"
    if isinstance(error, SMBException):
        text = str(error)
        return next((meaning for start, meaning in _SENTENCES if text.startswith(start)), None)
    if isinstance(error, ValueError) and str(error).startswith(_NO_CONNECTION):
        return _not_connected(error.__cause__)
    if isinstance(error, ConnectionError | TimeoutError):
        return StoreUnavailable, GONE
    if isinstance(error, OSError) and error.errno in _NETWORK:
        return StoreUnavailable, f"the network does not lead to the server ({error.strerror}): check the network"
    return None


def is_lost(error: BaseException) -> bool:
    """Tell whether the link on which `error` occurred is of no use any more."""
    return not isinstance(error, SMBResponseException) or error.status in LOST


def _not_connected(cause: BaseException | None) -> Meaning:
    if isinstance(cause, socket.gaierror):
        return StoreUnavailable, "the server's name cannot be resolved: correct the name, or check the name service"
    if isinstance(cause, ConnectionRefusedError):
        return StoreUnavailable, "the server refuses the connection: check that it is on, shares files, and the port"
    reason = getattr(cause, "strerror", None) or str(cause)
    return StoreUnavailable, f"the server cannot be reached ({reason}): check that it is on and the network between"
