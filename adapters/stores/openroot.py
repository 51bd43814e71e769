"""The root folder of a store, opened, and the few file operations a store is made of (worker threads only).

On POSIX all names are relative to a handle of the root, so that a disk that is unmounted meanwhile cannot turn a
checked folder into its empty mount point; Windows has no such calls, and no mount points that swallow writes.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import msgspec

from adapters.directio import STEP_BYTES, NewFile
from adapters.stores.calls import Call
from engine.errors import ObjectMissing

SYNC_BYTES: Final = 32 << 20  # written between two fsyncs, so that a slow disk shows progress

if sys.platform == "win32":
    READ: Final = os.O_RDONLY | os.O_BINARY | os.O_NOINHERIT
    SYNC: Final = os.O_RDWR | os.O_BINARY | os.O_NOINHERIT  # FlushFileBuffers wants a writable handle
    CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_BINARY | os.O_NOINHERIT
else:
    # O_NONBLOCK: a foreign FIFO under a name of ours must not hang the open.
    READ: Final = os.O_RDONLY | os.O_NONBLOCK
    SYNC: Final = READ
    CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

# What a file system says that knows no hard links.
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK})


class OpenRoot(msgspec.Struct, frozen=True):
    """The root folder, opened: on POSIX names are relative to `fd`, on Windows (`fd` None) paths are whole."""

    root: str
    fd: int | None

    def path(self, name: str) -> str:
        """Return what to pass to a system call, together with `dir_fd=self.fd`."""
        return (name or ".") if self.fd is not None else os.path.join(self.root, *name.split("/"))

    def sync_folder(self, name: str) -> None:
        """Make the entries of a folder durable; Windows does so by itself."""
        if sys.platform != "win32":
            fd = os.open(self.path(name), os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.fd)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

    def make_folders(self, name: str) -> None:
        """Make the folders an object's name needs, below the root only."""
        parts = name.split("/")[:-1]
        for count in range(1, len(parts) + 1):
            with suppress(FileExistsError):
                os.mkdir(self.path("/".join(parts[:count])), dir_fd=self.fd)

    def write_new(self, name: str, view: memoryview, sync: bool, call: Call) -> None:
        """Write a file that must not exist; with `sync` its bytes are durable. Nothing is left of a failure."""
        fd = os.open(self.path(name), CREATE, 0o666, dir_fd=self.fd)
        try:
            try:
                written = synced = 0
                file = NewFile(fd, view)
                while written < len(view):
                    written += file.write(view[written : written + STEP_BYTES])
                    if sync and written - synced >= SYNC_BYTES:
                        os.fsync(fd)
                        synced = written
                    call.progress()
                if sync:
                    os.fsync(fd)
            finally:
                os.close(fd)
            call.progress()
        except BaseException:
            self.discard(name)
            raise

    def publish(self, temporary: str, name: str, replace: bool) -> bool:
        """Give a written file its name; False if, without `replace`, the name exists by now."""
        source, target = self.path(temporary), self.path(name)
        if replace:
            os.replace(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            return True
        try:
            if sys.platform == "win32":
                os.rename(source, target)  # never replaces on Windows
            else:
                self._link(source, target)
        except FileExistsError:
            return False
        return True

    def _link(self, source: str, target: str) -> None:
        # A link, unlike a rename, fails if the name exists: of two writers exactly one wins.
        try:
            os.link(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.rename(source, target, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def room(self) -> tuple[int, int]:
        """Return (bytes of the device, bytes that may still be written to it); 0 bytes: it does not say."""
        if sys.platform == "win32":
            usage = shutil.disk_usage(self.root)
            size, free = usage.total, usage.free
        else:
            found = os.statvfs(self.root if self.fd is None else self.fd)
            size, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
        return size, free

    def discard(self, name: str) -> None:
        """Remove a temporary file if that can be done; a sweep does the rest."""
        with suppress(OSError):
            os.unlink(self.path(name), dir_fd=self.fd)


@contextmanager
def opened(root: str) -> Iterator[OpenRoot]:
    """Open the root folder for one operation."""
    if sys.platform == "win32":
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
        yield OpenRoot(root, None)
    else:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield OpenRoot(root, fd)
        finally:
            os.close(fd)


@contextmanager
def read_regular(at: OpenRoot, name: str, flags: int = READ) -> Iterator[tuple[int, int]]:
    """Open an object's file; yield its descriptor and size. Raises: ObjectMissing if there is none."""
    try:
        fd = os.open(at.path(name), flags, dir_fd=at.fd)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectMissing(name) from error
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise ObjectMissing(name, f"object {name} does not exist in the store: {at.root} has no file there")
        yield fd, found.st_size
    finally:
        os.close(fd)
