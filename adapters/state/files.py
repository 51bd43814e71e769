"""Plain file operations of local state: at offsets, owner-only, the system's errors renamed once, here.

Local state is read and written by calls, never through writable maps: a full disk or a bad sector is then an
error with a sentence, not a SIGBUS. Everything goes through one `Disk`, so that tests can put a failing one in
its place.

| what the system says                    | what is raised                                           |
|-----------------------------------------|----------------------------------------------------------|
| no space, quota exceeded                | SessionAborted: the disk of the state directory is full  |
| no right, read-only file system         | SessionAborted: names the file and the right that lacks  |
| anything else while writing             | SessionAborted: names the file and the system's reason   |
| anything else while reading             | StateCorrupt: what lies there cannot be had any more     |
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engine.errors import ForebayError, SessionAborted, StateCorrupt

if TYPE_CHECKING:
    from engine.block import Bytes

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_OWNER_ONLY: Final = 0o600
_OWNER_ONLY_FOLDER: Final = 0o700
_PIECE_BYTES: Final = 1 << 20
_FSCTL_SET_SPARSE: Final = 0x900C4


def write_failed(path: Path, error: OSError) -> ForebayError:
    """Return what a failed write to `path` means to the user."""
    if error.errno in _FULL:
        return SessionAborted(f"the disk of the state directory is full: {path} could not be written; free space there")
    if error.errno in _DENIED:
        return SessionAborted(f"{path} may not be written ({error.strerror}): check the rights of the state directory")
    return SessionAborted(f"{path} could not be written ({error}): check the disk of the state directory")


def read_failed(path: Path, error: OSError) -> ForebayError:
    """Return what a failed read from `path` means to the user."""
    if error.errno in _DENIED:
        return SessionAborted(f"{path} may not be read ({error.strerror}): run as the owner of the state directory")
    return StateCorrupt(f"{path} could not be read ({error}): what it held counts as lost")


class StateFile:
    """A file read and written at offsets, from any thread; bytes beyond its end read as zero.

    A file opened for reading only may be missing: it reads as empty. `seeking` chooses the calls that Windows
    has, too.
    """

    def __init__(self, path: Path, *, writable: bool, seeking: bool = sys.platform == "win32") -> None:
        self.path, self._seeking, self._lock = path, seeking, threading.Lock()
        self._fd = -1
        flags = getattr(os, "O_BINARY", 0) | (os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY)
        try:
            self._fd = os.open(path, flags, _OWNER_ONLY)
        except FileNotFoundError as error:
            if writable:
                raise write_failed(path, error) from error
        except OSError as error:
            raise (write_failed if writable else read_failed)(path, error) from error
        if writable:
            _mark_sparse(self._fd)

    def size(self) -> int:
        """Return the size in bytes. Raises: StateCorrupt."""
        if self._fd < 0:
            return 0
        try:
            return os.fstat(self._fd).st_size
        except OSError as error:
            raise read_failed(self.path, error) from error

    def read_into(self, offset: int, view: memoryview) -> None:
        """Fill `view` (bytes) from `offset`, with zeros beyond the file's end. Raises: StateCorrupt."""
        done = 0
        try:
            while self._fd >= 0 and done < len(view):
                count = self._read_some(offset + done, view[done:])
                if not count:
                    break
                done += count
        except OSError as error:
            raise read_failed(self.path, error) from error
        if done < len(view):
            view[done:] = bytes(len(view) - done)

    def _read_some(self, offset: int, view: memoryview) -> int:
        if sys.platform != "win32" and not self._seeking:
            return os.preadv(self._fd, [view], offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            piece = os.read(self._fd, len(view))
        view[: len(piece)] = piece
        return len(piece)

    def write_at(self, offset: int, data: Bytes) -> None:
        """Write `data` at `offset`; not durable before `sync`. Raises: SessionAborted."""
        try:
            done = self._write_some(offset, data)
            if done < len(data):
                view = memoryview(data)
                while done < len(data):
                    done += self._write_some(offset + done, view[done:])
        except OSError as error:
            raise write_failed(self.path, error) from error

    def _write_some(self, offset: int, data: Bytes) -> int:
        if sys.platform != "win32" and not self._seeking:
            return os.pwrite(self._fd, data, offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.write(self._fd, data)

    def truncate(self, size: int) -> None:
        """Set the size in bytes. Raises: SessionAborted."""
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise write_failed(self.path, error) from error

    def allocate(self, offset: int, length: int) -> None:
        """Make sure that a later write to this range finds its space; its content stays. Raises: SessionAborted."""
        try:
            if sys.platform == "linux" and not self._seeking:
                os.posix_fallocate(self._fd, offset, length)
                return
        except OSError as error:
            raise write_failed(self.path, error) from error
        for start in range(offset, offset + length, _PIECE_BYTES):
            piece = bytearray(min(_PIECE_BYTES, offset + length - start))
            self.read_into(start, memoryview(piece))
            self.write_at(start, piece)

    def sync(self) -> None:
        """Make everything written durable. Raises: SessionAborted."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise write_failed(self.path, error) from error

    def close(self) -> None:
        """Release the file; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # A map that was given up without being closed must not keep its dozen descriptors.
        self.close()


class _Nameless(StateFile):
    """A file in `folder` without a name, or with one that goes when it is closed, however that comes to be."""

    def __init__(self, folder: Path) -> None:
        import tempfile

        self.path, self._seeking, self._lock = folder, sys.platform == "win32", threading.Lock()
        self._fd = -1
        try:
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115 - closed by `close`
        except OSError as error:
            raise write_failed(folder, error) from error
        self._fd = self._file.fileno()

    def close(self) -> None:
        """Let it be gone; safe to call twice."""
        if self._fd >= 0:
            self._fd = -1
            self._file.close()


class Disk:
    """What local state does with files and folders besides reading and writing inside one."""

    def open(self, path: Path, *, writable: bool) -> StateFile:
        """Open a file, a new one if it is missing and `writable`. Raises: SessionAborted, StateCorrupt."""
        return StateFile(path, writable=writable)

    def scratch(self, folder: Path) -> StateFile:
        """Make a file in `folder` that is gone once it is closed. Raises: SessionAborted."""
        return _Nameless(folder)

    def read(self, path: Path) -> bytes | None:
        """Return a small file's bytes; None: there is none. Raises: SessionAborted, StateCorrupt."""
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise read_failed(path, error) from error

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file over another; not durable before `sync_folder`. Raises: SessionAborted."""
        try:
            source.replace(target)
        except OSError as error:
            raise write_failed(target, error) from error

    def remove(self, path: Path) -> None:
        """Remove a file; one that is not there is success. Raises: SessionAborted."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_failed(path, error) from error

    def make_folder(self, path: Path) -> None:
        """Make a folder only its owner may enter, and those above it, durably. Raises: SessionAborted."""
        try:
            if path.is_dir():
                return
            if not path.parent.is_dir():
                self.make_folder(path.parent)
            path.mkdir(mode=_OWNER_ONLY_FOLDER, exist_ok=True)
        except OSError as error:
            raise write_failed(path, error) from error
        self.sync_folder(path.parent)

    def sync_folder(self, path: Path) -> None:
        """Make names made, changed or removed in a folder durable. Raises: SessionAborted."""
        if sys.platform != "win32":  # folders cannot be synced there; NTFS journals its names
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError as error:
                raise write_failed(path, error) from error

    def names(self, path: Path) -> list[str]:
        """Return the sorted names of the files in a folder; none if it is missing. Raises: StateCorrupt."""
        try:
            return sorted(entry.name for entry in path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise read_failed(path, error) from error


def _mark_sparse(fd: int) -> None:
    """Ask NTFS to keep holes as holes; elsewhere files are sparse by themselves. Where it fails, space is spent."""
    if sys.platform == "win32":
        import ctypes
        import msvcrt
        from ctypes import wintypes

        done = wintypes.DWORD()
        ctypes.windll.kernel32.DeviceIoControl(
            wintypes.HANDLE(msvcrt.get_osfhandle(fd)), _FSCTL_SET_SPARSE, None, 0, None, 0, ctypes.byref(done), None
        )
