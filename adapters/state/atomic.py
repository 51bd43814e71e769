"""Small files that are always whole: replaced in one step, and marked so that a flipped bit shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import xxhash

from adapters.state.files import Disk, StateFile
from engine.errors import ForebayError, StateCorrupt

if TYPE_CHECKING:
    from engine.block import Bytes

MAGIC_BYTES: Final = 8
PIECE_BYTES_MAX: Final = 64 << 20
_SUM_BYTES: Final = 8
_LENGTH_BYTES: Final = 4
_END: Final = b"\xff" * _LENGTH_BYTES
_TEMPORARY: Final = ".new"

T = TypeVar("T")


def write_atomic(path: Path, data: Bytes, disk: Disk | None = None, temporary: Path | None = None) -> None:
    """Replace `path` by a file of `data` in one step, durably: a reader sees the old bytes or the new ones.

    `temporary`: what it is called until it is whole (`path` with ".new" appended), in the same folder; a crash may
    leave it behind.

    Raises: SessionAborted (the old file stands).
    """
    _replace(path, [data], disk or Disk(), temporary or path.with_name(path.name + _TEMPORARY))


def _replace(path: Path, parts: Iterable[Bytes], disk: Disk, temporary: Path) -> None:
    try:
        file = disk.open(temporary, writable=True)
        try:
            file.truncate(0)
            offset = 0
            for part in parts:
                file.write_at(offset, part)
                offset += len(part)
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


def write_pieces(path: Path, magic: bytes, pieces: Iterable[bytes], disk: Disk | None = None) -> None:
    """Write `pieces` of up to 64 MiB atomically, one after the other, however many there are.

    As magic (8 bytes), of each piece its length, u32 | xxh3_64 of magic and piece, u64 | piece, and at the end
    2^32 - 1, u32 | their number, u64; all little-endian. Raises: SessionAborted.
    """

    def parts() -> Iterator[bytes]:
        yield magic
        count = 0
        for piece in pieces:
            yield len(piece).to_bytes(_LENGTH_BYTES, "little") + _sum(magic, piece)
            yield piece
            count += 1
        yield _END + count.to_bytes(_SUM_BYTES, "little")

    _replace(path, parts(), disk or Disk(), path.with_name(path.name + _TEMPORARY))


def read_pieces(path: Path, magic: bytes, disk: Disk | None = None) -> Iterator[bytes]:
    """Yield what `write_pieces` wrote; of a file that is not there, too, that is damage.

    Raises: StateCorrupt naming the file.
    """
    file = (disk or Disk()).open(path, writable=False)
    try:
        offset, count = MAGIC_BYTES, 0
        if _read(file, 0, MAGIC_BYTES) != magic:
            raise StateCorrupt(f"{path} is damaged: it does not start as such a file does")
        while True:
            header = _read(file, offset, _LENGTH_BYTES + _SUM_BYTES)
            length = int.from_bytes(header[:_LENGTH_BYTES], "little")
            if header == _END + count.to_bytes(_SUM_BYTES, "little") and file.size() == offset + len(header):
                return
            piece = _read(file, offset + len(header), length) if length <= PIECE_BYTES_MAX else b""
            if _sum(magic, piece) != header[_LENGTH_BYTES:]:
                raise StateCorrupt(f"{path} is damaged: the checksum of its piece {count} does not match")
            yield piece
            offset, count = offset + len(header) + length, count + 1
    finally:
        file.close()


def _read(file: StateFile, offset: int, length: int) -> bytes:
    data = bytearray(length)
    file.read_into(offset, memoryview(data))
    return bytes(data)


def _sum(magic: bytes, body: bytes) -> bytes:
    return xxhash.xxh3_64_intdigest(magic + body).to_bytes(_SUM_BYTES, "little")
