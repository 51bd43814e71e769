"""What is asked of a share and how its answers are read: bytes and messages only, nothing is sent here."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final

import msgspec
from smbprotocol.file_info import InfoType
from smbprotocol.open import (
    SMB2CloseRequest,
    SMB2CreateRequest,
    SMB2FlushRequest,
    SMB2QueryDirectoryRequest,
    SMB2QueryInfoRequest,
    SMB2ReadRequest,
    SMB2SetInfoRequest,
    SMB2WriteRequest,
)

from adapters.stores.smberrors import Garbled

READ_ATTRIBUTES: Final = 0x0080
READ: Final = 0x0001 | READ_ATTRIBUTES
WRITE: Final = 0x0002 | READ_ATTRIBUTES
DELETE: Final = 0x0001_0000
OPEN: Final = 1
CREATE: Final = 2
OPEN_OR_CREATE: Final = 3
FOLDER: Final = 0x0001  # the options of a create request
PLAIN_FILE: Final = 0x0040
DELETE_ON_CLOSE: Final = 0x1000
SHARE_READ: Final = 1
SHARE_ALL: Final = 7
IMPERSONATION: Final = 2
IS_FOLDER: Final = 0x10  # an attribute
IS_LINK: Final = 0x400
LAST_OPENED: Final = b"\xff" * 16  # by the request before this one, sent together with it
FILE_DIRECTORY_INFORMATION: Final = 1
FILE_RENAME_INFORMATION: Final = 10
FILE_LINK_INFORMATION: Final = 11
FILE_FS_FULL_SIZE_INFORMATION: Final = 7

_CREATED: Final = struct.Struct("<8xQ8xQ16xQI4x16s")
_READ: Final = struct.Struct("<2xBxI")
_WRITTEN: Final = struct.Struct("<4xI")
_QUERIED: Final = struct.Struct("<2xHI")
_ROOM: Final = struct.Struct("<QQ8xII")
_ENTRY: Final = struct.Struct("<I36xQ8xII")


class Handle(msgspec.Struct, frozen=True):
    """An open file or folder: its `size` in bytes, and what changes when another file takes its name."""

    id: bytes
    size: int
    created: int
    written: int
    attributes: int


class Entry(msgspec.Struct, frozen=True):
    """A row of a folder."""

    name: str
    size: int
    attributes: int


def create(path: str, access: int, options: int, disposition: int = OPEN, sharing: int = SHARE_ALL) -> Any:
    """Return the request that opens or makes a file or folder; `path` as the server writes it."""
    message = SMB2CreateRequest()
    message["impersonation_level"] = IMPERSONATION
    message["desired_access"] = access
    message["share_access"] = sharing
    message["create_disposition"] = disposition
    message["create_options"] = options
    message["buffer_path"] = path.encode("utf-16-le") or b"\0\0"
    return message


def close(file: bytes = LAST_OPENED) -> Any:
    """Return the request that closes a file, by its id."""
    message = SMB2CloseRequest()
    message["file_id"] = file
    return message


def flush(file: bytes = LAST_OPENED) -> Any:
    """Return the request that makes a file's bytes and name durable."""
    message = SMB2FlushRequest()
    message["file_id"] = file
    return message


def read(offset: int, length: int, file: bytes = LAST_OPENED) -> Any:
    """Return the request that reads."""
    message = SMB2ReadRequest()
    message["length"] = length
    message["offset"] = offset
    message["file_id"] = file
    message["padding"] = b"\x50"
    return message


def write(offset: int, data: bytes, file: bytes = LAST_OPENED) -> Any:
    """Return the request that writes."""
    message = SMB2WriteRequest()
    message["length"] = len(data)
    message["offset"] = offset
    message["file_id"] = file
    message["buffer"] = data
    return message


def rename(file: bytes, path: str, *, replace: bool, keep: bool = False) -> Any:
    """Return the request that gives a file, opened with DELETE, another name; `keep`: one more."""
    text = path.encode("utf-16-le")
    message = SMB2SetInfoRequest()
    message["info_type"] = 1
    message["file_info_class"] = FILE_LINK_INFORMATION if keep else FILE_RENAME_INFORMATION
    message["file_id"] = file
    message["buffer"] = struct.pack("<B15xI", replace, len(text)) + text
    return message


def query(pattern: str, answer_bytes: int, folder: bytes = LAST_OPENED) -> Any:
    """Return the request for the next rows of an open folder."""
    message = SMB2QueryDirectoryRequest()
    message["file_information_class"] = FILE_DIRECTORY_INFORMATION
    message["file_id"] = folder
    message["output_buffer_length"] = answer_bytes
    message["buffer"] = pattern.encode("utf-16-le")
    return message


def room(folder: bytes = LAST_OPENED) -> Any:
    """Return the request for size and free space of the device a folder lies on."""
    message = SMB2QueryInfoRequest()
    message["info_type"] = InfoType.SMB2_0_INFO_FILESYSTEM
    message["file_info_class"] = FILE_FS_FULL_SIZE_INFORMATION
    message["output_buffer_length"] = _ROOM.size
    message["file_id"] = folder
    return message


def handle_of(answer: bytes) -> Handle:
    """Return what a create request opened. Raises: Garbled, here and below."""
    created, written, size, attributes, file_id = _fields(_CREATED, answer)
    return Handle(file_id, size, created, written, attributes)


def bytes_of(answer: bytes, length: int) -> bytes:
    """Return what was read, of `length` bytes that were asked for."""
    start, count = _fields(_READ, answer)
    if not 0 < count <= length or start < 64 or len(answer) < start - 64 + count:
        raise Garbled
    return answer[start - 64 : start - 64 + count]


def written_of(answer: bytes) -> int:
    """Return how many bytes were taken."""
    return int(_fields(_WRITTEN, answer)[0])


def room_of(answer: bytes) -> tuple[int, int]:
    """Return (bytes, free bytes) of a device; what a quota leaves the user counts as free."""
    start, count = _fields(_QUERIED, answer)
    total, free, sectors, sector_bytes = _fields(_ROOM, answer[max(start - 64, 0) : start - 64 + count])
    unit = sectors * sector_bytes
    return int(total * unit), int(free * unit)


def rows_of(answer: bytes) -> Iterator[Entry]:
    """Yield the rows of a folder, but for the folder itself and the one above."""
    start, count = _fields(_QUERIED, answer)
    rows = answer[start - 64 : start - 64 + count]
    at = 0
    while rows:
        step, size, attributes, name_bytes = _fields(_ENTRY, rows, at)
        name = rows[at + _ENTRY.size : at + _ENTRY.size + name_bytes].decode("utf-16-le", "replace")
        if name not in (".", ".."):
            yield Entry(name, size, attributes)
        if not step:
            return
        at += step


def _fields(form: struct.Struct, answer: bytes, at: int = 0) -> tuple[Any, ...]:
    if len(answer) < at + form.size:
        raise Garbled
    return form.unpack_from(answer, at)
