"""Who may have the state directory next: an upload gives way to a session, a session to nobody (DESIGN.md §8).

An upload that holds the lock says so by a file beside it, `lock.offered`. Who waits for the lock then touches
`lock.wanted` until it has it; the upload looks for that between packs, and stops. Both files are hints: whoever gets
the lock removes them, and what a killed process left behind costs the next one nothing.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapters.state.files import write_failed

if TYPE_CHECKING:
    from adapters.state.locks import FileLock

OFFERED: Final = "lock.offered"
WANTED: Final = "lock.wanted"
GIVEN_WITHIN_S: Final = 120.0  # a put may take as long as its stall bound, and its retries
_LOOK_S: Final = 0.05
_OFFERED_WITHIN_S: Final = 0.2


def offer(state_dir: Path) -> None:
    """Let whoever waits know that this holder of the lock gives way. Raises: SessionAborted."""
    # Who came as the lock changed hands has given up since; whoever waits from now on says so again.
    with suppress(OSError):
        (state_dir / WANTED).unlink(missing_ok=True)
    _touch(state_dir / OFFERED)


def wanted(state_dir: Path) -> bool:
    """Tell whether somebody waits for the lock."""
    return (state_dir / WANTED).exists()


def begin(state_dir: Path) -> None:
    """Remove what earlier holders and those who waited have left; call it with the lock held."""
    for name in (OFFERED, WANTED):
        try:
            (state_dir / name).unlink(missing_ok=True)
        except OSError:
            continue  # then it stays a hint that costs somebody a short wait


def wait_for(lock: FileLock, state_dir: Path) -> bool:
    """Wait for a lock whose holder gives way; False: it is held by one that does not, or did not in time.

    Raises: SessionAborted, OSError of the lock.
    """
    began_s = time.monotonic()
    until_s = began_s + GIVEN_WITHIN_S
    while time.monotonic() < until_s:
        # Whoever got the lock a moment ago may be about to offer it.
        if (state_dir / OFFERED).exists():
            _touch(state_dir / WANTED)
        elif time.monotonic() > began_s + _OFFERED_WITHIN_S:
            break
        if lock.acquire():
            return True
        time.sleep(_LOOK_S)
    return False


def _touch(path: Path) -> None:
    try:
        path.touch(mode=0o600)
    except OSError as error:
        raise write_failed(path, error) from error
