"""Whether the vault is owed a report: it could not be reached when there was something to tell it.

A mark, and no queue: a report says all that those before it said, so only the newest matters, and that is made of what
local state knows by then. The mark can be lost without harm, since every session reports.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapters.state.files import write_failed

_NAME: Final = "report.owed"


def owed(state_dir: Path) -> bool:
    """Tell whether the vault lacks the newest report."""
    return (state_dir / _NAME).exists()


def note(state_dir: Path, is_owed: bool) -> None:
    """Note that the vault lacks the newest report, or that it has it. Raises: SessionAborted."""
    path = state_dir / _NAME
    try:
        if is_owed:
            path.touch(mode=0o600)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise write_failed(path, error) from error
