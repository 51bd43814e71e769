"""Small files that are always whole: replaced in one step, and marked so that a flipped bit shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import xxhash

from adapters.state.files import Disk
from engine.errors import ForebayError, StateCorrupt

if TYPE_CHECKING:
    from engine.block import Bytes

MAGIC_BYTES: Final = 8
_SUM_BYTES: Final = 8
_TEMPORARY: Final = ".new"

T = TypeVar("T")


def write_atomic(path: Path, data: Bytes, disk: Disk | None = None, temporary: Path | None = None) -> None:
    """Replace `path` by a file of `data` in one step, durably: a reader sees the old bytes or the new ones.

    `temporary`: what it is called until it is whole (`path` with ".new" appended), in the same folder; a crash may
    leave it behind.

    Raises: SessionAborted (the old file stands).
    """
    disk = disk or Disk()
    temporary = temporary or path.with_name(path.name + _TEMPORARY)
    try:
        file = disk.open(temporary, writable=True)
        try:
            file.truncate(0)
            file.write_at(0, data)
            file.sync()
        finally:
            file.close()
        disk.replace(temporary, path)
    except ForebayError:
        disk.remove(temporary)
        raise
    disk.sync_folder(path.parent)


def write_struct(path: Path, magic: bytes, value: msgspec.Struct, disk: Disk | None = None) -> None:
    """Write `value` atomically as magic (8 bytes) | xxh3_64 of magic and body, u64 | MessagePack body.

    Raises: SessionAborted.
    """
    body = msgspec.msgpack.encode(value)
    write_atomic(path, magic + _sum(magic, body) + body, disk)


def read_struct(path: Path, magic: bytes, type_: type[T], disk: Disk | None = None) -> T | None:
    """Return what `write_struct` wrote; None: there is no such file. Raises: StateCorrupt naming the file."""
    data = (disk or Disk()).read(path)
    if data is None:
        return None
    body = data[MAGIC_BYTES + _SUM_BYTES :]
    if data[:MAGIC_BYTES] != magic:
        raise StateCorrupt(f"{path} is damaged: it does not start as such a file does")
    if data[MAGIC_BYTES : MAGIC_BYTES + _SUM_BYTES] != _sum(magic, body):
        raise StateCorrupt(f"{path} is damaged: its checksum does not match")
    try:
        return msgspec.msgpack.decode(body, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateCorrupt(f"{path} cannot be understood ({error}): another version may have written it") from error


def _sum(magic: bytes, body: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(magic + body).to_bytes(_SUM_BYTES, "little")
