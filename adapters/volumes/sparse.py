"""Giving a new file its length without its bytes: a hole that reads as zeros and takes no room."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import ctypes
    import msvcrt

    _FSCTL_SET_SPARSE = 0x000900C4

    def make_hole(fd: int, size_bytes: int) -> None:
        """Make the empty file `fd` of `size_bytes` read as zeros. Raises: OSError.

        Windows' own truncate writes the zeros out: the file is marked sparse and its last byte written instead. A
        file system without sparse files refuses the mark; there the room is taken.
        """
        taken = ctypes.c_ulong()
        handle = ctypes.c_void_p(msvcrt.get_osfhandle(fd))
        ctypes.windll.kernel32.DeviceIoControl(handle, _FSCTL_SET_SPARSE, None, 0, None, 0, ctypes.byref(taken), None)
        if size_bytes:
            os.lseek(fd, size_bytes - 1, os.SEEK_SET)
            os.write(fd, b"\0")
else:

    def make_hole(fd: int, size_bytes: int) -> None:
        """Make the file `fd`, whatever is in it, `size_bytes` that read as zeros. Raises: OSError."""
        os.ftruncate(fd, 0)
        os.ftruncate(fd, size_bytes)
