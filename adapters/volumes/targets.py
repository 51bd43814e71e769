"""Files as restore targets: written sparse beside their final name, which they get only when all is there."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from adapters.volumes.descriptor import next_data
from adapters.volumes.journal import RestoreJournal
from adapters.volumes.sparse import make_hole
from adapters.volumes.writing import TargetWriter
from engine.block import Bytes
from engine.errors import RestoreError

if sys.platform != "win32":
    import fcntl

PARTIAL_SUFFIX: Final = ".forebay-partial"
_OPEN_TRIES_MAX: Final = 4

if sys.platform == "win32":
    _ERROR_SHARING_VIOLATION: Final = 32
    _PARTIAL_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT
else:
    _PARTIAL_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK


class FileTarget:
    """A RestoreTarget: the new file `path` of `size_bytes`.

    It grows as `path` + ".forebay-partial" and gets its name at `finish`; until then a file that `path` leads to
    stays as it is. A partial file that an interrupted restore left is gone on with if something was kept in it, else
    it is written anew; one that is being written is refused.

    Raises: RestoreError if `path` exists and `overwrite` is not given, is no file, or cannot be made.
    """

    def __init__(self, path: Path, size_bytes: int, overwrite: bool) -> None:
        self._path, self._size_bytes, self._overwrite = path, size_bytes, overwrite
        with restoring(f"{path} cannot be looked at"):
            self._check_path()
        self._partial = path.with_name(path.name + PARTIAL_SUFFIX)
        self._written_to = 0  # beyond it nothing but holes
        self._kept = b""
        self._fd = -1
        with restoring(f"{self._partial} cannot be made"):
            self._fd = self._open_partial()
            self._writer = TargetWriter(self._fd)
            self._journal = RestoreJournal(self._fd, size_bytes, self._writer.write)
            try:
                self._kept = self._journal.read()
                if self._kept:
                    self._written_to = size_bytes  # somewhere
                else:
                    make_hole(self._fd, self._journal.file_bytes)
            except OSError:
                self._kept = b""
                self.abandon()
                raise

    def _check_path(self) -> None:
        path = self._path
        if path.is_dir():
            raise RestoreError(f"{path} is a folder: name a file in it, such as {path / 'volume.img'}")
        if not path.parent.is_dir():
            raise RestoreError(f"folder {path.parent} does not exist: make it, or choose another path")
        if os.path.lexists(path):
            if not self._overwrite:
                raise RestoreError(f"{path} exists: choose another path, or give --overwrite to replace it")
            if path.exists() and not path.is_file():
                raise RestoreError(f"{path} is neither a file nor a block device: choose another path")

    def _open_partial(self) -> int:
        taken = RestoreError(f"{self._partial} is being written by another restore: wait for its end")
        if sys.platform == "win32":
            try:
                with suppress(FileNotFoundError):
                    os.unlink(self._partial)
            except PermissionError as error:
                if error.winerror == _ERROR_SHARING_VIOLATION:
                    raise taken from error
                raise
            return os.open(self._partial, _PARTIAL_FLAGS)
        else:  # noqa: RET505 - for the type checker, which sees one platform only
            for _ in range(_OPEN_TRIES_MAX):
                fd = os.open(self._partial, _PARTIAL_FLAGS, 0o600)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_ours(fd):
                        os.fchmod(fd, 0o600)
                        return fd
                except OSError as error:
                    os.close(fd)
                    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                        raise taken from error
                    raise
                os.close(fd)
            raise taken

    def _is_ours(self, fd: int) -> bool:
        """Tell whether the locked `fd` is what the partial file's name leads to, and nobody else's; else free the name.

        Another restore may have given the file its name before the lock was had; and a name in a folder that others
        write to may be one more name of any file, or a file they opened before.
        """
        found = os.fstat(fd)
        try:
            named = os.lstat(self._partial)
        except FileNotFoundError:
            return False
        if (named.st_dev, named.st_ino) != (found.st_dev, found.st_ino):
            return False
        mine = sys.platform == "win32" or found.st_uid == os.geteuid()
        if mine and stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return True
        os.unlink(self._partial)
        return False

    def write(self, offset: int, pieces: Sequence[Bytes]) -> None:
        """See `RestoreTarget.write`."""
        length = sum(map(len, pieces))
        self._check_range(offset, length)
        with self._writer.lock:
            self._written_to = max(self._written_to, offset + length)
        with restoring(f"writing {length} bytes at offset {offset} of {self._partial} failed"):
            self._writer.write(offset, pieces)

    def zero(self, offset: int, length: int) -> None:
        """See `RestoreTarget.zero`: a range nothing was written to stays a hole. From any thread."""
        self._check_range(offset, length)
        with restoring(f"zeroing {length} bytes at offset {offset} of {self._partial} failed"):
            while length > 0:
                with self._writer.lock:
                    stop = min(offset + length, self._written_to)
                    data, hole = next_data(self._fd, offset, stop) if offset < stop else (stop, stop)
                if data >= stop:
                    return
                self._writer.zeros(data, hole - data)
                offset, length = hole, offset + length - hole

    def begun(self) -> bytes:
        """See `RestoreTarget.begun`."""
        return self._kept

    def keep(self, progress: bytes) -> None:
        """See `RestoreTarget.keep`."""
        with restoring(f"how far the restore is could not be kept in {self._partial}"):
            if self._journal.write(progress):
                self._kept = progress

    def restart(self) -> None:
        """See `RestoreTarget.restart`."""
        with restoring(f"{self._partial} cannot be written anew"), self._writer.lock:
            make_hole(self._fd, self._journal.file_bytes)
            self._kept, self._written_to = b"", 0

    def _check_range(self, offset: int, length: int) -> None:
        assert 0 <= offset <= offset + length <= self._size_bytes, (offset, length, self._size_bytes)

    def finish(self) -> None:
        """See `RestoreTarget.finish`."""
        with restoring(f"{self._partial} could not be finished as {self._path}"):
            os.ftruncate(self._fd, self._size_bytes)
            os.fsync(self._fd)
            self._kept = b""
            if sys.platform == "win32":
                self._close()  # an open file is not renamed there
            # Elsewhere the lock is held until the name is another: nobody may begin to write to this file.
            try:
                if self._overwrite:
                    os.replace(self._partial, self._path)
                else:
                    self._name_new()
            finally:
                self._close()
            sync_parent(self._path)

    def _name_new(self) -> None:
        try:
            if sys.platform == "win32":
                os.rename(self._partial, self._path)
            else:
                os.link(self._partial, self._path)  # unlike a rename it fails if the name exists
                os.unlink(self._partial)
        except FileExistsError as error:
            raise RestoreError(
                f"{self._path} came to exist during the restore; all data is in {self._partial}: rename it"
            ) from error
        except OSError:
            if os.path.lexists(self._path) or not os.path.lexists(self._partial):
                raise
            os.rename(self._partial, self._path)  # a file system without links

    def abandon(self) -> None:
        """See `RestoreTarget.abandon`; what was kept stays for the next restore. After `finish` it does nothing."""
        if self._fd >= 0:
            self._close()
            if not self._kept:
                with suppress(OSError):
                    os.unlink(self._partial)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._writer.close()
            os.close(fd)


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Raise RestoreError with the system's own words for any OSError."""
    try:
        yield
    except OSError as error:
        raise RestoreError(f"{what}: {error.strerror or error}") from error


def sync_parent(path: Path) -> None:
    """Make the entry of `path` in its folder durable; Windows does so by itself. Raises: OSError."""
    if sys.platform != "win32":
        fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
