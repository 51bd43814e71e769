"""Index mirrors and logs of acknowledged packs: one folder and one file per store.

A fragment's name may be any object name (lower-case letters, digits, `-`, `.`, `/`); in the folder `/` is `+`.
What is being written starts with `.new-` and is swept when the mirror is first opened for writing.
"""

from __future__ import annotations

import mmap
import os
import re
import sys
import threading
import weakref
from pathlib import Path
from typing import Final

import xxhash

from adapters.state.atomic import write_atomic
from adapters.state.files import Disk, StateFile, read_failed, write_failed
from engine.errors import SessionAborted, StateCorrupt

ENTRY_BYTES_MAX: Final = 64 << 20
NAME_LENGTH_MAX: Final = 200
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]*(?:[./][a-z0-9][a-z0-9-]*)*")
_NEW: Final = ".new-"
_NEW_COPY: Final = ".new-+"  # never a file that may still be mapped: cutting that would end the process


class MirrorFolder:
    """The folder of one store's index mirror (implements `MirrorFiles`)."""

    def __init__(self, folder: Path, disk: Disk, *, writable: bool) -> None:
        self._folder, self._disk = folder, disk
        self._lock = threading.Lock()
        self._made: dict[str, tuple[mmap.mmap, memoryview]] = {}
        self._opened: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        if writable:
            disk.make_folder(folder)
            for name in disk.names(folder):
                if name.startswith(_NEW):
                    disk.remove(folder / name)

    def names(self) -> list[str]:
        """Return the names of the fragments held, sorted."""
        found = (name.replace("+", "/") for name in self._disk.names(self._folder))
        return sorted(name for name in found if _NAME.fullmatch(name))

    def open(self, name: str) -> memoryview:
        """Return a fragment's bytes, memory-mapped read-only. Raises: StateCorrupt (also if it is not there)."""
        path = self._path(name)
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:
                    return memoryview(b"")
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise read_failed(path, error) from error
        with self._lock:
            self._opened.add(mapped)
        return memoryview(mapped)

    def relax(self) -> None:
        """Let this process hold nothing of what `open` mapped in memory; it stays in the page cache, and readable."""
        if sys.platform == "linux":
            with self._lock:
                for mapped in self._opened:
                    mapped.madvise(mmap.MADV_DONTNEED)

    def create(self, name: str, size: int) -> memoryview:
        """Return a writable memory-mapped new file of `size` bytes, invisible until `publish`.

        Its space is there: filling it cannot meet a full disk. Raises: SessionAborted.
        """
        path = self._path(name, _NEW)
        if size == 0:
            return memoryview(bytearray())
        file = self._disk.open(path, writable=True)
        try:
            file.truncate(0)
            file.allocate(0, size)
        except SessionAborted:
            file.close()
            self._disk.remove(path)
            raise
        file.close()
        try:
            with path.open("r+b") as handle:
                mapped = mmap.mmap(handle.fileno(), size, access=mmap.ACCESS_WRITE)
        except OSError as error:
            raise write_failed(path, error) from error
        view = memoryview(mapped)
        with self._lock:
            self._made[name] = (mapped, view)
        return view

    def publish(self, name: str, data: memoryview | bytes) -> None:
        """Make what `create` returned, or these bytes, durable under `name`.

        A view of `create` may be gone afterwards: `open` the fragment to read on. Raises: SessionAborted.
        """
        with self._lock:
            mapped, view = self._made.pop(name, (None, None))
        if mapped is None or view is not data:
            write_atomic(self._path(name), data, self._disk, self._path(name, _NEW_COPY))
            return
        path = self._path(name, _NEW)
        try:
            mapped.flush()
        except OSError as error:
            raise write_failed(path, error) from error
        try:
            view.release()
            mapped.close()
        except BufferError:
            # Someone still looks into the map, and Windows renames no mapped file: publish a copy instead.
            write_atomic(self._path(name), bytes(mapped), self._disk, self._path(name, _NEW_COPY))
            return
        file = self._disk.open(path, writable=True)
        try:
            file.sync()
        finally:
            file.close()
        self._disk.replace(path, self._path(name))
        self._disk.sync_folder(self._folder)

    def remove(self, name: str) -> None:
        """Remove a fragment; one that is not there is success. Raises: SessionAborted."""
        self._disk.remove(self._path(name))

    def _path(self, name: str, prefix: str = "") -> Path:
        if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
            raise StateCorrupt(f"{name[:NAME_LENGTH_MAX]!r} cannot be the name of an index fragment in {self._folder}")
        return self._folder / (prefix + name.replace("/", "+"))


class AckFile:
    """The log of one store's acknowledged packs that no fragment lists (implements `AckLog`).

    An entry is its length (u32), xxh3_64 of its bytes (u64), its bytes. A torn tail is dropped when read and cut off
    before the next append. Appends reach the system, not the disk: after a power failure a pack is sent again.
    """

    _HEADER: Final = 12

    def __init__(self, path: Path, disk: Disk, *, writable: bool) -> None:
        self._path, self._disk, self._writable = path, disk, writable
        self._lock = threading.Lock()
        self._file: StateFile | None = None
        self._end = -1  # where the next entry goes; -1: not known

    def append(self, entry: bytes) -> None:
        """Append one entry, in a way that survives kill -9. Raises: SessionAborted."""
        if len(entry) > ENTRY_BYTES_MAX:
            raise ValueError(f"an entry of {len(entry)} bytes is longer than {ENTRY_BYTES_MAX}")
        record = len(entry).to_bytes(4, "little") + xxhash.xxh3_64_intdigest(entry).to_bytes(8, "little") + entry
        with self._lock:
            file = self._opened()
            if self._end < 0:
                self._end = self._scan(file)[1]
                file.truncate(self._end)
            end, self._end = self._end, -1
            file.write_at(end, record)
            self._end = end + len(record)

    def read(self) -> list[bytes]:
        """Return all whole entries, oldest first. Raises: StateCorrupt (the log cannot be read)."""
        with self._lock:
            return self._scan(self._opened())[0]

    def clear(self) -> None:
        """Forget all entries. Raises: SessionAborted."""
        with self._lock:
            file = self._opened()
            if file.size():
                file.truncate(0)
            self._end = 0

    def close(self) -> None:
        """Release the file; it is opened again when used."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file, self._end = None, -1

    def _opened(self) -> StateFile:
        if self._file is None:
            if self._writable:
                self._disk.make_folder(self._path.parent)
            self._file = self._disk.open(self._path, writable=self._writable)
        return self._file

    def _scan(self, file: StateFile) -> tuple[list[bytes], int]:
        """Return the whole entries and where they end."""
        entries: list[bytes] = []
        at, size = 0, file.size()
        header = bytearray(self._HEADER)
        while at + self._HEADER <= size:
            file.read_into(at, memoryview(header))
            length = int.from_bytes(header[:4], "little")
            if length > min(ENTRY_BYTES_MAX, size - at - self._HEADER):
                break
            entry = bytearray(length)
            file.read_into(at + self._HEADER, memoryview(entry))
            if xxhash.xxh3_64_intdigest(entry) != int.from_bytes(header[4:], "little"):
                break
            entries.append(bytes(entry))
            at += self._HEADER + length
        return entries, at
