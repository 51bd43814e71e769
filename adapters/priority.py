"""The lowest priority a process can have: what looks after the cache takes only time that nobody else wants."""

from __future__ import annotations

import os
import platform
import sys
from typing import Final

NICE: Final = 19
_BACKGROUND: Final = 0x00100000  # PROCESS_MODE_BACKGROUND_BEGIN: processor, disk and memory
_IDLE_IO: Final = 3 << 13  # IOPRIO_CLASS_IDLE, level 0
_WHO_PROCESS: Final = 1
# The number of ioprio_set differs by architecture; glibc has no function for it.
_IOPRIO_SET: Final = {"x86_64": 251, "i386": 289, "i686": 289, "aarch64": 30, "riscv64": 30, "armv7l": 314}


if sys.platform == "win32":

    def lower() -> list[str]:
        """See below."""
        import ctypes

        kernel = ctypes.windll.kernel32
        done = kernel.SetPriorityClass(kernel.GetCurrentProcess(), _BACKGROUND)
        return [] if done else [f"background mode ({ctypes.WinError().strerror})"]

else:

    def lower() -> list[str]:
        """Give this process, and its later threads, the lowest priority; return what was refused, a few words each.

        A refusal is no error: the work is the same, only less polite.
        """
        refused: list[str] = []
        try:
            os.nice(NICE)
        except OSError as error:
            refused.append(f"nice {NICE} ({error.strerror})")
        if sys.platform == "linux" and (reason := _idle_io()) is not None:
            refused.append(f"idle I/O class ({reason})")
        return refused


def _idle_io() -> str | None:
    """Put this process into the idle I/O class; return why it was refused, None if it was not."""
    machine = platform.machine()
    number = _IOPRIO_SET.get(machine)
    if number is None:
        return f"not known how on {machine}"
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    # Of who calls; threads made later have its class.
    if library.syscall(number, _WHO_PROCESS, 0, _IDLE_IO) == 0:
        return None
    return os.strerror(ctypes.get_errno())
