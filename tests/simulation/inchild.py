"""Work done in a child process, which may change modules for good, and the answer it gives."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable


def answer_of(work: Callable[[], str]) -> str:
    """Return what `work` returns in a child process; "": nothing, or it was cut off by an error, which is printed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, work().encode())
        except BaseException:  # noqa: BLE001 - the child ends here
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return found
