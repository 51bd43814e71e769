"""Log files of one component each, for what runs where nobody looks: verifications of the cache."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any, Final

FILE_BYTES_MAX: Final = 1 << 20
FILES_KEPT: Final = 4  # older ones, beside the newest
VERIFICATIONS: Final = "verification.log"  # in the state directory


class ComponentFile:
    """A file that gets the events of one component, one JSON object a line, from "info" on.

    Bounded: of 1 MiB it becomes `<name>.1` and a new one begins; four older ones are kept. It is the owner's alone.
    Several processes may write it. What cannot be written costs nobody anything: `problem` says so.
    """

    def __init__(self, path: Path, component: str) -> None:
        self.path, self.component = path, component
        self.problem: str | None = None
        self._handler = _OwnersFile(path, self._failed)

    def write(self, event: Mapping[str, Any]) -> None:
        """Append an event, if it is one of the component."""
        if event.get("component") != self.component:
            return
        line = json.dumps(event, default=str)
        self._handler.handle(logging.LogRecord("forebay", logging.INFO, "", 0, line, None, None))
        try:
            # Nothing stays open in between: another process may turn the file over, which Windows refuses otherwise.
            self._handler.close()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self.problem = f"the log {self.path} could not be written: {error.strerror or error}"


class _OwnersFile(RotatingFileHandler):
    """A file that turns over, readable by its owner only."""

    def __init__(self, path: Path, failed: Callable[[OSError], None]) -> None:
        super().__init__(path, maxBytes=FILE_BYTES_MAX, backupCount=FILES_KEPT, encoding="utf-8", delay=True)
        self._failed = failed

    def _open(self) -> IO[str]:  # type: ignore[override]
        return open(self.baseFilename, "a", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600))

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell whoever asked to be told; a log that cannot be written is no reason to end anything."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise
        self._failed(error)
