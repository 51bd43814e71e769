"""Exit codes of commands (DESIGN.md §8), for reports as for the process: the one place that knows them."""

from __future__ import annotations

from typing import Final

from engine.errors import ConfigError, SessionRunning

DONE: Final = 0
FAILED: Final = 1  # or a promise was not kept: holes in a restore
USAGE: Final = 2
IN_SPOOL: Final = 3
SOMETHING_MISSING: Final = 4
RUNNING: Final = 5


def of_error(error: BaseException) -> int:
    """Return the exit code an error stands for."""
    if isinstance(error, ConfigError):
        return USAGE
    return RUNNING if isinstance(error, SessionRunning) else FAILED
