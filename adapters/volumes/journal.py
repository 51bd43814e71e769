"""The journal of a restore: how far it is, behind the end of the file that grows, so that the two cannot be parted.

Two slots lie after the volume's bytes and are written in turns, each durable before the other is touched again: what a
crash leaves is the last record or the one before it. When the file is finished they are cut off.

    magic, 8 bytes | number, u64 | length, u32 | record | BLAKE3 of all before, 32 bytes
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final

from blake3 import blake3

from engine.block import Bytes

MAGIC: Final = b"FBRESTOR"
SLOT_BYTES: Final = 1 << 20
ALIGNMENT: Final = 4096
_HEAD: Final = struct.Struct("<8sQI")
_SUM_BYTES: Final = 32
RECORD_BYTES_MAX: Final = SLOT_BYTES - _HEAD.size - _SUM_BYTES
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RestoreJournal:
    """The journal in the file `fd`, of a volume of `size_bytes`; one thread at a time.

    `write` writes pieces at an offset of the file, all of them, and may raise OSError.
    """

    def __init__(self, fd: int, size_bytes: int, write: Callable[[int, Sequence[Bytes]], None]) -> None:
        self._fd, self._write_at = fd, write
        self._start = -(-size_bytes // ALIGNMENT) * ALIGNMENT
        self.file_bytes = self._start + 2 * SLOT_BYTES
        self._number = 0

    def read(self) -> bytes:
        """Return the newest record, b"" if there is none: also for a file that is not one of these. Raises: OSError."""
        if os.fstat(self._fd).st_size != self.file_bytes:
            return b""
        number, record = max((self._read_slot(slot) for slot in (0, 1)), key=lambda found: found[0])
        self._number = number
        return record

    def write(self, record: bytes) -> bool:
        """Keep a record (not empty), durably, with all that was written before; False: there is no room for it.

        Raises: OSError.
        """
        if len(record) > RECORD_BYTES_MAX:
            return False
        os.fsync(self._fd)
        number = self._number + 1
        data = _HEAD.pack(MAGIC, number, len(record)) + record
        data += blake3(data).digest()
        try:
            self._write_at(self._offset(number % 2), [data])
            os.fsync(self._fd)
        except OSError as error:
            # The volume may just fit. What is torn does not count; the record before it lies in the other slot, which
            # the next one must not touch either.
            if error.errno not in _NO_ROOM:
                raise
            return False
        self._number = number
        return True

    def _offset(self, slot: int) -> int:
        return self._start + slot * SLOT_BYTES

    def _read_slot(self, slot: int) -> tuple[int, bytes]:
        data = self._read_at(self._offset(slot))
        if len(data) < _HEAD.size:
            return 0, b""
        magic, number, length = _HEAD.unpack_from(data)
        stop = _HEAD.size + length
        if magic != MAGIC or not 0 < length <= RECORD_BYTES_MAX:
            return 0, b""
        if blake3(data[:stop]).digest() != data[stop : stop + _SUM_BYTES]:
            return 0, b""
        return number, data[_HEAD.size : stop]

    def _read_at(self, offset: int) -> bytes:
        if sys.platform == "win32":
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.read(self._fd, SLOT_BYTES)
        else:  # noqa: RET505 - for the type checker, which sees one platform only
            return os.pread(self._fd, SLOT_BYTES, offset)
